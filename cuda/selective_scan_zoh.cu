// The selective scan for a held input (zoh): its weight is (exp(A s) - 1) / A.
// Otherwise as selective_scan.cu.
#include "number_types.cuh"
#include "scan_params.cuh"
#include "scan_weights.cuh"
#include "scan_tiles.cuh"
#include "scan_forward.cuh"
#include "scan_backward.cuh"
#include "scan_gradients.cuh"

constexpr int KIND = HELD;
#include "scan_kernels.cuh"
