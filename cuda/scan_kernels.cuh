// The kernels of the selective scan, for the weights KIND that the including .cu names.
#pragma once

extern "C" __global__ void __launch_bounds__(THREADS, 4) scan_forward(ScanParams p) {
  scan_forward_chunk<KIND>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 4) scan_summary(ScanParams p) {
  scan_forward_summary<KIND>(p);
}
// The registers that two blocks of a multiprocessor have suffice for foh; the others leave room for
// three.
extern "C" __global__ void __launch_bounds__(THREADS, KIND == RISING ? 2 : 3)
    scan_backward(ScanParams p) {
  scan_backward_chunk<KIND>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 4) scan_summary_back(ScanParams p) {
  scan_backward_summary(p);
}

// The sequence of each token in the order of the walk: the last whose start is not behind it.
extern "C" __global__ void scan_label(ScanParams p) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.n_tokens) return;
  int row = row_of(p, (int)i);
  int low = 0, high = (int)p.n_sequences - 1;
  while (low < high) {
    int middle = low + (high - low + 1) / 2;
    if (p.borders[middle] <= row) low = middle;
    else high = middle - 1;
  }
  p.labels[i] = low;
}

// Summaries in, what reaches each chunk out, in place: from the first chunk on, or backwards.
extern "C" __global__ void scan_carry(ScanParams p) {
  long long width = (long long)p.n_tiles * TILE, all = p.n_channels * width;
  long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= all) return;
  long long d = at / width, n = at % width;
  float A2 = n < p.n_state ? p.A[d * p.n_state + n] * LOG2E : 0.f, running = 0.f;
#pragma unroll 4
  for (long long k = 0; k < p.n_chunks; k++) {
    long long chunk = p.backwards ? p.n_chunks - 1 - k : k;
    float own = p.carry[chunk * all + at], elapsed = p.elapsed[chunk * p.n_channels + d];
    p.carry[chunk * all + at] = running;
    running = elapsed == __int_as_float(0x7f800000) ? own
                                                    : fmaf(exp2_of(A2 * elapsed), running, own);
  }
}

// dB and dC of a slice: the shares of the blocks of channels, in their order.
extern "C" __global__ void scan_sum_states(ScanParams p) {
  long long wide = (long long)p.n_tiles * SHARE;
  long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  long long first = p.first_chunk * p.chunk_tokens;
  long long tokens = min(p.slice_tokens, p.n_tokens - first);
  if (at >= tokens * wide) return;
  long long token = at / wide, blocks = (p.n_channels + CHANNELS - 1) / CHANNELS;
  int j = (int)(at % wide), within = j % SHARE % (2 * STATES);
  int n = j / SHARE * TILE + j % SHARE / (2 * STATES) * STATES + within % STATES;
  if (n >= p.n_state) return;
  float sum = 0.f;
#pragma unroll 4
  for (long long block = 0; block < blocks; block++)
    sum += p.state_shares[(block * p.slice_tokens + token) * wide + j];
  long long to = offset_of(row_of(p, (int)(first + token)), p.n_state, n);
  store_as(p.type, within < STATES ? p.dB : p.dC, to, sum);
}

// dgap of a slice.
extern "C" __global__ void scan_sum_gaps(ScanParams p) {
  long long token = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  long long first = p.first_chunk * p.chunk_tokens;
  if (token >= min(p.slice_tokens, p.n_tokens - first)) return;
  long long blocks = (p.n_channels + CHANNELS - 1) / CHANNELS;
  float sum = 0.f;
  for (long long block = 0; block < blocks; block++)
    sum += p.gap_shares[block * p.slice_tokens + token];
  p.dgap[row_of(p, (int)(first + token))] = sum;
}

// dA and what is one number a channel: the shares of the chunks, in their order.
extern "C" __global__ void scan_sum_chunks(ScanParams p) {
  long long width = (long long)p.n_tiles * TILE, all = p.n_channels * width;
  long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= all) return;
  long long d = at / width, n = at % width;
  if (n < p.n_state) {
    float sum = 0.f;
    for (long long chunk = 0; chunk < p.n_chunks; chunk++) sum += p.rate_shares[chunk * all + at];
    p.dA[d * p.n_state + n] = sum;
  }
  float* to = n == 0 ? p.dD : n == 1 ? p.dgap_rate : n == 2 ? p.ddelta_bias : nullptr;
  if (!to) return;
  float sum = 0.f;
  for (long long chunk = 0; chunk < p.n_chunks; chunk++)
    sum += p.channel_shares[(chunk * 3 + n) * p.n_channels + d];
  to[d] = sum;
}
