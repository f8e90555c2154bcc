// The kernels that each selective_scan*.cu defines.
SHIM_KERNELS(SHIM_KERNEL(scan_label, ScanParams), SHIM_KERNEL(scan_carry, ScanParams),
             SHIM_KERNEL(scan_summary, ScanParams), SHIM_KERNEL(scan_forward, ScanParams),
             SHIM_KERNEL(scan_summary_back, ScanParams), SHIM_KERNEL(scan_backward, ScanParams),
             SHIM_KERNEL(scan_sum_states, ScanParams), SHIM_KERNEL(scan_sum_gaps, ScanParams),
             SHIM_KERNEL(scan_sum_chunks, ScanParams))
