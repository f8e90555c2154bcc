"""The encoder has the published sizes, and sees segments of any length."""

from __future__ import annotations

import pytest
import torch

from tsfm.models.efficientnet1d import (
    EMBEDDING_WIDTH,
    TOTAL_STRIDE,
    EfficientNet1d,
    EfficientNet1dConfig,
    standardise,
)

SMALL = EfficientNet1dConfig(n_channels=2, expansion=1)


@pytest.mark.parametrize(
    ("n_channels", "expansion", "n_parameters"), [(4, 7, 3.146e6), (1, 6, 2.469e6)]
)
def test_it_is_as_large_as_the_published_one(
    n_channels: int, expansion: int, n_parameters: float
) -> None:
    encoder = EfficientNet1d(EfficientNet1dConfig(n_channels, expansion))
    found = sum(p.numel() for p in encoder.parameters())
    assert found == pytest.approx(n_parameters, rel=0.005)


def test_a_minute_at_64_hz_is_sixty_frames_and_one_vector() -> None:
    encoder = EfficientNet1d(SMALL).eval()
    minute = torch.randn(1, 2, 3840)
    assert encoder.frames(minute).shape == (1, EMBEDDING_WIDTH, 60)
    torch.testing.assert_close(encoder(minute), encoder.frames(minute).mean(-1))
    assert encoder.frames(minute[..., : TOTAL_STRIDE + 1]).shape[-1] == 2


def test_a_later_sample_moves_frames_by_whole_strides() -> None:
    encoder = EfficientNet1d(SMALL).eval().double()
    for block in encoder.blocks:  # the gate looks at the whole segment, the rest does not
        block.gate = torch.nn.Identity()
    signal = torch.randn(1, 2, 80 * TOTAL_STRIDE, dtype=torch.float64)
    late = encoder.frames(signal[..., TOTAL_STRIDE:])
    whole = encoder.frames(signal)
    inner = slice(30, 45)
    torch.testing.assert_close(late[..., inner], whole[..., 31:46])


def test_segments_do_not_see_each_other_in_evaluation() -> None:
    encoder = EfficientNet1d(SMALL).eval()
    segments = torch.randn(3, 2, 640)
    torch.testing.assert_close(encoder(segments)[1:2], encoder(segments[1:2]))


def test_every_parameter_is_learned() -> None:
    encoder = EfficientNet1d(SMALL)
    encoder(torch.randn(4, 2, 640)).square().sum().backward()
    idle = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_standardising_undoes_gain_and_offset_of_each_channel() -> None:
    segments = torch.randn(3, 2, 500, dtype=torch.float64)
    gain = torch.tensor([[0.01], [900.0]], dtype=torch.float64)
    found = standardise(segments * gain + 7.0)
    torch.testing.assert_close(found, standardise(segments))
    torch.testing.assert_close(found.mean(-1), torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(found.std(-1, correction=0), torch.ones(3, 2, dtype=torch.float64))


def test_a_gap_becomes_the_mean_and_moves_nothing_else() -> None:
    known = torch.randn(1, 1, 300)
    gap = torch.full((1, 1, 40), torch.nan)
    found = standardise(torch.cat([known[..., :100], gap, known[..., 100:]], -1))
    torch.testing.assert_close(found[..., 100:140], torch.zeros(1, 1, 40))
    rest = torch.cat([found[..., :100], found[..., 140:]], -1)
    torch.testing.assert_close(rest, standardise(known))


@pytest.mark.parametrize("level", [0.0, 3.3, -1e5, torch.nan])
def test_a_channel_that_never_moves_becomes_zeros(level: float) -> None:
    assert not standardise(torch.full((2, 1, 777), level)).any()


@pytest.mark.parametrize("sizes", [(0, 6), (1, 0), (1, 99)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="channels"):
        EfficientNet1dConfig(*sizes)
