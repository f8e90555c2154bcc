"""What a simulated heart has: rhythm, conduction, hypertrophy, infarction, repolarisation.

`EcgFindings` is the truth behind a simulated electrocardiogram, `draw_findings` draws a mixture of
healthy and sick hearts in which findings occur together as they do in a hospital (a hypertrophied
ventricle strains, a blocked bundle spoils the T waves, an old infarct dilates the atrium). From
the findings follow the five superclasses of PTB-XL (Wagner et al. 2020) and a longer list of
binary labels, to train on and to test against.

The shares and ranges are plausible round numbers of our own, set so that every superclass has
enough records to learn from. They are no prevalences. This is test and pretraining material.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError

Rhythm = Literal["sinus", "atrial_fibrillation", "atrial_flutter", "paced"]
Conduction = Literal["none", "incomplete_rbbb", "rbbb", "lbbb", "slow"]
Fascicle = Literal["none", "lafb", "lpfb"]
Infarct = Literal[
    "none", "anteroseptal", "anterior", "anterolateral", "inferior", "inferolateral", "lateral"
]
InfarctAge = Literal["acute", "old"]
StT = Literal["none", "st_depression", "t_inversion", "nonspecific", "strain", "long_qt"]

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
LABELS = (
    "sinus_bradycardia", "sinus_tachycardia", "atrial_fibrillation", "atrial_flutter", "paced",
    "atrial_ectopy", "ventricular_ectopy", "first_degree_block", "incomplete_rbbb", "rbbb",
    "lbbb", "slow_conduction", "lafb", "lpfb", "lvh", "rvh", "left_atrial_enlargement",
    "right_atrial_enlargement", "anterior_infarct", "inferior_infarct", "lateral_infarct",
    "acute_infarct", "st_depression", "t_inversion", "nonspecific_st_t", "strain", "long_qt",
    "left_axis", "right_axis", "low_voltage",
)  # fmt: skip

_Value = TypeVar("_Value")

_LONG_PR_MS = 200.0
_SICK = 0.64
_MOST_ECTOPIC = 0.45  # no two early beats in a row


@dataclass(frozen=True)
class EcgFindings:
    """What one simulated heart has. Amounts run from 0, absent, to 1, marked.

    Attributes:
        rhythm: What drives the ventricles.
        heart_rate_bpm: Ventricular rate of the underlying rhythm, 30 to 200; see `draw_beats`.
        atrial_ectopy: Share of beats that come early from an atrium, 0 to 0.4.
        ventricular_ectopy: Share of beats that come early from a ventricle, 0 to 0.4.
        pr_ms: Onset of P to onset of QRS, 90 to 400; without meaning where no P wave is.
        qrs_ms: Width of the QRS complex, 60 to 220.
        qt_ms: Onset of QRS to end of T at the mean rate, 240 to 640.
        axis_deg: Frontal axis of the left ventricle before any infarct, 0 to the left, 90 down.
        conduction: Bundle branch block or a slow ventricle.
        fascicle: Block of a fascicle of the left bundle.
        lvh: Hypertrophy of the left ventricle.
        rvh: Hypertrophy of the right ventricle.
        left_atrial: Enlargement of the left atrium.
        right_atrial: Enlargement of the right atrium.
        infarct: Territory.
        infarct_size: How much of it is lost.
        infarct_age: Acute (ST elevation) or old (Q waves).
        st_t: Change of ST segment and T wave beyond what blocks and infarcts bring.
        st_t_amount: Its amount.
        voltage: Factor on all amplitudes, 0.3 to 2; below 0.55 the voltage is called low.
    """

    heart_rate_bpm: float
    rhythm: Rhythm = "sinus"
    atrial_ectopy: float = 0.0
    ventricular_ectopy: float = 0.0
    pr_ms: float = 155.0
    qrs_ms: float = 90.0
    qt_ms: float = 390.0
    axis_deg: float = 45.0
    conduction: Conduction = "none"
    fascicle: Fascicle = "none"
    lvh: float = 0.0
    rvh: float = 0.0
    left_atrial: float = 0.0
    right_atrial: float = 0.0
    infarct: Infarct = "none"
    infarct_size: float = 0.0
    infarct_age: InfarctAge = "old"
    st_t: StT = "none"
    st_t_amount: float = 0.0
    voltage: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a heart that cannot be simulated.

        Raises:
            InputError: `bad_findings`.
        """
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                _refuse(name, f"Give {low:g} to {high:g}.")
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                _refuse(name, f"Give one of {', '.join(get_args(kind))}.")
        if self.atrial_ectopy + self.ventricular_ectopy > _MOST_ECTOPIC:
            _refuse("ventricular_ectopy", "Let fewer than half of the beats come early.")
        if (self.infarct == "none") != (self.infarct_size == 0):
            _refuse("infarct_size", "Give a size where there is an infarct, and only there.")
        if (self.st_t == "none") != (self.st_t_amount == 0):
            _refuse("st_t_amount", "Give an amount where there is a change, and only there.")


