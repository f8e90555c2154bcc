// What Python hands to the kernels of the selective scan, and how a block finds its tokens.
//
// `ScanParams` is mirrored field by field in `tsfm/kernels/cuda_scan.py`. Pointers that may be
// absent are null. Row strides are in elements; the last axis is contiguous. `i` counts tokens in
// the order of the walk: token i is row i, or row T - 1 - i in reverse, where sequences, too,
// come from the last to the first.
#pragma once

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

enum InputKind { EULER = 0, IMPULSE = 1, ZOH = 2, FOH = 3 };
// What the weights of the input term need beside exp(A s); euler and impulse are both PLAIN.
enum WeightKind { PLAIN = 0, HELD = 1, RISING = 2 };

constexpr int STATES = 4;                          // states of a channel in one thread
constexpr int LANES = 4;                           // threads of a channel
constexpr int TILE = STATES * LANES;               // states walked together; more come tile by tile
constexpr int CHANNELS = 32;                       // channels of a block
constexpr int THREADS = CHANNELS * LANES;
constexpr int SEGMENT = 64;                        // tokens between two checkpoints of the state
constexpr int FIRST = 1, LAST = 2;                 // place of a token in its sequence
constexpr unsigned WARP = 0xffffffffu;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float FURTHEST = 1e18f;                  // longer than any gap, and its square is finite
// fminf would make a NaN the bound.
__device__ __forceinline__ float no_further(float s) { return s > FURTHEST ? FURTHEST : s; }

struct ScanParams {
  long long n_tokens, n_channels, n_state, n_sequences;
  long long u_stride, delta_stride, z_stride, B_stride, C_stride, dy_stride;
  long long initial_width;                         // N, or 2N where foh's last input is given
  long long chunk_tokens, n_chunks;                // chunk_tokens is a multiple of SEGMENT
  long long first_chunk, slice_tokens;             // the backward pass goes slice by slice
  int type, input, softplus, reverse, n_tiles, backwards;
  const void *u, *delta, *B, *C, *z, *dy;
  const float *A, *D, *gap, *gap_rate, *delta_bias, *initial_state, *dfinal;
  const int *borders;
  int *labels;                                     // (T,) sequence of walked token i
  float *carry, *elapsed;                          // (chunks, D, N padded), (chunks, D)
  float *checkpoints;                              // (segments, D, N padded)
  void *y;
  float *final_state;
  void *du, *ddelta, *dz, *dB, *dC;
  float *dgap, *dinitial, *dA, *dD, *dgap_rate, *ddelta_bias;
  // One share a block of channels (dB and dC, dgap) or a chunk, added in their order afterwards.
  float *state_shares, *gap_shares, *rate_shares, *channel_shares;
};

// Zero, which the compiler does not know: what depends on it can't be computed ahead of its
// place. Work at the borders of sequences is rare but written out for each unrolled token, and
// the loads around a segment are many; their addresses, kept ready, would take the registers that
// the walk needs.
__device__ __forceinline__ int opaque_zero() {
  int zero = 0;
#ifdef __CUDA_ARCH__
  asm volatile("mov.s32 %0, 0;" : "=r"(zero));
#endif
  return zero;
}

// Makes the compiler take a value, or what lies in memory, as new: it would rather keep
// everything that it computed from them in registers than compute or load it once more.
__device__ __forceinline__ void take_as_new(float& x) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+f"(x));
#endif
}
__device__ __forceinline__ void take_as_new(int& x) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(x));
#endif
}
__device__ __forceinline__ void take_memory_as_new() {
#ifdef __CUDA_ARCH__
  asm volatile("" ::: "memory");
#endif
}

// Rows and strides fit 31 bits, as the borders do; their products need not.
__device__ __forceinline__ int row_of(const ScanParams& p, int i) {
  int row = p.reverse ? (int)p.n_tokens - 1 - i : i;
  take_as_new(row);
  return row;
}
__device__ __forceinline__ long long offset_of(int row, long long stride, long long column) {
  return (long long)row * (int)stride + column;
}
__device__ __forceinline__ int walk_start(const ScanParams& p, int label) {
  return p.reverse ? (int)p.n_tokens - p.borders[label + 1] : p.borders[label];
}
__device__ __forceinline__ int walk_end(const ScanParams& p, int label) {
  return p.reverse ? (int)p.n_tokens - p.borders[label] : p.borders[label + 1];
}
__device__ __forceinline__ bool is_first(const ScanParams& p, int i) {
  return i == 0 || p.labels[i - 1] != p.labels[i];
}
__device__ __forceinline__ bool is_last(const ScanParams& p, int i) {
  return i == p.n_tokens - 1 || p.labels[i + 1] != p.labels[i];
}

// Where a thread of a scan stands. Neighbouring threads are neighbouring channels: their reads of
// B and C meet in one address, and the eight channels of a warp are added by three shuffles.
struct Place {
  int channel, lane;        // within the block; which four states of a tile
  int d;                    // channel of the whole, possibly beyond the last
  bool real;                // d exists
  int column[LANES];        // see `cell`
};
__device__ __forceinline__ Place find_place(const ScanParams& p) {
  Place at;
  int thread = (int)threadIdx.x;
  at.channel = thread / 32 * 8 + thread % 8;
  at.lane = thread / 8 % LANES;
  at.d = (int)blockIdx.y * CHANNELS + at.channel;
  at.real = at.d < p.n_channels;
#pragma unroll
  for (int k = 0; k < LANES; k++) at.column[k] = (at.channel + 8 * k) % CHANNELS;
  return at;
}

// Shared arrays of (token, channel) are turned by eight channels a token, so that the four lanes of
// eight channels write four tokens at once without a bank conflict.
__device__ __forceinline__ int cell(int t, int channel) {
  return t * CHANNELS + (channel + 8 * t) % CHANNELS;
}
// The same for t = 4 m + k, with the columns at hand.
__device__ __forceinline__ int cell(const Place& at, int t4, int k) {
  return (t4 + k) * CHANNELS + at.column[k & 3];
}

struct States {
  float of[STATES];
};
__device__ __forceinline__ States zeros() { return {{0.f, 0.f, 0.f, 0.f}}; }
__device__ __forceinline__ States load4(const float* from) {
  float4 x = *reinterpret_cast<const float4*>(from);
  return {{x.x, x.y, x.z, x.w}};
}
__device__ __forceinline__ void store4(float* to, const States& x) {
  *reinterpret_cast<float4*>(to) = make_float4(x.of[0], x.of[1], x.of[2], x.of[3]);
}
// Offset of a thread's states in an array (row, D, N padded).
__device__ __forceinline__ long long states_at(const ScanParams& p, const Place& at, int row,
                                               int tile) {
  return (((long long)row * (int)p.n_channels + at.d) * p.n_tiles + tile) * TILE + at.lane * STATES;
}
