"""Pretraining a timeline model on a token store: no labels, every token teaches."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tsfm import codes, schema
from tsfm.batches.batch import Batch
from tsfm.batches.dataset import TokenDataset, pack
from tsfm.errors import InputError, ModelMismatch
from tsfm.models.checkpoint import refuse_existing, save_model
from tsfm.models.code_embedding import WORD_BUCKETS
from tsfm.models.mamba import MambaConfig
from tsfm.models.many_hazards import quantile_edges
from tsfm.models.stored_config import find_fault
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.tokens.token_store import TokenStore
from tsfm.training.loop import TrainConfig, TrainResult, fingerprint, train
from tsfm.training.losses import (
    AdmissionTargets,
    LossWeights,
    Occurrences,
    code_members,
    next_occurrences,
    pretraining_loss,
)

_READ_AT_ONCE = 1 << 20  # tokens
_SAMPLE_BATCHES = 32  # batches' worth of tokens from which bins and rates of codes are taken
_SAMPLE_POSITIONS = 2048


@dataclass(frozen=True)
class ModelParts:
    """Parts of a timeline model beyond the plain one.

    Attributes:
        memory_width: See `TimelineConfig`, as the next three.
        attention_after: Where attention layers stand between Mamba blocks.
        attention_heads: Their heads.
        attention_only: Attention in the place of all Mamba blocks.
        hazard_codes: Codes, or parents of codes, whose next occurrence is learnt.
        n_hazard_codes: How many of the most frequent ones are learnt beside these.
        n_hazard_bins: Bins of their hazards at most; edges are quantiles of the event times.
        share_codes: Let code vectors share along their parents.
        descriptions: Code to text, whose words code vectors then share as well.
        waveforms: Read waveforms, where the store has vectors of any.
        waveform_dropout: Share of subjects whose waveforms are hidden in training.
    """

    memory_width: int = 128
    attention_after: tuple[int, ...] = ()
    attention_heads: int = 2
    attention_only: bool = False
    hazard_codes: tuple[str, ...] = ()
    n_hazard_codes: int = 0
    n_hazard_bins: int = 8
    share_codes: bool = False
    descriptions: Mapping[str, str] | None = None
    waveforms: bool = True
    waveform_dropout: float = 0.3


def pretrain(
    tokens: str | Path,
    out: str | Path,
    *,
    backbone: MambaConfig | None = None,
    parts: ModelParts | None = None,
    config: TrainConfig | None = None,
    weights: LossWeights | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Pretrain on the training split and write a model directory.

    Args:
        tokens: Token store with a vocabulary fitted on its training subjects.
        out: Model directory to write. An interrupted run of the same data, configuration and seed
            continues from `<out>.work`.
        backbone: Sizes of the backbone.
        parts: What the model has beyond the plain one.
        config: How to train.
        weights: Weights of the losses.
        progress: Show a bar; None: on a terminal only.

    Raises:
        InputError: The output folder is not empty, or a size or part is not as it can be.
        ModelMismatch: The store uses another model's vocabulary.
    """
    import torch

    refuse_existing(out)
    store = TokenStore.open(tokens)
    if not store.config["vocabulary_fitted"]:
        raise ModelMismatch(
            "pretraining on a token store that uses another model's vocabulary",
            code="vocabulary_not_fitted",
            place=str(tokens),
            remedy="Make the store with `tsfm tokenize` without --vocabulary.",
        )
    config = config or TrainConfig()
    weights = weights or LossWeights()
    parts = parts or ModelParts()
    training = TokenDataset(store, schema.TRAIN)
    tuning = TokenDataset(store, schema.TUNING)
    targets = AdmissionTargets.create(store)
    model_config = TimelineConfig(
        n_codes=len(store.vocabulary),
        backbone=backbone or MambaConfig(),
        memory_width=parts.memory_width,
        attention_after=parts.attention_after,
        attention_heads=parts.attention_heads,
        attention_only=parts.attention_only,
        hazard_codes=_hazard_codes(parts, training),
        share_codes=parts.share_codes,
        code_words=WORD_BUCKETS if parts.share_codes and parts.descriptions else 0,
    )
    if parts.waveforms and store.signals is not None:
        model_config = replace(
            model_config,
            signal_vectors=store.signals.n_vectors,
            signal_width=store.signals.width,
            signal_dropout=parts.waveform_dropout,
            signal_encoder=store.signals.encoder_hash,
        )
    sample = None
    if model_config.hazard_codes:
        sample = _sample_occurrences(training, targets, model_config.hazard_codes, config)
        edges = quantile_edges(sample.days, sample.is_event, parts.n_hazard_bins)
        model_config = replace(model_config, hazard_edges_days=edges)
    fault = find_fault(model_config)
    if fault:
        raise InputError(
            fault, code="bad_model_config", place="backbone, parts",
            remedy="Use sizes from 1, such as those of `MambaConfig()`.",
        )  # fmt: skip
    torch.manual_seed(config.seed)
    model = TimelineModel(model_config)
    _set_baseline(model, training, targets, config)
    if sample is not None and model.many_hazards is not None:
        model.many_hazards.set_rates(sample.days, sample.is_event)
    if model.embedding.sharing is not None:
        sharing = model.embedding.sharing
        sharing.set_codes(store.vocabulary.codes, parts.descriptions)
        sharing.shrink(model.embedding.code_tables, _counts(training))

    def loss(
        model: TimelineModel, batch: Batch, hidden: Tensor
    ) -> tuple[Tensor, float, dict[str, float]] | None:
        total, each = pretraining_loss(model, batch, hidden, targets, weights)
        share = weights.share_of(each, hazards=model.many_hazards is not None)
        if not share:
            return None
        # A part that the batch lacks is no loss of nought: it must not count in a mean.
        return total if model.training else total / share, share * batch.n_tokens, each

    work = Path(out).with_name(f"{Path(out).name}.work")
    result = train(
        model, training, tuning, loss, config,
        folder=work, what="pretrain", progress=progress,
        fingerprint=fingerprint(
            model_config.stored(), config, weights, store.vocabulary.hash, training.n_tokens,
            *([dict(parts.descriptions)] if parts.descriptions else []),
        ),
        data=store.hash,
    )  # fmt: skip
    save_model(
        out,
        model,
        store.vocabulary,
        store.scale,
        facts={
            "stage": "pretrain",
            "seed": config.seed,
            "dataset_name": store.config.get("dataset_name"),
            "n_training_subjects": len(training),
            "n_training_tokens": training.n_tokens,
            "n_epochs": len(result.history),
            "epoch_kept": result.best_epoch + 1,
            "tuning_loss": result.tuning_loss,
        },
    )
    shutil.rmtree(work, ignore_errors=True)
    return result


