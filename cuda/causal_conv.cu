// Short depthwise causal convolution of packed sequences, with its derivative.
//
//     X(w) = input of a sequence in the order of the walk; before it, its initial state, then zeros
//     pre(w) = bias + sum over k < K of weight[K-1-k] X(w-k),     y(w) = pre(w) or silu(pre(w))
//
// Walk position w is token start + w of the sequence, in reverse end - 1 - w. A thread has one or four
// channels and walks a chunk of tokens with the last inputs in registers, so that every number is
// read once (and the K - 1 before a chunk again). The part of a chunk within one sequence is walked on
// its own: nothing passes from one sequence into the next. Backward recomputes `pre` and walks the
// same way, W - 1 positions ahead of the gradient that it writes; each chunk's share of the gradients
// of weight and bias is written apart and added in a fixed order.
#include "vector_access.cuh"

// Mirrored in `tsfm/kernels/cuda_causal_conv.py`. Absent tensors are null. Strides are in elements; the
// last axis is contiguous, all but x and dy altogether. States are (S, D, K - 1).
struct ConvParams {
  long long n_tokens, n_channels, n_sequences;
  long long x_stride, dy_stride;
  long long chunk_tokens, n_chunks;
  int n_taps, silu, reverse;
  const void *x, *initial_state, *dy, *dfinal;
  const float *weight, *bias;
  const int *borders;
  void *y, *final_state, *dx, *dinitial;
  float *shares;  // (chunks, K + 1, D): of weight[K-1], weight[K-2], ..., of bias
  float *dweight, *dbias;
};

// A stretch of one sequence: walk positions [from, to) of `length`, token base + direction * w.
struct Stretch {
  long long sequence, from, to, length, base;
  int direction;
};

constexpr int AT_ONCE = 4;  // rows in flight

// The sequence that holds a token.
__device__ __forceinline__ long long sequence_of(const ConvParams& p, long long token) {
  long long low = 0, high = p.n_sequences;  // borders[low] <= token < borders[high]
  while (high - low > 1) {
    long long middle = (low + high) / 2;
    if (p.borders[middle] <= token) low = middle;
    else high = middle;
  }
  return low;
}

// Calls `walk` for every stretch of the block's chunk.
template <class Walk>
__device__ __forceinline__ void each_stretch(const ConvParams& p, const Walk& walk) {
  long long from = blockIdx.x * p.chunk_tokens;
  const long long to = from + p.chunk_tokens < p.n_tokens ? from + p.chunk_tokens : p.n_tokens;
  for (long long sequence = sequence_of(p, from); from < to; sequence++) {
    const long long start = p.borders[sequence], end = p.borders[sequence + 1];
    const long long until = end < to ? end : to;
    if (until > from) {
      Stretch s = {sequence, from - start, until - start, end - start, start, 1};
      if (p.reverse) s.from = end - until, s.to = end - from, s.base = end - 1, s.direction = -1;
      walk(s);
    }
    from = until;
  }
}

template <class T> __device__ __forceinline__ void read(const T* from, float (&x)[4]) {
  load4(from, x);
}
template <class T> __device__ __forceinline__ void read(const T* from, float (&x)[1]) {
  x[0] = load(from, 0);
}
template <class T> __device__ __forceinline__ void write(T* to, const float (&x)[4]) {
  store4(to, x);
}
template <class T> __device__ __forceinline__ void write(T* to, const float (&x)[1]) {
  store(to, 0, x[0]);
}

