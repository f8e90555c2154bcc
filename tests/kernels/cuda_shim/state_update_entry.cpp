// The kernels of the state update for the CPU.
#include "cpu_shim.h"
#include "state_update.cu"

SHIM_KERNELS(SHIM_KERNEL(state_update_f32_f32, StateParams),
             SHIM_KERNEL(state_update_bf16_f32, StateParams),
             SHIM_KERNEL(state_update_f16_f32, StateParams),
             SHIM_KERNEL(state_update_f32_bf16, StateParams),
             SHIM_KERNEL(state_update_bf16_bf16, StateParams),
             SHIM_KERNEL(state_update_f16_bf16, StateParams))
