// exp(A s), the weights of what arrives, and their derivatives, without cancellation near zero.
//
// With x = A s: held = (e^x - 1) / A = s phi1(x) and rising = (e^x - 1 - x) / (A^2 s) = s
// phi2(x), where phi1 = (e^x - 1) / x and phi2 = (phi1 - 1) / x. Series serve |x| < 1 wherever
// the closed form would cancel. The decay alone is one hardware exp2 (relative error 2^-22);
// where e^x - 1 is needed, a polynomial gives both, so its last bits do not depend on the card.
#pragma once

// 2^x by the special function unit. Below 2^-126 the result is zero: a state that far gone stays
// gone.
__device__ __forceinline__ float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.f : y;
#endif
}

// 2^x - 1: 2^x = (1 + q) 2^whole with |x - whole| <= 1/2 and q a polynomial without constant term.
__device__ __forceinline__ float exp2_minus_one(float x) {
  x = x < -126.f ? -126.f : x > 127.f ? 127.f : x;  // a NaN stays one
  float shifted = x + 12582912.f;  // 1.5 * 2^23: the sum keeps no fraction
  float r = x - (shifted - 12582912.f);
  float scale = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
  float q = fmaf(r, 1.5353361959569156e-4f, 1.3398875016719103e-3f);
  q = fmaf(q, r, 9.61843691766262e-3f);
  q = fmaf(q, r, 5.5503323674201965e-2f);
  q = fmaf(q, r, 2.4022647738456726e-1f);
  q = fmaf(q, r, 6.931471824645996e-1f);
  q *= r;
  return fmaf(q, scale, scale - 1.f);
}

__device__ __forceinline__ float softplus_of(float x) {
  return x > 20.f ? x : log1pf(expf(x));
}
__device__ __forceinline__ float sigmoid_of(float x) { return 1.f / (1.f + expf(-x)); }

// 1 / s, and zero where s is as good as zero and the weights take their limits.
__device__ __forceinline__ float inverse_of(float s) { return fabsf(s) > 1e-30f ? 1.f / s : 0.f; }

// A thread's rates: A, A log2(e) and 1 / A. States that only pad have all three zero.
template <int KIND> struct Rates {
  float A[STATES], A2[STATES], inverse[STATES];
};
template <int KIND>
__device__ __forceinline__ Rates<KIND> load_rates(const ScanParams& p, const Place& at, int tile) {
  Rates<KIND> r;
#pragma unroll
  for (int j = 0; j < STATES; j++) {
    int n = tile * TILE + at.lane * STATES + j;
    float A = at.real && n < p.n_state ? p.A[at.d * p.n_state + n] : 0.f;
    r.A[j] = A;
    r.A2[j] = A * LOG2E;
    r.inverse[j] = KIND == PLAIN || A == 0.f ? 0.f : 1.f / A;
  }
  return r;
}

struct Weights {
  float decay;   // a = exp(A s)
  float held;    // e
  float rising;  // b
};
// `less` is e^x - 1.
template <int KIND>
__device__ __forceinline__ Weights weights_of(const Rates<KIND>& r, int j, float s, float inverse_s,
                                              float less) {
  Weights w;
  w.decay = exp2_of(r.A2[j] * s);  // less + 1 would lose a small decay
  w.held = r.A[j] == 0.f ? s : less * r.inverse[j];
  w.rising = 0.f;
  if (KIND == RISING) {
    float x = r.A[j] * s;
    float series = fmaf(x, 1.f / 3628800, 1.f / 362880);
    series = fmaf(series, x, 1.f / 40320);
    series = fmaf(series, x, 1.f / 5040);
    series = fmaf(series, x, 1.f / 720);
    series = fmaf(series, x, 1.f / 120);
    series = fmaf(series, x, 1.f / 24);
    series = fmaf(series, x, 1.f / 6);
    series = fmaf(series, x, 0.5f);
    w.rising = fabsf(x) < 1.f ? s * series : (w.held - s) * r.inverse[j] * inverse_s;
  }
  return w;
}
// exp(A s), or exp(A s) - 1 where the weights want it.
template <int KIND>
__device__ __forceinline__ float power_of(const Rates<KIND>& r, int j, float s) {
  return KIND == PLAIN ? exp2_of(r.A2[j] * s) : exp2_minus_one(r.A2[j] * s);
}
template <int KIND>
__device__ __forceinline__ Weights weights_from(const Rates<KIND>& r, int j, float s,
                                                float inverse_s, float power) {
  if (KIND == PLAIN) return {power, 1.f, 1.f};
  return weights_of<KIND>(r, j, s, inverse_s, power);
}

// d phi1 / dx = (e^x - phi1) / x and d phi2 / dx = (phi1 - 2 phi2) / x.
__device__ __forceinline__ float phi1_slope(float x, float decay, float phi1) {
  float p = fmaf(x, 1.f / 3991680, 1.f / 403200);
  p = fmaf(p, x, 1.f / 45360);
  p = fmaf(p, x, 1.f / 5760);
  p = fmaf(p, x, 1.f / 840);
  p = fmaf(p, x, 1.f / 144);
  p = fmaf(p, x, 1.f / 30);
  p = fmaf(p, x, 1.f / 8);
  p = fmaf(p, x, 1.f / 3);
  p = fmaf(p, x, 1.f / 2);
  return fabsf(x) < 1.f ? p : (decay - phi1) / x;
}
__device__ __forceinline__ float phi2_slope(float x, float phi1, float phi2) {
  float p = fmaf(x, 9.f / 39916800, 8.f / 3628800);
  p = fmaf(p, x, 7.f / 362880);
  p = fmaf(p, x, 6.f / 40320);
  p = fmaf(p, x, 5.f / 5040);
  p = fmaf(p, x, 4.f / 720);
  p = fmaf(p, x, 3.f / 120);
  p = fmaf(p, x, 2.f / 24);
  p = fmaf(p, x, 1.f / 6);
  return fabsf(x) < 1.f ? p : (phi1 - 2.f * phi2) / x;
}
