// One token for many rows of states: what decoding and rollouts run.
//
//     h = exp(A s) state[source] + input term,   state[target] = h,   y = (C h + D u) silu(z)
//
// with s, the input term and foh's second half of the state as in `tsfm/kernels/scan_inputs.py`. All
// time goes into reading and writing the states, so neighbouring threads hold neighbouring states: a
// thread has four, a channel has as many threads as cover its states (at most a warp's, which then go
// round), and their shares of y meet in shuffles. A thread keeps its channel's rates while it goes
// from row to row. Every thread reads what it will overwrite before it writes, so a row may be its own
// source; that no row is overwritten while another still has to read it is the host's affair.
#include "vector_access.cuh"

enum InputKind { EULER = 0, IMPULSE = 1, ZOH = 2, FOH = 3 };

constexpr float LOG2E = 1.4426950408889634f;
constexpr float FURTHEST = 1e18f;  // longer than any gap; A s stays finite
constexpr unsigned WARP = 0xffffffffu;

// Mirrored in `tsfm/kernels/cuda_state_update.py`. Absent tensors are null. Strides are in elements;
// the last axis is contiguous, states altogether.
struct StateParams {
  long long n_rows, n_channels, n_state, n_sources, n_targets;
  long long u_stride, delta_stride, z_stride, B_stride, C_stride;
  int input, softplus, wide_slots;
  int lanes;    // threads of a channel, a power of two up to 32
  int vectors;  // four states of every array lie at an aligned address
  const void *source, *source_slots, *target_slots;
  const void *u, *delta, *z, *B, *C;
  const float *A, *D, *gap, *gap_rate, *delta_bias;
  void *state, *y;
};

// Weights of the old state, of what arrives and, for foh, of what arrived before.
struct Weights {
  float decay, fresh, previous;
};
__device__ __forceinline__ Weights weights_of(int input, float A, float s) {
  // Not expm1 + 1, which would lose a small decay.
  float decay = exp2f(A * LOG2E * s);
  if (input < ZOH) return {decay, 1.f, 0.f};
  float x = A * s, less = expm1f(x);
  float held = A == 0.f ? s : less / A;
  if (input == ZOH) return {decay, held, 0.f};
  // (e^x - 1 - x) / (A x) and the rest of `held`: the closed forms cancel where |x| < 1.
  if (fabsf(x) >= 1.f) {
    float square = A * x;
    return {decay, (less - x) / square, fmaf(x - 1.f, decay, 1.f) / square};
  }
  float series = fmaf(x, 1.f / 39916800, 1.f / 3628800);
  series = fmaf(series, x, 1.f / 362880);
  series = fmaf(series, x, 1.f / 40320);
  series = fmaf(series, x, 1.f / 5040);
  series = fmaf(series, x, 1.f / 720);
  series = fmaf(series, x, 1.f / 120);
  series = fmaf(series, x, 1.f / 24);
  series = fmaf(series, x, 1.f / 6);
  series = fmaf(series, x, 0.5f);
  float rising = s * series;
  return {decay, rising, held - rising};
}

__device__ __forceinline__ long long slot_of(const StateParams& p, const void* slots, long long row) {
  if (!slots) return row;
  return p.wide_slots ? ((const long long*)slots)[row] : ((const int*)slots)[row];
}

template <class T>
__device__ __forceinline__ void read4(const StateParams& p, const T* from, long long n, float* x) {
  if (p.vectors) load4(from + n, x);
  else load_some(from + n, p.n_state - n, x);
}
template <class T>
__device__ __forceinline__ void write4(const StateParams& p, T* to, long long n, const float* x) {
  if (p.vectors) store4(to + n, x);
  else store_some(to + n, p.n_state - n, x);
}

template <class T, class State> __device__ __forceinline__ void update(const StateParams& p) {
  const int lane = (int)threadIdx.x % p.lanes;
  const long long d = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / p.lanes;
  const bool real = d < p.n_channels;
  const long long first = 4 * lane, width = (p.input == FOH ? 2 : 1) * p.n_state;

  float A[4] = {0.f, 0.f, 0.f, 0.f};
  if (real && first < p.n_state) read4(p, p.A + d * p.n_state, first, A);
  const float bias = real && p.delta_bias ? p.delta_bias[d] : 0.f;
  const float rate = real && p.gap ? p.gap_rate[d] : 0.f;
  const float skip = real && p.D ? p.D[d] : 0.f;

  for (long long row = blockIdx.y; row < p.n_rows; row += gridDim.y) {
    const long long source = slot_of(p, p.source_slots, row);
    const long long target = slot_of(p, p.target_slots, row);
    // A slot outside the states touches none of them, and its row says so.
    const bool inside = source >= 0 && source < p.n_sources && target >= 0 && target < p.n_targets;
    float sum = 0.f, u = 0.f;
    if (real && inside) {
      u = load((const T*)p.u, row * p.u_stride + d);
      float step = load((const T*)p.delta, row * p.delta_stride + d) + bias;
      if (p.softplus) step = step > 20.f ? step : log1pf(expf(step));
      const float felt = p.gap ? fmaf(rate, p.gap[row], step) : step;
      const float s = felt > FURTHEST ? FURTHEST : felt;  // fminf would make a NaN the bound
      const float arriving = p.input == EULER ? step * u : u;
      const State* from = (const State*)p.source + (source * p.n_channels + d) * width;
      State* to = (State*)p.state + (target * p.n_channels + d) * width;
      for (long long n = first; n < p.n_state; n += 4 * p.lanes) {
        float h[4], B[4], C[4], v[4], before[4] = {0.f, 0.f, 0.f, 0.f};
        read4(p, from, n, h);
        if (p.input == FOH) read4(p, from + p.n_state, n, before);
        read4(p, (const T*)p.B + row * p.B_stride, n, B);
        read4(p, (const T*)p.C + row * p.C_stride, n, C);
        if (n != first) read4(p, p.A + d * p.n_state, n, A);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const Weights w = weights_of(p.input, A[i], s);
          v[i] = B[i] * arriving;
          h[i] = fmaf(w.decay, h[i], fmaf(w.fresh, v[i], w.previous * before[i]));
          sum = fmaf(C[i], h[i], sum);
        }
        write4(p, to, n, h);
        if (p.input == FOH) write4(p, to + p.n_state, n, v);
        if (n != first && n + 4 * p.lanes >= p.n_state) read4(p, p.A + d * p.n_state, first, A);
      }
    }
    for (int other = p.lanes / 2; other; other /= 2) sum += __shfl_xor_sync(WARP, sum, other);
    if (real && lane == 0) {
      float y = fmaf(skip, u, sum);
      if (p.z) {
        const float z = load((const T*)p.z, row * p.z_stride + d);
        y *= z / (1.f + expf(-z));
      }
      store((T*)p.y, row * p.n_channels + d, inside ? y : __uint_as_float(0x7fc00000u));
    }
  }
}

#define STATE_UPDATE(name, T, State)                                                \
  extern "C" __global__ void __launch_bounds__(128, 8) name(const StateParams p) {  \
    update<T, State>(p);                                                            \
  }
STATE_UPDATE(state_update_f32_f32, float, float)
STATE_UPDATE(state_update_bf16_f32, bf16, float)
STATE_UPDATE(state_update_f16_f32, f16, float)
STATE_UPDATE(state_update_f32_bf16, float, bf16)
STATE_UPDATE(state_update_bf16_bf16, bf16, bf16)
STATE_UPDATE(state_update_f16_bf16, f16, bf16)
