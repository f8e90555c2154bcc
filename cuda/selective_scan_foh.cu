// The selective scan for a rising input (foh): it also needs (exp(A s) - 1 - A s) / (A^2 s).
// Otherwise as selective_scan.cu.
#include "number_types.cuh"
#include "scan_params.cuh"
#include "scan_weights.cuh"
#include "scan_tiles.cuh"
#include "scan_forward.cuh"
#include "scan_backward.cuh"
#include "scan_gradients.cuh"

constexpr int KIND = RISING;
#include "scan_kernels.cuh"
