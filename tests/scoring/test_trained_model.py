"""A researcher's frame: read whatever library made it, and refused without a word of its values."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import datetime
from typing import Any

import polars as pl
import pytest

import tsfm
from tsfm import event_table
from tsfm.errors import InputError
from tsfm.scoring.trained_model import TrainedModel

TASK = "readmission_30d"
SECRET = 424_242_424_242


@pytest.fixture(scope="module")
def model(tiny_hospital: Any) -> TrainedModel:
    found = tsfm.load(tiny_hospital.model)
    assert isinstance(found, TrainedModel)
    return found


@pytest.fixture(scope="module")
def events(tiny_hospital: Any) -> pl.DataFrame:
    return pl.concat(event_table.scan_events(tiny_hospital.events))


def test_frames_of_every_kind_get_the_scores_of_the_table(
    model: TrainedModel, events: pl.DataFrame, tiny_hospital: Any
) -> None:
    expected = model.score(tiny_hospital.events, TASK)
    assert model.score(events.to_pandas(), TASK).shape == expected.shape
    for frame, back in (
        (events, lambda scores: scores),
        (events.to_arrow(), pl.from_arrow),
        (events.with_columns(pl.col("subject_id").cast(pl.String)), lambda scores: scores),
    ):
        assert back(model.score(frame, TASK)).equals(expected)


def row(**changes: Any) -> pl.DataFrame:
    values = {"subject_id": SECRET, "time": datetime(2020, 1, 1), "code": "A", **changes}
    return pl.DataFrame({name: [value] for name, value in values.items()})


BAD: dict[str, Callable[[], Any]] = {
    "subject_id": lambda: row(subject_id=f"p{SECRET}"),
    "time": lambda: row(time=f"at {SECRET}"),
    "encounter_id": lambda: row(encounter_id=SECRET + 0.5),
    "numeric_value": lambda: row(numeric_value=f"{SECRET} mg"),
    "available_time": lambda: row(available_time=[SECRET]),
    "code": lambda: row(text_value="x").to_pandas().rename(columns={"text_value": "code"}),
}


@pytest.mark.parametrize("column", BAD)
def test_a_column_that_can_not_be_read_is_named_and_no_value_of_it(
    model: TrainedModel, column: str
) -> None:
    with pytest.raises(InputError, match=f"'{column}'") as caught:
        model.score(BAD[column](), TASK)
    assert str(SECRET) not in "".join(traceback.format_exception(caught.value, chain=True))


def test_an_id_beyond_the_tables_and_a_mixed_column_are_refused(model: TrainedModel) -> None:
    large = row().with_columns(subject_id=pl.lit(2**63, pl.UInt64))
    mixed = row().to_pandas().astype({"subject_id": object})
    mixed.loc[1] = [f"p{SECRET}", datetime(2020, 1, 1), "A"]
    for frame in (large, mixed):
        with pytest.raises(InputError, match=r"bad_column_type.*'subject_id'") as caught:
            model.score(frame, TASK)
        assert "424" not in str(caught.value)
        assert str(2**63) not in str(caught.value)


@pytest.mark.parametrize("column", ["subject_id", "time", "code"])
def test_a_column_that_must_be_there_is_named(model: TrainedModel, column: str) -> None:
    with pytest.raises(InputError, match=f"missing_column.*lacks {column}"):
        model.score(row().drop(column), TASK)


@pytest.mark.parametrize("events", [None, {}, 5, row().lazy(), row()["code"].to_arrow()])
def test_what_is_no_frame_is_refused(model: TrainedModel, events: Any) -> None:
    with pytest.raises(InputError, match="unknown_frame"):
        model.score(events, TASK)


@pytest.mark.parametrize("given", [None, 3, ["model"]])
def test_what_is_neither_a_path_nor_a_name_is_refused(given: Any) -> None:
    with pytest.raises(InputError) as caught:
        tsfm.load(given)
    assert (caught.value.code, caught.value.place) == ("missing_model", "path_or_name")
