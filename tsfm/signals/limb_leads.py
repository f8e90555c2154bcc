"""The algebra of the limb leads, and the faults of a record that it brings to light.

Three electrodes make six limb leads, so two of them tell the other four exactly (Einthoven 1912,
Goldberger 1942): III = II - I, aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2. Absent
leads are filled from it. A record that contradicts it has a fault, and which one follows from what
would mend it: all orders and signs of the limb leads are tried, and each lead against what the
others say it should be. The simplest change that makes the contradiction vanish is the fault.

What the algebra cannot see: precordial leads in a wrong order or of a wrong sign, a record of which
all limb leads are inverted, and electrodes on the wrong limb, which give six leads that agree. For
the commonest of these, the arms, there is a suspicion from P waves and QRS complexes. With three
limb leads several faults look the same, and with two nothing can be said. Faults of single leads
(flat, saturated, missing, copied, a thousand times too large) are found in leads of any name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations, product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tsfm.errors import InputError
from tsfm.signals.beats import find_r_peaks
from tsfm.signals.shards import find_runs
from tsfm.signals.store import STANDARD_LEADS, canonical_lead

Signal = npt.NDArray[np.floating[Any]]
Matrix = npt.NDArray[np.float64]
Rows = dict[str, Matrix]
_Way = tuple[int, float, "LeadFault"]  # to mend a record: changes, residual then, what it means
Kind = Literal[
    "missing", "flat", "saturated", "duplicated", "wrong_unit", "wrong_scale", "inverted",
    "swapped", "not_einthoven", "arm_reversal",
]  # fmt: skip

LIMB_LEADS = STANDARD_LEADS[:6]
_OF_I_AND_II = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1.0]])
_MOSTLY, _FLAT_S = 0.5, 1.0  # share; shorter standstills happen where steps are coarse
_RAIL_S, _OFTEN, _RAIL_SHARE, _LONG_RAIL_S = 0.02, 3, 0.01, 0.5
_AMPLITUDE_S = 2.0  # long enough for a beat at thirty a minute
_QRS_MV = (0.05, 20.0)  # beyond what electrodes on a chest measure, whatever the heart does
_APART = 30.0  # times the usual amplitude of the record's leads
_STEPS, _SLIGHT, _PLAIN = 2.0, 0.01, 0.05  # rounding steps, and shares of the leads' RMS
_ENOUGH = 100_000  # samples to know a rounding step from
_MOST_CHANGES, _LIKE, _LEAST_S = 3, 0.9, 1.0
_ALIKE = 1e-3  # share of a lead's RMS by which a copy may differ
_P_S, _PR_S, _QRS_S = (-0.22, -0.07), (-0.07, -0.05), (-0.05, 0.06)
_LEAST_P_MV, _MAINLY, _LEAST_HZ = 0.03, 1.5, 50.0


@dataclass(frozen=True)
class LeadFault:
    """Something wrong with leads of a record.

    Attributes:
        kind: `missing` (mostly NaN), `flat`, `saturated` (stuck at its largest or least value),
            `duplicated` (one signal, two names), `wrong_unit` (amplitudes no heart makes),
            `wrong_scale` (one lead's gain), `inverted`, `swapped` (names interchanged),
            `not_einthoven` (a contradiction not simply explained) or `arm_reversal` (suspected).
        leads: Whose, by canonical name.
        detail: What was found, for a reader.
    """

    kind: Kind
    leads: tuple[str, ...]
    detail: str


def derive_limb_leads(ecg: npt.ArrayLike, leads: Sequence[str]) -> tuple[Signal, tuple[str, ...]]:
    """Fill the absent limb leads from two that are there.

    A lead that is NaN throughout counts as absent. The two are the first of I, II, III, aVR, aVL
    and aVF; where either is NaN, so are the filled leads. Leads that are there stay as they are.

    Args:
        ecg: (n_leads, n_samples) values of one unit, NaN in gaps.
        leads: Name of each row, in any case.

    Returns:
        (n_leads_then, n_samples) values and the canonical names: the limb leads first, then all
        others in the order given. float32 stays float32.

    Raises:
        InputError: `bad_signal_shape`, `repeated_lead`, or `too_few_limb_leads`.
    """
    signal, names = _check(ecg, leads)
    row_of = {name: signal[i] for i, name in enumerate(names)}
    there = _limb_leads_of(row_of)
    if len(there) < 2:
        raise InputError(
            "limb leads need two of their kind to be computed from", code="too_few_limb_leads",
            place="leads", remedy=f"Give two of {', '.join(LIMB_LEADS)}.",
        )  # fmt: skip
    two = np.stack([row_of[lead] for lead in there[:2]]).astype(np.float64)
    absent = tuple(lead for lead in LIMB_LEADS if lead not in there)
    derived = (_from_others(absent, there[:2]) @ two).astype(signal.dtype)
    row_of |= dict(zip(absent, derived, strict=True))
    order = (*LIMB_LEADS, *(name for name in names if name not in LIMB_LEADS))
    return np.stack([row_of[name] for name in order]), order


def einthoven_residual(ecg: npt.ArrayLike, leads: Sequence[str]) -> dict[str, float]:
    """How far each limb lead is from what two others say.

    Args:
        ecg: (n_leads, n_samples) values of one unit, NaN in gaps.
        leads: Name of each row, in any case.

    Returns:
        Root mean square, in the signal's unit, for each limb lead but the first two that are there
        (I and II, as a rule). NaN where no sample has all three; empty with fewer than three.

    Raises:
        InputError: `bad_signal_shape` or `repeated_lead`.
    """
    signal, names = _check(ecg, leads)
    row_of = dict(zip(names, signal.astype(np.float64), strict=True))
    there = _limb_leads_of(row_of)
    if len(there) < 3:
        return {}
    rows = np.stack([row_of[lead] for lead in there])
    residual = rows[2:] - _from_others(there[2:], there[:2]) @ rows[:2]
    kept = [row[np.isfinite(row)] for row in residual]
    rms = [float(np.sqrt((row @ row) / len(row))) if len(row) else np.nan for row in kept]
    return dict(zip(there[2:], rms, strict=True))


def find_lead_faults(
    ecg: npt.ArrayLike, leads: Sequence[str], *, fs_hz: float, unit_mv: float = 1.0,
    lsb_mv: float | None = None,
) -> tuple[LeadFault, ...]:  # fmt: skip
    """Find swapped, inverted, wrongly scaled, dead and copied leads of a record.

    Leads that are missing, flat, saturated or copies are named and left out of the rest. A lead may
    differ from the algebra by two rounding steps and a hundredth of the leads' RMS, its offset not
    counted; a twentieth where nothing simple explains it.

    Args:
        ecg: (n_leads, n_samples) values, NaN in gaps.
        leads: Name of each row, in any case; names that are not of the twelve are welcome.
        fs_hz: Sampling rate.
        unit_mv: Millivolts of one unit: 0.001 for microvolts.
        lsb_mv: Rounding step; by default the least difference between two values of a lead.

    Returns:
        Faults; none for a sound record.

    Raises:
        InputError: `bad_signal_shape`, `repeated_lead`, or `bad_scale` (not above 0).
    """
    signal, names = _check(ecg, leads)
    if not all(0 < x < np.inf for x in (fs_hz, unit_mv, 1.0 if lsb_mv is None else lsb_mv)):
        raise InputError(
            "a rate, a unit and a rounding step are numbers above 0", code="bad_scale",
            place="find_lead_faults", remedy="Take them from the record's header.",
        )  # fmt: skip
    signal_mv = np.where(np.isfinite(signal), signal.astype(np.float64) * unit_mv, np.nan)
    rows = dict(zip(names, signal_mv, strict=True))
    faults = _dead_leads(rows, fs_hz)
    sound = _without(rows, faults)
    steps = {name: lsb_mv or _least_step(row) for name, row in sound.items()}
    faults += _copies(sound, steps, fs_hz)
    sound = _without(rows, faults)
    more = _contradictions(sound, steps, fs_hz)
    more += _amplitude_faults(_without(sound, more), fs_hz)
    faults += more
    if not more and _arms_look_reversed(sound, fs_hz):
        detail = "P waves and QRS complexes point down in I and up in aVR: arm electrodes reversed?"
        faults.append(LeadFault("arm_reversal", ("I", "II", "III", "aVR", "aVL"), detail))
    return tuple(faults)


def _check(ecg: npt.ArrayLike, leads: Sequence[str]) -> tuple[Signal, list[str]]:
    signal = np.asarray(ecg)
    signal = signal if signal.dtype in (np.float32, np.float64) else signal.astype(np.float64)
    if signal.ndim != 2 or len(signal) != len(leads):
        raise InputError(
            f"a signal of shape {signal.shape} for {len(leads)} leads", code="bad_signal_shape",
            place="ecg", remedy="Give (n_leads, n_samples) values and a name for each lead.",
        )  # fmt: skip
    names = [canonical_lead(name) for name in leads]
    if len(set(names)) < len(names):
        raise InputError(
            "two leads have the same name", code="repeated_lead",
            place="leads", remedy="Give each lead once, under its own name.",
        )  # fmt: skip
    return signal, names


def _limb_leads_of(rows: Mapping[str, Signal]) -> tuple[str, ...]:
    return tuple(lead for lead in LIMB_LEADS if lead in rows and np.isfinite(rows[lead]).any())


def _from_others(leads: tuple[str, ...], others: tuple[str, ...]) -> Matrix:
    """(n_leads, n_others) weights that make leads of two or more others."""
    to, of = (_OF_I_AND_II[[LIMB_LEADS.index(x) for x in some]] for some in (leads, others))
    return (to @ np.linalg.pinv(of)).round(14)  # so that ones and halves are exact


def _without(rows: Rows, faults: list[LeadFault]) -> Rows:
    named = {name for fault in faults for name in fault.leads}
    return {name: row for name, row in rows.items() if name not in named}


def _dead_leads(rows: Rows, fs_hz: float) -> list[LeadFault]:
    faults = []
    for name, row in rows.items():
        there = row[np.isfinite(row)]
        missing = 1 - len(there) / max(len(row), 1)
        if missing > _MOSTLY or not len(there):
            faults.append(LeadFault("missing", (name,), f"{missing:.0%} of it is not there"))
            continue
        _, lengths = find_runs(np.diff(row) == 0)
        still = (lengths[lengths >= _FLAT_S * fs_hz] + 1).sum() / len(there)
        if still > _MOSTLY or np.ptp(there) == 0:
            faults.append(LeadFault("flat", (name,), "it does not move over most of its time"))
            continue
        for rail, word in ((there.max(), "largest"), (there.min(), "least")):
            _, lengths = find_runs(row == rail)
            stays = lengths[lengths >= max(2, _RAIL_S * fs_hz)]
            least = _RAIL_SHARE * len(there) * (1 if len(stays) >= _OFTEN else 2)
            if stays.sum() >= least or lengths.max() >= _LONG_RAIL_S * fs_hz:
                detail = f"{stays.sum() / fs_hz:.2g} s of it are at its {word} value"
                faults.append(LeadFault("saturated", (name,), detail))
                break
    return faults


def _copies(rows: Rows, steps: dict[str, float], fs_hz: float) -> list[LeadFault]:
    power = _mean_products(rows, fs_hz)
    faults = []
    for (i, one), (j, other) in combinations(enumerate(rows), 2):
        apart = np.sqrt(max(power[i, i] + power[j, j] - 2 * power[i, j], 0.0))
        if apart <= 0.5 * min(steps[one], steps[other]) + _ALIKE * np.sqrt(power[i, i]):
            faults.append(LeadFault("duplicated", (one, other), "the same signal twice"))
    return faults


def _mean_products(rows: Rows, fs_hz: float) -> Matrix:
    """(k, k) covariances over the samples that all leads have; NaN where these are too few."""
    x = np.stack(list(rows.values())) if rows else np.zeros((0, 0))
    x = x[:, np.isfinite(x).all(0)]
    if x.shape[1] < _LEAST_S * fs_hz:
        return np.full((len(rows), len(rows)), np.nan)
    return np.cov(x, bias=True).reshape(len(rows), len(rows))


def _least_step(row: Matrix) -> float:
    values = np.unique(row[np.isfinite(row)][:_ENOUGH])
    return float(np.diff(values).min()) if len(values) > 1 else 0.0


def _amplitude_faults(rows: Rows, fs_hz: float) -> list[LeadFault]:
    """Leads whose usual deflection is none of a heart, or none like the other leads'."""
    size_mv = {}
    for name, row in rows.items():
        there = row[np.isfinite(row)]
        parts = np.array_split(there, max(1, int(len(there) / (_AMPLITUDE_S * fs_hz))))
        size_mv[name] = float(np.median([np.ptp(part) for part in parts]))
    if not size_mv:
        return []
    usual = float(np.median(list(size_mv.values())))
    low, high = _QRS_MV
    if not low <= usual <= high:
        out = tuple(name for name, mv in size_mv.items() if not low <= mv <= high)
        detail = f"QRS complexes of usually {usual:.2g} mV: check unit and gain"
        return [LeadFault("wrong_unit", out, detail)]
    times = {name: mv / usual for name, mv in size_mv.items()}
    odd = {name: x for name, x in times.items() if not 1 / _APART <= x <= _APART}
    say = "{:.2g} times as large as the record's leads usually are"
    return [LeadFault("wrong_scale", (name,), say.format(x)) for name, x in odd.items()]


def _contradictions(rows: Rows, steps: dict[str, float], fs_hz: float) -> list[LeadFault]:
    """The simplest change of the limb leads that makes them agree."""
    limbs = tuple(lead for lead in LIMB_LEADS if lead in rows)
    power = _mean_products({lead: rows[lead] for lead in limbs}, fs_hz)
    if len(limbs) < 3 or np.isnan(power).any():
        return []
    step = float(np.median([steps[lead] for lead in limbs]))
    rms = float(np.median(np.sqrt(np.diag(power))))
    slight, plain = (_STEPS * step + share * rms for share in (_SLIGHT, _PLAIN))
    before = _residual(power, limbs)
    if before <= slight:
        return []
    enough = min(max(before / 4, min(step, before / 2)), plain)
    found = _reorderings(power, limbs, enough) + _scales(power, limbs, enough, step)
    if not found and before <= plain:
        return []
    if not found:
        odd = [lead for lead in limbs if len(limbs) > 3 and _left_out(power, limbs, lead) <= enough]
        detail = f"{before:.2g} mV off the algebra, and no swap, sign or gain explains it"
        return [LeadFault("not_einthoven", tuple(odd) if len(odd) == 1 else limbs, detail)]
    fewest = min(changes for changes, _, _ in found)
    simplest = sorted((off, i) for i, (changes, off, _) in enumerate(found) if changes == fewest)
    near = 3 * (simplest[0][0] + 0.3 * step + 1e-6 * rms)
    faults = [found[i][2] for off, i in simplest if off <= near]
    if len(faults) == 1:
        return faults
    ways = " or ".join(f"{fault.kind} {'/'.join(fault.leads)}" for fault in faults)
    concerned = tuple(lead for lead in limbs if any(lead in fault.leads for fault in faults))
    return [LeadFault("not_einthoven", concerned, f"as well {ways}")]


def _residual(power: Matrix, limbs: tuple[str, ...]) -> float:
    """RMS of what the algebra leaves, from the (k, k) mean products of the leads."""
    return float(np.sqrt(max(np.sum(_beyond(limbs) * power), 0.0) / len(limbs)))


@lru_cache(maxsize=64)
def _beyond(limbs: tuple[str, ...]) -> Matrix:
    """(k, k) projection on what limb leads can't be."""
    return np.eye(len(limbs)) - _from_others(limbs, limbs)


def _left_out(power: Matrix, limbs: tuple[str, ...], lead: str) -> float:
    others = [i for i, name in enumerate(limbs) if name != lead]
    return _residual(power[np.ix_(others, others)], tuple(limbs[i] for i in others))


def _reorderings(power: Matrix, limbs: tuple[str, ...], enough: float) -> list[_Way]:
    orders, signs = _orders_and_signs(len(limbs))
    beyond = (_beyond(limbs) * signs[:, :, None] * signs[:, None, :]).reshape(len(signs), -1)
    moved = power[orders[:, :, None], orders[:, None, :]].reshape(len(orders), -1)
    off = np.sqrt(np.maximum(moved @ beyond.T, 0.0) / len(limbs))
    found = []
    for i, j in zip(*np.nonzero(off <= enough), strict=True):
        order, flipped = orders[i], signs[j] < 0
        changes = _exchanges(order) + int(flipped.sum())
        if not 0 < changes <= _MOST_CHANGES:
            continue
        moved_leads = [k for k in range(len(limbs)) if order[k] != k]
        parts = [f"{limbs[k]} is under the name {limbs[order[k]]}" for k in moved_leads]
        parts += [f"{limbs[k]} has the wrong sign" for k in np.flatnonzero(flipped)]
        concerned = tuple(limbs[k] for k in range(len(limbs)) if k in moved_leads or flipped[k])
        kind: Kind = "swapped" if moved_leads else "inverted"
        found.append((changes, float(off[i, j]), LeadFault(kind, concerned, "; ".join(parts))))
    return found


@lru_cache(maxsize=4)
def _orders_and_signs(n: int) -> tuple[npt.NDArray[np.int64], Matrix]:
    return np.array(list(permutations(range(n)))), np.array(list(product((1.0, -1.0), repeat=n)))


def _exchanges(order: npt.NDArray[np.int64]) -> int:
    """Least number of exchanges of two that make an order: its length less its cycles."""
    same = np.eye(len(order))
    return int(np.linalg.matrix_rank(same[order] - same))


def _scales(power: Matrix, limbs: tuple[str, ...], enough: float, step: float) -> list[_Way]:
    """Leads that are a multiple of what the others, which agree, say."""
    found = []
    for i, lead in enumerate(limbs):
        rest = _left_out(power, limbs, lead)
        others = [k for k in range(len(limbs)) if k != i]
        weights = _from_others((lead,), tuple(limbs[k] for k in others))[0]
        expected = max(float(weights @ power[np.ix_(others, others)] @ weights), 1e-300)
        along = float(weights @ power[others, i])
        factor = along / expected
        off = float(np.sqrt(max(power[i, i] - factor * along, 0.0)))
        allowed = _STEPS * step + _PLAIN * abs(factor) * np.sqrt(expected)
        like = abs(along) / np.sqrt(expected * max(power[i, i], 1e-300))
        if rest <= enough and off <= allowed and like >= _LIKE and abs(factor + 1) > 0.1:
            detail = f"{factor:.3g} times what the other limb leads say"
            fault = LeadFault("wrong_scale", (lead,), detail)
            found.append((1, max(off / max(abs(factor), 1.0), rest), fault))
    return found


def _arms_look_reversed(rows: Rows, fs_hz: float) -> bool:
    """P and QRS down in I and up in aVR, while V5 and V6, as far as they are there, are upright."""
    if "I" not in rows or not {"aVR", "II"} & set(rows) or fs_hz < _LEAST_HZ:
        return False
    avr = rows["aVR"] if "aVR" in rows else -(rows["I"] + rows["II"]) / 2
    upright = [-rows["I"], avr, *(rows[name] for name in ("V5", "V6") if name in rows)]
    peaks = find_r_peaks(max(upright, key=np.nanstd), fs_hz=fs_hz)
    at = np.arange(round(_P_S[0] * fs_hz), round(_QRS_S[1] * fs_hz) + 1)
    peaks = peaks[(peaks + at[0] >= 0) & (peaks + at[-1] < len(avr))]
    cut = [row[peaks[:, None] + at] for row in upright]
    cut = [beats[np.isfinite(beats).all(1)] for beats in cut]
    if min(map(len, cut)) < 3:
        return False
    seen = [_points_up(np.median(beats, axis=0), at / fs_hz) for beats in cut]
    return all(p for p, _ in seen[:2]) and all(qrs for _, qrs in seen)


def _points_up(beat: Matrix, at_s: Matrix) -> tuple[bool, bool]:
    """Whether P wave and QRS complex of a median beat are mainly upright."""
    p, pr, qrs = (beat[(at_s >= a - 1e-6) & (at_s <= b + 1e-6)] for a, b in (_P_S, _PR_S, _QRS_S))
    level, start = float(np.median(pr)), float(np.median(p[: max(1, len(p) // 5)]))
    p_up, p_down = p.max() - max(level, start), min(level, start) - p.min()
    up, down = qrs.max() - level, level - qrs.min()
    return bool(p_up > max(_LEAST_P_MV, _MAINLY * p_down)), bool(up > _MAINLY * down)
