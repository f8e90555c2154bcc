"""Fine-tuning of the biosignal encoder on labelled records: multi-label, or one of several classes.

Records are few where labels are dear, so each is met changed every time: cut out at another place,
faster or slower, larger or smaller, with leads missing, with wander and noise, and mixed with
another record and its labels (mixup, Zhang et al. 2018). What is kept at the end is a running
average of the weights. Labels that are not known (NaN) teach nothing.

It splits and chooses nothing: the caller says which records teach and for how long.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, SupportsFloat

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from tsfm.errors import InputError
from tsfm.models.biosignal_encoder import BiosignalEncoder, check_signal, lead_slots
from tsfm.models.signal_grid import read_rate, to_grid, to_tensor
from tsfm.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from tsfm.training.loop import fingerprint
from tsfm.training.optimizer import WeightAverage, learning_rate, make_optimizer

_ROUNDING = 1e-3  # of shares that were computed
_MIXUP = (0.001, 8.0)  # beyond them nearly every draw of `_beta` would be thrown away


@dataclass(frozen=True)
class SignalTraining:
    """How a classifier is trained.

    Attributes:
        epochs: Times that each record is met.
        batch_size: Records a step.
        lr: Peak learning rate, reached after a tenth of the steps; then it falls as a cosine.
        weight_decay: Of AdamW.
        crop_s: Seconds cut out of a record; the whole of a shorter one.
        mixup: Parameter of the Beta distribution; 0 for none.
        lead_dropout: Chance that a record is met with some leads missing.
        noise_mv: Largest deviation of white noise, drawn for each record.
        wander_mv: Largest amplitude of a slow wander.
        muscle_mv: Largest deviation of muscle noise in bursts, 20 Hz and above.
        motion_mv: Largest deviation of an electrode's motion in bursts, 1 to 10 Hz, where a QRS
            complex lies too.
        scale: Largest change of size, as the deviation of its logarithm.
        speed: Largest change of speed, as a share.
        decay: Of the running average of the weights.
        seed: Of all draws.

    Raises:
        InputError: `bad_training`: a value that trains nothing, or that can't be drawn with.
    """

    epochs: int = 40
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    crop_s: float = 5.0
    mixup: float = 0.3
    lead_dropout: float = 0.3
    noise_mv: float = 0.05
    wander_mv: float = 0.2
    muscle_mv: float = 0.0
    motion_mv: float = 0.0
    scale: float = 0.15
    speed: float = 0.08
    decay: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what trains nothing, and what draws would never end with."""
        sizes = (self.weight_decay, self.noise_mv, self.wander_mv, self.muscle_mv, self.motion_mv,
                 self.scale)  # fmt: skip
        sound = {
            "epochs": isinstance(self.epochs, Integral) and self.epochs >= 0,
            "batch_size": isinstance(self.batch_size, Integral) and self.batch_size >= 1,
            "seed": isinstance(self.seed, Integral) and -(2**63) <= self.seed < 2**63,
            "lr": 0 < self.lr < math.inf,
            "crop_s": 0 < self.crop_s < math.inf,
            "mixup": self.mixup == 0 or _MIXUP[0] <= self.mixup <= _MIXUP[1],
            "lead_dropout": 0 <= self.lead_dropout <= 1,
            "speed": 0 <= self.speed < 1,
            "decay": 0 <= self.decay <= 1,
            "weight_decay, noise or scale": all(0 <= size < math.inf for size in sizes),
        }
        wrong = [name for name, good in sound.items() if not good]
        if wrong:
            raise InputError(
                f"a value of {wrong[0]} that no training has", code="bad_training",
                place="SignalTraining",
                remedy="Use counts of 1 or more, shares of 0 to 1, no negative sizes, and a mixup"
                f" of 0 or {_MIXUP[0]:g} to {_MIXUP[1]:g}.",
            )  # fmt: skip


