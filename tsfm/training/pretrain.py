"""Pretraining a timeline model on a token store: no labels, every token teaches."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor

from tsfm import schema
from tsfm.batches.batch import Batch
from tsfm.batches.dataset import TokenDataset
from tsfm.errors import ModelMismatch
from tsfm.models.checkpoint import refuse_existing, save_model
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.tokens.token_store import TokenStore
from tsfm.training.loop import TrainConfig, TrainResult, fingerprint, train
from tsfm.training.losses import AdmissionTargets, LossWeights, pretraining_loss


def pretrain(
    tokens: str | Path,
    out: str | Path,
    *,
    backbone: MambaConfig | None = None,
    config: TrainConfig | None = None,
    weights: LossWeights | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Pretrain on the training split and write a model directory.

    Args:
        tokens: Token store with a vocabulary fitted on its training subjects.
        out: Model directory to write. An interrupted run of the same data, configuration and seed
            continues from `<out>.work`.
        backbone: Sizes of the Mamba stack.
        config: How to train.
        weights: Weights of the losses.
        progress: Show a bar; None: on a terminal only.

    Raises:
        InputError: The output folder is not empty.
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
    model_config = TimelineConfig(n_codes=len(store.vocabulary), backbone=backbone or MambaConfig())
    torch.manual_seed(config.seed)
    model = TimelineModel(model_config)
    training = TokenDataset(store, schema.TRAIN)
    tuning = TokenDataset(store, schema.TUNING)
    targets = AdmissionTargets.create(store)
    _set_baseline(model, training, targets, config)

    def loss(
        model: TimelineModel, batch: Batch, hidden: Tensor
    ) -> tuple[Tensor, float, dict[str, float]]:
        total, parts = pretraining_loss(model, batch, hidden, targets, weights)
        return total, float(batch.n_tokens), parts

    work = Path(out).with_name(f"{Path(out).name}.work")
    result = train(
        model, training, tuning, loss, config,
        folder=work, what="pretrain", progress=progress,
        fingerprint=fingerprint(
            model_config, config, weights, store.vocabulary.hash, training.n_tokens
        ),
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
