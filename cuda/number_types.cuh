// Loads and stores of float32, bfloat16 and float16 without CUDA's headers.
//
// Arithmetic is always in float32; these types exist in memory only. bfloat16 is converted by its
// bits (round to nearest, ties to even, as the device's own instruction does), float16 by one PTX
// instruction on the device and by its bits where the same source is compiled for the CPU.
#pragma once

enum NumberType { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) {
  return __uint_as_float((unsigned)x.bits << 16);
}
__device__ __forceinline__ float to_float(f16 x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  unsigned sign = (x.bits & 0x8000u) << 16, fraction = x.bits & 1023;
  unsigned exponent = (x.bits >> 10) & 31;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  float tiny = (float)fraction * 5.9604644775390625e-8f;  // subnormal: fraction * 2^-24
  return sign ? -tiny : tiny;
#endif
}

__device__ __forceinline__ void from_float(float x, float& out) { out = x; }
__device__ __forceinline__ void from_float(float x, bf16& out) {
  unsigned bits = __float_as_uint(x);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = (unsigned short)(nan ? 0x7fffu : rounded);
}
__device__ __forceinline__ void from_float(float x, f16& out) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  unsigned bits = __float_as_uint(x), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  unsigned half;
  if (size > 0x7f800000u) {
    half = 0x7fffu;
  } else if (size >= 0x47800000u) {  // 65536 and more; what rounds up to it is caught by the carry
    half = 0x7c00u;
  } else if (size >= 0x38800000u) {  // normal: 2^-14 and more
    half = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
  } else {  // subnormal: the sum rounds to whole multiples of 2^-24
    half = __float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u;
  }
  out.bits = (unsigned short)(sign | half);
#endif
}

template <class T> __device__ __forceinline__ float load(const T* from, long long at) {
  return to_float(from[at]);
}
template <class T> __device__ __forceinline__ void store(T* to, long long at, float x) {
  from_float(x, to[at]);
}

// The same where the type is known at run time only: two loads of which one is done, no branch.
__device__ __forceinline__ float load_as(int type, const void* from, long long at) {
  if (type == FLOAT32) return static_cast<const float*>(from)[at];
  unsigned short bits = static_cast<const unsigned short*>(from)[at];
  return type == BFLOAT16 ? to_float(bf16{bits}) : to_float(f16{bits});
}
__device__ __forceinline__ void store_as(int type, void* to, long long at, float x) {
  if (type == FLOAT32) {
    static_cast<float*>(to)[at] = x;
  } else {
    bf16 b;
    f16 h;
    from_float(x, b);
    from_float(x, h);
    static_cast<unsigned short*>(to)[at] = type == BFLOAT16 ? b.bits : h.bits;
  }
}
