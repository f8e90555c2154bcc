// Backward pass: a block walks a chunk from its last segment to its first.
//
// A segment is replayed from its checkpoint twice: once to find the state before every eighth
// token, once, eight tokens at a time, to hold the states and decays of those tokens in registers
// while the walk goes back over them. With g the gradient of h_t that comes from the later tokens
// and v = B u:
//     g += C_t dy_t,   dC_t = sum_d dy_t h_t,   gradient of v_t from g and, for foh, from t + 1,
//     ds_t = sum_n g (A a h_{t-1} + d(input term)/ds),   dA likewise,   g <- a g.
// Sums over the channels of a block are written as that block's share and added later, in order.
#pragma once

constexpr int EIGHT = 8;                        // tokens whose states fit the registers
constexpr int WARPS = THREADS / 32;
constexpr int SHARE = 2 * TILE;                 // dB and dC of one token and tile

struct BackwardShared {
  float s[SEGMENT * CHANNELS];
  float v[(SEGMENT + 1) * CHANNELS];            // from t = -1
  float dy[SEGMENT * CHANNELS];                 // before the gate
  float B[(SEGMENT + 1) * TILE];                // from t = -1
  float C[SEGMENT * TILE];
  float states[SEGMENT / EIGHT * THREADS * STATES];  // before every eighth token
  float shares[EIGHT * WARPS * SHARE];
  int flags[SEGMENT];
};
__device__ __forceinline__ float* v_of(BackwardShared& m) { return m.v + CHANNELS; }
__device__ __forceinline__ float* B_of(BackwardShared& m) { return m.B + TILE; }
// Behind it: y if dz is wanted; dv and ds of their own if there are more tiles than one, else they
// take the places of v and s; and what a thread carries from segment to segment, tile by tile. As
// offsets within shared memory: pointers that are chosen at run time would cost wide addresses.
struct BackwardPlaces {
  float* shared;
  int y, dv, ds, g, g_before, dA;
};
template <int KIND>
__device__ __forceinline__ BackwardPlaces find_places(const ScanParams& p, BackwardShared& m,
                                                      float* shared) {
  int next = (int)(sizeof(BackwardShared) / sizeof(float)), one = SEGMENT * CHANNELS;
  BackwardPlaces at = {shared, next, (int)(m.v + CHANNELS - m.s), 0, 0, 0, 0};
  if (p.dz) next += one;
  if (p.n_tiles > 1) {
    at.dv = next;
    at.ds = next + one;
    next += 2 * one;
  }
  at.g = next;
  at.dA = next + p.n_tiles * THREADS * STATES;
  at.g_before = next + 2 * p.n_tiles * THREADS * STATES;
  return at;
}

// What the walk back carries from token to token.
struct Backward {
  States g, g_before, dA;
};

template <int KIND>
__device__ __forceinline__ void enter_from_behind(const ScanParams& p, const Place& at, int i,
                                                  int tile, Backward& b) {
  Border border = find_border(p, at, i, tile, carried_width<KIND>(p));
  b.g = read_border(p.dfinal, border, 0);
  if (KIND == RISING) b.g_before = read_border(p.dfinal, border, p.n_state);
}
template <int KIND>
__device__ __forceinline__ void leave_by_the_front(const ScanParams& p, const Place& at, int i,
                                                   int tile, const Backward& b) {
  if (!p.dinitial) return;
  Border border = find_border(p, at, i, tile, p.initial_width);
  write_border(p.dinitial, border, 0, b.g);
  if (KIND == RISING && brings_input(p)) write_border(p.dinitial, border, p.n_state, b.g_before);
}

// One token of the walk back; `sums` gets the thread's parts of dB and dC.
template <int KIND>
__device__ __forceinline__ void step_back(const ScanParams& p, const Place& at,
                                          const Rates<KIND>& rates, int i, int t4, int k,
                                          int tile, BackwardShared& m,
                                          const BackwardPlaces& m2, const float before[STATES],
                                          const float powers[STATES], Backward& b, float& dv,
                                          float& ds, float sums[2 * STATES]) {
  int t = t4 + k, flag = m.flags[t];
  if (flag & LAST) enter_from_behind<KIND>(p, at, i, tile, b);
  float s = m.s[cell(at, t4, k)], v = v_of(m)[cell(at, t4, k)], dy = m.dy[cell(at, t4, k)];
  States B = load4(B_of(m) + t * TILE + at.lane * STATES);
  States C = load4(m.C + t * TILE + at.lane * STATES);
  float inverse_s = KIND == PLAIN ? 0.f : inverse_of(s);
  bool own = flag & FIRST && !brings_input(p);  // foh: the token is its own predecessor
  States earlier = zeros();
  if (KIND == RISING) {
    Walker w;
    if (flag & FIRST) {
      States arrived;
      for (int j = 0; j < STATES; j++) arrived.of[j] = v * B.of[j];
      enter_sequence<KIND>(p, at, i, tile, arrived, w);
    } else {
      take_earlier<KIND>(at, t4, k, v_of(m), B_of(m), w);
    }
    earlier = w.earlier;
  }
  dv = ds = 0.f;
#pragma unroll
  for (int j = 0; j < STATES; j++) {
    Weights w = weights_from<KIND>(rates, j, s, inverse_s, powers[j]);
    float arrived = v * B.of[j], dstate = fmaf(dy, C.of[j], b.g.of[j]);
    float kept = dstate * w.decay, flow = kept * before[j], darrived = dstate;
    float by_elapsed = flow * rates.A[j], by_rate = flow * s, after = w.decay * before[j];
    if (KIND == PLAIN) {
      after += arrived;
    } else {
      float x = rates.A[j] * s;
      float phi1 = inverse_s != 0.f ? w.held * inverse_s : 1.f;
      float phi1_by_x = phi1_slope(x, w.decay, phi1), held_slope = phi1_by_x * s * s;
      if (KIND == HELD) {
        after = fmaf(w.held, arrived, after);
        darrived = dstate * w.held;
        by_elapsed = fmaf(kept, arrived, by_elapsed);
        by_rate = fmaf(dstate * arrived, held_slope, by_rate);
      } else {
        float change = arrived - earlier.of[j];
        float phi2 = inverse_s != 0.f ? w.rising * inverse_s : 0.5f;
        float rising_slope = phi2_slope(x, phi1, phi2) * s * s;
        after += fmaf(w.held, earlier.of[j], w.rising * change);
        darrived = fmaf(dstate, w.rising, b.g_before.of[j]);
        // held - rising = s phi1' and d rising / ds = phi1'; the differences would cancel.
        b.g_before.of[j] = dstate * (s * phi1_by_x);
        if (own) darrived += b.g_before.of[j];
        by_elapsed = fmaf(dstate, fmaf(w.decay, earlier.of[j], phi1_by_x * change), by_elapsed);
        by_rate = fmaf(dstate, fmaf(held_slope, earlier.of[j], rising_slope * change), by_rate);
      }
    }
    sums[j] = darrived * v;
    sums[STATES + j] = dy * after;
    dv = fmaf(darrived, B.of[j], dv);
    ds += by_elapsed;
    b.dA.of[j] += by_rate;
    b.g.of[j] = kept;
  }
  if (flag & FIRST) leave_by_the_front<KIND>(p, at, i, tile, b);
}

