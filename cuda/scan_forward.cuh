// Forward pass: a block walks a chunk of tokens of 32 channels, four states in each thread.
//
// With SUMMARY the walk only finds what a chunk hands on: the state at its end from a zero state
// at its start, and the time felt within. It starts behind the last border in the chunk, which
// kills every carry, and does nothing at all where a sequence ends with the chunk.
#pragma once

struct ForwardShared {
  float s[SEGMENT * CHANNELS];
  float v[(SEGMENT + 1) * CHANNELS];  // from t = -1
  float y[SEGMENT * CHANNELS];
  float B[(SEGMENT + 1) * TILE];      // from t = -1
  float C[SEGMENT * TILE];
  int flags[SEGMENT];
};

// h (and foh's v) of the token before; walked over the tokens of one segment.
struct Walker {
  States h, earlier;
};

template <int KIND>
__device__ __forceinline__ void enter_sequence(const ScanParams& p, const Place& at, int i,
                                               int tile, const States& arrived, Walker& w) {
  Border border = find_border(p, at, i, tile, p.initial_width);
  w.h = read_border(p.initial_state, border, 0);
  if (KIND == RISING)
    w.earlier = brings_input(p) ? read_border(p.initial_state, border, p.n_state) : arrived;
}
template <int KIND>
__device__ __forceinline__ void leave_sequence(const ScanParams& p, const Place& at, int i,
                                               int tile, const States& arrived, const Walker& w) {
  if (!p.final_state) return;
  Border border = find_border(p, at, i, tile, carried_width<KIND>(p));
  write_border(p.final_state, border, 0, w.h);
  if (KIND == RISING) write_border(p.final_state, border, p.n_state, arrived);
}

// v B of the token before token t4 + k, which foh starts from.
template <int KIND>
__device__ __forceinline__ void take_earlier(const Place& at, int t4, int k, const float* v,
                                             const float* B, Walker& w) {
  if (KIND != RISING) return;
  float before = v[k ? cell(at, t4, k - 1) : cell(at, t4 - 4, 3)];
  States b = load4(B + (t4 + k - 1) * TILE + at.lane * STATES);
#pragma unroll
  for (int j = 0; j < STATES; j++) w.earlier.of[j] = before * b.of[j];
}

// One step: h <- a h + input term.
template <int KIND>
__device__ __forceinline__ void step_state(const Weights& k, int j, float arrived, Walker& w) {
  if (KIND == PLAIN) {
    w.h.of[j] = fmaf(k.decay, w.h.of[j], arrived);
  } else if (KIND == HELD) {
    w.h.of[j] = fmaf(k.decay, w.h.of[j], k.held * arrived);
  } else {
    float change = arrived - w.earlier.of[j];
    w.h.of[j] = fmaf(k.decay, w.h.of[j], fmaf(k.held, w.earlier.of[j], k.rising * change));
    w.earlier.of[j] = arrived;
  }
}

// Four tokens. The exponentials of all four come first: they wait for nothing, and a branch at a
// border of a sequence would keep the compiler from starting them early.
template <int KIND, bool LEAVES>
__device__ __forceinline__ void walk_four(const ScanParams& p, const Place& at,
                                          const Rates<KIND>& rates, int from, int t4, int tile,
                                          const float* s, const float* v, const float* B,
                                          const int* flags, Walker& w, const float* C, float* y) {
  float powers[4][STATES], felt[4], value[4];
#pragma unroll
  for (int k = 0; k < 4; k++) {
    felt[k] = s[cell(at, t4, k)];
    value[k] = v[cell(at, t4, k)];
#pragma unroll
    for (int j = 0; j < STATES; j++) powers[k][j] = power_of<KIND>(rates, j, felt[k]);
  }
#pragma unroll
  for (int k = 0; k < 4; k++) {
    int t = t4 + k, flag = flags[t];
    States b = load4(B + t * TILE + at.lane * STATES), arrived;
#pragma unroll
    for (int j = 0; j < STATES; j++) arrived.of[j] = value[k] * b.of[j];
    if (flag & FIRST) enter_sequence<KIND>(p, at, from + t, tile, arrived, w);
    float inverse_s = KIND == RISING ? inverse_of(felt[k]) : 0.f;
#pragma unroll
    for (int j = 0; j < STATES; j++)
      step_state<KIND>(weights_from<KIND>(rates, j, felt[k], inverse_s, powers[k][j]), j,
                       arrived.of[j], w);
    if (C) {
      States c = load4(C + t * TILE + at.lane * STATES);
      y[k] = fmaf(w.h.of[0], c.of[0],
                  fmaf(w.h.of[1], c.of[1], fmaf(w.h.of[2], c.of[2], w.h.of[3] * c.of[3])));
    }
    if (LEAVES && flag & LAST) leave_sequence<KIND>(p, at, from + t, tile, arrived, w);
  }
}

