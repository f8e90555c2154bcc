// The CPU kernels: one file, compiled three times over in namespaces for the widths of SIMD
// registers there are, and chosen at run time by what the processor has.
//
// Plain C interface, no torch and no Python headers: built once, it serves every version of both.
// `native_library.py` loads it. By hand:
//     g++ -O3 -std=gnu++17 -fPIC -shared -fopenmp -fno-math-errno -fno-trapping-math kernels.cpp
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "params.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE_REGISTERS 1
#include <immintrin.h>
#else
#define WIDE_REGISTERS 0
#endif

#define KERNELS_ABI 2

struct Scratch {
  float* floats;
  explicit Scratch(int64_t n)
      : floats((float*)std::aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64)) {}
  ~Scratch() { std::free(floats); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

namespace lanes4 {
#define LANES 4
#include "all_kernels.inc"
#undef LANES
}  // namespace lanes4

#if WIDE_REGISTERS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace lanes8 {
#define LANES 8
#include "all_kernels.inc"
#undef LANES
}  // namespace lanes8
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
namespace lanes16 {
#define LANES 16
#include "all_kernels.inc"
#undef LANES
}  // namespace lanes16
#pragma GCC pop_options
#endif

static int widest() {
#if WIDE_REGISTERS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return 16;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
  return 4;
}
static int chosen = widest();

#define EXPORT extern "C" __attribute__((visibility("default")))
#if WIDE_REGISTERS
#define RUN(op, params)                             \
  (chosen == 16 ? lanes16::op(params)               \
                : chosen == 8 ? lanes8::op(params) : lanes4::op(params))
#else
#define RUN(op, params) lanes4::op(params)
#endif

EXPORT int tsfm_kernels_abi() { return KERNELS_ABI; }
EXPORT int tsfm_lanes() { return chosen; }
// For tests: run narrower kernels than the processor could. Returns what is in force.
EXPORT int tsfm_use_lanes(int lanes) {
  int most = widest();
  if ((lanes == 4 || lanes == 8 || lanes == 16) && lanes <= most) chosen = lanes;
  return chosen;
}

// All return 0, or 1 where scratch memory could not be had.
EXPORT int tsfm_scan_forward(const ScanParams* params) { return RUN(scan_forward, *params); }
EXPORT int tsfm_scan_backward(const ScanParams* params) { return RUN(scan_backward, *params); }
EXPORT int tsfm_state_update(const StateParams* params) { return RUN(state_update, *params); }
EXPORT int tsfm_conv_forward(const ConvParams* params) { return RUN(conv_forward, *params); }
EXPORT int tsfm_conv_backward(const ConvParams* params) { return RUN(conv_backward, *params); }
