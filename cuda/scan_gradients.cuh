// Backward pass, around the walk of `scan_backward.cuh`: what a chunk hands back, the segments of a
// chunk, and the gradients of what is one number a (token, channel).
#pragma once

// What a thread adds up over its tokens for its channel.
struct ChannelSums {
  float skip, rate, bias;
};

__device__ __forceinline__ void write_gradients(const ScanParams& p, int from, int count,
                                                const BackwardShared& m, const BackwardPlaces& at,
                                                ChannelSums& sums) {
  int thread = (int)threadIdx.x + opaque_zero(), channel = thread % CHANNELS;
  int d = (int)blockIdx.y * CHANNELS + channel;
  bool real = d < p.n_channels;
  float bias = real && p.delta_bias ? p.delta_bias[d] : 0.f, skip = real && p.D ? p.D[d] : 0.f;
  float rate = real && p.gap ? p.gap_rate[d] : 0.f;
#pragma unroll 1
  for (int t = thread / CHANNELS; t < count; t += THREADS / CHANNELS) {
    int row = row_of(p, from + t);
    long long to = offset_of(row, p.n_channels, d);
    float dv = at.shared[at.dv + cell(t, channel)], ds = at.shared[at.ds + cell(t, channel)];
    if (real) {
      float u = load_as(p.type, p.u, offset_of(row, p.u_stride, d)), dy = m.dy[cell(t, channel)];
      float step = load_as(p.type, p.delta, offset_of(row, p.delta_stride, d)) + bias, slope = 1.f;
      if (p.softplus) {
        slope = sigmoid_of(step);
        step = softplus_of(step);
      }
      float du = dv, dstep = ds;
      if (p.input == EULER) {
        du *= step;
        dstep = fmaf(dv, u, dstep);
      }
      dstep *= slope;
      du = fmaf(dy, skip, du);
      store_as(p.type, p.du, to, du);
      store_as(p.type, p.ddelta, to, dstep);
      sums.skip = fmaf(dy, u, sums.skip);
      sums.bias += dstep;
      if (p.gap) sums.rate = fmaf(ds, p.gap[row], sums.rate);
      if (p.dz) {
        float z = load_as(p.type, p.z, offset_of(row, p.z_stride, d)), gate = sigmoid_of(z);
        float given = p.dy ? load_as(p.type, p.dy, offset_of(row, p.dy_stride, d)) : 0.f;
        float y = fmaf(skip, u, at.shared[at.y + cell(t, channel)]);
        store_as(p.type, p.dz, to, given * y * gate * fmaf(z, 1.f - gate, 1.f));
      }
    }
    if (p.dgap) {
      float share = real ? ds * rate : 0.f;
#pragma unroll
      for (int o = 16; o; o /= 2) share += __shfl_xor_sync(WARP, share, o);
      long long token = from + t - p.first_chunk * p.chunk_tokens;
      if (channel == 0) p.gap_shares[blockIdx.y * p.slice_tokens + token] = share;
    }
  }
}

// The gradient that reaches the chunk's last token from behind: dstate of the next token, whose own
// weights turn it into that of h and of foh's last input.
template <int KIND>
__device__ __forceinline__ void take_carry(const ScanParams& p, const Place& at, int chunk,
                                           int next, int tile, Backward& b) {
  b = {zeros(), zeros(), zeros()};
  if (!at.real || next >= p.n_tokens || is_first(p, next)) return;
  States dstate = load4(p.carry + states_at(p, at, chunk, tile));
  Rates<KIND> rates = load_rates<KIND>(p, at, tile);
  float s = felt_by(p, row_of(p, next), at.d).s, inverse_s = inverse_of(s);
#pragma unroll
  for (int j = 0; j < STATES; j++) {
    Weights w = weights_from<KIND>(rates, j, s, inverse_s, power_of<KIND>(rates, j, s));
    b.g.of[j] = dstate.of[j] * w.decay;
    if (KIND == RISING) b.g_before.of[j] = dstate.of[j] * (w.held - w.rising);
  }
}

