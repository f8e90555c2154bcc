"""Tables by group, and what they keep to themselves."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tsfm.errors import InputError
from tsfm.evaluation.discrimination import auroc
from tsfm.evaluation.subgroups import subgroup_table


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
