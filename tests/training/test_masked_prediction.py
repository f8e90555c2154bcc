"""Hidden stretches have the length and share asked for, and only what was hidden is scored."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.training.masked_prediction import (
    MaskConfig,
    MaskedLatents,
    MaskedSamples,
    draw_hidden,
    hidden_tokens,
    lead_scores,
)

NAN = float("nan")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Patches(nn.Module):
    """An encoder for tests: each token is a linear map of its samples and of their means."""

    def __init__(self, n_leads: int, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.map = nn.Linear(2 * n_leads * size, width)

    def forward(self, signal: Tensor) -> Tensor:
        n = -(-signal.shape[-1] // self.size)
        padded = F.pad(signal, (0, n * self.size - signal.shape[-1]), value=NAN)
        known = ~torch.isnan(padded)
        both = torch.cat([padded.nan_to_num(0.0), known.to(signal)], 1)
        patches = both.unflatten(-1, (n, self.size)).transpose(1, 2).flatten(2)
        found = self.map(patches)
        return found + found.mean(1, keepdim=True)


@pytest.mark.parametrize(("share", "span_s"), [(0.5, 0.4), (0.15, 0.1), (0.7, 2.0)])
def test_every_sample_is_hidden_as_often_as_said(share: float, span_s: float) -> None:
    config = MaskConfig(share=share, span_s=span_s)
    hidden = draw_hidden((4000, 2, 500), config, fs_hz=50, generator=generator())
    often = hidden[:, 0].float().mean(0)
    spans = 1.0 / (500 + round(span_s * 50) - 1) * round(span_s * 50)
    assert often.mean().item() == pytest.approx(share, abs=0.02 + share * spans)
    assert often.amax() - often.amin() < 0.08  # the ends as often as the middle
    assert torch.equal(hidden[:, 0], hidden[:, 1])


def test_hidden_stretches_are_whole_spans() -> None:
    config = MaskConfig(share=0.3, span_s=0.2)
    hidden = draw_hidden((200, 1, 400), config, fs_hz=100, generator=generator())[:, 0]
    for row in hidden:
        edges = torch.diff(F.pad(row.int(), (1, 1)))
        starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
        inside = (starts > 0) & (ends < 400)
        assert ((ends - starts)[inside] >= 20).all()


def test_leads_may_be_hidden_each_by_itself() -> None:
    config = MaskConfig(leads_together=False)
    hidden = draw_hidden((20, 3, 300), config, fs_hz=100, generator=generator())
    assert not torch.equal(hidden[:, 0], hidden[:, 1])


def test_the_loss_is_over_hidden_and_measured_samples_alone() -> None:
    torch.manual_seed(0)
    objective = MaskedSamples(nn.Identity(), 6, n_leads=2, samples_per_token=5)
    states, signal = torch.randn(3, 5, 6), torch.randn(3, 2, 23)
    hidden = torch.rand(3, 2, 23) < 0.4
    signal[0, 1] = NAN
    signal[1, 0, :9] = NAN
    costs = []
    for i in range(3):
        said = objective.head(states[i]).view(5, 2, 5).permute(1, 0, 2).reshape(2, 25)
        for lead in range(2):
            own = signal[i, lead][~torch.isnan(signal[i, lead])]
            for t in range(23):
                if hidden[i, lead, t] and not torch.isnan(signal[i, lead, t]):
                    score = (signal[i, lead, t] - own.mean()) / own.std(unbiased=False)
                    gap = (said[lead, t] - score).abs()
                    costs.append(gap - 0.5 if gap > 1 else gap**2 / 2)
    found = objective.of_states(states, signal, hidden)
    torch.testing.assert_close(found, torch.stack(costs).mean())


def test_the_encoder_never_sees_what_is_hidden() -> None:
    torch.manual_seed(0)
    encoder = Patches(2, 5, 8)
    objective = MaskedSamples(encoder, 8, n_leads=2, samples_per_token=5)
    seen: list[Tensor] = []
    encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    signal = torch.randn(4, 2, 100)
    objective(signal, fs_hz=50.0, generator=generator())
    hidden = draw_hidden((4, 2, 100), objective.config, fs_hz=50.0, generator=generator())
    assert torch.equal(torch.isnan(seen[0]), hidden)
    assert torch.equal(seen[0][~hidden], signal[~hidden])


def test_training_fills_in_a_sine_better_than_its_mean_does() -> None:
    torch.manual_seed(0)
    phase = torch.rand(64, 1, 1) * 6.28
    signal = 3 + 2 * torch.sin(torch.arange(60) * 0.3 + phase)
    config = MaskConfig(share=0.3, span_s=0.1)
    objective = MaskedSamples(
        nn.Sequential(Patches(1, 60, 64), nn.GELU()), 64, n_leads=1, samples_per_token=60,
        config=config,
    )  # fmt: skip
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    nothing = F.smooth_l1_loss(torch.zeros(64, 1, 60), lead_scores(signal)).item()
    for i in range(200):
        optimizer.zero_grad()
        objective(signal, fs_hz=100.0, generator=generator(i)).backward()
        optimizer.step()
    assert objective(signal, fs_hz=100.0, generator=generator(999)).item() < nothing / 4


def test_latents_of_the_teacher_are_asked_at_hidden_tokens_alone() -> None:
    torch.manual_seed(0)
    student, teacher = Patches(1, 5, 8), Patches(1, 5, 6)
    objective = MaskedLatents(student, teacher, 8, samples_per_token=5, d_teacher=6)
    signal = torch.randn(3, 1, 100)
    loss = objective(signal, fs_hz=50.0, generator=generator())
    hidden = draw_hidden((3, 1, 100), objective.config, fs_hz=50.0, generator=generator())
    said = objective.head(student(signal.masked_fill(hidden, NAN)))
    costs = []
    for i in range(3):
        for token in range(20):
            if hidden[i, 0, 5 * token : 5 * token + 5].sum() >= 2.5:
                latent = teacher(signal)[i, token].detach()
                latent = (latent - latent.mean()) / (latent.var(unbiased=False) + 1e-5).sqrt()
                costs.append(F.smooth_l1_loss(said[i, token], latent))
    torch.testing.assert_close(loss, torch.stack(costs).mean())
    loss.backward()
    assert teacher.map.weight.grad is None
    assert student.map.weight.grad is not None
    assert not any(p is teacher.map.weight for p in objective.parameters())


def test_half_a_token_makes_it_hidden_and_a_short_last_one_counts_what_it_has() -> None:
    hidden = torch.zeros(1, 2, 11, dtype=torch.bool)
    hidden[:, :, 0:2] = True  # half of the first four
    hidden[:, 0, 4:7] = True  # three of the next eight
    hidden[:, :, 9:11] = True  # two of the last three
    assert hidden_tokens(hidden, 4).tolist() == [[True, False, True]]


@pytest.mark.parametrize("n_missing", [7, 11])
def test_missing_leads_are_no_part_of_a_token(n_missing: int) -> None:
    torch.manual_seed(0)
    hidden = torch.zeros(1, 12, 8, dtype=torch.bool)
    hidden[..., :4] = True
    known = torch.ones_like(hidden)
    known[:, 12 - n_missing :] = False
    assert hidden_tokens(hidden, 4, known=known).tolist() == [[True, False]]
    assert not hidden_tokens(hidden, 4, known=known & False).any()
    signal = torch.randn(4, 12, 200)
    signal[:, 12 - n_missing :] = NAN
    objective = MaskedLatents(Patches(12, 5, 8), Patches(12, 5, 8), 8, samples_per_token=5)
    assert objective(signal, fs_hz=50.0, generator=generator()) > 0


def test_scores_ignore_gaps_and_do_not_blow_up_a_flat_lead() -> None:
    signal = torch.tensor([[[1.0, NAN, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [NAN] * 4]])
    found = lead_scores(signal)
    assert found[0, 0].tolist() == pytest.approx([-1.2247, 0.0, 1.2247, 0.0], abs=1e-3)
    assert not found[0, 1:].any()


def test_masks_and_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="bad_mask"):
        MaskConfig(share=1.0)
    with pytest.raises(InputError, match="bad_mask"):
        draw_hidden((1, 1, 10), MaskConfig(span_s=0.001), fs_hz=100.0)
    for fs_hz, n in ((NAN, 10), (float("inf"), 10), (100.0, 0)):
        with pytest.raises(InputError, match=r"bad_mask|bad_signal_shape"):
            draw_hidden((1, 1, n), MaskConfig(), fs_hz=fs_hz)
    objective = MaskedSamples(Patches(1, 5, 8), 8, n_leads=2, samples_per_token=5)
    with pytest.raises(InputError, match="bad_signal_shape"):  # one lead would stand for both
        objective(torch.randn(1, 1, 100), fs_hz=50.0)
    objective = MaskedSamples(Patches(1, 5, 8), 8, n_leads=1, samples_per_token=4)
    with pytest.raises(InputError, match="bad_token_shape"):
        objective(torch.randn(1, 1, 100), fs_hz=50.0)
