"""Our encoder of ECG, PPG and other waveforms: small, at home at any rate, with any leads.

A record in physical units comes onto a grid of time (`signal_grid`), its leads become one stream
of tokens (`signal_stem`), scan blocks read them (`signal_blocks`), and three things come out: the
state of every token, an embedding of the record, and a few summary vectors.

One set of weights reads 64 to 1,000 Hz, any subset of the named leads in any order, and records of
any length. Amplitudes are kept: nothing divides a record by its own deviation, and the size of
each lead is told beside the tokens. A causal encoder streams: chunks of any size give what the
whole record gives (`signal_stream`).

It cleans nothing: give it what `tsfm.signals.filters` has cleaned, in millivolts (an ECG) or in
units of its usual pulse (a PPG).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsFloat

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn

from tsfm.errors import InputError
from tsfm.models.mamba import RMSNorm
from tsfm.models.signal_blocks import SignalBlock
from tsfm.models.signal_grid import MAX_HZ, to_grid, to_tensor
from tsfm.models.signal_stem import LeadStem
from tsfm.signals.store import STANDARD_LEADS, bare_lead

if TYPE_CHECKING:
    from tsfm.models.signal_stream import EncoderStream

SLOTS = (*STANDARD_LEADS, "PPG", "RESP", "other")
"""Leads that the encoder knows apart; another name is read as `other`."""

_ALIASES = {"mlii": "ii", "mli": "i", "mliii": "iii", "pleth": "ppg"}
_SLOT_OF = {name.casefold(): i for i, name in enumerate(SLOTS)}
_OTHER = len(SLOTS) - 1
_SMALLEST_MV = 1e-3  # amplitudes below count as this
_MOST = 4096  # of any size
MOST_PARAMETERS = 500_000_000


@dataclass(frozen=True)
class BiosignalConfig:
    """Sizes and form of an encoder.

    Attributes:
        d_model: Width of a token.
        n_layers: Scan blocks.
        expand: Channels of a scan in multiples of `d_model`.
        d_state: State components a channel.
        scan: `lti` (filters that are the same for all signals) or `selective`.
        causal: Tokens see nothing after their moment, so that the encoder streams.
        n_filters: Filters that all leads share.
        stem_width: Channels of the stem.
        taps: Length of the shared filters, in points of the grid.
        grid_hz: Points a second that all signals are brought to; four make a token.
        n_summary: Summary vectors.
        d_embedding: Width of the embedding.
        dropout: In training.

    Raises:
        InputError: `unknown_scan`; `bad_model_config`: a size that no encoder has.
    """

    d_model: int = 128
    n_layers: int = 4
    expand: int = 2
    d_state: int = 8
    scan: str = "lti"
    causal: bool = False
    n_filters: int = 16
    stem_width: int = 64
    taps: int = 15
    grid_hz: float = 100.0
    n_summary: int = 4
    d_embedding: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what no encoder has, before memory is asked for."""
        if self.scan not in ("lti", "selective"):
            raise InputError(
                f"unknown scan '{self.scan}'", code="unknown_scan", place="scan",
                remedy="Use 'lti' or 'selective'.",
            )  # fmt: skip
        sizes = (self.d_model, self.expand, self.d_state, self.n_filters, self.stem_width,
                 self.taps - 1, self.d_embedding)  # fmt: skip
        counts = (self.n_layers, self.n_summary)
        sound = all(1 <= size <= _MOST for size in sizes) and all(0 <= n <= _MOST for n in counts)
        if not (
            sound
            and 0 < self.grid_hz <= MAX_HZ
            and 0 <= self.dropout <= 1
            and self.n_parameters <= MOST_PARAMETERS
        ):
            raise InputError(
                "sizes that no encoder has", code="bad_model_config", place="BiosignalConfig",
                remedy=f"Use 1 to {_MOST}, two taps or more, a grid of at most {MAX_HZ:g} Hz, a"
                f" dropout of 0 to 1, and {MOST_PARAMETERS:,} parameters at most.",
            )  # fmt: skip

    @property
    def n_parameters(self) -> int:
        """About how many parameters an encoder has: its matrices, without offsets and norms."""
        width = self.expand * self.d_model
        one_way = 4 * self.d_state * width
        if self.scan == "selective":
            one_way = width * (2 * max(1, width // 16) + 3 * self.d_state)
        block = 3 * width * self.d_model + (1 if self.causal else 2) * one_way
        stem = self.stem_width * (
            len(SLOTS) * self.n_filters + 10 * self.stem_width + 5 * self.d_model
        )
        embed = (self.n_summary + 3) * self.d_model * self.d_embedding
        return self.n_layers * block + stem + self.taps * self.n_filters + embed


class Encoded(NamedTuple):
    """What an encoder says of some records.

    Attributes:
        tokens: State of every token, (batch, token, d_model).
        mask: Tokens that any lead was measured for, (batch, token).
        embedding: Of each record, (batch, d_embedding).
        summary: Its summary vectors, (batch, n_summary, d_model).
    """

    tokens: Float[Tensor, "batch token model"]
    mask: Bool[Tensor, "batch token"]
    embedding: Float[Tensor, "batch embedding"]
    summary: Float[Tensor, "batch summary model"]


class Pooled(NamedTuple):
    """Running sums over the tokens and points of records, which a stream adds to.

    Attributes:
        n_tokens: (batch, 1).
        total: Sum of the states, (batch, model).
        largest: Their maximum, (batch, model).
        weight: Sum of each query's weights, (batch, summary), on the scale of `peak`.
        weighted: The states so weighted, (batch, summary, model).
        peak: Largest score of each query so far, (batch, summary).
        n_points: Known points of each lead, (batch, lead).
        first: Sum of values, (batch, lead).
        second: Sum of their squares.
        highest: Largest value.
        lowest: Smallest value.
    """

    n_tokens: Tensor
    total: Tensor
    largest: Tensor
    weight: Tensor
    weighted: Tensor
    peak: Tensor
    n_points: Tensor
    first: Tensor
    second: Tensor
    highest: Tensor
    lowest: Tensor


def lead_slots(leads: Sequence[str]) -> Int[Tensor, " lead"]:
    """Number of each lead in `SLOTS`, by name in any case; see also `bare_lead`.

    `ECG II` is lead II, or `other` beside one that is called `II`.

    Raises:
        InputError: `repeated_lead`: two leads are one and the same.
    """
    exact = {_SLOT_OF.get(name.strip().casefold()) for name in leads}
    slots = [_slot_of(name.strip()) for name in leads]
    for i, name in enumerate(leads):
        bare = _slot_of(bare_lead(name))  # the prefix speaks of electrodes, not of a PPG
        if slots[i] == _OTHER and bare < len(STANDARD_LEADS) and bare not in exact:
            slots[i] = bare
    standard = [slot for slot in slots if slot < len(STANDARD_LEADS)]
    if len(set(standard)) < len(standard):
        raise InputError(
            "a lead is given twice", code="repeated_lead", place="leads",
            remedy="Give each lead once; `other` may stand for several.",
        )  # fmt: skip
    return torch.tensor(slots)


def _slot_of(name: str) -> int:
    folded = name.casefold()
    return _SLOT_OF.get(_ALIASES.get(folded, folded), _OTHER)


class BiosignalEncoder(nn.Module):
    """Encoder of waveforms.

    Args:
        config: Sizes and form.
    """

    def __init__(self, config: BiosignalConfig | None = None) -> None:
        """Build stem, blocks and pooling."""
        super().__init__()
        config = config or BiosignalConfig()
        self.config = config
        d_model = config.d_model
        self.stem = LeadStem(
            len(SLOTS), n_filters=config.n_filters, width=config.stem_width, d_model=d_model,
            taps=config.taps, causal=config.causal,
        )  # fmt: skip
        self.blocks = nn.ModuleList(
            SignalBlock(
                d_model, expand=config.expand, d_state=config.d_state,
                selective=config.scan == "selective", causal=config.causal,
                dropout=config.dropout,
            )
            for _ in range(config.n_layers)
        )  # fmt: skip
        self.final_norm = RMSNorm(d_model)
        self.query = nn.Parameter(torch.randn(config.n_summary, d_model) * d_model**-0.5)
        self.amplitude = nn.Parameter(torch.zeros(len(SLOTS), 2, d_model))
        self.embed = nn.Linear((config.n_summary + 3) * d_model, config.d_embedding)

    def forward(
        self,
        signal: Shaped[Tensor, "batch lead sample"] | NDArray[Any],
        *,
        fs_hz: SupportsFloat,
        leads: Sequence[str],
    ) -> Encoded:
        """Encode whole records of one rate and the same leads.

        Args:
            signal: Numbers in millivolts or normalised units, NaN where nothing was measured: in a
                gap, behind the end of a shorter record, or all along a lead that is missing. They
                are read in the precision of the weights. Take large offsets off first: from some
                hundred deviations on, float32 no longer tells the deviation from nought.
            fs_hz: Sampling rate.
            leads: Name of each lead, in the signal's order.

        Raises:
            InputError: Rate, leads or shape do not fit, or `half_precision_weights`.
        """
        signal = self.read(signal, leads)
        values, known = to_grid(signal, fs_hz=fs_hz, grid_hz=self.config.grid_hz)
        return self.encode_grid(values, known, lead_slots(leads).to(signal.device))

    def read(self, signal: Tensor | NDArray[Any], leads: Sequence[str]) -> Tensor:
        """A batch of records with these leads, in the precision of the weights.

        Raises:
            InputError: `bad_signal`, `bad_signal_shape`, or `half_precision_weights`.
        """
        own = self.query.dtype
        if own not in (torch.float32, torch.float64):
            raise InputError(
                "weights in half precision, which the scans do not take",
                code="half_precision_weights", place="BiosignalEncoder",
                remedy="Keep the weights in float32; torch.autocast halves what it may.",
            )  # fmt: skip
        samples = signal if isinstance(signal, Tensor) else to_tensor(signal)
        check_signal(samples, leads)
        return samples.to(own)

    def encode_grid(
        self,
        values: Float[Tensor, "batch lead point"],
        known: Bool[Tensor, "batch lead point"],
        slots: Int[Tensor, " lead"],
    ) -> Encoded:
        """Encode records that are on the grid already; see `forward` and `to_grid`."""
        x, mask = self.stem(values, known, slots)
        for block in self.blocks:
            x, _ = block(x, mask)
        x = self.final_norm(x)
        return self.pool(x, mask, self.sums(x, mask, values, known), slots)

    def stream(self, *, fs_hz: SupportsFloat, leads: Sequence[str]) -> EncoderStream:
        """Read records as they are measured; the encoder must be causal.

        Args:
            fs_hz: Sampling rate.
            leads: Name of each lead.

        Raises:
            InputError: `not_causal`, or a rate or lead that the encoder does not take.
        """
        from tsfm.models.signal_stream import EncoderStream

        return EncoderStream(self, fs_hz=fs_hz, leads=leads)

    def sums(self, tokens: Tensor, mask: Tensor, values: Tensor, known: Tensor) -> Pooled:
        """Sums over some tokens and points."""
        inside = mask.unsqueeze(-1)
        low = torch.finfo(tokens.dtype).min / 4
        score = torch.einsum("btd,kd->btk", tokens, self.query).masked_fill(~inside, low)
        floor = score.new_full((len(score), 1, score.shape[-1]), low)
        peak = torch.cat([floor, score], 1).amax(1).detach()
        weight = torch.exp(score - peak.unsqueeze(1)) * inside
        there = known.to(values.dtype)
        return Pooled(
            n_tokens=mask.sum(1, keepdim=True).to(tokens.dtype),
            total=(tokens * inside).sum(1),
            largest=F.pad(tokens.masked_fill(~inside, low), (0, 0, 1, 0), value=low).amax(1),
            weight=weight.sum(1),
            weighted=torch.einsum("btk,btd->bkd", weight, tokens),
            peak=peak,
            n_points=there.sum(-1),
            first=(values * there).sum(-1),
            second=(values.square() * there).sum(-1),
            highest=values.masked_fill(~known, low).amax(-1),
            lowest=values.masked_fill(~known, -low).amin(-1),
        )

    def pool(
        self, tokens: Tensor, mask: Tensor, sums: Pooled, slots: Int[Tensor, " lead"]
    ) -> Encoded:
        """Embedding and summary vectors from the sums."""
        any_token = sums.n_tokens > 0
        mean = sums.total / sums.n_tokens.clamp(min=1.0)
        largest = torch.where(any_token, sums.largest, 0.0)
        summary = sums.weighted / sums.weight.clamp(min=1e-12).unsqueeze(-1)
        parts = [mean, largest, self._sizes(sums, slots), summary.flatten(1)]
        own = self.query.dtype  # a stream's sums are of double precision
        return Encoded(tokens, mask, self.embed(torch.cat(parts, -1).to(own)), summary.to(own))

    def _sizes(self, sums: Pooled, slots: Tensor) -> Tensor:
        """A vector that tells how large each lead is: its deviation and its range."""
        n = sums.n_points.clamp(min=1.0)
        variance = (sums.second / n - (sums.first / n).square()).clamp(min=0.0)
        heard = sums.n_points > 0
        span = torch.where(heard, sums.highest - sums.lowest, 0.0)
        sizes = torch.stack([variance.sqrt(), span / 6], -1).clamp(min=_SMALLEST_MV)
        level = (torch.log(sizes) - math.log(0.15)) * heard.unsqueeze(-1)
        level = level.to(self.amplitude.dtype)
        scale = heard.sum(1, keepdim=True).clamp(min=1) ** -0.5
        return torch.einsum("bls,lsd->bd", level, self.amplitude[slots]) * scale


def check_signal(signal: Tensor, leads: Sequence[str], *, none_is_well: bool = False) -> None:
    """Refuse what is no batch of records with these leads.

    Args:
        signal: (record, lead, sample).
        leads: Name of each lead.
        none_is_well: No record at all is a batch too.

    Raises:
        InputError: `bad_signal_shape`.
    """
    least = (0 if none_is_well else 1, 1, 1)
    fits = signal.dim() == 3 and signal.shape[1] == len(leads)
    if not fits or any(n < some for n, some in zip(signal.shape, least, strict=True)):
        raise InputError(
            f"a signal of shape {tuple(signal.shape)} for {len(leads)} leads",
            code="bad_signal_shape", place="signal",
            remedy="Give (batch, leads, samples), at least one of each, and a name for each lead.",
        )  # fmt: skip
