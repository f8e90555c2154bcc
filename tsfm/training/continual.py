"""Going on with a second hospital's patients without losing what the first one's taught.

Fine-tuning on a new site moves the states away from the old site's. Some batches of the old site
between those of the new one, rehearsal, hold them back. What was lost is measured, not assumed: the
loss on the first site's tuning subjects before and after, task by task. Neither site's held-out
subjects are touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

from tsfm import schema
from tsfm.batches.patient_views import Rehearsal
from tsfm.models.checkpoint import load_model, refuse_existing
from tsfm.training.loop import TrainResult
from tsfm.training.multitask import (
    MultitaskConfig,
    fit,
    save_fitted,
    shared_loss,
    with_heads,
)
from tsfm.training.questions import open_site
from tsfm.training.task_answers import task_losses


@dataclass(frozen=True)
class SiteData:
    """Where a site's streams and cohorts are.

    Attributes:
        tokens: Token store made with the model's vocabulary.
        cohorts: Task name to a frame with the columns of `schema.COHORT`.
        hidden_tokens: Token store of hidden history, if a task needs it.
    """

    tokens: str | Path
    cohorts: Mapping[str, pl.DataFrame]
    hidden_tokens: str | Path | None = None


@dataclass(frozen=True)
class ContinualResult:
    """What came of going on.

    Attributes:
        train: The training on the second site.
        before: Task to its mean loss on the first site's tuning subjects, in nats, before.
        after: The same after.
    """

    train: TrainResult
    before: dict[str, float]
    after: dict[str, float]

    @property
    def forgetting(self) -> dict[str, float]:
        """Task to the loss that was added on the first site; negative where it got better."""
        return {name: self.after[name] - loss for name, loss in self.before.items()}

    def as_text(self) -> str:
        """One line a task."""
        width = max(map(len, self.before))
        lines = [f"{'':<{width}}{'before':>10}{'after':>10}{'forgotten':>12}"]
        lines += [
            f"{name:<{width}}{loss:>10.4f}{self.after[name]:>10.4f}{self.forgetting[name]:>+12.4f}"
            for name, loss in self.before.items()
        ]
        return "\n".join(lines)


def continual_finetune(
    model_dir: str | Path,
    second: SiteData,
    first: SiteData,
    out: str | Path,
    *,
    rehearsal: float = 0.2,
    config: MultitaskConfig | None = None,
    progress: bool | None = None,
) -> ContinualResult:
    """Fine-tune a model of one site on another and say what it forgot.

    The second site's tuning subjects choose the epoch and fit the calibration.

    Args:
        model_dir: Model fine-tuned on the first site, for all of its tasks given here.
        second: Site to learn.
        first: Site that the model comes from.
        out: Model directory to write.
        rehearsal: Share of the training batches that come from the first site; 0 for none.
        config: How to fine-tune.
        progress: Show a bar; None: on a terminal only.

    Raises:
        ModelMismatch: A store's vocabulary is not the model's, or the model has no head for one of
            the first site's tasks.
        InputError: As `multitask_finetune`; or the share is not in [0, 1).
    """
    config = config or MultitaskConfig()
    refuse_existing(out)
    start = load_model(model_dir)
    new, old = second, first
    site = open_site(
        new.tokens, new.cohorts, vocabulary_hash=start.vocabulary.hash,
        signal_encoder=start.model.config.signal_encoder,
        hidden_tokens=new.hidden_tokens,
    )  # fmt: skip
    earlier = open_site(
        old.tokens, old.cohorts, vocabulary_hash=start.vocabulary.hash,
        signal_encoder=start.model.config.signal_encoder,
        hidden_tokens=old.hidden_tokens, first_key=site.views[-1].end_key,
    )  # fmt: skip
    before = task_losses(start.model, earlier, schema.TUNING)
    own = site.patients(schema.TRAIN)
    training = Rehearsal(own, earlier.patients(schema.TRAIN), rehearsal)
    torch.manual_seed(config.train.seed)
    model = with_heads(start.model, site.questions, own)
    sites = [site, earlier] if rehearsal else [site]
    result = fit(
        model, start, site, training, shared_loss(sites, config), config,
        out=out, what="finetune on another site", progress=progress, extra=[rehearsal],
        rehearsed=sites[1:],
    )  # fmt: skip
    after = task_losses(model, earlier, schema.TUNING)
    forgotten = {f"{name}.forgetting": after[name] - loss for name, loss in before.items()}
    save_fitted(
        out, model, start, site, result, config,
        {"stage": "finetune", "rehearsal": rehearsal, **forgotten},
    )  # fmt: skip
    return ContinualResult(result, before, after)
