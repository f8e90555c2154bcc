"""Batches in which a patient may stand several times: as known, and with a part hidden.

Most questions read all that is known; some may only be asked of a patient whose history is hidden.
Each view of a patient is a token stream of its own, made from the events that it may show, and both
stand in one packed batch: so one forward pass still answers every question, and no state of the one
view can reach the other, because a packed subject reaches nobody.

Subjects of a batch are named by keys, one a stream and different in every view and every site, so
that two hospitals may use the same numbers. `View.keyed` names a cohort's subjects in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsfm import schema
from tsfm.batches.batch import Batch, make_batch
from tsfm.batches.dataset import TokenDataset
from tsfm.errors import InputError, ModelMismatch
from tsfm.tokens.signal_vectors import SignalVectors
from tsfm.tokens.token_store import TokenStore

NO_KEY = -1
_PER_TOKEN = ("code", "value", "bin", "time_s", "lag_hours", "signal")


@dataclass(frozen=True)
class View:
    """One stream of each patient.

    Attributes:
        store: Where the streams are.
        first_key: Key of the store's first subject; the others follow in stored order.
    """

    store: TokenStore
    first_key: int = 0

    @property
    def end_key(self) -> int:
        """First key beyond this view's."""
        return self.first_key + self.store.subjects.height

    def keyed(self, cohort: pl.DataFrame) -> pl.DataFrame:
        """The cohort, its rows as they stand, with keys of this view as subject ids.

        Subjects that the store does not hold get `NO_KEY`, which no batch has.
        """
        ids = self.store.subjects[schema.SUBJECT_ID]
        keys = pl.DataFrame(
            {schema.SUBJECT_ID: ids, "_key": np.arange(self.first_key, self.end_key)},
            schema_overrides={"_key": pl.Int64},
        )
        found = cohort.join(keys, on=schema.SUBJECT_ID, how="left", maintain_order="left")
        return found.with_columns(pl.col("_key").fill_null(NO_KEY).alias(schema.SUBJECT_ID)).drop(
            "_key"
        )


class PatientViews(TokenDataset):
    """Patients of one split, each with all of its views.

    Args:
        views: Views of the same site; the split of a patient is what the first one says.
        split: One of `schema.SPLITS`, or None for all.
        subjects: Only these, if given.

    Raises:
        ModelMismatch: The views have different vocabularies.
        InputError: Their keys overlap.
    """

    def __init__(
        self, views: Sequence[View], split: str | None, *, subjects: set[int] | None = None
    ) -> None:
        """Find each patient's streams."""
        super().__init__(views[0].store, split, subjects=subjects)
        for before, after in itertools.pairwise(views):
            if after.first_key < before.end_key:
                raise InputError(
                    "keys of two views overlap", code="overlapping_keys", place="views",
                    remedy="Begin each view's keys at the end of the one before.",
                )  # fmt: skip
        if len({view.store.vocabulary.hash for view in views}) > 1:
            raise ModelMismatch(
                "the views have different vocabularies", code="vocabulary_mismatch", place="views",
                remedy="Make both token stores with the model's vocabulary.",
            )  # fmt: skip
        held = [view.store.signals for view in views]
        if any(s is not held[0] and not _same(s, held[0]) for s in held):
            raise ModelMismatch(
                "the views have different vectors of waveforms", code="signal_vectors_mismatch",
                place="views", remedy="Make both token stores after one run of `tsfm encode`.",
            )  # fmt: skip
        self.views = tuple(views)
        patients = pl.DataFrame({schema.SUBJECT_ID: self.subject_id})
        streams: list[NDArray[np.int64]] = []
        for view in views:
            table = view.store.subjects.with_columns(_key=np.arange(view.first_key, view.end_key))
            own = patients.join(table, on=schema.SUBJECT_ID, how="left", maintain_order="left")
            columns = own.select(
                pl.col("_key").fill_null(NO_KEY),
                pl.col("start").fill_null(0).cast(pl.Int64),
                pl.col("length").fill_null(0).cast(pl.Int64),
            )
            streams.append(columns.to_numpy().astype(np.int64))
        self._streams = np.stack(streams)  # (view, patient, key / start / length)
        self.length = self._streams[:, :, 2].sum(0)

    @property
    def keys(self) -> NDArray[np.int64]:
        """Keys of all streams that hold a token."""
        return self._streams[:, :, 0][self._streams[:, :, 2] > 0]

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        """Pack some patients, given by their index: all of one view, then all of the next."""
        columns: dict[str, list[NDArray]] = {name: [] for name in _PER_TOKEN}
        lengths: list[NDArray[np.int64]] = []
        keys: list[NDArray[np.int64]] = []
        births: list[NDArray[np.float64]] = []
        for view, streams in zip(self.views, self._streams[:, chosen], strict=True):
            has = streams[:, 2] > 0
            key, start, length = streams[has].T
            before = np.cumsum(length) - length
            at = np.arange(int(length.sum())) + np.repeat(start - before, length)
            for name in _PER_TOKEN:
                columns[name].append(view.store.fields[name][at])
            keys.append(key)
            lengths.append(length)
            births.append(self.birth_s[chosen][has])
        tokens = {name: np.concatenate(parts) for name, parts in columns.items()}
        return make_batch(
            **tokens,
            lengths=np.concatenate(lengths),
            subject_id=np.concatenate(keys),
            birth_s=np.concatenate(births),
            step=self.store.scale.step,
            signals=self.store.signals,
        )


def _same(one: SignalVectors | None, other: SignalVectors | None) -> bool:
    if one is None or other is None:
        return False
    return (one.signal_id, one.encoder_hash) == (other.signal_id, other.encoder_hash)


class Rehearsal(TokenDataset):
    """A site's patients, and now and then a batch of another's: what was learnt there is rehearsed.

    Args:
        current: Patients in training.
        earlier: Patients of the site before.
        share: Share of the batches that come from the earlier site, at least 0 and less than 1.

    Raises:
        InputError: The share is out of range.
    """

    def __init__(self, current: TokenDataset, earlier: TokenDataset, share: float) -> None:
        """Keep both."""
        if not 0 <= share < 1:
            raise InputError("share is not in [0, 1)", code="bad_share", place="share")
        self.current, self.earlier, self.share = current, earlier, share
        self.store = current.store
        names = ("start", "length", "subject_id", "birth_s")
        for name in names:
            parts = [getattr(current, name), getattr(earlier, name)]
            setattr(self, name, np.concatenate(parts))

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        """Pack patients of one site; those of the earlier one are counted behind the others."""
        n = len(self.current)
        if chosen[0] < n:
            return self.current.batch(chosen)
        return self.earlier.batch(chosen - n)

    def plan(self, *, max_tokens: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """All batches of the current site and a draw of the earlier one's, in a seeded order.

        Every epoch draws anew, one batch at least unless the share is nought. Where the earlier
        site has fewer batches than are asked for, each comes as often as it must.
        """
        own = self.current.plan(max_tokens=max_tokens, seed=seed, epoch=epoch)
        n_earlier = round(len(own) * self.share / (1 - self.share))
        if self.share > 0:  # a small site's share must not be rounded away in every epoch
            n_earlier = max(1, n_earlier)
        found = self.earlier.plan(max_tokens=max_tokens, seed=seed, epoch=epoch)
        again = [found[k % len(found)] + len(self.current) for k in range(n_earlier)]
        batches = [*own, *again]
        order = np.random.default_rng([seed, epoch, 1]).permutation(len(batches))
        return [batches[k] for k in order.tolist()]
