// CUDA's execution model on one CPU core, enough to run our kernels unchanged under g++.
//
// Every thread of a block is a fiber with its own stack. Fibers run one after the other until
// they meet a barrier; a barrier opens when all threads that it names have come. A warp runs
// until the block's barrier holds it, before the next warp starts, and blocks run their warps and
// threads in rising and in falling order by turns: so what a kernel reads before the barrier that
// orders it is really not there yet, and what it overwrites too early is really still wanted. A
// warp never moves in step: code that counts on that fails here, as it may on a GPU.
//
// A block that can't go on (some threads wait at a barrier, others at another or gone) ends the
// launch with a message instead of hanging. Shared memory starts as NaN; static shared memory
// keeps what the block before has left, as on the device. Not here: atomics, textures, streams,
// tensor cores, more than one dimension of threads, and anything about time.
//
// An entry file includes this header, then the .cu, then lists the kernels:
//     SHIM_KERNELS(SHIM_KERNEL(scan_forward, ScanParams), SHIM_KERNEL(scan_sum, ScanParams))
#pragma once

#include <setjmp.h>
#include <stdio.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __constant__ static
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
// `extern __shared__` can't be spelt in C++: kernels name their dynamic shared memory by this
// macro, and define it as `extern __shared__ __align__(16) unsigned char name[]` where it is not
// defined.
#define DYNAMIC_SHARED(name) unsigned char* name = shim::dynamic_shared

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(4) ushort2 { unsigned short x, y; };
struct __align__(8) ushort4 { unsigned short x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace shim {

constexpr int MOST_THREADS = 1024;
constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t MOST_SHARED = 227 << 10;  // what an sm_90 block may have
constexpr size_t FENCE_BYTES = 4096;       // behind it, to catch a write too far

struct Barrier {
  int arrived = 0, expected = 0;
  unsigned round = 0;
};

struct Fiber {
  jmp_buf place;
  bool started, finished;
};

inline Fiber fibers[MOST_THREADS];
inline unsigned char* stacks = nullptr;
inline Barrier block_barrier, warp_barriers[MOST_THREADS / 32];
inline uint64_t exchanged[MOST_THREADS];
alignas(128) inline unsigned char dynamic_shared[MOST_SHARED + FENCE_BYTES];
inline jmp_buf scheduler;
inline ucontext_t first_context;
inline int current = 0, progress = 0;
inline void (*body)(const void*) = nullptr;
inline const void* body_params = nullptr;
inline char message[256] = "";

inline void run_fiber() {
  int me = current;
  body(body_params);
  fibers[me].finished = true;
  progress++;
  _longjmp(scheduler, 1);
}

inline void stop_fiber() {
  if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

inline void continue_fiber(int index) {
  current = index;
  if (_setjmp(scheduler)) return;
  Fiber& fiber = fibers[index];
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  getcontext(&first_context);
  first_context.uc_stack.ss_sp = stacks + index * STACK_BYTES;
  first_context.uc_stack.ss_size = STACK_BYTES;
  first_context.uc_link = nullptr;
  makecontext(&first_context, run_fiber, 0);
  setcontext(&first_context);
}

inline void wait(Barrier& barrier) {
  unsigned round = barrier.round;
  progress++;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    barrier.round++;
    return;
  }
  while (barrier.round == round) stop_fiber();
}

inline int warp_size(int warp, int threads) {
  return threads - warp * 32 < 32 ? threads - warp * 32 : 32;
}

}  // namespace shim

inline dim3 blockIdx{0, 0, 0}, blockDim, gridDim;
// The index of the running fiber, read anew at each use.
struct ThreadIndex {
  struct X { operator unsigned() const { return (unsigned)shim::current; } } x;
  struct Zero { operator unsigned() const { return 0; } } y, z;
};
inline ThreadIndex threadIdx;
constexpr int warpSize = 32;

namespace shim {

// Each thread of a warp to its next barrier; whether any was left to run.
inline bool run_warp(int warp, int threads, bool falling) {
  bool left = false;
  int lanes = warp_size(warp, threads);
  for (int k = 0; k < lanes; k++) {
    int i = warp * 32 + (falling ? lanes - 1 - k : k);
    if (fibers[i].finished) continue;
    left = true;
    continue_fiber(i);
  }
  return left;
}

inline bool run_block(int threads, unsigned shared_bytes, bool falling) {
  memset(dynamic_shared, 0xff, shared_bytes);
  block_barrier = {0, threads, 0};
  for (int w = 0; w * 32 < threads; w++) warp_barriers[w] = {0, warp_size(w, threads), 0};
  for (int i = 0; i < threads; i++) fibers[i].started = fibers[i].finished = false;
  int warps = (threads + 31) / 32;
  for (;;) {
    bool left = false, moved = false;
    for (int k = 0; k < warps; k++) {
      int warp = falling ? warps - 1 - k : k;
      do {
        progress = 0;
        left |= run_warp(warp, threads, falling);
        moved |= progress > 0;
      } while (progress);
    }
    if (!left) return true;
    if (!moved) return false;
  }
}

inline bool untouched_beyond(unsigned shared_bytes) {
  for (unsigned i = 0; i < FENCE_BYTES; i++)
    if (dynamic_shared[shared_bytes + i] != 0xff) return false;
  return true;
}

struct Kernel {
  const char* name;
  void (*call)(const void*);
};

inline int launch(const Kernel* kernels, int n_kernels, const char* name, dim3 grid, unsigned block,
                  const void* params, unsigned shared_bytes) {
  body = nullptr;
  for (int i = 0; i < n_kernels; i++)
    if (!strcmp(kernels[i].name, name)) body = kernels[i].call;
  if (!body) {
    snprintf(message, sizeof message, "no kernel '%s'", name);
    return 1;
  }
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || !block ||
      block > (unsigned)MOST_THREADS || shared_bytes > MOST_SHARED) {
    snprintf(message, sizeof message, "%s: no device takes grid %u %u %u, block %u, %u bytes",
             name, grid.x, grid.y, grid.z, block, shared_bytes);
    return 2;
  }
  if (!stacks) stacks = (unsigned char*)aligned_alloc(64, MOST_THREADS * STACK_BYTES);
  memset(dynamic_shared + shared_bytes, 0xff, FENCE_BYTES);
  body_params = params;
  gridDim = grid;
  blockDim = {block, 1, 1};
  bool falling = false;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++, falling = !falling) {
        blockIdx = {x, y, z};
        if (run_block((int)block, shared_bytes, falling)) {
          if (untouched_beyond(shared_bytes)) continue;
          snprintf(message, sizeof message, "%s: wrote beyond its %u bytes of shared memory", name,
                   shared_bytes);
          return 4;
        }
        int waiting = 0;
        for (unsigned i = 0; i < block; i++) waiting += !fibers[i].finished;
        snprintf(message, sizeof message,
                 "%s: divergent barrier in block (%u, %u, %u): %d of %u threads wait",
                 name, x, y, z, waiting, block);
        return 3;
      }
  return 0;
}

