"""Masked prediction of waveforms: hide stretches of time, and say what was there.

Spans of a length in seconds are set to NaN, which every encoder here reads as "not measured". From
the states of the tokens either the hidden samples are predicted, each lead on its own scale
(masked autoencoding), or what a teacher who sees the whole record says at the hidden tokens (as in
joint-embedding prediction: latents carry no noise). Neither is of use with an encoder that divides
by the record's own deviation.

Spans begin anywhere, also before the record, so that its ends are hidden as often as its middle.
They are whole and may lie over each other, so a record of few spans is hidden more or less than
asked for.
What was not measured to begin with is never asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tsfm.errors import InputError

_SMALLEST_MV = 1e-3  # deviations below count as this, so that a flat lead is not blown up


@dataclass(frozen=True)
class MaskConfig:
    """What is hidden.

    Attributes:
        share: Of the time, in the mean of many records; more than 0 and less than 1. It is met as
            nearly as a whole number of spans, one at least, allows: well in ten spans or more, and
            not at all where one span covers more.
        span_s: Length of a span in seconds.
        leads_together: Hide all leads at once; otherwise each has spans of its own.
    """

    share: float = 0.5
    span_s: float = 0.4
    leads_together: bool = True

    def __post_init__(self) -> None:
        """Refuse shares and spans that hide nothing or everything."""
        if not 0 < self.share < 1 or not self.span_s > 0:
            raise InputError(
                "nothing or everything would be hidden", code="bad_mask", place="MaskConfig",
                remedy="Give a share between 0 and 1 and a span of some length.",
            )  # fmt: skip


def draw_hidden(
    shape: tuple[int, int, int],
    config: MaskConfig,
    *,
    fs_hz: float,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "record lead sample"]:
    """Which samples are hidden; every sample has the same chance.

    Args:
        shape: Records, leads and samples.
        config: What is hidden.
        fs_hz: Sampling rate.
        generator: Source of chance, on the CPU.

    Raises:
        InputError: A span is shorter than a sample, or there are no samples.
    """
    n_records, n_leads, n = shape
    if min(shape) < 1:
        raise InputError(
            "no samples to hide", code="bad_signal_shape", place="signal",
            remedy="Give (record, lead, sample), at least one of each.",
        )  # fmt: skip
    span = round(config.span_s * fs_hz) if math.isfinite(fs_hz) else 0
    if span < 1:
        raise InputError(
            "a span is shorter than a sample", code="bad_mask", place="span_s",
            remedy="Hide longer spans.",
        )  # fmt: skip
    n_rows = n_records if config.leads_together else n_records * n_leads
    # A span covers a sample with a chance of span / places; so many spans reach the share.
    places = n + span - 1
    n_spans = max(1, round(math.log1p(-config.share) / math.log1p(-span / (places + 1e-9))))
    start = torch.randint(places, (n_rows, n_spans), generator=generator) - span + 1
    # Spans that have begun less those that have ended; both counted by running sums.
    edges = torch.zeros(n_rows, n + 1, dtype=torch.int64)
    edges.scatter_add_(1, start.clamp(min=0), torch.ones_like(start))
    edges.scatter_add_(1, (start + span).clamp(max=n), torch.full_like(start, -1))
    hidden = edges.cumsum(1)[:, :n] > 0
    rows = hidden.view(n_records, -1, n)
    return rows.expand(shape)


class MaskedSamples(nn.Module):
    """Predict the hidden samples of each lead.

    Args:
        encode: Maps a signal, (record, lead, sample) with NaN, to (record, token, d_model).
        d_model: Width of a token.
        n_leads: Leads of the signal.
        samples_per_token: Samples that a token stands for; token j begins at that many times j.
        config: What is hidden.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        d_model: int,
        *,
        n_leads: int,
        samples_per_token: int,
        config: MaskConfig | None = None,
    ) -> None:
        """Build a linear head."""
        super().__init__()
        self.encode, self.config = encode, config or MaskConfig()
        self.n_leads, self.samples_per_token = n_leads, samples_per_token
        self.head = nn.Linear(d_model, n_leads * samples_per_token)

    def forward(
        self,
        signal: Float[Tensor, "record lead sample"],
        *,
        fs_hz: float,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Mean smooth absolute error of the hidden samples, in deviations of their lead.

        Args:
            signal: NaN where nothing was measured.
            fs_hz: Sampling rate.
            generator: Source of what is hidden, on the CPU.

        Raises:
            InputError: The encoder's tokens do not fit the samples, or the leads are others.
        """
        hidden = draw_hidden(
            (len(signal), signal.shape[1], signal.shape[2]), self.config, fs_hz=fs_hz,
            generator=generator,
        ).to(signal.device)  # fmt: skip
        states = self.encode(signal.masked_fill(hidden, float("nan")))
        return self.of_states(states, signal, hidden)

    def of_states(
        self,
        states: Float[Tensor, "record token model"],
        signal: Float[Tensor, "record lead sample"],
        hidden: Bool[Tensor, "record lead sample"],
    ) -> Float[Tensor, ""]:
        """Loss of states that saw the signal without what is hidden; see `forward`."""
        if signal.shape[1] != self.n_leads:
            raise InputError(
                f"a signal of {signal.shape[1]} leads", code="bad_signal_shape", place="signal",
                remedy=f"The head says {self.n_leads} leads; a missing one is NaN all along.",
            )  # fmt: skip
        check_tokens(states, signal, self.samples_per_token)
        said = self.head(states).unflatten(-1, (self.n_leads, self.samples_per_token))
        said = said.transpose(1, 2).flatten(2)[..., : signal.shape[-1]]
        asked = hidden & ~torch.isnan(signal)
        error = F.smooth_l1_loss(said, lead_scores(signal).to(said), reduction="none")
        return (error * asked).sum() / asked.sum().clamp(min=1)


class MaskedLatents(nn.Module):
    """Predict what a teacher says at hidden tokens.

    Args:
        encode: The student: (record, lead, sample) with NaN to (record, token, d_model).
        teach: The teacher, of the same form, who sees everything; such as a running average of the
            student. No gradient reaches it.
        d_model: Width of the student's tokens.
        samples_per_token: Samples that a token stands for.
        config: What is hidden.
        d_teacher: Width of the teacher's tokens; the student's by default.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        teach: Callable[[Tensor], Tensor],
        d_model: int,
        *,
        samples_per_token: int,
        config: MaskConfig | None = None,
        d_teacher: int | None = None,
    ) -> None:
        """Build a head of one hidden layer."""
        super().__init__()
        self.encode, self.config = encode, config or MaskConfig()
        # A list hides the teacher from `parameters`: it is not this objective's to train.
        self._teacher = [teach]
        self.samples_per_token = samples_per_token
        self.head = nn.Sequential(
            nn.Linear(d_model, d_model), nn.GELU(), nn.Linear(d_model, d_teacher or d_model)
        )

    def forward(
        self,
        signal: Float[Tensor, "record lead sample"],
        *,
        fs_hz: float,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Mean smooth absolute error at the hidden tokens, each latent standardised by itself.

        Args:
            signal: NaN where nothing was measured.
            fs_hz: Sampling rate.
            generator: Source of what is hidden, on the CPU.

        Raises:
            InputError: The encoder's tokens do not fit the samples.
        """
        hidden = draw_hidden(
            (len(signal), signal.shape[1], signal.shape[2]), self.config, fs_hz=fs_hz,
            generator=generator,
        ).to(signal.device)  # fmt: skip
        with torch.no_grad():
            target = self._teacher[0](signal)
            target = F.layer_norm(target, target.shape[-1:])
        states = self.encode(signal.masked_fill(hidden, float("nan")))
        check_tokens(states, signal, self.samples_per_token)
        asked = hidden_tokens(hidden, self.samples_per_token, known=~torch.isnan(signal))
        error = F.smooth_l1_loss(self.head(states), target, reduction="none").mean(-1)
        return (error * asked).sum() / asked.sum().clamp(min=1)


def lead_scores(
    signal: Float[Tensor, "record lead sample"],
) -> Float[Tensor, "record lead sample"]:
    """Samples less their lead's mean, in its deviations; 0 where nothing was measured.

    A deviation below a microvolt, of a signal in millivolts, counts as one.
    """
    known = ~torch.isnan(signal)
    x = signal.nan_to_num(0.0)
    n = known.sum(-1, keepdim=True).clamp(min=1)
    x = (x - x.sum(-1, keepdim=True) / n) * known
    deviation = (x.square().sum(-1, keepdim=True) / n).sqrt()
    return x / deviation.clamp(min=_SMALLEST_MV)


def hidden_tokens(
    hidden: Bool[Tensor, "record lead sample"],
    samples_per_token: int,
    *,
    known: Bool[Tensor, "record lead sample"] | None = None,
) -> Bool[Tensor, "record token"]:
    """Tokens half of whose measured samples, over all leads, are hidden.

    Args:
        hidden: Samples that are hidden.
        samples_per_token: Samples that a token stands for.
        known: Samples that were measured, by default all; a token without any is not hidden.
    """
    known = torch.ones_like(hidden) if known is None else known
    lacking = -hidden.shape[-1] % samples_per_token

    def of_tokens(samples: Tensor) -> Tensor:
        """Samples of each token, as shares of the leads."""
        parts = F.pad(samples.float().mean(1), (0, lacking))
        return parts.unflatten(-1, (-1, samples_per_token)).sum(-1)

    measured = of_tokens(known)
    return (of_tokens(hidden & known) >= measured / 2) & (measured > 0)


def check_tokens(states: Tensor, signal: Tensor, samples_per_token: int) -> None:
    """Check that tokens and samples belong to each other.

    Raises:
        InputError: `bad_token_shape`.
    """
    n_tokens = -(-signal.shape[-1] // samples_per_token)
    if states.shape[:2] != (len(signal), n_tokens):
        raise InputError(
            f"{states.shape[1]} tokens for {signal.shape[-1]} samples", code="bad_token_shape",
            place="samples_per_token", remedy=f"The encoder was to give {n_tokens} tokens.",
        )  # fmt: skip
