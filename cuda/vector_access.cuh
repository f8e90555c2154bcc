// Four neighbouring numbers in one access: 16 bytes of float32, 8 of the 16-bit types.
//
// The address must be a multiple of that; hosts check it and ask for single accesses otherwise.
#pragma once

#include "number_types.cuh"

__device__ __forceinline__ void load4(const float* from, float* x) {
  float4 q = *reinterpret_cast<const float4*>(from);
  x[0] = q.x, x[1] = q.y, x[2] = q.z, x[3] = q.w;
}
template <class T> __device__ __forceinline__ void load4(const T* from, float* x) {
  ushort4 q = *reinterpret_cast<const ushort4*>(from);
  x[0] = to_float(T{q.x}), x[1] = to_float(T{q.y}), x[2] = to_float(T{q.z}), x[3] = to_float(T{q.w});
}

__device__ __forceinline__ void store4(float* to, const float* x) {
  float4 q;
  q.x = x[0], q.y = x[1], q.z = x[2], q.w = x[3];
  *reinterpret_cast<float4*>(to) = q;
}
template <class T> __device__ __forceinline__ void store4(T* to, const float* x) {
  T narrow[4];
  for (int i = 0; i < 4; i++) from_float(x[i], narrow[i]);
  ushort4 q;
  q.x = narrow[0].bits, q.y = narrow[1].bits, q.z = narrow[2].bits, q.w = narrow[3].bits;
  *reinterpret_cast<ushort4*>(to) = q;
}

// The first `count` of four; those beyond read as zero and are not written.
template <class T>
__device__ __forceinline__ void load_some(const T* from, long long count, float* x) {
#pragma unroll
  for (int i = 0; i < 4; i++) x[i] = i < count ? load(from, i) : 0.f;
}
template <class T>
__device__ __forceinline__ void store_some(T* to, long long count, const float* x) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i < count) store(to, i, x[i]);
}