// Tokens [t8, t8 + 8) of a segment of `count`, replayed and then walked back.
template <int KIND>
__device__ __forceinline__ void back_eight(const ScanParams& p, const Place& at,
                                           const Rates<KIND>& rates, int from, int t8,
                                           int count, int tile, BackwardShared& m,
                                           const BackwardPlaces& m2, Backward& b) {
  float before[EIGHT][STATES], powers[EIGHT][STATES];
  Walker w = {load4(m.states + (t8 / EIGHT * THREADS + threadIdx.x) * STATES), zeros()};
  take_earlier<KIND>(at, t8, 0, v_of(m), B_of(m), w);
#pragma unroll
  for (int t4 = 0; t4 < EIGHT; t4 += 4) {
    float y[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      float s = m.s[cell(at, t8 + t4, k)];
#pragma unroll
      for (int j = 0; j < STATES; j++) powers[t4 + k][j] = power_of<KIND>(rates, j, s);
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
      int t = t8 + t4 + k;
      float s = m.s[cell(at, t8 + t4, k)], v = v_of(m)[cell(at, t8 + t4, k)];
      float inverse_s = KIND == RISING ? inverse_of(s) : 0.f;
      States arrived = load4(B_of(m) + t * TILE + at.lane * STATES);
#pragma unroll
      for (int j = 0; j < STATES; j++) arrived.of[j] *= v;
      if (m.flags[t] & FIRST) enter_sequence<KIND>(p, at, from + t, tile, arrived, w);
#pragma unroll
      for (int j = 0; j < STATES; j++) {
        before[t4 + k][j] = w.h.of[j];
        step_state<KIND>(weights_from<KIND>(rates, j, s, inverse_s, powers[t4 + k][j]), j,
                         arrived.of[j], w);
      }
      if (p.dz) {
        States c = load4(m.C + t * TILE + at.lane * STATES);
        y[k] = fmaf(w.h.of[0], c.of[0],
                    fmaf(w.h.of[1], c.of[1], fmaf(w.h.of[2], c.of[2], w.h.of[3] * c.of[3])));
      }
    }
    if (p.dz) {
      float sum = sum_over_lanes(at, y);
      float& out = m2.shared[m2.y + cell(t8 + t4 + at.lane, at.channel)];
      out = tile ? out + sum : sum;
    }
  }
  take_memory_as_new();
#pragma unroll
  for (int k = 0; k < EIGHT; k++)
#pragma unroll
    for (int j = 0; j < STATES; j++) take_as_new(powers[k][j]);
#pragma unroll
  for (int t4 = EIGHT - 4; t4 >= 0; t4 -= 4) {
    float dv[4] = {0.f, 0.f, 0.f, 0.f}, ds[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int k = 3; k >= 0; k--) {
      int t = t8 + t4 + k;
      if (t >= count) continue;
      float sums[2 * STATES];
      step_back<KIND>(p, at, rates, from + t, t8 + t4, k, tile, m, m2, before[t4 + k],
                      powers[t4 + k], b, dv[k], ds[k], sums);
      m.shares[(t4 + k) * WARPS * SHARE + threadIdx.x] = sum_over_channels(sums);
    }
    float dv_sum = sum_over_lanes(at, dv), ds_sum = sum_over_lanes(at, ds);
    int to = cell(t8 + t4 + at.lane, at.channel);
    float &dv_to = m2.shared[m2.dv + to], &ds_to = m2.shared[m2.ds + to];
    bool add = p.n_tiles > 1 && tile;
    dv_to = add ? dv_to + dv_sum : dv_sum;
    ds_to = add ? ds_to + ds_sum : ds_sum;
  }
}
