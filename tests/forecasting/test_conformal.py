"""Conformal quantiles: equal to definition and peers, and honest on what they never saw."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.forecasting.conformal import SplitConformal, fit_split_conformal
from tsfm.forecasting.coverage import coverage_table

Array = NDArray[Any]
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
SHAPE = np.array([-1.6, -0.7, 0.0, 0.7, 1.6])  # of a forecast that is too sure of itself
EDGES = (6.0, 24.0)


def forecasts(n: int, seed: int = 0, n_patients: int | None = None) -> dict[str, Array]:
    """Forecasts of two variables in units far apart; the further ahead, the more they promise."""
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, n_patients or n, n) if n_patients else np.arange(n)
    variable = generator.choice(["heart rate", "lactate"], n)
    lead = generator.choice([1.0, 6.0, 12.0, 48.0], n)
    unit = np.where(variable == "lactate", 0.5, 20.0)
    width = unit * generator.lognormal(0, 0.3, n)
    center = 3 * unit * generator.standard_normal(n)
    error = generator.gumbel(0, 1.5, n) * (1 + 0.03 * lead)
    return {
        "variable": variable,
        "lead_hours": lead,
        "quantiles": center[:, None] + width[:, None] * SHAPE,
        "truth": center + width * error,
        "groups": groups,
    }


def fit(rows: dict[str, Array], **options: Any) -> SplitConformal:
    return fit_split_conformal(**{"levels": LEVELS, "lead_edges_hours": EDGES, **rows, **options})


def apply(fitted: SplitConformal, rows: dict[str, Array], levels: Any = LEVELS) -> Array:
    return fitted.apply(rows["variable"], rows["lead_hours"], levels, rows["quantiles"])


def part(rows: dict[str, Array], index: Any) -> dict[str, Array]:
    return {name: column[index] for name, column in rows.items()}


def spreads(fitted: SplitConformal, rows: dict[str, Array]) -> Array:
    return np.array([fitted.spread[name] for name in rows["variable"].tolist()])


def by_definition(scores: Array, patients: Array, level: float) -> float:
    """The hierarchical conformal quantile, one candidate after another."""
    n_groups = len(set(patients.tolist()))

    def enough(s: float, upper: bool) -> bool:
        share = 0.0
        for patient in set(patients.tolist()):
            own = scores[patients == patient]
            share += float(np.mean(own <= s) if upper else np.mean(own >= s)) / (n_groups + 1)
        return share >= (level if upper else 1 - level) - 1e-9

    upper = [s for s in sorted(scores.tolist()) if enough(s, True)]
    lower = [s for s in sorted(scores.tolist(), reverse=True) if enough(s, False)]
    above = upper[0] if upper else max(scores.max(), 0.0)
    below = lower[0] if lower else min(scores.min(), 0.0)
    return {-1.0: below, 0.0: (above + below) / 2, 1.0: above}[float(np.sign(level - 0.5))]


def test_shifts_are_the_definition_cell_by_cell() -> None:
    rows = forecasts(90, n_patients=15)
    fitted = fit(rows, min_points=1)
    lead_bin = np.digitize(rows["lead_hours"], EDGES, right=True)
    spread = spreads(fitted, rows)
    scores = (rows["truth"][:, None] - rows["quantiles"]) / spread[:, None]
    assert len(fitted.cells) == 2 * 3 + 2 + 1
    for cell in fitted.cells:
        inside = np.ones(90, bool) if cell.variable is None else rows["variable"] == cell.variable
        inside &= (lead_bin == cell.lead_bin) | (cell.lead_bin is None)
        patients = rows["groups"][inside]
        assert (cell.n_points, cell.n_groups) == (inside.sum(), len(set(patients.tolist())))
        expected = [
            by_definition(scores[inside, j], patients, level) for j, level in enumerate(LEVELS)
        ]
        assert cell.shift == pytest.approx(expected, rel=1e-12)
    moved = apply(fitted, rows)
    own = {(c.variable, c.lead_bin): c.shift for c in fitted.cells}
    names = zip(rows["variable"].tolist(), lead_bin.tolist(), strict=True)
    shift = np.array([own[name] for name in names]) * spread[:, None]
    alone = rows["quantiles"] + shift
    np.testing.assert_allclose(moved[:, 0], alone[:, :2].min(1))
    np.testing.assert_allclose(moved[:, 4], alone[:, 3:].max(1))


def test_asymmetric_intervals_are_those_of_mapie() -> None:
    mapie = pytest.importorskip("mapie.regression")
    base = pytest.importorskip("sklearn.base")

    class Column(base.RegressorMixin, base.BaseEstimator):
        def __init__(self, j: int = 0) -> None:
            self.j = j
            self.is_fitted_ = True

        def fit(self, X: Array, y: Array) -> Column:
            return self

        def predict(self, X: Array) -> Array:
            return X[:, self.j]

    rows = forecasts(300)
    rows["quantiles"] = rows["quantiles"][:, [0, 2, 4]]
    one = {**rows, "variable": np.full(300, "x")}
    calibration, test = part(one, slice(0, 200)), part(one, slice(200, None))
    levels = [0.05, 0.5, 0.95]
    fitted = fit(calibration, levels=levels, lead_edges_hours=())
    peer = mapie.ConformalizedQuantileRegressor(
        [Column(0), Column(2), Column(1)], confidence_level=0.9, prefit=True
    ).conformalize(calibration["quantiles"], calibration["truth"])
    _, interval = peer.predict_interval(test["quantiles"], symmetric_correction=False)
    np.testing.assert_allclose(apply(fitted, test, levels)[:, [0, 2]], interval[:, :, 0])


def test_each_level_is_the_percentile_of_a_normalised_mondrian_system_of_crepes() -> None:
    crepes = pytest.importorskip("crepes")
    rows = forecasts(700)
    calibration, test = part(rows, slice(0, 500)), part(rows, slice(500, None))
    fitted = fit(calibration, min_points=1)
    moved = apply(fitted, test)

    def spread_and_bin(some: dict[str, Array]) -> tuple[Array, Array]:
        lead_bin = np.digitize(some["lead_hours"], EDGES, right=True)
        names = [f"{v} {b}" for v, b in zip(some["variable"], lead_bin, strict=True)]
        return spreads(fitted, some), np.array(names)

    for j, side in ((0, "lower_percentiles"), (4, "higher_percentiles")):
        spread, bins = spread_and_bin(calibration)
        residual = calibration["truth"] - calibration["quantiles"][:, j]
        system = crepes.ConformalPredictiveSystem().fit(residual, sigmas=spread, bins=bins)
        spread, bins = spread_and_bin(test)
        expected = system.predict_percentiles(
            test["quantiles"][:, j], sigmas=spread, bins=bins, **{side: [100 * LEVELS[j]]}
        )
        np.testing.assert_allclose(moved[:, j], np.ravel(expected))


@settings(max_examples=6, deadline=None)
@given(n=st.integers(19, 40), seed=st.integers(0, 10_000), level=st.sampled_from([0.8, 0.9, 0.95]))
def test_coverage_is_marginally_what_was_promised(n: int, seed: int, level: float) -> None:
    """Exactly: each of n + 1 exchangeable points takes its turn as the new one."""
    rows = {**forecasts(n + 1, seed), "variable": np.full(n + 1, "x")}
    below, above = 0, 0
    levels = (1 - level, level)
    quantiles = rows["quantiles"][:, [1, 3]]
    for i in range(n + 1):
        others = np.arange(n + 1) != i
        some = {**rows, "quantiles": quantiles}
        fitted = fit(part(some, others), levels=levels, lead_edges_hours=())
        low, high = apply(fitted, part(some, [i]), levels)[0]
        below += rows["truth"][i] <= high
        above += rows["truth"][i] >= low
    assert below >= level * (n + 1) - 1e-9
    assert above >= level * (n + 1) - 1e-9
    assert max(below, above) < level * (n + 1) + 1 + 1e-9


def test_forecasts_that_are_too_sure_hold_on_new_patients() -> None:
    fitted, new = fit(forecasts(20_000, 1)), forecasts(20_000, 2)
    raw, moved = (
        coverage_table(
            new["variable"], new["lead_hours"], LEVELS, q, new["truth"], lead_edges_hours=EDGES
        )
        for q in (new["quantiles"], apply(fitted, new))
    )
    assert len(moved) == 3 * 4
    for before, after in zip(raw, moved, strict=True):
        assert before.covered[0] < 0.8
        assert after.nominal == pytest.approx((0.9, 0.5))
        assert after.covered == pytest.approx((0.9, 0.5), abs=0.03)
        assert after.below == pytest.approx(LEVELS, abs=0.045)


@settings(max_examples=15, deadline=None)
@given(
    factor=st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 1000),
)
def test_units_do_not_matter_not_even_their_sign(factor: float, offset: float, seed: int) -> None:
    calibration, new = forecasts(200, seed, 40), forecasts(50, seed + 1)
    offset *= abs(factor)

    def other_unit(rows: dict[str, Array]) -> dict[str, Array]:
        q = factor * rows["quantiles"] + offset
        truth = factor * rows["truth"] + offset
        return {**rows, "quantiles": q if factor > 0 else q[:, ::-1], "truth": truth}

    expected = factor * apply(fit(calibration, min_points=20), new) + offset
    found = apply(fit(other_unit(calibration), min_points=20), other_unit(new))
    expected = expected if factor > 0 else expected[:, ::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * abs(factor))


@settings(max_examples=50, deadline=None)
@given(
    levels=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=7, unique=True),
    seed=st.integers(0, 10_000),
    n=st.integers(0, 30),
)
def test_nothing_crosses_and_no_level_is_robbed(levels: list[float], seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    levels = sorted(levels)
    # Of whole numbers, so that ties and widths of nought are there.
    quantiles = np.sort(generator.integers(-3, 4, (n + 20, len(levels))), axis=1).astype(float)
    rows = {
        "variable": np.full(n + 20, "x"),
        "lead_hours": np.ones(n + 20),
        "quantiles": quantiles,
        "truth": generator.integers(-9, 10, n + 20).astype(float),
        "groups": generator.integers(0, 9, n + 20),
    }
    fitted = fit(part(rows, slice(0, n)), levels=levels, lead_edges_hours=())
    new = part(rows, slice(n, None))
    moved = apply(fitted, new, levels)
    assert (np.diff(moved, axis=1) >= 0).all()
    assert np.isfinite(moved).all()
    if n:
        alone = new["quantiles"] + np.array(fitted.cells[0].shift) * fitted.spread["x"]
        for j, level in enumerate(levels):
            if level != 0.5:
                outward = (moved[:, j] - alone[:, j]) * np.sign(level - 0.5)
                assert (outward >= -1e-12).all()


def test_a_rare_variable_takes_what_its_neighbours_need_in_its_own_unit() -> None:
    calibration = forecasts(3000)
    few = calibration["variable"] == "lactate"
    few &= few.cumsum() > 40
    calibration = part(calibration, ~few)
    fitted = fit(calibration, min_points=50)
    kinds = {(cell.variable, cell.lead_bin) for cell in fitted.cells}
    assert kinds == {("heart rate", b) for b in (0, 1, 2, None)} | {(None, None)}
    new = forecasts(10_000, 5)
    pooled = np.array(fitted.cells[-1].shift)
    moved = apply(fitted, new)
    expected = new["quantiles"] + pooled * spreads(fitted, new)[:, None]
    rare = new["variable"] == "lactate"
    np.testing.assert_allclose(moved[rare], expected[rare])
    assert not np.allclose(moved[~rare], expected[~rare])
    held = (moved[rare, 0] <= new["truth"][rare]) & (new["truth"][rare] <= moved[rare, -1])
    assert held.mean() == pytest.approx(0.9, abs=0.04)
    # 20 points of lactate are enough of the variable and not of each of its bins.
    kinds = {(c.variable, c.lead_bin) for c in fit(calibration, min_points=30).cells}
    assert ("lactate", None) in kinds
    assert ("lactate", 0) not in kinds
    unknown = {**new, "variable": np.full(10_000, "never seen")}
    own_spread = (new["quantiles"][:, -1] - new["quantiles"][:, 0])[:, None]
    expected = new["quantiles"] + pooled * own_spread
    np.testing.assert_allclose(apply(fitted, unknown), expected)


def test_a_patient_with_many_points_does_not_rule() -> None:
    """One in ten has 200 points and is easy to forecast; promised is a point of a new patient."""
    generator = np.random.default_rng(0)

    def patients(n: int) -> dict[str, Array]:
        groups = np.repeat(np.arange(n), np.where(np.arange(n) % 10 == 0, 200, 2))
        error = generator.standard_normal(len(groups)) * np.where(groups % 10 == 0, 0.2, 2.0)
        rows = {"truth": error, "groups": groups, "quantiles": np.tile(SHAPE, (len(groups), 1))}
        return {**rows, "variable": np.full(len(groups), "x"), "lead_hours": np.ones(len(groups))}

    calibration, new = patients(1000), patients(1000)
    by_patient = apply(fit(calibration), new)
    by_point = apply(fit({**calibration, "groups": np.arange(len(calibration["truth"]))}), new)

    def covered(q: Array, groups: Array | None) -> float:
        return coverage_table(
            new["variable"], new["lead_hours"], LEVELS, q, new["truth"],
            groups=groups, lead_edges_hours=(),
        )[-1].covered[0]  # fmt: skip

    assert covered(by_patient, new["groups"]) == pytest.approx(0.9, abs=0.02)
    assert covered(by_point, new["groups"]) < 0.5
    assert covered(by_point, None) == pytest.approx(0.9, abs=0.02)


def test_copies_of_a_patients_points_change_nothing() -> None:
    rows = forecasts(300)
    once = fit(rows, min_points=20)
    copied = fit(part(rows, np.repeat(np.arange(300), 1 + np.arange(300) % 7)), min_points=20)
    assert once.spread == copied.spread
    for a, b in zip(once.cells, copied.cells, strict=True):
        assert (a.variable, a.lead_bin, a.n_groups) == (b.variable, b.lead_bin, b.n_groups)
        assert a.shift == b.shift
        assert a.n_points < b.n_points


def test_too_few_patients_give_their_extreme_score_and_say_so() -> None:
    rows = part(forecasts(18, 3), slice(0, 18))
    fitted = fit({**rows, "variable": np.full(18, "x")}, min_points=1, lead_edges_hours=())
    scores = (rows["truth"][:, None] - rows["quantiles"]) / fitted.spread["x"]
    assert fitted.clamped.tolist() == [[True, False, False, False, True]] * 3
    assert fitted.cells[0].shift[0] == min(scores[:, 0].min(), 0)
    assert fitted.cells[0].shift[4] == max(scores[:, 4].max(), 0)
    wide = {**rows, "quantiles": rows["quantiles"][:, 2:3] + 1e6 * SHAPE}
    assert fit(wide, min_points=1).cells[-1].shift[::4] == (0.0, 0.0)
    more = {**forecasts(19, 3), "variable": np.full(19, "x")}
    assert not fit(more, min_points=1, lead_edges_hours=()).clamped.any()


def test_a_point_forecast_becomes_an_interval() -> None:
    calibration, new = forecasts(3000, 1), forecasts(3000, 2)
    for rows in (calibration, new):
        rows["quantiles"] = np.repeat(rows["quantiles"][:, 2:3], 5, axis=1)
    moved = apply(fit(calibration), new)
    held = (moved[:, 0] <= new["truth"]) & (new["truth"] <= moved[:, -1])
    assert held.mean() == pytest.approx(0.9, abs=0.02)
    perfect = {**calibration, "truth": calibration["quantiles"][:, 0]}
    np.testing.assert_array_equal(apply(fit(perfect), perfect), perfect["quantiles"])


def test_what_is_missing_is_left_out_and_counted() -> None:
    rows = forecasts(500)
    gaps = {name: column.copy() for name, column in forecasts(560).items()}
    some = {k: np.concatenate([v, gaps[k][500:]]) for k, v in rows.items()}
    some["truth"][500:540] = math.nan
    some["truth"][540:550] = math.inf
    some["quantiles"][550:] = math.nan
    whole, with_gaps = fit(rows), fit(some)
    assert with_gaps.cells == whole.cells
    assert (with_gaps.n_points, with_gaps.n_ignored) == (500, 60)
    assert np.isnan(apply(whole, some)[550:]).all()
    assert np.isfinite(apply(whole, some)[:550]).all()
    table = coverage_table(
        some["variable"], some["lead_hours"], LEVELS, some["quantiles"], some["truth"],
        lead_edges_hours=EDGES,
    )  # fmt: skip
    assert (table[-1].n_points, table[-1].n_ignored) == (500, 60)


def test_of_nothing_is_the_identity() -> None:
    nothing = fit(part(forecasts(5), slice(0, 0)))
    assert (nothing.cells, nothing.n_points, nothing.n_ignored) == ((), 0, 0)
    assert nothing.clamped.shape == (0, 5)
    rows = forecasts(50)
    np.testing.assert_array_equal(apply(nothing, rows), rows["quantiles"])
    empty = fit({**rows, "truth": np.full(50, math.nan)})
    assert (empty.n_points, empty.n_ignored) == (0, 50)
    np.testing.assert_array_equal(apply(empty, rows), rows["quantiles"])
    assert apply(fit(rows), part(rows, slice(0, 0))).shape == (0, 5)


def test_the_type_of_the_quantiles_is_kept() -> None:
    rows = forecasts(200)
    single = {**rows, "quantiles": rows["quantiles"].astype(np.float32)}
    assert apply(fit(rows), single).dtype == np.float32


def test_what_cannot_be_is_refused() -> None:
    rows = forecasts(100)
    fitted = fit(rows)
    wrong: list[dict[str, Any]] = [
        {"levels": (0.5, 0.1, 0.6, 0.7, 0.8)},
        {"levels": (0.0, 0.1, 0.6, 0.7, 0.8)},
        {"levels": (0.1, 0.9)},
        {"quantiles": rows["quantiles"][:, ::-1]},
        {"quantiles": rows["quantiles"][:-1]},
        {"truth": rows["truth"][:-1]},
        {"groups": rows["groups"][:-1]},
        {"groups": ["x", None] * 50},
        {"groups": ["x", math.nan] * 50},
        {"groups": [None] * 100},
        {"groups": np.r_[np.arange(99.0), math.nan]},
        {"groups": ["1", 1] * 50},
        {"lead_hours": rows["lead_hours"][:-1]},
        {"lead_hours": np.full(100, math.nan)},
        {"lead_edges_hours": (24.0, 6.0)},
    ]
    for change in wrong:
        with pytest.raises(InputError, match="bad_forecast"):
            fit({**rows, **change})
    with pytest.raises(InputError, match="not those of the calibration"):
        apply(fitted, rows, (0.05, 0.25, 0.5, 0.75, 0.9))