template <class T> T exchange(T value, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  Barrier& warp = warp_barriers[current / 32];
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  exchanged[current] = bits;
  wait(warp);
  T result;
  memcpy(&result, &exchanged[source], sizeof result);
  wait(warp);
  return result;
}
inline void need_full(unsigned mask) {
  int lanes = warp_size(current / 32, (int)blockDim.x);
  if (mask == 0xffffffffu || mask == (unsigned)((1ull << lanes) - 1)) return;
  fprintf(stderr, "the shim knows full warps only, not the mask %08x\n", mask);
  abort();
}

}  // namespace shim

inline void __syncthreads() { shim::wait(shim::block_barrier); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  shim::need_full(mask);
  shim::wait(shim::warp_barriers[shim::current / 32]);
}
inline void __threadfence() {}

// Lanes whose source lies outside their group of `width` keep their own value, as on the device.
template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  shim::need_full(mask);
  return shim::exchange(value, (shim::current & ~(width - 1)) + (lane & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  shim::need_full(mask);
  int source = shim::current ^ lanes;
  bool outside = (source & ~(width - 1)) > (shim::current & ~(width - 1));
  return shim::exchange(value, outside ? shim::current : source);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  shim::need_full(mask);
  bool outside = (shim::current & (width - 1)) < (int)by;
  return shim::exchange(value, outside ? shim::current : shim::current - (int)by);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  shim::need_full(mask);
  bool outside = (shim::current & (width - 1)) + (int)by >= width;
  return shim::exchange(value, outside ? shim::current : shim::current + (int)by);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  shim::need_full(mask);
  unsigned bits = 0;
  int lanes = shim::warp_size(shim::current / 32, (int)blockDim.x);
  for (int lane = 0; lane < lanes; lane++)
    bits |= (unsigned)(__shfl_sync(mask, predicate != 0, lane) ? 1u : 0u) << lane;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return !__any_sync(mask, !predicate); }

inline unsigned __float_as_uint(float x) { unsigned r; memcpy(&r, &x, 4); return r; }
inline int __float_as_int(float x) { int r; memcpy(&r, &x, 4); return r; }
inline float __uint_as_float(unsigned x) { float r; memcpy(&r, &x, 4); return r; }
inline float __int_as_float(int x) { float r; memcpy(&r, &x, 4); return r; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }

#define SHIM_KERNEL(kernel, Params) {#kernel, [](const void* p) { kernel(*(const Params*)p); }}
#define SHIM_KERNELS(...)                                                                        \
  static const shim::Kernel shim_kernels[] = {__VA_ARGS__};                                      \
  extern "C" int shim_launch(const char* kernel, unsigned gx, unsigned gy, unsigned gz,          \
                             unsigned block, const void* params, unsigned shared_bytes) {        \
    return shim::launch(shim_kernels, (int)(sizeof shim_kernels / sizeof *shim_kernels), kernel, \
                        dim3{gx, gy, gz}, block, params, shared_bytes);                          \
  }                                                                                              \
  extern "C" const char* shim_message() { return shim::message; }