__device__ __forceinline__ void write_outputs(const ScanParams& p, int from, int count,
                                              const float* y) {
  int thread = (int)threadIdx.x + opaque_zero(), channel = thread % CHANNELS;
  int d = (int)blockIdx.y * CHANNELS + channel;
  if (d >= p.n_channels) return;
  float skip = p.D ? p.D[d] : 0.f;
#pragma unroll 4
  for (int t = thread / CHANNELS; t < count; t += THREADS / CHANNELS) {
    int row = row_of(p, from + t);
    float out = y[cell(t, channel)];
    if (p.D) out = fmaf(skip, load_as(p.type, p.u, offset_of(row, p.u_stride, d)), out);
    if (p.z) {
      float z = load_as(p.type, p.z, offset_of(row, p.z_stride, d));
      out *= z * sigmoid_of(z);
    }
    store_as(p.type, p.y, offset_of(row, p.n_channels, d), out);
  }
}

template <int KIND>
__device__ __forceinline__ void scan_forward_chunk(const ScanParams& p) {
  DYNAMIC_SHARED(raw);
  ForwardShared& m = *reinterpret_cast<ForwardShared*>(raw);
  float* carried = reinterpret_cast<float*>(raw + sizeof(ForwardShared));  // (tiles, threads, 4)
  Place at = find_place(p);
  float *v = m.v + CHANNELS, *B = m.B + TILE;
  int chunk = (int)blockIdx.x, start = chunk * (int)p.chunk_tokens;
  int stop = min(start + (int)p.chunk_tokens, (int)p.n_tokens);

  for (int tile = 0; tile < p.n_tiles; tile++) {
    States h = zeros();
    if (chunk > 0 && at.real) h = load4(p.carry + states_at(p, at, chunk, tile));
    store4(carried + (tile * THREADS + threadIdx.x) * STATES, h);
  }
  for (int from = start; from < stop; from += SEGMENT) {
    int count = min(SEGMENT, stop - from);
    stage(p, from, count, KIND == RISING, m.s, v, nullptr, m.flags);
    for (int tile = 0; tile < p.n_tiles; tile++) {
      if (tile) __syncthreads();
      stage_rows(p, p.B, p.B_stride, from, count, tile, KIND == RISING, B);
      stage_rows(p, p.C, p.C_stride, from, count, tile, false, m.C);
      Rates<KIND> rates = load_rates<KIND>(p, at, tile);
      float* mine = carried + (tile * THREADS + threadIdx.x) * STATES;
      Walker w = {load4(mine), zeros()};
      if (p.checkpoints && at.real)
        store4(p.checkpoints + states_at(p, at, from / SEGMENT, tile), w.h);
      __syncthreads();
      take_earlier<KIND>(at, 0, 0, v, B, w);
      for (int t4 = 0; t4 < count; t4 += 4) {
        float y[4];
        walk_four<KIND, true>(p, at, rates, from, t4, tile, m.s, v, B, m.flags, w, m.C, y);
        float sum = sum_over_lanes(at, y);
        float& out = m.y[cell(t4 + at.lane, at.channel)];
        out = tile ? out + sum : sum;
      }
      store4(mine, w.h);
    }
    __syncthreads();
    write_outputs(p, from, count, m.y);
  }
}

// The summary of a chunk: `carry` gets the state at its end, `elapsed` the time felt, infinite
// where no carry survives.
template <int KIND>
__device__ __forceinline__ void scan_forward_summary(const ScanParams& p) {
  DYNAMIC_SHARED(raw);
  ForwardShared& m = *reinterpret_cast<ForwardShared*>(raw);
  Place at = find_place(p);
  float *v = m.v + CHANNELS, *B = m.B + TILE;
  int chunk = (int)blockIdx.x, start = chunk * (int)p.chunk_tokens;
  int stop = min(start + (int)p.chunk_tokens, (int)p.n_tokens), begin = stop;
  bool killed = is_last(p, stop - 1);
  if (!killed) {
    begin = max(start, walk_start(p, p.labels[stop - 1]));
    killed = is_first(p, begin);
  }
  float elapsed = 0.f;
  for (int tile = 0; tile < p.n_tiles; tile++) {
    Rates<KIND> rates = load_rates<KIND>(p, at, tile);
    Walker w = {zeros(), zeros()};
    for (int from = begin; from < stop; from += SEGMENT) {
      int count = min(SEGMENT, stop - from);
      __syncthreads();
      stage(p, from, count, KIND == RISING, m.s, v, nullptr, m.flags);
      stage_rows(p, p.B, p.B_stride, from, count, tile, KIND == RISING, B);
      __syncthreads();
      take_earlier<KIND>(at, 0, 0, v, B, w);
      for (int t4 = 0; t4 < count; t4 += 4) {
        walk_four<KIND, false>(p, at, rates, from, t4, tile, m.s, v, B, m.flags, w, nullptr,
                               nullptr);
        if (tile == 0)
          for (int k = 0; k < 4; k++) elapsed += m.s[cell(at, t4, k)];
      }
    }
    if (at.real) store4(p.carry + states_at(p, at, chunk, tile), w.h);
  }
  if (at.real && at.lane == 0)
    p.elapsed[chunk * p.n_channels + at.d] = killed ? __int_as_float(0x7f800000) : elapsed;
}
