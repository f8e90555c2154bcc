// selective_scan.cu for the CPU.
#include "cpu_shim.h"
#include "selective_scan.cu"
#include "selective_scan_kernels.h"
