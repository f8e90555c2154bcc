// What Python hands to the kernels: one struct an op, mirrored by ctypes in `native_library.py` and
// its users. Pointers that may be absent are null. Row strides are in elements; the last axis is
// always contiguous.
#pragma once
#include <cstdint>

enum InputKind : int32_t { EULER = 0, IMPULSE = 1, ZOH = 2, FOH = 3 };

struct ScanParams {
  int64_t n_tokens, n_channels, n_state, n_sequences;
  int64_t u_stride, delta_stride, z_stride, B_stride, C_stride, dy_stride;
  int32_t input, softplus, reverse, n_threads;
  const float *u, *delta, *A, *B, *C, *D, *z, *gap, *gap_rate, *delta_bias, *initial_state;
  int64_t initial_width;  // N, or 2N where foh's last input is given
  const int32_t* borders;
  float *y, *final_state, *checkpoints;
  // The rest is for the backward pass; every gradient but those of u and delta may be null.
  const float *dy, *dfinal;
  float *du, *ddelta, *dA, *dB, *dC, *dD, *dz, *dgap, *dgap_rate, *ddelta_bias, *dinitial;
};

struct StateParams {
  int64_t n_rows, n_channels, n_state;
  int64_t u_stride, delta_stride, z_stride, B_stride, C_stride;
  int32_t input, softplus, n_threads, unused;
  const float *u, *delta, *A, *B, *C, *D, *z, *gap, *gap_rate, *delta_bias, *source;
  float* state;
  const int64_t *source_slots, *target_slots;  // null: row r has slot r
  float* y;
};

struct ConvParams {
  int64_t n_tokens, n_channels, n_taps, n_sequences, x_stride, dy_stride;
  int32_t silu, reverse, n_threads, unused;
  const float *x, *weight, *bias, *initial_state;
  const int32_t* borders;
  float *y, *final_state;
  // The rest is for the backward pass; dfinal, dbias and dinitial may be null.
  const float *dy, *dfinal;
  float *dx, *dweight, *dbias, *dinitial;
};