def draw_findings(rng: np.random.Generator) -> EcgFindings:
    """Draw one heart: a third healthy, the others with one or some findings."""
    sick = rng.random() < _SICK
    has_infarct, has_st_t, has_block, has_hypertrophy = False, False, False, False
    while sick and not (has_infarct or has_st_t or has_block or has_hypertrophy):
        has_infarct, has_block, has_hypertrophy = rng.random(3) < (0.40, 0.40, 0.30)
        has_st_t = bool(rng.random() < (0.60 if has_hypertrophy else 0.40))
    rhythm = _draw_rhythm(rng, sick)
    conduction, fascicle, long_pr = _draw_block(rng) if has_block else ("none", "none", False)
    if rhythm == "paced":
        conduction, fascicle = "none", "none"
    lvh, rvh, left_atrial, right_atrial = _draw_hypertrophy(rng) if has_hypertrophy else (0.0,) * 4
    infarct, infarct_age = _draw_infarct(rng) if has_infarct else ("none", "old")
    st_t = _draw_st_t(rng, lvh, rvh) if has_st_t else "none"
    rate = _draw_rate(rng, rhythm, sick)
    qrs = _draw_qrs_ms(rng, conduction, rhythm, lvh, fascicle)
    qtc = rng.normal(432 if sick else 415, 24 if sick else 18) + 0.5 * max(qrs - 105, 0)
    if st_t == "long_qt":
        qtc = max(qtc, 430) + rng.uniform(40, 110)
    # Bazett's root overcorrects: hearts follow the rate by a little less.
    qt = float(np.clip(qtc * (60 / rate) ** 0.42, max(240, qrs + 150), 640))
    pr = rng.uniform(205, 330) if long_pr else np.clip(rng.normal(158, 20), 105, 199)
    ectopy = rng.random(2) < ((0.08, 0.10) if sick else (0.03, 0.03))
    return EcgFindings(
        rhythm=rhythm,
        heart_rate_bpm=rate,
        atrial_ectopy=float(rng.uniform(0.08, 0.2)) if ectopy[0] and rhythm == "sinus" else 0.0,
        ventricular_ectopy=float(rng.uniform(0.08, 0.25)) if ectopy[1] else 0.0,
        pr_ms=float(pr),
        qrs_ms=qrs,
        qt_ms=qt,
        axis_deg=_draw_axis_deg(rng, fascicle, conduction, lvh, rvh, rhythm),
        conduction=conduction,
        fascicle=fascicle,
        lvh=lvh,
        rvh=rvh,
        left_atrial=left_atrial,
        right_atrial=right_atrial,
        infarct=infarct,
        infarct_size=float(rng.uniform(0.35, 1.0)) if infarct != "none" else 0.0,
        infarct_age=infarct_age,
        st_t=st_t,
        st_t_amount=float(rng.uniform(0.25, 1.0)) if st_t != "none" else 0.0,
        voltage=float(np.clip(np.exp(rng.normal(-0.12 if has_infarct else 0.0, 0.24)), 0.35, 1.9)),
    )