def _set_baseline(
    model: TimelineModel, training: TokenDataset, targets: AdmissionTargets, config: TrainConfig
) -> None:
    """Start the admission head at the training subjects' own rates."""
    first = training.batch(
        training.plan(max_tokens=8 * config.max_tokens, seed=config.seed, epoch=0)[0]
    )
    points = targets.points(first)
    model.admission.set_baseline(points.outcome, points.days)


def frequent_codes(training: TokenDataset, n: int) -> tuple[str, ...]:
    """Codes and parents of codes that happen in the most subjects, most first.

    What stands at a subject's first moment is its start and not something that happens. Of a line
    of codes that happen in the same number of subjects the narrowest stands for all.

    Args:
        training: Training subjects.
        n: How many at most.
    """
    names = training.store.vocabulary.codes
    borders, member = code_members(names, names)
    fields = training.store.fields
    n_subjects = np.zeros(len(names), np.int64)
    for chosen in pack(np.arange(len(training)), training.length, _READ_AT_ONCE):
        length = training.length[chosen]
        own = np.repeat(np.arange(len(chosen)), length)
        at = _places(training, chosen)
        time_s = fields["time_s"][at]
        later = time_s > time_s[np.cumsum(length) - length][own]
        pairs = np.unique(own[later] * len(names) + fields["code"][at][later])
        lines = [member[borders[c] : borders[c + 1]] for c in (pairs % len(names)).tolist()]
        own = np.repeat(pairs // len(names), [len(line) for line in lines])
        pairs = np.unique(own * len(names) + np.concatenate([*lines, np.zeros(0, np.int64)]))
        n_subjects += np.bincount(pairs % len(names), minlength=len(names))
    depth = np.diff(borders)
    ids = {name: index for index, name in enumerate(names)}
    chosen_codes: list[str] = []
    spoken_for = {codes.UNKNOWN}
    for index in np.lexsort((-depth, -n_subjects)).tolist():
        name = names[index]
        if len(chosen_codes) == n or n_subjects[index] == 0:
            break
        if name in spoken_for:
            continue
        chosen_codes.append(name)
        above = (p for p in codes.parents(name) if p in ids)
        spoken_for.update(p for p in above if n_subjects[ids[p]] == n_subjects[index])
    return tuple(chosen_codes)


def _hazard_codes(parts: ModelParts, training: TokenDataset) -> tuple[str, ...]:
    """The codes asked for, then the most frequent of the others."""
    asked = tuple(dict.fromkeys(parts.hazard_codes))
    _, members = code_members(training.store.vocabulary.codes, asked)
    without = set(range(len(asked))) - set(members.tolist())
    if without:
        raise InputError(
            f"{len(without)} codes have nothing in the vocabulary, first {asked[min(without)]}",
            code="unknown_hazard_code", place="hazard_codes",
            remedy="Name codes of `vocabulary/codes.json` or their parents.",
        )  # fmt: skip
    if not parts.n_hazard_codes:
        return asked
    frequent = frequent_codes(training, parts.n_hazard_codes + len(asked))
    others = [name for name in frequent if name not in asked]
    return (*asked, *others[: parts.n_hazard_codes])


def _sample_occurrences(
    training: TokenDataset, targets: AdmissionTargets, names: tuple[str, ...], config: TrainConfig
) -> Occurrences:
    plan = training.plan(max_tokens=_SAMPLE_BATCHES * config.max_tokens, seed=config.seed, epoch=0)
    batch = training.batch(plan[0])
    n = min(_SAMPLE_POSITIONS, batch.n_tokens)
    position = np.linspace(0, batch.n_tokens - 1, n).astype(np.int64)
    return next_occurrences(batch, targets, names, position)


def _counts(training: TokenDataset) -> NDArray[np.int64]:
    """Training events of each code."""
    n_codes = len(training.store.vocabulary)
    counts = np.zeros(n_codes, np.int64)
    for chosen in pack(np.arange(len(training)), training.length, _READ_AT_ONCE):
        found = training.store.fields["code"][_places(training, chosen)]
        counts += np.bincount(found, minlength=n_codes)
    return counts


def _places(training: TokenDataset, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the tokens of some subjects lie in the store, end to end."""
    length = training.length[chosen]
    before = np.cumsum(length) - length
    return np.arange(int(length.sum())) + np.repeat(training.start[chosen] - before, length)
