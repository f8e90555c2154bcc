// The kernels of the causal convolution for the CPU.
#include "cpu_shim.h"
#include "causal_conv.cu"

SHIM_KERNELS(SHIM_KERNEL(conv_forward_f32_four, ConvParams),
             SHIM_KERNEL(conv_forward_f32_one, ConvParams),
             SHIM_KERNEL(conv_forward_bf16_four, ConvParams),
             SHIM_KERNEL(conv_forward_bf16_one, ConvParams),
             SHIM_KERNEL(conv_forward_f16_four, ConvParams),
             SHIM_KERNEL(conv_forward_f16_one, ConvParams),
             SHIM_KERNEL(conv_backward_f32_four, ConvParams),
             SHIM_KERNEL(conv_backward_f32_one, ConvParams),
             SHIM_KERNEL(conv_backward_bf16_four, ConvParams),
             SHIM_KERNEL(conv_backward_bf16_one, ConvParams),
             SHIM_KERNEL(conv_backward_f16_four, ConvParams),
             SHIM_KERNEL(conv_backward_f16_one, ConvParams),
             SHIM_KERNEL(conv_final_f32, ConvParams), SHIM_KERNEL(conv_final_bf16, ConvParams),
             SHIM_KERNEL(conv_final_f16, ConvParams), SHIM_KERNEL(conv_sum_shares, ConvParams))