def superclasses(findings: EcgFindings) -> npt.NDArray[np.bool_]:
    """(5,) whether each of `SUPERCLASSES` holds; none does in a fibrillating heart without more."""
    infarct = findings.infarct != "none"
    st_t = findings.st_t != "none"
    block = findings.conduction != "none" or findings.fascicle != "none" or _is_long_pr(findings)
    hypertrophy = max(findings.lvh, findings.rvh, findings.left_atrial, findings.right_atrial) > 0
    sick = infarct or st_t or block or hypertrophy
    return np.array(
        [not sick and findings.rhythm == "sinus", infarct, st_t, block, hypertrophy], np.bool_
    )


def label_findings(findings: EcgFindings) -> npt.NDArray[np.bool_]:
    """(label,) whether each of `LABELS` holds."""
    f, sinus = findings, findings.rhythm == "sinus"
    return np.array(
        [
            sinus and f.heart_rate_bpm < 60, sinus and f.heart_rate_bpm > 100,
            f.rhythm == "atrial_fibrillation", f.rhythm == "atrial_flutter", f.rhythm == "paced",
            f.atrial_ectopy > 0, f.ventricular_ectopy > 0, _is_long_pr(f),
            f.conduction == "incomplete_rbbb", f.conduction == "rbbb", f.conduction == "lbbb",
            f.conduction == "slow", f.fascicle == "lafb", f.fascicle == "lpfb",
            f.lvh > 0, f.rvh > 0, f.left_atrial > 0, f.right_atrial > 0,
            f.infarct.startswith("antero") or f.infarct == "anterior",
            f.infarct.startswith("infero") or f.infarct == "inferior",
            f.infarct.endswith("lateral"), f.infarct != "none" and f.infarct_age == "acute",
            f.st_t == "st_depression", f.st_t == "t_inversion", f.st_t == "nonspecific",
            f.st_t == "strain", f.st_t == "long_qt",
            f.axis_deg < -30, f.axis_deg > 90, f.voltage < 0.55,
        ],
        np.bool_,
    )  # fmt: skip


_RANGES = {
    "heart_rate_bpm": (30, 200), "atrial_ectopy": (0, 0.4), "ventricular_ectopy": (0, 0.4),
    "pr_ms": (90, 400), "qrs_ms": (60, 220), "qt_ms": (240, 640), "axis_deg": (-180, 180),
    "lvh": (0, 1), "rvh": (0, 1), "left_atrial": (0, 1), "right_atrial": (0, 1),
    "infarct_size": (0, 1), "st_t_amount": (0, 1), "voltage": (0.3, 2),
}  # fmt: skip
_CHOICES = {
    "rhythm": Rhythm, "conduction": Conduction, "fascicle": Fascicle, "infarct": Infarct,
    "infarct_age": InfarctAge, "st_t": StT,
}  # fmt: skip


def _refuse(name: str, remedy: str) -> None:
    raise InputError(
        "no such heart", code="bad_findings", place=f"EcgFindings.{name}", remedy=remedy
    )


def _is_long_pr(findings: EcgFindings) -> bool:
    return findings.pr_ms > _LONG_PR_MS and findings.rhythm == "sinus"


def _choose(rng: np.random.Generator, shares: dict[_Value, float]) -> _Value:
    values, weights = list(shares), np.cumsum(list(shares.values()))
    return values[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]


def _draw_rhythm(rng: np.random.Generator, sick: bool) -> Rhythm:
    if not sick:
        return "sinus"
    return _choose(
        rng,
        {"sinus": 0.85, "atrial_fibrillation": 0.10, "atrial_flutter": 0.025, "paced": 0.025},
    )


