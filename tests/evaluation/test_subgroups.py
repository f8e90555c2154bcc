"""Tables by group, and what they keep to themselves."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tsfm.errors import InputError
from tsfm.evaluation.discrimination import auroc
from tsfm.evaluation.subgroups import may_be_told, subgroup_table


def scored(n: int = 60) -> pl.DataFrame:
    generator = np.random.default_rng(0)
    p = generator.random(n)
    return pl.DataFrame(
        {
            "subject_id": np.arange(n) // 2,
            "boolean_value": generator.random(n) < p,
            "predicted_boolean_probability": p.astype(np.float32),
            "sex": ["F"] * (n - 30) + ["M"] * 10 + [None] * 20,
        }
    )


def test_measures_are_those_of_the_group():
    frame = scored(120)
    table = subgroup_table(frame, ["sex"])
    women = frame.filter(pl.col("sex") == "F")
    row = table.filter(pl.col("group") == "F").to_dicts()[0]
    y, p = women["boolean_value"].to_numpy(), women["predicted_boolean_probability"].to_numpy()
    assert row["n"] == 90
    assert row["n_subjects"] == 45
    assert row["prevalence"] == pytest.approx(y.mean())
    assert row["auroc"] == pytest.approx(auroc(y, p))
    assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
    assert row["observed_to_expected"] == pytest.approx(y.sum() / p.sum(), rel=1e-5)


def test_small_cells_show_nothing_but_their_name():
    table = subgroup_table(scored(), ["sex"])
    assert table["group"].to_list() == ["F", "M", "unknown"]
    # Ten rows of five subjects, and twenty rows of ten subjects: both below eleven.
    assert table["suppressed"].to_list() == [False, True, True]
    for column in ("n", "n_subjects", "prevalence", "auroc", "mean_predicted"):
        assert table[column].is_null().to_list() == [False, True, True]


def test_a_group_of_one_class_has_no_auroc():
    frame = scored(120).with_columns(boolean_value=pl.lit(False))
    assert subgroup_table(frame, ["sex"], n=10)["auroc"].null_count() == 3


def test_a_missing_column_is_named():
    with pytest.raises(InputError, match="race"):
        subgroup_table(scored(), ["race"])


def test_a_hidden_group_can_not_be_had_by_subtraction():
    def hidden(**sizes: int) -> set[str]:
        groups = [group for group, n in sizes.items() for _ in range(n)]
        n = len(groups)
        frame = pl.DataFrame({
            "subject_id": range(n), "boolean_value": [i % 2 == 0 for i in range(n)],
            "predicted_boolean_probability": [0.5] * n, "sex": groups,
        })  # fmt: skip
        return set(subgroup_table(frame, ["sex"], n=5).filter("suppressed")["group"])

    assert hidden(F=40, M=30) == set()
    assert hidden(F=40, M=30, X=3) == {"X", "M"}
    assert hidden(F=40, M=30, X=1, Y=1) == {"X", "Y", "M"}
    assert hidden(F=40, M=30, X=6, Y=6) == {"X", "Y"}
    assert hidden(F=3) == {"F"}


def test_a_subject_in_two_hidden_groups_is_one_subject():
    rows = [(s, "EMERGENCY") for s in range(100)] + [(s, "WARD") for s in range(30)]
    rows += [(s, kind) for s in range(6) for kind in ("OBSERVATION", "URGENT")]
    frame = pl.DataFrame(rows, schema=["subject_id", "kind"], orient="row").with_columns(
        boolean_value=pl.col("subject_id") % 2 == 0,
        predicted_boolean_probability=pl.lit(0.5),
    )
    hidden = subgroup_table(frame, ["kind"], n=5).filter("suppressed")["group"].to_list()
    # Six subjects are in both small groups: told apart from all others, they would be known.
    assert hidden == ["OBSERVATION", "URGENT", "WARD"]


def grouped(rows: list[tuple[int, dict[str, str]]]) -> pl.DataFrame:
    """So many subjects of one row with these groups each; half of them have the outcome."""
    found = [groups for n, groups in rows for _ in range(n)]
    return pl.DataFrame(found).with_columns(
        subject_id=pl.int_range(pl.len()),
        boolean_value=pl.int_range(pl.len()) % 2 == 0,
        predicted_boolean_probability=pl.lit(0.5),
    )


def shown(frame: pl.DataFrame, columns: list[str], figure: str = "n_subjects") -> dict[str, float]:
    table = subgroup_table(frame, columns, n=5).drop_nulls(figure)
    return dict(zip(table["column"] + " " + table["group"], table[figure], strict=True))


def test_a_hidden_group_can_not_be_had_across_columns():
    frame = grouped(
        [
            (50, {"kind": "A", "broad": "A or C"}),
            (3, {"kind": "C", "broad": "A or C"}),
            (30, {"kind": "B", "broad": "B"}),
            (20, {"kind": "E", "broad": "E"}),
        ]
    )
    assert shown(frame, ["kind"]) == {"kind A": 50, "kind B": 30}
    both = {"kind B": 30, "broad A or C": 53, "broad B": 30, "broad E": 20}
    assert shown(frame, ["kind", "broad"]) == both
    assert shown(frame, ["broad", "kind"]) == both


def test_nor_a_few_who_are_in_two_shown_groups():
    # All of A and three of Z are in B: B less A would be those three.
    frame = grouped(
        [
            (50, {"kind": "A", "ward": "B"}),
            (3, {"kind": "Z", "ward": "B"}),
            (37, {"kind": "Z", "ward": "Y"}),
            (40, {"kind": "X", "ward": "W"}),
        ]
    )
    told = shown(frame, ["kind", "ward"])
    assert told == {"kind A": 50, "kind X": 40, "kind Z": 40, "ward W": 40}


def test_groups_that_leave_nobody_or_many_over_are_shown():
    frame = grouped(
        [
            (50, {"kind": "A", "broad": "A or B", "again": "a"}),
            (11, {"kind": "B", "broad": "A or B", "again": "b"}),
            (30, {"kind": "C", "broad": "C", "again": "c"}),
        ]
    )
    assert len(shown(frame, ["kind", "broad", "again"])) == 8


def test_no_shown_groups_of_any_columns_leave_a_few_over():
    generator = np.random.default_rng(1)
    for _ in range(30):
        n = 120
        fine = generator.choice(6, n, p=[0.3, 0.3, 0.2, 0.1, 0.05, 0.05])
        coarse = np.where(generator.random(n) < 0.97, generator.integers(0, 3, 6)[fine], 0)
        frame = pl.DataFrame({
            "subject_id": np.arange(n), "boolean_value": generator.random(n) < 0.5,
            "predicted_boolean_probability": np.full(n, 0.5), "fine": fine, "coarse": coarse,
        })  # fmt: skip
        table = subgroup_table(frame, ["fine", "coarse"], n=2)
        known: dict[str, list[set[int]]] = {}
        for column in ("fine", "coarse"):
            parts = {str(g): set(p["subject_id"]) for (g,), p in frame.group_by([column])}
            own = table.filter(pl.col("column") == column)
            hidden = own.filter("suppressed")["group"].to_list()
            known[column] = [part for g, part in parts.items() if g not in hidden]
            known[column] += [set().union(*(parts[g] for g in hidden))] if hidden else []
        for outer, inner in (("fine", "coarse"), ("coarse", "fine")):
            for whole in known[outer]:
                within = [part for part in known[inner] if part <= whole]
                if within:
                    assert not 0 < len(whole.difference(*within)) < 11


@pytest.mark.parametrize("n", [11, 12, 16, 20, 40, 200])
def test_an_auroc_that_is_told_fits_many_numbers_of_outcomes(n: int) -> None:
    """Without ties it is a whole number of pairs, and the size of the group stands beside it."""
    k = np.arange(1, n)
    shown = 0
    for told in np.arange(0, 101) / 100:
        fitting = [i for i in k if (abs(np.arange(i * (n - i) + 1) / (i * (n - i)) - told)
                                    <= 0.005).any()]  # fmt: skip
        if may_be_told(float(told), n):
            shown += 1
            assert len(fitting) >= 10
    assert (shown == 101) == (n >= 40)
    assert not may_be_told(float("nan"), n)


def test_shares_of_few_outcomes_are_not_shown_nor_to_be_had():
    rows = [(100, {"kind": "A"}), (100, {"kind": "B"}), (100, {"kind": "C"}), (90, {"kind": "D"})]
    frame = grouped(rows)
    n_events = {"A": 2, "B": 40, "C": 30, "D": 0}
    first = pl.int_range(pl.len()).over("kind")
    frame = frame.with_columns(
        boolean_value=first < pl.col("kind").replace_strict(n_events, return_dtype=pl.Int64),
        predicted_boolean_probability=np.random.default_rng(0).random(frame.height),
    )
    assert shown(frame, ["kind"]) == {"kind A": 100, "kind B": 100, "kind C": 100, "kind D": 90}
    # Of A two have the outcome; C is the next that would tell it, less than the sum.
    for figure in ("prevalence", "observed_to_expected", "brier"):
        assert set(shown(frame, ["kind"], figure)) == {"kind B", "kind D"}
    # Only so many outcomes have an AUROC of these digits among so many.
    for figure in ("auroc", "auroc_low", "auroc_high"):
        told = shown(frame, ["kind"], figure)
        assert all(told[f"kind {g}"] == round(told[f"kind {g}"], 2) for g in "AC")
    told = shown(frame, ["kind"], "auroc")
    assert told["kind B"] != round(told["kind B"], 2)
    lacking = frame.with_columns(~pl.col("boolean_value"))
    assert set(shown(lacking, ["kind"], "prevalence")) == {"kind B", "kind D"}
