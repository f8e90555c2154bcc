"""Classes of beats of an electrocardiogram: normal, supraventricular, ventricular, fusion.

Boosted trees (`boosted_trees`) read the features of each beat (`tsfm.signals.beat_features`): when
it comes, what shape it has against the patient's usual beat, and its P wave. Classes are those of
ANSI/AAMI EC57. How likely a beat is ventricular is also asked of all beats of the record that look
like it. A beat is ventricular or a fusion if that is likeliest; else it is supraventricular or
normal by weight, and supraventricular only where the rhythm is regular: in fibrillation no beat is
early.

Records are read as a whole, so it is for records, not for streams. Unclassifiable and paced beats
are no class of it. It names beats and makes no diagnosis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from tsfm.errors import InputError, ModelMismatch
from tsfm.models.boosted_trees import BoostedTrees
from tsfm.signals.beat_features import mean_over_alike, read_beats
from tsfm.signals.beats import find_r_peaks
from tsfm.signals.filters import as_samples

CLASSES = ("N", "S", "V", "F")
"""Normal (and bundle branch block), supraventricular, ventricular, fusion of both."""

REGULARITY = "irregular"
"""Feature that tells how far the intervals around step, as a share of them."""

_N, _S, _V = 0, 1, 2


@dataclass(frozen=True)
class BeatClassifierConfig:
    """What the trees read, and how a class is decided.

    Attributes:
        features: Names of what the trees read, in order, with spaces between them.
        n_members: Fits whose probabilities are averaged.
        irregular: Above this step of the intervals around no beat is supraventricular.
        s_weight: Weight of supraventricular beats in the fit.
        s_scale: Weight of S against N in the decision, on top of that of the fit.
        f_scale: Weight of F in the decision.
        v_shared: Share of the probability of V that is the mean over the record's beats of the
            same shape, 0 to 1.
    """

    features: str
    n_members: int
    irregular: float
    s_weight: float
    s_scale: float
    f_scale: float
    v_shared: float

    def __post_init__(self) -> None:
        """Refuse what no fit has."""
        weights = (self.irregular, self.s_weight, self.s_scale, self.f_scale)
        if self.n_members < 1 or not self.features.split() or not all(w > 0 for w in weights):
            raise ValueError("at least one member and one feature, and positive weights")
        if not 0 <= self.v_shared <= 1:
            raise ValueError("a share from 0 to 1")


@dataclass(frozen=True, eq=False)
class BeatClasses:
    """Beats of a record with their classes.

    Attributes:
        samples: (n_beats,) of the R peaks, in order.
        classes: (n_beats,) strings, one of N, S, V, F.
        probability: (n_beats, 4) of N, S, V and F, as frequent as in training; rows add up to one.
            The class is not always the likeliest: see `decide`.
    """

    samples: npt.NDArray[np.int64]
    classes: npt.NDArray[Any]
    probability: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Number of beats."""
        return len(self.samples)

    def _repr_html_(self) -> str:
        counts = "".join(
            f"<tr><td>{name}</td><td>{int(np.sum(self.classes == name)):,}</td></tr>"
            for name in CLASSES
        )
        return f"<b>{len(self):,} beats</b><table>{counts}</table>"


