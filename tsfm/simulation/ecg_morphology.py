"""Waves of a simulated heart: a dipole that turns, seen from twelve leads.

P wave, QRS complex, ST segment and T wave are each a sum of Gaussians in time (as in McSharry et
al. 2003), and each Gaussian has a vector: x to the left, y down, z back. Findings change them:
a blocked branch lets its ventricle come late, hypertrophy lengthens vectors, an infarct takes away
the forces of its territory and draws the ST segment towards it. The leads I, II and V1 to V6 are
projections on lead vectors, Dower's (Dower et al. 1980, the coefficients from Frank's leads to the
standard ones), rounded and moved a little towards what recordings show; III, aVR, aVL and aVF
follow from I and II.

The QRS complex is stretched in time until it is as wide as asked, and turned in the frontal plane
until its axis is as asked (before an infarct, and of the left ventricle where the right is late).
Every simulated person has other widths, another heart position, torso and electrodes: wide
spreads, so that what is learned does not hang on them.

This is test and pretraining material, no model of a heart: vectors are round numbers of our own,
compared with real recordings only in their measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tsfm.simulation.ecg_findings import EcgFindings
from tsfm.simulation.ecg_rhythm import ATRIAL, NORMAL, VENTRICULAR

Signal = npt.NDArray[np.float64]

# Rows I, II, V1 to V6; columns x (left), y (down), z (back).
LEAD_VECTORS = np.array([
    (0.75, -0.24, 0.06), (0.24, 1.07, -0.13), (-0.60, 0.16, -0.80), (0.04, 0.16, -1.45),
    (0.75, 0.10, -1.10), (1.10, 0.13, -0.55), (1.08, 0.13, -0.10), (0.88, 0.08, 0.20),
])  # fmt: skip
# The atria lie further from V3 to V6 than the ventricles do.
_ATRIA_SEEN = np.array([1.0, 1.0, 0.55, 0.7, 0.5, 0.38, 0.38, 0.42])
QRS_EDGE = 0.02  # of the largest vector: a QRS complex begins and ends where it passes this


@dataclass(frozen=True, eq=False)
class Waves:
    """Gaussians of one kind of beat; seconds are counted from the onset of QRS.

    Attributes:
        centre_s: (wave,) moments of their tops.
        width_s: (wave, 2) deviations before and after the top.
        vector_mv: (wave, 6) left, down, back of the ventricles, then of the atria.
        part: (wave,) 0 P, 1 QRS, 2 ST and T: what moves with the interval.
        peak_s: Moment of the longest QRS vector.
        qrs_s: Width of the QRS complex.
        p_onset_s: Onset of the P wave; None without one.
    """

    centre_s: Signal
    width_s: Signal
    vector_mv: Signal
    part: npt.NDArray[np.int64]
    peak_s: float
    qrs_s: float
    p_onset_s: float | None


@dataclass(frozen=True, eq=False)
class Heart:
    """One simulated person's waves and leads.

    Attributes:
        waves: Those of each kind of beat, as in `ecg_rhythm.KINDS`.
        leads: (8, 6) lead vectors of I, II, V1 to V6, for the ventricles, then for the atria.
        atrium_mv: (3,) vector of fibrillatory or flutter waves.
        breath: Share by which vectors follow the breath, and radians by which they turn.
    """

    waves: dict[int, Waves]
    leads: Signal
    atrium_mv: Signal
    breath: tuple[float, float]


def draw_heart(rng: np.random.Generator, findings: EcgFindings) -> Heart:
    """Draw one person who has these findings."""
    leads = LEAD_VECTORS * (1 + rng.normal(0, 0.06, (8, 3)))
    leads[2:] *= np.exp(rng.normal(0, 0.13, (6, 1)))  # distance of each chest electrode
    # A chest electrode that lies too high or too far to a side sees what its neighbour should.
    shift = rng.normal(0, 0.12) + rng.normal(0, 0.10, 6)
    chest = leads[2:].copy()
    for i in range(6):
        to = chest[min(max(i + (1 if shift[i] > 0 else -1), 0), 5)]
        leads[i + 2] += abs(shift[i]) * (to - chest[i])
    leads[2:, 1] += rng.normal(0, 0.08)
    scale = findings.voltage
    turn = _turn(rng.normal(0, 0.16), axis=1) @ _turn(rng.normal(0, 0.10), axis=0)
    normal = _conducted(rng, findings, turn, scale)
    premature = _replace_p(rng, normal, findings)
    ectopic = _ectopic(rng, findings, scale)
    flutter = findings.rhythm == "atrial_flutter"
    atrium = np.array([0.02, 0.14, -0.04]) if flutter else np.array([0.01, 0.04, -0.05])
    atrium = atrium * np.exp(rng.normal(0, 0.35)) * (1 if not flutter or rng.random() < 0.7 else -1)
    return Heart(
        waves={NORMAL: normal, ATRIAL: premature, VENTRICULAR: ectopic},
        leads=np.hstack([leads, leads * _ATRIA_SEEN[:, None]]),
        atrium_mv=atrium * rng.normal(1, 0.2, 3),
        breath=(rng.uniform(0, 0.10), rng.uniform(0, 0.06)),
    )


def twelve_leads(independent_mv: Signal) -> Signal:
    """(12, ...) standard leads from (8, ...) I, II, V1 to V6; the limb leads agree exactly."""
    one, two = independent_mv[0], independent_mv[1]
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.concatenate([np.stack(limb), independent_mv[2:]])


def wave_values(waves: Waves, time_s: Signal, delay_s: Signal) -> Signal:
    """(..., wave, sample) unit Gaussians at `time_s` from the onset of QRS, T moved by a delay.

    Args:
        waves: Of one kind of beat.
        time_s: (..., sample) moments.
        delay_s: (...) how much later the T wave comes than at the mean interval.
    """
    late = np.where(waves.part == 2, np.asarray(delay_s)[..., None], 0.0)
    # ST and T move in proportion to how late in the beat they are.
    late = late * np.clip(waves.centre_s / waves.centre_s.max(), 0, 1)
    away = time_s[..., None, :] - (waves.centre_s + late)[..., None]
    width = np.where(away > 0, waves.width_s[:, 1:], waves.width_s[:, :1])
    return np.exp(-0.5 * (away / width) ** 2)


def frontal_axis_deg(vectors_mv: Signal, widths_s: Signal) -> float:
    """Axis of the area of waves in leads I and aVF as the standard lead vectors see them."""
    area = (vectors_mv * widths_s[:, None]).sum(0)
    one, two = LEAD_VECTORS[0] @ area, LEAD_VECTORS[1] @ area
    return float(np.degrees(np.arctan2(two - one / 2, one)))


def _conducted(rng: np.random.Generator, f: EcgFindings, turn: Signal, scale: float) -> Waves:
    qrs_s = f.qrs_ms / 1000
    centre, width, vector = _ventricles(rng, f)
    centre = centre + rng.normal(0, 0.022, len(centre))
    width = width * np.exp(rng.normal(0, 0.12, len(width)))
    length = np.linalg.norm(vector, axis=1, keepdims=True)
    vector = vector * np.exp(rng.normal(0, 0.22, (len(vector), 1)))
    vector = (vector + length * rng.normal(0, 0.14, vector.shape)) @ turn.T
    # A right ventricle that comes late stays where it is: the axis is that of the left one.
    vector[:5] = _turn_to_axis(vector[:5], width[:5], f.axis_deg)
    if f.fascicle != "none":
        # The open fascicle's side goes first, so a small wave precedes against the axis.
        vector[0] += np.array([-0.10, 0.20, 0.0]) * (1 if f.fascicle == "lafb" else -1)
    if f.infarct != "none":
        lost = _infarct_forces(rng, f)
        centre = np.append(centre, lost[0])
        width = np.append(width, lost[1])
        vector = np.vstack([vector, lost[2]])
    centre_s, width_s, peak_s = _fit_width(centre, width, vector, qrs_s)
    t_centre, t_width, t_vector = _repolarisation(rng, f, vector, width, turn)
    p_centre, p_width, p_vector = _atria(rng, f)
    spike = f.rhythm == "paced"
    parts = [
        (p_centre, p_width, p_vector, 0),
        (centre_s, np.stack([width_s, width_s], 1), vector * scale, 1),
        (t_centre, t_width, t_vector * scale, 2),
    ]
    if spike:
        up = rng.normal(0, 0.5, (1, 3))
        parts.append((np.array([-0.012]), np.full((1, 2), 0.0012), up, 0))
    return Waves(
        centre_s=np.concatenate([c for c, _, _, _ in parts]),
        width_s=np.concatenate([w for _, w, _, _ in parts]),
        vector_mv=np.concatenate([_place(v, atrial=kind == 0) for _, _, v, kind in parts]),
        part=np.concatenate([np.full(len(c), kind) for c, _, _, kind in parts]),
        peak_s=peak_s,
        qrs_s=qrs_s,
        p_onset_s=-f.pr_ms / 1000 if f.rhythm == "sinus" else None,
    )


def _ventricles(rng: np.random.Generator, f: EcgFindings) -> tuple[Signal, Signal, Signal]:
    """Centres and widths in QRS widths, and vectors, of depolarisation without an infarct."""
    if f.conduction == "lbbb" or f.rhythm == "paced":
        # The right ventricle first, then slowly through the septum to the left.
        rows = np.array([
            (0.16, 0.070, 0.25, 0.10, -0.05), (0.36, 0.100, 0.65, 0.35, 0.75),
            (0.58, 0.110, 0.75, 0.15, 0.80), (0.80, 0.085, 0.40, -0.05, 0.25),
        ])  # fmt: skip
        if f.rhythm == "paced":
            rows[:, 2] *= rng.uniform(0.0, 1.0)
        rows[1:, 2:] *= 1 + 0.35 * f.lvh
        return rows[:, 0], rows[:, 1], rows[:, 2:]
    rows = np.array([
        (0.19, 0.065, -0.05, -0.02, -0.14), (0.36, 0.075, 0.40, 0.30, -0.42),
        (0.49, 0.080, 1.12, 0.62, 0.34), (0.64, 0.080, 0.02, 0.04, 0.80),
        (0.80, 0.070, -0.14, -0.08, 0.10),
    ])  # fmt: skip
    rows[2, 2:] *= 1 + 0.80 * f.lvh
    rows[3, 2:] *= 1 + 0.95 * f.lvh
    rows[2:4, 0] += 0.03 * f.lvh
    if f.rvh > 0:
        rows[1, 2:] += np.array([-0.30, 0.0, -0.25]) * f.rvh
        rows[3, 2:] += np.array([-0.55, 0.0, -0.45]) * f.rvh
    if f.conduction == "rbbb":
        rows[:, :2] *= rng.uniform(0.62, 0.72)
        rows[3:, 2:] *= 0.55
        late = np.array([(0.70, 0.10, -0.50, 0.02, -0.50), (0.84, 0.07, -0.30, 0.02, -0.22)])
        late[:, 2:] *= rng.uniform(0.7, 1.3)
        rows = np.vstack([rows, late])
    elif f.conduction == "incomplete_rbbb":
        rows[:, :2] *= 0.86
        late = np.array([(0.86, 0.07, -0.28, -0.03, -0.30)])
        late[:, 2:] *= rng.uniform(0.7, 1.3)
        rows = np.vstack([rows, late])
    elif f.conduction == "slow":
        at = rng.uniform(0.62, 0.85)
        rows = np.vstack([rows, [at, 0.07, *rng.normal(0, 0.22, 3)]])
    return rows[:, 0], rows[:, 1], rows[:, 2:]


# Where each territory lies: forces lost early in QRS, ST elevation and T inversion of it.
_TERRITORIES = {
    "anteroseptal": ((-0.05, 0.00, 0.62), (0.05, 0.02, -0.24), (0.12, 0.05, -0.42)),
    "anterior": ((-0.25, 0.00, 0.62), (0.14, 0.04, -0.24), (0.28, 0.05, -0.42)),
    "anterolateral": ((-0.55, 0.02, 0.45), (0.22, 0.02, -0.15), (0.45, 0.08, -0.30)),
    "inferior": ((0.06, -0.62, 0.05), (-0.05, 0.22, 0.03), (0.02, 0.34, 0.04)),
    "inferolateral": ((-0.28, -0.55, -0.10), (0.12, 0.20, 0.06), (0.24, 0.30, 0.08)),
    "lateral": ((-0.55, 0.10, -0.10), (0.20, -0.06, 0.03), (0.36, -0.04, 0.02)),
}


def _infarct_forces(rng: np.random.Generator, f: EcgFindings) -> tuple[Signal, Signal, Signal]:
    lost = np.array(_TERRITORIES[f.infarct][0])
    size = f.infarct_size * (0.45 if f.infarct_age == "acute" else 1.0)
    share = rng.uniform(0.40, 0.60)
    vectors = np.stack([lost * share, lost * (1 - share)]) * size
    vectors *= 1 + rng.normal(0, 0.15, (2, 3))
    stretch = 0.7 if f.conduction == "rbbb" else 1.0
    return np.array([0.24, 0.40]) * stretch, np.array([0.075, 0.085]) * stretch, vectors


def _fit_width(
    centre: Signal, width: Signal, vector: Signal, qrs_s: float
) -> tuple[Signal, Signal, float]:
    """Stretch a QRS complex so that its vector is above `QRS_EDGE` from 0 to `qrs_s`."""
    grid = np.linspace(-0.4, 1.5, 761)
    unit = np.exp(-0.5 * ((grid - centre[:, None]) / width[:, None]) ** 2)
    length = np.linalg.norm(vector.T @ unit, axis=0)
    above = np.flatnonzero(length > QRS_EDGE * length.max())
    start, factor = grid[above[0]], qrs_s / (grid[above[-1]] - grid[above[0]])
    peak_s = float((grid[length.argmax()] - start) * factor)
    return (centre - start) * factor, width * factor, peak_s


def _repolarisation(
    rng: np.random.Generator, f: EcgFindings, qrs: Signal, qrs_width: Signal, turn: Signal
) -> tuple[Signal, Signal, Signal]:
    """ST segment and T wave: centres and widths in seconds from QRS onset, and vectors."""
    qrs_s, qt_s = f.qrs_ms / 1000, f.qt_ms / 1000
    rest_s = qt_s - qrs_s
    after = rng.uniform(0.13, 0.17) * rest_s
    t_s = qt_s - 2.1 * after
    t_width = np.array([rng.uniform(1.15, 1.6), 1.0]) * after
    toward = 0.35 * np.radians(f.axis_deg - 45) + rng.normal(0, 0.22)
    t = np.array([0.34, 0.14, -0.27]) * np.exp(rng.normal(0, 0.28))
    t = _turn(toward, axis=2) @ turn @ t * (1 + rng.normal(0, 0.15, 3))
    st = np.array([-0.012, -0.010, -0.065]) * rng.uniform(0.0, 1.5)  # early repolarisation
    st += rng.normal(0, 0.008, 3)
    area = (qrs * qrs_width[:, None]).sum(0)
    main = area / max(np.linalg.norm(area), 1e-9)
    if f.conduction == "lbbb" or f.rhythm == "paced":
        t = 0.25 * t - main * rng.uniform(0.25, 0.5)
        st = st - main * rng.uniform(0.05, 0.18)
    elif f.conduction == "rbbb":
        t = t + np.array([0.08, 0.0, 0.18]) * rng.uniform(0.6, 1.4)
    elif f.conduction == "slow":
        t = t * rng.uniform(0.3, 0.9)
    st_s, st_width = qrs_s + 0.24 * rest_s, np.array([0.20, 0.20]) * rest_s
    amount = f.st_t_amount
    if f.st_t == "st_depression":
        st = st - np.array([0.13, 0.08, -0.09]) * amount * rng.uniform(0.7, 1.3)
        t = t * (1 - 0.8 * amount * rng.random())
        st_s = qrs_s + rng.uniform(0.18, 0.40) * rest_s
    elif f.st_t == "t_inversion":
        where = list(_TERRITORIES.values())[rng.integers(len(_TERRITORIES))][2]
        t = t * (1 - 0.5 * amount) - np.array(where) * amount * rng.uniform(0.7, 1.4)
    elif f.st_t == "nonspecific":
        t = t * (1 - amount * rng.uniform(0.6, 1.0))
        st = st - np.array([0.05, 0.03, -0.01]) * amount * rng.random()
    elif f.st_t == "strain":
        away = np.array([-0.5, 0.0, -0.8]) if f.rvh > f.lvh else main
        away = away / np.linalg.norm(away)
        st = st - away * 0.12 * amount * rng.uniform(0.6, 1.4)
        t = t * (1 - 0.6 * amount) - away * 0.28 * amount * rng.uniform(0.6, 1.4)
    elif f.st_t == "long_qt":
        t = t * rng.uniform(0.5, 1.0)
    if f.infarct != "none":
        _, st_to, t_to = (np.array(v) for v in _TERRITORIES[f.infarct])
        if f.infarct_age == "acute":
            st = st + st_to * f.infarct_size * rng.uniform(0.6, 1.6)
            t = t + t_to * f.infarct_size * rng.uniform(-0.8, 0.8)
        else:
            st = st + st_to * f.infarct_size * rng.uniform(0.0, 0.35)
            t = t - t_to * f.infarct_size * rng.uniform(0.0, 1.0)
    centre = np.array([st_s, t_s - 0.25 * after, t_s + 0.35 * after])
    bend = t * 0.15 * rng.normal(0, 1, 3)  # the loop of T is not a line
    width = np.stack([st_width, t_width, 0.8 * t_width])
    u = np.array([0.01, 0.01, -0.025]) * rng.uniform(0.2, 1.8)
    width[:, 0] = np.minimum(width[:, 0], [st_s - 0.35 * qrs_s, *[(t_s - 0.6 * qrs_s) / 2] * 2])
    centre = np.append(centre, qt_s + rng.uniform(0.03, 0.08))
    width = np.vstack([width, (0.035, 0.055)])
    return centre, width, np.stack([st, 0.65 * t + bend, 0.35 * t - bend, u])


def _atria(rng: np.random.Generator, f: EcgFindings) -> tuple[Signal, Signal, Signal]:
    """The right atrium, then the left; nothing where the atria do not beat."""
    if f.rhythm != "sinus":
        return np.empty(0), np.empty((0, 2)), np.empty((0, 3))
    length_s = np.clip(rng.normal(0.100, 0.010), 0.075, 0.125) + 0.022 * f.left_atrial
    right = np.array([0.068, 0.066, -0.068]) * (1 + 1.2 * f.right_atrial)
    left = np.array([0.085, 0.028, 0.018]) + np.array([0.03, 0.01, 0.07]) * f.left_atrial
    vectors = np.stack([right, left]) * np.exp(rng.normal(0, 0.22, (2, 1)))
    vectors = vectors * (1 + rng.normal(0, 0.2, (2, 3))) * f.voltage**0.5
    # Onset two deviations before the first top: that is where the P wave begins.
    widths = np.array([0.19, 0.19]) * length_s
    start = -f.pr_ms / 1000
    centres = start + np.array([0.38, 0.64]) * length_s
    # They repolarise against their P wave, low and long, under the QRS complex.
    centres = np.append(centres, start + length_s + 0.07)
    widths = np.append(widths, 0.06)
    vectors = np.vstack([vectors, -rng.uniform(0.06, 0.20) * vectors.sum(0)])
    return centres, np.stack([widths, widths], 1), vectors


def _replace_p(rng: np.random.Generator, normal: Waves, f: EcgFindings) -> Waves:
    """The beat of an atrial focus: another P wave, sometimes nearer; the ventricles as usual."""
    if f.rhythm != "sinus":
        return normal
    atria = normal.part == 0
    vector, centre = normal.vector_mv.copy(), normal.centre_s.copy()
    vector[atria, 3:] = vector[atria, 3:] @ _turn(rng.uniform(-2.5, 2.5), axis=2).T
    shift_s = rng.uniform(-0.03, 0.01)
    centre[atria] += shift_s
    assert normal.p_onset_s is not None
    return replace(normal, centre_s=centre, vector_mv=vector, p_onset_s=normal.p_onset_s + shift_s)


def _ectopic(rng: np.random.Generator, f: EcgFindings, scale: float) -> Waves:
    """The beat of a ventricular focus: wide, without P, ST and T against the QRS complex."""
    qrs_s = rng.uniform(max(0.125, f.qrs_ms / 1000), max(0.18, f.qrs_ms / 1000))
    away = rng.normal(0, 1, 3) * (0.8, 1.0, 1.0)
    away = away / np.linalg.norm(away) * rng.uniform(0.9, 1.6)
    vector = np.stack([0.45 * away, away, 0.55 * away]) + rng.normal(0, 0.18, (3, 3))
    centre, width = np.array([0.25, 0.50, 0.76]), np.array([0.09, 0.11, 0.08])
    centre_s, width_s, peak_s = _fit_width(centre, width, vector, qrs_s)
    qt_s = max(f.qt_ms / 1000 + 0.02, qrs_s + 0.20)
    after = 0.15 * (qt_s - qrs_s)
    t_centre = np.array([qrs_s + 0.25 * (qt_s - qrs_s), qt_s - 2.1 * after])
    t_width = np.array([[0.9, 1.2], [1.5, 1.0]]) * after
    t_vector = -away * np.array([[0.12], [0.40]])
    return Waves(
        centre_s=np.concatenate([centre_s, t_centre]),
        width_s=np.concatenate([np.stack([width_s, width_s], 1), t_width]),
        vector_mv=_place(np.concatenate([vector, t_vector]) * scale, atrial=False),
        part=np.array([1, 1, 1, 2, 2]),
        peak_s=peak_s,
        qrs_s=qrs_s,
        p_onset_s=None,
    )


def _place(vectors: Signal, *, atrial: bool) -> Signal:
    """(wave, 6) vectors where the atria's stand behind the ventricles'."""
    nothing = np.zeros_like(vectors)
    return np.hstack([nothing, vectors] if atrial else [vectors, nothing])


def _turn_to_axis(vectors: Signal, widths: Signal, axis_deg: float) -> Signal:
    """Turn about the line from front to back until the frontal axis is as asked."""
    x, y, z = (vectors * widths[:, None]).sum(0)
    # Across the asked direction the area shall be 0: a cos(t) + b sin(t) + c = 0 for the turn t.
    one, foot = LEAD_VECTORS[0], LEAD_VECTORS[1] - LEAD_VECTORS[0] / 2
    across = np.cos(np.radians(axis_deg)) * foot - np.sin(np.radians(axis_deg)) * one
    a, b, c = across[0] * x + across[1] * y, across[1] * x - across[0] * y, across[2] * z
    reach = np.arccos(np.clip(-c / max(np.hypot(a, b), 1e-12), -1, 1))
    turned = [vectors @ _turn(np.arctan2(b, a) + s * reach, axis=2).T for s in (-1, 1)]
    return min(turned, key=lambda v: abs(_off_deg(frontal_axis_deg(v, widths), axis_deg)))


def _off_deg(angle_deg: float, asked_deg: float) -> float:
    return (angle_deg - asked_deg + 180) % 360 - 180


def _turn(angle: float, *, axis: int) -> Signal:
    """(3, 3) rotation about an axis."""
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = cos, -sin, sin, cos
    return matrix