// Taps and inputs of a thread's V channels, for up to W taps: tap[k] is for the input k before.
template <int V, int W, class T> struct Channels {
  const ConvParams& p;
  long long d;
  float tap[W][V], bias[V];
  float window[W][V];  // window[k] = X(w - k)

  __device__ __forceinline__ Channels(const ConvParams& params, long long first)
      : p(params), d(first) {
#pragma unroll
    for (int i = 0; i < V; i++) {
      bias[i] = p.bias ? p.bias[d + i] : 0.f;
#pragma unroll
      for (int k = 0; k < W; k++)
        tap[k][i] = k < p.n_taps ? p.weight[(d + i) * p.n_taps + p.n_taps - 1 - k] : 0.f;
    }
  }

  __device__ __forceinline__ const T* row(const void* x, long long stride, const Stretch& s,
                                          long long w) const {
    return (const T*)x + (s.base + s.direction * w) * stride + d;
  }
  __device__ __forceinline__ long long state_at(const Stretch& s, int i, long long j) const {
    return (s.sequence * p.n_channels + d + i) * (p.n_taps - 1) + j;
  }

  // The window before the first step: X(from - 1) and so on, one place early.
  __device__ __forceinline__ void look_back(const Stretch& s) {
#pragma unroll
    for (int k = 0; k < W; k++) {
      const long long w = s.from - 1 - k;
      const long long j = p.n_taps - 1 + w;
#pragma unroll
      for (int i = 0; i < V; i++) window[k][i] = 0.f;
      if (k >= p.n_taps - 1) continue;
      if (w >= 0) {
        read(row(p.x, p.x_stride, s, w), window[k]);
      } else if (p.initial_state && j >= 0) {
#pragma unroll
        for (int i = 0; i < V; i++)
          window[k][i] = load((const T*)p.initial_state, state_at(s, i, j));
      }
    }
  }

  __device__ __forceinline__ void take(const float (&x)[V]) {
#pragma unroll
    for (int i = 0; i < V; i++) {
#pragma unroll
      for (int k = W - 1; k > 0; k--) window[k][i] = window[k - 1][i];
      window[0][i] = x[i];
    }
  }

  // Taps that do not exist are skipped, not multiplied by zero: their input may be infinite.
  __device__ __forceinline__ float preactivation(int i) const {
    float pre = bias[i];
#pragma unroll
    for (int k = 0; k < W; k++)
      if (k < p.n_taps) pre = fmaf(tap[k][i], window[k][i], pre);
    return pre;
  }
};

template <int V>
__device__ __forceinline__ bool channel_of(const ConvParams& p, long long& d) {
  d = ((long long)blockIdx.y * blockDim.x + threadIdx.x) * V;
  return d < p.n_channels;
}

template <int V, int W, class T> __device__ __forceinline__ void forward(const ConvParams& p) {
  long long d;
  if (!channel_of<V>(p, d)) return;
  Channels<V, W, T> at(p, d);
  each_stretch(p, [&](const Stretch& s) {
    at.look_back(s);
    for (long long first = s.from; first < s.to; first += AT_ONCE) {
      float x[AT_ONCE][V];
#pragma unroll
      for (int t = 0; t < AT_ONCE; t++)
        if (first + t < s.to) read(at.row(p.x, p.x_stride, s, first + t), x[t]);
#pragma unroll
      for (int t = 0; t < AT_ONCE; t++) {
        if (first + t >= s.to) break;
        at.take(x[t]);
        float y[V];
#pragma unroll
        for (int i = 0; i < V; i++) {
          const float pre = at.preactivation(i);
          y[i] = p.silu ? pre / (1.f + expf(-pre)) : pre;
        }
        write((T*)p.y + (s.base + s.direction * (first + t)) * p.n_channels + d, y);
      }
    }
  });
}

// The gradient of X(w), for w below zero that of the initial state.
template <int V, int W, class T>
__device__ __forceinline__ void write_dx(const Channels<V, W, T>& at, const Stretch& s, long long w,
                                         const float (&ahead)[W][V]) {
  const ConvParams& p = at.p;
  if (w >= s.to || w < (s.from ? s.from : 1 - p.n_taps) || (w < 0 && !p.dinitial)) return;
  float dx[V];
  const long long j = w - (s.length - (p.n_taps - 1));  // place in the final state
#pragma unroll
  for (int i = 0; i < V; i++) {
    dx[i] = p.dfinal && j >= 0 ? load((const T*)p.dfinal, at.state_at(s, i, j)) : 0.f;
#pragma unroll
    for (int k = 0; k < W; k++)
      if (k < p.n_taps) dx[i] = fmaf(at.tap[k][i], ahead[W - 1 - k][i], dx[i]);
  }
  if (w >= 0) {
    write((T*)p.dx + (s.base + s.direction * w) * p.n_channels + at.d, dx);
  } else {
#pragma unroll
    for (int i = 0; i < V; i++) store((T*)p.dinitial, at.state_at(s, i, p.n_taps - 1 + w), dx[i]);
  }
}