class SignalClassifier(nn.Module):
    """An encoder with a linear head on its embedding.

    Args:
        encoder: Changed in training.
        n_classes: Labels.
        dropout: On the embedding.
    """

    def __init__(self, encoder: BiosignalEncoder, n_classes: int, *, dropout: float = 0.3) -> None:
        """Start with a head of small weights."""
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.d_embedding, n_classes)

    def forward(
        self, values: Float[Tensor, "batch lead point"], known: Bool[Tensor, "batch lead point"],
        slots: Tensor,
    ) -> Float[Tensor, "batch label"]:  # fmt: skip
        """Logits of records on the grid."""
        embedding = self.encoder.encode_grid(values, known, slots).embedding
        return self.head(self.dropout(F.silu(embedding)))

    @torch.no_grad()
    def predict(
        self, signal: Shaped[Tensor, "record lead sample"] | NDArray[Any], *, fs_hz: SupportsFloat,
        leads: Sequence[str], exclusive: bool = False, batch_size: int = 32,
    ) -> Float[Tensor, "record label"]:  # fmt: skip
        """Probabilities of whole records; no records have none.

        Args:
            signal: As the encoder reads it, numbers of any type.
            fs_hz: Sampling rate.
            leads: Name of each lead.
            exclusive: Exactly one label holds: they sum to one.
            batch_size: Records at once.

        Raises:
            InputError: Rate, leads or shape do not fit, or `bad_batch_size`.
        """
        if not batch_size >= 1:
            raise InputError(
                "a batch of no records", code="bad_batch_size", place="batch_size",
                remedy="Use 1 or more.",
            )  # fmt: skip
        self.eval()
        samples = signal if isinstance(signal, Tensor) else to_tensor(signal)
        check_signal(samples, leads, none_is_well=True)
        slots = lead_slots(leads)
        found = [self.head.weight.new_zeros(0, self.head.out_features)]
        for part in samples.split(batch_size) if len(samples) else ():
            part = self.encoder.read(part, leads)
            grid = to_grid(part, fs_hz=fs_hz, grid_hz=self.encoder.config.grid_hz)
            logits = self(*grid, slots)
            found.append(logits.softmax(-1) if exclusive else logits.sigmoid())
        return torch.cat(found)