@dataclass(frozen=True, eq=False)
class BeatClassifier:
    """Trees with the rule that makes classes of their scores.

    Attributes:
        trees: Of all members; columns of the scores are member by member, N, S, V, F in each.
        config: What they read, and the rule.
        facts: Plain facts about the training.
        hash: sha256 of the manifest that it was loaded from; empty before.
    """

    trees: BoostedTrees
    config: BeatClassifierConfig
    facts: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""

    def __post_init__(self) -> None:
        """Refuse trees of another configuration."""
        names = self.config.features.split()
        fits = self.trees.n_columns == self.config.n_members * len(CLASSES)
        if not fits or self.trees.n_features != len(names):
            raise ModelMismatch(
                "the trees are not those of this configuration", code="bad_trees",
                place="BeatClassifier", remedy="Restore the model directory as it was written.",
            )  # fmt: skip

    def classify(
        self, ecg: npt.ArrayLike, *, fs_hz: float | int, r_peaks: npt.ArrayLike | None = None
    ) -> BeatClasses:
        """Classes of the beats of one record.

        Args:
            ecg: (n_samples,) or (n_leads, n_samples) in any unit, NaN in gaps. R peaks are found
                on the first lead; a second one helps to tell shapes, others are not read.
            fs_hz: Sampling rate, above 70.
            r_peaks: (n_beats,) samples of the R peaks, in order; found here if not given.

        Returns:
            The beats, none if there are none. Given ones where the first lead is not measured are
            left out: nothing is known of them.

        Raises:
            InputError: No lead, or more leads than samples; peaks out of order, outside or no
                whole samples; or a rate that is too low.
            ModelMismatch: The classifier reads features that this version does not have.
        """
        leads = np.atleast_2d(np.asarray(ecg, np.float64))
        turned = leads.ndim == 2 and len(leads) > leads.shape[1] > 0
        if leads.ndim != 2 or not len(leads) or turned:
            raise InputError(
                f"a signal of shape {leads.shape} is no record", code="bad_signal_shape",
                place="ecg", remedy="Give (samples,) or (leads, samples).",
            )  # fmt: skip
        if r_peaks is None:
            peaks = find_r_peaks(leads[0], fs_hz=float(fs_hz))
        else:
            peaks = as_samples(r_peaks).reshape(-1)
        if not len(peaks):
            return BeatClasses(peaks, np.zeros(0, "U1"), np.zeros((0, len(CLASSES))))
        beats = read_beats(leads, peaks, fs_hz=float(fs_hz))
        values, names = np.nan_to_num(beats.values), beats.names
        found = self.score(_columns(values, names, self.config.features.split()))
        found = share_v(found, beats.windows, self.config.v_shared)
        regular = values[:, names.index(REGULARITY)] <= self.config.irregular
        number = decide(found, regular, s_scale=self.config.s_scale, f_scale=self.config.f_scale)
        there = np.isfinite(leads[0, peaks])
        return BeatClasses(
            samples=peaks[there],
            classes=np.array(CLASSES)[number][there],
            probability=self._as_frequent(found)[there],
        )

    def score(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Probabilities of each beat by itself, as fitted, S weighted as in the fit.

        Args:
            values: (n_beats, n_features) in the order of the configuration.

        Returns:
            (n_beats, 4), means over the members.

        Raises:
            ModelMismatch: Another number of features.
        """
        scores = self.trees.score(values)
        return softmax(scores.reshape(len(scores), -1, len(CLASSES)), axis=2).mean(1)

    def _as_frequent(self, found: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Probabilities without the weight that S had in the fit."""
        weight = np.ones(len(CLASSES))
        weight[_S] = 1 / self.config.s_weight
        return found * weight / (found * weight).sum(1, keepdims=True)

    def _repr_html_(self) -> str:
        return (
            f"<b>beat classifier</b> {self.hash[:12]}<table><tr><td>classes</td>"
            f"<td>{', '.join(CLASSES)}</td></tr><tr><td>trees</td><td>{self.trees.n_trees:,}</td>"
            f"</tr><tr><td>features</td><td>{self.trees.n_features}</td></tr></table>"
        )


def share_v(
    found: npt.NDArray[np.float64], windows: npt.NDArray[np.float32], share: float
) -> npt.NDArray[np.float64]:
    """Probabilities with that of V shared among the beats of a record that look alike.

    Beats of one shape come from one place of the heart: where the trees waver among them, their
    mean is right more often than each of them. What is left is N, S and F in the odds they had.

    Args:
        found: (n_beats, 4) of one record, as `BeatClassifier.score` gives it.
        windows: (n_beats, 2, n_points) of the same beats, from `read_beats`.
        share: How much of V is the mean over beats of the same shape.

    Returns:
        (n_beats, 4), rows adding up to one.
    """
    own = found[:, _V]
    v = (1 - share) * own + share * mean_over_alike(windows, found[:, [_V]])[:, 0]
    rest = found * ((1 - v) / np.maximum(1 - own, 1e-12))[:, None]
    rest[:, _V] = v
    return rest / rest.sum(1, keepdims=True)


def decide(
    found: npt.NDArray[np.float64],
    regular: npt.NDArray[np.bool_],
    *,
    s_scale: float | int,
    f_scale: float | int,
) -> npt.NDArray[np.int64]:
    """Class of each beat: V or F if that is likeliest, else S against N by weight.

    Args:
        found: (n_beats, 4) as `share_v` gives it.
        regular: (n_beats,) where the rhythm is regular; elsewhere no beat is S.
        s_scale: Weight of S against N.
        f_scale: Weight of F against the others.

    Returns:
        (n_beats,) places in `CLASSES`.
    """
    likeliest = (found * np.array([1.0, 1.0, 1.0, f_scale])).argmax(1)
    early = regular & (s_scale * found[:, _S] > found[:, _N])
    return np.where(likeliest >= _V, likeliest, early.astype(np.int64))


def _columns(
    values: npt.NDArray[np.float32], names: tuple[str, ...], wanted: list[str]
) -> npt.NDArray[np.float32]:
    place = {name: i for i, name in enumerate(names)}
    if strange := [name for name in wanted if name not in place]:
        raise ModelMismatch(
            f"{len(strange)} features are unknown, first '{strange[0][:40]}'",
            code="unknown_features", place="BeatClassifier",
            remedy="Use a tsfm version that has them.",
        )  # fmt: skip
    return values[:, [place[name] for name in wanted]]
