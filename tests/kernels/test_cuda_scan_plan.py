"""How the CUDA scan cuts the tokens: until the card is full, and no finer."""

from __future__ import annotations

import pytest

from tsfm.kernels import cuda_scan

H100 = 132  # multiprocessors


@pytest.mark.parametrize(
    ("n_tokens", "n_channels", "n_sequences"),
    [(50_000, 512, 1), (50_000, 64, 1), (8 * 2048, 256, 8), (16_384, 1536, 4)],
)
def test_few_long_sequences_are_cut_until_they_fill_the_card(
    n_tokens: int, n_channels: int, n_sequences: int
) -> None:
    cut = cuda_scan.plan(n_tokens, n_channels, 16, n_sequences, H100)
    blocks = cut.n_chunks * -(-n_channels // cuda_scan.CHANNELS)
    assert blocks >= cuda_scan.ENOUGH_BLOCKS * H100
    assert cut.chunk_tokens % cuda_scan.SEGMENT == 0
    assert cut.chunk_tokens * (cut.n_chunks - 1) < n_tokens <= cut.chunk_tokens * cut.n_chunks


def test_enough_sequences_are_left_whole() -> None:
    # A border of every sequence falls on one of a chunk: no carry, no second pass.
    assert cuda_scan.plan(8 * 2048, 1536, 16, 8, H100).chunk_tokens == 2048
    assert cuda_scan.plan(512 * 256, 1536, 16, 512, H100).chunk_tokens % 256 == 0


def test_large_backward_passes_take_a_quarter_of_an_activation_for_shares() -> None:
    n_tokens, n_channels, n_state = 512 * 2048, 1536, 16
    cut = cuda_scan.plan(n_tokens, n_channels, n_state, 512, H100)
    blocks = n_channels // cuda_scan.CHANNELS
    shares = cut.slice_chunks * cut.chunk_tokens * blocks * 2 * n_state
    assert shares <= n_tokens * n_channels / 4
    assert cuda_scan.checkpoint_numel(n_tokens, n_channels, n_state) == n_tokens * n_channels / 4