template <int V, int W, class T> __device__ __forceinline__ void backward(const ConvParams& p) {
  long long d;
  if (!channel_of<V>(p, d)) return;
  Channels<V, W, T> at(p, d);
  float dtap[W + 1][V];   // the last one is the bias's
  float ahead[W][V];      // ahead[j] = gradient of pre(w - j)
#pragma unroll
  for (int k = 0; k <= W; k++)
#pragma unroll
    for (int i = 0; i < V; i++) dtap[k][i] = 0.f;
  each_stretch(p, [&](const Stretch& s) {
    at.look_back(s);
#pragma unroll
    for (int k = 0; k < W; k++)
#pragma unroll
      for (int i = 0; i < V; i++) ahead[k][i] = 0.f;
    const long long end = s.to + W - 1, known = end < s.length ? end : s.length;
    for (long long first = s.from; first < end; first += AT_ONCE) {
      float x[AT_ONCE][V], dy[AT_ONCE][V];
#pragma unroll
      for (int t = 0; t < AT_ONCE; t++) {
#pragma unroll
        for (int i = 0; i < V; i++) x[t][i] = dy[t][i] = 0.f;
        if (first + t < known) {
          read(at.row(p.x, p.x_stride, s, first + t), x[t]);
          read(at.row(p.dy, p.dy_stride, s, first + t), dy[t]);
        }
      }
#pragma unroll
      for (int t = 0; t < AT_ONCE; t++) {
        const long long w = first + t;
        at.take(x[t]);
#pragma unroll
        for (int i = 0; i < V; i++) {
          float dpre = dy[t][i];
          if (p.silu && w < known) {
            const float pre = at.preactivation(i), gate = 1.f / (1.f + expf(-pre));
            dpre *= gate * fmaf(pre, 1.f - gate, 1.f);
          }
#pragma unroll
          for (int k = W - 1; k > 0; k--) ahead[k][i] = ahead[k - 1][i];
          ahead[0][i] = dpre;
          if (w < s.to) {
            dtap[W][i] += dpre;
#pragma unroll
            for (int k = 0; k < W; k++)
              if (k < p.n_taps) dtap[k][i] = fmaf(dpre, at.window[k][i], dtap[k][i]);
          }
        }
        write_dx(at, s, w - (W - 1), ahead);
      }
    }
  });
  float* shares = p.shares + (long long)blockIdx.x * (p.n_taps + 1) * p.n_channels + d;
#pragma unroll
  for (int k = 0; k < W; k++)
    if (k < p.n_taps) write(shares + k * p.n_channels, dtap[k]);
  write(shares + p.n_taps * p.n_channels, dtap[W]);
}

// The last K - 1 inputs of each sequence, one channel of one sequence a thread.
template <class T> __device__ __forceinline__ void final_states(const ConvParams& p) {
  const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.n_sequences * p.n_channels) return;
  const long long sequence = index / p.n_channels, d = index % p.n_channels;
  const long long start = p.borders[sequence], end = p.borders[sequence + 1];
  const int kept = p.n_taps - 1;
  for (int j = 0; j < kept; j++) {
    const long long w = end - start - kept + j;
    float x = 0.f;
    if (w >= 0) x = load((const T*)p.x, (p.reverse ? end - 1 - w : start + w) * p.x_stride + d);
    else if (p.initial_state) x = load((const T*)p.initial_state, index * kept + kept + w);
    store((T*)p.final_state, index * kept + j, x);
  }
}

// Sums of the chunks' shares: 32 columns a block, eight threads a column, in a fixed order.
extern "C" __global__ void __launch_bounds__(256) conv_sum_shares(const ConvParams p) {
  __shared__ float sums[8][32];
  const int part = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
  const long long columns = (p.n_taps + 1) * p.n_channels, column = blockIdx.x * 32ll + lane;
  float sum = 0.f;
  if (column < columns) {
#pragma unroll 8
    for (long long chunk = part; chunk < p.n_chunks; chunk += 8)
      sum += p.shares[chunk * columns + column];
  }
  sums[part][lane] = sum;
  __syncthreads();
  if (part || column >= columns) return;
  for (int other = 1; other < 8; other++) sum += sums[other][lane];
  const long long k = column / p.n_channels, d = column % p.n_channels;
  if (k < p.n_taps) p.dweight[d * p.n_taps + p.n_taps - 1 - k] = sum;
  else if (p.dbias) p.dbias[d] = sum;
}

// `_four`: four channels a thread, K <= 4, aligned; `_one`: K <= 8. The least number of blocks a
// multiprocessor is chosen so that registers suffice on every architecture.
#define CONV_KERNEL(name, blocks, body) \
  extern "C" __global__ void __launch_bounds__(128, blocks) name(const ConvParams p) { body(p); }
#define CONV_KERNELS(type, T)                                           \
  CONV_KERNEL(conv_forward_##type##_four, 4, (forward<4, 4, T>))        \
  CONV_KERNEL(conv_forward_##type##_one, 6, (forward<1, 8, T>))         \
  CONV_KERNEL(conv_backward_##type##_four, 3, (backward<4, 4, T>))      \
  CONV_KERNEL(conv_backward_##type##_one, 4, (backward<1, 8, T>))       \
  CONV_KERNEL(conv_final_##type, 8, final_states<T>)
CONV_KERNELS(f32, float)
CONV_KERNELS(bf16, bf16)
CONV_KERNELS(f16, f16)