// Adds the warps' parts of dB and dC of eight tokens and writes the block's share.
__device__ __forceinline__ void write_shares(const ScanParams& p, int from, int t8, int count,
                                             int tile, const BackwardShared& m) {
  for (int i = (int)threadIdx.x; i < EIGHT * SHARE; i += THREADS) {
    int k = i / SHARE, j = i % SHARE;
    if (t8 + k >= count) continue;
    float sum = 0.f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += m.shares[(k * WARPS + warp) * SHARE + j];
    long long token = from + t8 + k - p.first_chunk * p.chunk_tokens;
    p.state_shares[((blockIdx.y * p.slice_tokens + token) * p.n_tiles + tile) * SHARE + j] = sum;
  }
}

template <int KIND>
__device__ __forceinline__ void scan_backward_chunk(const ScanParams& p) {
  DYNAMIC_SHARED(raw);
  BackwardShared& m = *reinterpret_cast<BackwardShared*>(raw);
  BackwardPlaces m2 = find_places<KIND>(p, m, reinterpret_cast<float*>(raw));
  Place at = find_place(p);
  int chunk = (int)(p.first_chunk + blockIdx.x), start = chunk * (int)p.chunk_tokens;
  int stop = min(start + (int)p.chunk_tokens, (int)p.n_tokens);
  ChannelSums channel_sums = {0.f, 0.f, 0.f};
  for (int tile = 0; tile < p.n_tiles; tile++) {
    Backward b;
    take_carry<KIND>(p, at, chunk, stop, tile, b);
    int mine = (tile * THREADS + threadIdx.x) * STATES;
    store4(m2.shared + m2.g + mine, b.g);
    store4(m2.shared + m2.dA + mine, b.dA);
    if (KIND == RISING) store4(m2.shared + m2.g_before + mine, b.g_before);
  }
  for (int from = start + (stop - start - 1) / SEGMENT * SEGMENT; from >= start;
       from -= SEGMENT) {
    int count = min(SEGMENT, stop - from), eights = (count + EIGHT - 1) / EIGHT;
    __syncthreads();
    stage(p, from, count, KIND == RISING, m.s, v_of(m), m.dy, m.flags);
    for (int tile = 0; tile < p.n_tiles; tile++) {
      stage_rows(p, p.B, p.B_stride, from, count, tile, KIND == RISING, B_of(m));
      stage_rows(p, p.C, p.C_stride, from, count, tile, false, m.C);
      Rates<KIND> rates = load_rates<KIND>(p, at, tile);
      int mine = (tile * THREADS + threadIdx.x) * STATES;
      Walker w = {zeros(), zeros()};
      if (at.real) w.h = load4(p.checkpoints + states_at(p, at, from / SEGMENT, tile));
      __syncthreads();
      take_earlier<KIND>(at, 0, 0, v_of(m), B_of(m), w);
      for (int e = 0; e < eights; e++) {
        store4(m.states + (e * THREADS + threadIdx.x) * STATES, w.h);
        if (e == eights - 1) break;
        for (int t4 = e * EIGHT; t4 < (e + 1) * EIGHT; t4 += 4)
          walk_four<KIND, false>(p, at, rates, from, t4, tile, m.s, v_of(m), B_of(m), m.flags, w,
                                 nullptr, nullptr);
      }
      Backward b = {load4(m2.shared + m2.g + mine), zeros(), load4(m2.shared + m2.dA + mine)};
      if (KIND == RISING) b.g_before = load4(m2.shared + m2.g_before + mine);
      for (int e = eights - 1; e >= 0; e--) {
        back_eight<KIND>(p, at, rates, from, e * EIGHT, count, tile, m, m2, b);
        __syncthreads();
        write_shares(p, from, e * EIGHT, count, tile, m);
        __syncthreads();
      }
      store4(m2.shared + m2.g + mine, b.g);
      store4(m2.shared + m2.dA + mine, b.dA);
      if (KIND == RISING) store4(m2.shared + m2.g_before + mine, b.g_before);
    }
    write_gradients(p, from, count, m, m2, channel_sums);
  }
  for (int tile = 0; tile < p.n_tiles; tile++)
    if (at.real)
      store4(p.rate_shares + states_at(p, at, chunk, tile),
             load4(m2.shared + m2.dA + (tile * THREADS + threadIdx.x) * STATES));
  int channel = (int)threadIdx.x % CHANNELS, warp = (int)threadIdx.x / CHANNELS;
  int d = (int)blockIdx.y * CHANNELS + channel;
  m.shares[(0 * WARPS + warp) * CHANNELS + channel] = channel_sums.skip;
  m.shares[(1 * WARPS + warp) * CHANNELS + channel] = channel_sums.rate;
  m.shares[(2 * WARPS + warp) * CHANNELS + channel] = channel_sums.bias;
  __syncthreads();
  if (warp < 3 && d < p.n_channels) {
    float sum = 0.f;
    for (int k = 0; k < WARPS; k++) sum += m.shares[(warp * WARPS + k) * CHANNELS + channel];
    p.channel_shares[(chunk * 3 + warp) * p.n_channels + d] = sum;
  }
}

