// The selective scan in real time on the GPU, for inputs that need exp(A s) alone: euler and
// impulse. See README.md.
//
// A thread keeps four states of one channel in registers and walks a chunk of tokens; four
// threads make a channel and eight channels a warp. Where one card holds more chunks than there
// are sequences, a chunk's summary (end state, time felt) is found first, the carries pass from
// chunk to chunk in one multiply-add each, and the chunks then run side by side. No atomics:
// every sum has one order. No header but our own: NVRTC compiles this with nothing on its include
// path. The other inputs are files of their own, so that nobody waits for kernels that they do
// not use.
#include "number_types.cuh"
#include "scan_params.cuh"
#include "scan_weights.cuh"
#include "scan_tiles.cuh"
#include "scan_forward.cuh"
#include "scan_backward.cuh"
#include "scan_gradients.cuh"

constexpr int KIND = PLAIN;
#include "scan_kernels.cuh"