def _draw_rate(rng: np.random.Generator, rhythm: Rhythm, sick: bool) -> float:
    if rhythm == "paced":
        rate = rng.uniform(58, 90)
    elif rhythm == "sinus":
        rate = np.exp(rng.normal(np.log(73 if sick else 69), 0.21 if sick else 0.16))
    else:
        rate = np.exp(rng.normal(np.log(92), 0.28))
    return float(np.clip(rate, 40, 160))


def _draw_block(rng: np.random.Generator) -> tuple[Conduction, Fascicle, bool]:
    shares: dict[tuple[Conduction, Fascicle, bool], float] = {
        ("incomplete_rbbb", "none", False): 0.20, ("rbbb", "none", False): 0.13,
        ("rbbb", "lafb", False): 0.06, ("lbbb", "none", False): 0.15,
        ("none", "lafb", False): 0.24, ("none", "lpfb", False): 0.03,
        ("slow", "none", False): 0.10, ("none", "none", True): 0.14,
    }  # fmt: skip
    conduction, fascicle, long_pr = _choose(rng, shares)
    return conduction, fascicle, long_pr or bool(rng.random() < 0.08)


def _draw_hypertrophy(rng: np.random.Generator) -> tuple[float, float, float, float]:
    amount = rng.uniform(0.35, 1.0, 4)
    kind = _choose(rng, {"lvh": 0.68, "rvh": 0.08, "left_atrial": 0.16, "right_atrial": 0.08})
    also_atrium = rng.random() < 0.3
    return (
        float(amount[0]) if kind == "lvh" else 0.0,
        float(amount[1]) if kind == "rvh" else 0.0,
        float(amount[2]) if kind == "left_atrial" or (kind == "lvh" and also_atrium) else 0.0,
        float(amount[3]) if kind == "right_atrial" or (kind == "rvh" and also_atrium) else 0.0,
    )


def _draw_infarct(rng: np.random.Generator) -> tuple[Infarct, InfarctAge]:
    territory: Infarct = _choose(
        rng,
        {
            "anteroseptal": 0.30, "anterior": 0.08, "anterolateral": 0.08, "inferior": 0.38,
            "inferolateral": 0.10, "lateral": 0.06,
        },
    )  # fmt: skip
    return territory, "acute" if rng.random() < 0.2 else "old"


def _draw_st_t(rng: np.random.Generator, lvh: float, rvh: float) -> StT:
    if max(lvh, rvh) > 0 and rng.random() < 0.7:
        return "strain"
    return _choose(
        rng, {"st_depression": 0.27, "t_inversion": 0.28, "nonspecific": 0.36, "long_qt": 0.09}
    )


def _draw_qrs_ms(
    rng: np.random.Generator, conduction: Conduction, rhythm: Rhythm, lvh: float,
    fascicle: Fascicle,
) -> float:  # fmt: skip
    if rhythm == "paced":
        low, high = 140, 190
    elif conduction == "lbbb":
        low, high = 125, 175
    elif conduction == "rbbb":
        low, high = 122, 165
    elif conduction == "slow":
        low, high = 112, 145
    elif conduction == "incomplete_rbbb":
        low, high = 94, 118
    else:
        mean = 85 + 9 * lvh + 6 * (fascicle != "none")
        return float(np.clip(rng.normal(mean, 9), 68, 110))
    return float(rng.uniform(low, high))


def _draw_axis_deg(
    rng: np.random.Generator, fascicle: Fascicle, conduction: Conduction, lvh: float, rvh: float,
    rhythm: Rhythm,
) -> float:  # fmt: skip
    if rhythm == "paced":
        return float(rng.uniform(-90, -20))
    if fascicle == "lafb":
        return float(rng.uniform(-75, -38))
    if fascicle == "lpfb":
        return float(rng.uniform(95, 125))
    mean, spread = 40.0 - 25 * lvh + 70 * rvh, 27.0
    if conduction == "lbbb":
        mean -= 30
    # Beyond -30 degrees a fascicle would be called blocked.
    return float(np.clip(rng.normal(mean, spread), -29 if conduction != "lbbb" else -60, 130))