// The summary of a chunk on the way back: `carry` gets dstate of its first token if nothing came
// from behind the chunk, `elapsed` the time felt from there to the next chunk's first token.
__device__ __forceinline__ void scan_backward_summary(const ScanParams& p) {
  DYNAMIC_SHARED(raw);
  BackwardShared& m = *reinterpret_cast<BackwardShared*>(raw);
  Place at = find_place(p);
  int chunk = (int)blockIdx.x, start = chunk * (int)p.chunk_tokens;
  int stop = min(start + (int)p.chunk_tokens, (int)p.n_tokens), end = start;
  bool killed = is_first(p, start);
  if (!killed) {
    end = min(stop, walk_end(p, p.labels[start]));
    killed = is_last(p, end - 1);
  }
  float elapsed = 0.f;
  for (int tile = 0; tile < p.n_tiles; tile++) {
    Rates<PLAIN> rates = load_rates<PLAIN>(p, at, tile);
    Backward b = {zeros(), zeros(), zeros()};
    States dstate = zeros();
    for (int from = start + (end - start - 1) / SEGMENT * SEGMENT; from >= start && end > start;
         from -= SEGMENT) {
      int count = min(SEGMENT, end - from);
      __syncthreads();
      stage(p, from, count, false, m.s, nullptr, m.dy, m.flags);
      stage_rows(p, p.C, p.C_stride, from, count, tile, false, m.C);
      __syncthreads();
      for (int t = count - 1; t >= 0; t--) {
        if (m.flags[t] & LAST) {
          // The gradient of foh's last input reaches no state.
          long long width = p.input == FOH ? 2 * p.n_state : p.n_state;
          b.g = read_border(p.dfinal, find_border(p, at, from + t, tile, width), 0);
        }
        float s = m.s[cell(t, at.channel)], dy = m.dy[cell(t, at.channel)];
        States C = load4(m.C + t * TILE + at.lane * STATES);
#pragma unroll
        for (int j = 0; j < STATES; j++) {
          dstate.of[j] = fmaf(dy, C.of[j], b.g.of[j]);
          b.g.of[j] = dstate.of[j] * power_of<PLAIN>(rates, j, s);
        }
        if (tile == 0 && from + t > start) elapsed += s;
      }
    }
    if (at.real) store4(p.carry + states_at(p, at, chunk, tile), dstate);
  }
  if (!at.real || at.lane) return;
  if (!killed) elapsed += felt_by(p, row_of(p, stop), at.d).s;
  p.elapsed[chunk * p.n_channels + at.d] = killed ? __int_as_float(0x7f800000) : elapsed;
}
