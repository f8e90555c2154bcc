// What brings a segment of tokens into shared memory, and what happens at the ends of a sequence.
#pragma once

// s and v of one token and channel: the time felt, and what B multiplies (u, or Delta u for euler).
struct Felt {
  float s, v;
};
__device__ __forceinline__ Felt felt_by(const ScanParams& p, int row, int d) {
  float step = load_as(p.type, p.delta, offset_of(row, p.delta_stride, d));
  float u = load_as(p.type, p.u, offset_of(row, p.u_stride, d));
  if (p.delta_bias) step += p.delta_bias[d];
  if (p.softplus) step = softplus_of(step);
  float s = p.gap ? fmaf(p.gap_rate[d], p.gap[row], step) : step;
  return {no_further(s), p.input == EULER ? u * step : u};
}

// Gradient of y before the gate.
__device__ __forceinline__ float ungated_dy(const ScanParams& p, int row, int d) {
  if (!p.dy) return 0.f;
  float dy = load_as(p.type, p.dy, offset_of(row, p.dy_stride, d));
  if (!p.z) return dy;
  float z = load_as(p.type, p.z, offset_of(row, p.z_stride, d));
  return dy * z * sigmoid_of(z);
}

// Tokens [from, from + count) of the block's channels; what does not exist reads as zero, which
// leaves every state as it is. `v` also gets the token before, at t = -1, if `before`.
__device__ __forceinline__ void stage(const ScanParams& p, int from, int count, bool before,
                                      float* s, float* v, float* dy, int* flags) {
  int thread = (int)threadIdx.x + opaque_zero();
  int channel = thread % CHANNELS, first = thread / CHANNELS;
  int d = (int)blockIdx.y * CHANNELS + channel;
  bool real = d < p.n_channels;
#pragma unroll 2
  for (int t = first; t < SEGMENT; t += THREADS / CHANNELS) {
    Felt felt = {0.f, 0.f};
    float gradient = 0.f;
    if (real && t < count) {
      int row = row_of(p, from + t);
      felt = felt_by(p, row, d);
      if (dy) gradient = ungated_dy(p, row, d);
    }
    int at = cell(t, channel);
    s[at] = felt.s;
    if (v) v[at] = felt.v;
    if (dy) dy[at] = gradient;
  }
  if (before && first == 0) {
    float u = 0.f;
    if (real && from > 0) u = load_as(p.type, p.u, offset_of(row_of(p, from - 1), p.u_stride, d));
    v[-CHANNELS + (channel + CHANNELS - 8) % CHANNELS] = u;
  }
  for (int t = (int)threadIdx.x; t < SEGMENT; t += THREADS) {
    long long i = from + t;
    flags[t] = t < count ? (is_first(p, i) ? FIRST : 0) | (is_last(p, i) ? LAST : 0) : 0;
  }
}

// One tile of the rows of B or C, from row t = -1 if `before`.
__device__ __forceinline__ void stage_rows(const ScanParams& p, const void* rows, long long stride,
                                           int from, int count, int tile, bool before,
                                           float* to) {
  int thread = (int)threadIdx.x + opaque_zero(), n = thread % TILE, state = tile * TILE + n;
#pragma unroll 2
  for (int t = thread / TILE; t < SEGMENT; t += THREADS / TILE) {
    float x = 0.f;
    if (t < count && state < p.n_state)
      x = load_as(p.type, rows, offset_of(row_of(p, from + t), stride, state));
    to[t * TILE + n] = x;
  }
  if (before && threadIdx.x < TILE) {
    float x = 0.f;
    if (from > 0 && state < p.n_state)
      x = load_as(p.type, rows, offset_of(row_of(p, from - 1), stride, state));
    to[n - TILE] = x;
  }
}

// A thread's four states within an array (S, D, width), and which of them exist.
struct Border {
  long long at;
  int exist;
};
__device__ __forceinline__ Border find_border(const ScanParams& p, const Place& at, int i,
                                              int tile, long long width) {
  int zero = opaque_zero(), n0 = tile * TILE + at.lane * STATES + zero;
  int exist = at.real ? (int)p.n_state - n0 : 0;
  return {(p.labels[i + zero] * p.n_channels + at.d) * width + n0, exist};
}
__device__ __forceinline__ States read_border(const float* states, const Border& b,
                                              long long half) {
  States x = zeros();
  if (!states) return x;
#pragma unroll
  for (int j = 0; j < STATES; j++)
    if (j < b.exist) x.of[j] = states[b.at + half + j];
  return x;
}
__device__ __forceinline__ void write_border(float* states, const Border& b, long long half,
                                             const States& x) {
#pragma unroll
  for (int j = 0; j < STATES; j++)
    if (j < b.exist) states[b.at + half + j] = x.of[j];
}

template <int KIND>
__device__ __forceinline__ long long carried_width(const ScanParams& p) {
  return KIND == RISING ? 2 * p.n_state : p.n_state;
}
// Whether an initial state brings foh's last input.
__device__ __forceinline__ bool brings_input(const ScanParams& p) {
  return p.initial_state && p.initial_width == 2 * p.n_state;
}

// Four values of four lanes each, one for each of four tokens; lane k gets the sum of token k.
__device__ __forceinline__ float sum_over_lanes(const Place& at, const float x[LANES]) {
  bool high = at.lane & 2, odd = at.lane & 1;
  float a = (high ? x[2] : x[0]) + __shfl_xor_sync(WARP, high ? x[0] : x[2], 16);
  float b = (high ? x[3] : x[1]) + __shfl_xor_sync(WARP, high ? x[1] : x[3], 16);
  return (odd ? b : a) + __shfl_xor_sync(WARP, odd ? a : b, 8);
}

// Eight values of eight channels each; channel c of the warp gets the sum of value c.
__device__ __forceinline__ float sum_over_channels(const float x[8]) {
  int c = (int)threadIdx.x % 8;
  float a[4], b[2];
#pragma unroll
  for (int j = 0; j < 4; j++)
    a[j] = (c & 4 ? x[j + 4] : x[j]) + __shfl_xor_sync(WARP, c & 4 ? x[j] : x[j + 4], 4);
#pragma unroll
  for (int j = 0; j < 2; j++)
    b[j] = (c & 2 ? a[j + 2] : a[j]) + __shfl_xor_sync(WARP, c & 2 ? a[j] : a[j + 2], 2);
  return (c & 1 ? b[1] : b[0]) + __shfl_xor_sync(WARP, c & 1 ? b[0] : b[1], 1);
}