def fit_signal_classifier(
    encoder: BiosignalEncoder,
    signal: Shaped[Tensor, "record lead sample"] | NDArray[Any],
    label: Shaped[Tensor, "record label"] | NDArray[Any],
    *,
    fs_hz: SupportsFloat,
    leads: Sequence[str],
    training: SignalTraining,
    exclusive: bool = False,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> SignalClassifier:
    """Train a copy of an encoder, with a new head, on labelled records.

    Args:
        encoder: Stays as it is.
        signal: Records, NaN where nothing was measured; numbers of any type.
        label: 1, 0, shares between, or NaN where it is not known.
        fs_hz: Sampling rate.
        leads: Name of each lead.
        training: How.
        exclusive: Exactly one label of a record holds, so they sum to one (cross entropy); a
            record with any that is not known teaches nothing. Otherwise each label by itself.
        checkpoint: Folder that keeps the state after every epoch; a run of the same training that
            was stopped goes on from it.
        progress: Show a bar.

    Returns:
        The classifier, in evaluation mode. torch's own stream of chance stays where it was.

    Raises:
        InputError: Rate, leads or shape do not fit, `bad_labels`, or `no_labels`: none is known.
        ModelMismatch: The checkpoint is another training's.
    """
    signal = encoder.read(signal, leads)
    label = _checked_labels(label, len(signal), exclusive)
    fs_hz, checkpoint = read_rate(fs_hz), None if checkpoint is None else Path(checkpoint)
    devices = [encoder.query.device] if encoder.query.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(training.seed)
        model = SignalClassifier(copy.deepcopy(encoder), label.shape[1]).train()
        values, known = to_grid(signal, fs_hz=fs_hz, grid_hz=encoder.config.grid_hz)
        slots = lead_slots(leads)
        optimizer = make_optimizer(model, lr=training.lr, weight_decay=training.weight_decay)
        n_batches = math.ceil(len(values) / training.batch_size)
        n_steps = training.epochs * n_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda i: learning_rate(i, n_steps=n_steps, warmup=max(1, n_steps // 10), peak=1.0),
        )
        average = WeightAverage(model, training.decay)
        draws = torch.Generator()
        crop = max(1, round(training.crop_s * encoder.config.grid_hz))
        first, run = 0, ""
        if checkpoint is not None:
            content = hashlib.sha256()
            for part in (signal, label, *encoder.state_dict().values()):
                content.update(part.detach().contiguous().numpy().tobytes())
            run = fingerprint(
                training, encoder.config, content.hexdigest(), fs_hz, list(leads), exclusive
            )  # fmt: skip
        if checkpoint is not None and find_checkpoint(checkpoint):
            state, _ = load_checkpoint(
                checkpoint, fingerprint=run, model=model, average=average, optimizer=optimizer
            )
            first = int(state["epoch"])
            schedule.load_state_dict({**schedule.state_dict(), "last_epoch": first * n_batches})
            # The schedule tells the optimizer its rate after each step, and one is due before it.
            for group, peak, share in zip(
                optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
            ):
                group["lr"] = peak * share(schedule.last_epoch)
        bar = tqdm(total=training.epochs * n_batches, initial=first * n_batches,
                   disable=not progress, desc="train", unit="step")  # fmt: skip
        for epoch in range(first, training.epochs):
            draws.manual_seed((int(training.seed) * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(len(values), generator=draws)
            for rows in order.tensor_split(n_batches):
                x, there = augment(
                    values[rows], known[rows], crop, training, draws, grid_hz=encoder.config.grid_hz
                )
                y = label[rows]
                if training.mixup and len(rows) > 1:
                    x, there, y = _mix(x, there, y, training.mixup, draws)
                logits = model(x, there, slots)
                loss = _loss(logits, y, exclusive)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                average.update(model)
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if checkpoint is not None:
                save_checkpoint(
                    checkpoint, model=model, average=average, optimizer=optimizer,
                    state={"fingerprint": run, "epoch": epoch + 1},
                )  # fmt: skip
        bar.close()
        model.load_state_dict(average.weights)
        return model.eval()


def augment(
    values: Float[Tensor, "record lead point"],
    known: Bool[Tensor, "record lead point"],
    crop: int,
    training: SignalTraining,
    draws: torch.Generator,
    *,
    grid_hz: float,
) -> tuple[Float[Tensor, "record lead cut"], Bool[Tensor, "record lead cut"]]:
    """Cut a stretch out of each record and change it; see `SignalTraining`.

    The stretch lies where the record was measured, not in what pads it: between the first and the
    last point that is known of any lead.
    """
    n, leads, n_points = values.shape
    crop = min(crop, n_points)
    uniform = torch.rand(6, n, 1, 1, generator=draws)
    speed = 1 + training.speed * (2 * uniform[0] - 1)
    span = (crop - 1) * speed
    first, last = _ends(known)
    start = first + uniform[1] * (last - first - span).clamp(min=0)
    start = start.minimum((n_points - 1 - span).clamp(min=0))
    place = (start + torch.arange(crop) * speed).clamp(max=n_points - 1)  # (n, 1, crop)
    left = place.floor().long().clamp(max=max(n_points - 2, 0)).expand(-1, leads, -1)
    right = (left + 1).clamp(max=n_points - 1)
    share = place - left
    x = values.gather(-1, left) * (1 - share) + values.gather(-1, right) * share
    there = known.gather(-1, left) & known.gather(-1, right)
    x = x * torch.exp(training.scale * torch.randn(n, 1, 1, generator=draws))
    x = x + torch.randn(x.shape, generator=draws) * training.noise_mv * uniform[2].square()
    cycles = torch.rand(n, leads, 1, generator=draws) * 3
    phase = torch.rand(n, leads, 1, generator=draws)
    wander = torch.sin(2 * math.pi * (cycles * torch.arange(crop) / crop + phase))
    x = x + wander * training.wander_mv * uniform[3].square()
    for largest, low_hz, high_hz in (
        (training.muscle_mv, 20.0, grid_hz), (training.motion_mv, 1.0, 10.0)
    ):  # fmt: skip
        if largest:
            size = largest * torch.rand(n, 1, 1, generator=draws).square()
            x = x + size * _bursts(x.shape, low_hz, high_hz, grid_hz, draws)
    some = uniform[4] < training.lead_dropout
    kept = torch.rand(n, leads, 1, generator=draws) < uniform[5]
    kept |= _spared(there, torch.randint(leads, (n, 1, 1), generator=draws))
    there = there & (kept | ~some)
    return x * there, there


def _ends(known: Bool[Tensor, "record lead point"]) -> tuple[Tensor, Tensor]:
    """(record, 1, 1) first and last point known of any lead; the whole if none is."""
    some = known.any(1, keepdim=True).to(torch.uint8)
    return some.argmax(-1, keepdim=True), known.shape[-1] - 1 - some.flip(-1).argmax(-1, True)


def _spared(there: Bool[Tensor, "record lead point"], pick: Tensor) -> Tensor:
    """(record, lead, 1) the measured lead that no coin takes: `pick` itself if all are."""
    measured = there.any(-1, keepdim=True)
    place = measured.cumsum(1)  # 1 is the first that was measured
    return measured & (place == pick * place[:, -1:] // there.shape[1] + 1)


def _bursts(
    shape: torch.Size, low_hz: float, high_hz: float, grid_hz: float, draws: torch.Generator
) -> Tensor:
    """Noise of a band, of unit deviation on every row, that swells and fades within seconds."""
    n = shape[-1]
    hz = torch.fft.rfftfreq(n, 1 / grid_hz)

    def band(low: float, high: float) -> Tensor:
        spectrum = torch.fft.rfft(torch.randn(shape, generator=draws))
        noise = torch.fft.irfft(spectrum * ((hz >= low) & (hz <= high)), n)
        return noise / noise.std(-1, keepdim=True).clamp(min=1e-9)

    noise = band(low_hz, high_hz) * band(1e-9, 0.5).exp()
    return noise / noise.std(-1, keepdim=True).clamp(min=1e-9)


def _mix(
    x: Tensor, there: Tensor, y: Tensor, alpha: float, draws: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    other = torch.randperm(len(x), generator=draws)
    share = float(_beta(alpha, draws))
    share = max(share, 1 - share)
    mixed = share * x + (1 - share) * x[other]
    return mixed * there, there, share * y + (1 - share) * y[other]


def _beta(alpha: float, draws: torch.Generator) -> Tensor:
    """One draw of Beta(alpha, alpha) by Joehnk's method, from our own stream of chance."""
    while True:
        a, b = torch.rand(2, generator=draws).pow(1 / alpha)
        if 0 < a + b <= 1:
            return a / (a + b)


def _checked_labels(label: Tensor | NDArray[Any], n_records: int, exclusive: bool) -> Tensor:
    label = torch.as_tensor(label).float()
    whole = ~torch.isnan(label)
    fits = label.dim() == 2 and len(label) == n_records and label.shape[1] > 0
    if not fits or not bool((((label >= 0) & (label <= 1)) | ~whole).all()):
        raise InputError(
            "labels do not fit the records", code="bad_labels", place="label",
            remedy="Give (record, label) of 1, 0, shares between, or NaN where not known.",
        )  # fmt: skip
    if exclusive:
        whole = whole.all(1)
        if not bool(((label.sum(1) - 1).abs() <= _ROUNDING)[whole].all()):
            raise InputError(
                "exclusive labels that do not sum to one", code="bad_labels", place="label",
                remedy="Give 1 to the label that holds, or shares of one.",
            )  # fmt: skip
    if not bool(whole.any()):
        raise InputError(
            "no label is known", code="no_labels", place="label",
            remedy="Give records whose labels are not all NaN.",
        )  # fmt: skip
    return label


def _loss(logits: Tensor, label: Tensor, exclusive: bool) -> Tensor:
    if exclusive:
        rows = torch.isfinite(label).all(-1)
        # Of a batch without labels the mean is over nothing; its sum is nought, with a gradient.
        each = "mean" if bool(rows.any()) else "sum"
        return F.cross_entropy(logits[rows], label[rows], reduction=each)
    told = torch.isfinite(label)
    each = F.binary_cross_entropy_with_logits(logits, label.nan_to_num(0.0), reduction="none")
    return (each * told).sum() / told.sum().clamp(min=1)
