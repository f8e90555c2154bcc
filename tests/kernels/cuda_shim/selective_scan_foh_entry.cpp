// selective_scan_foh.cu for the CPU.
#include "cpu_shim.h"
#include "selective_scan_foh.cu"
#include "selective_scan_kernels.h"
