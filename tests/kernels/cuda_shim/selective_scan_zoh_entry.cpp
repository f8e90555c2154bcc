// selective_scan_zoh.cu for the CPU.
#include "cpu_shim.h"
#include "selective_scan_zoh.cu"
#include "selective_scan_kernels.h"
