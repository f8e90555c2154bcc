"""The ledger refuses the three leaks, and nothing else."""

import math

import numpy as np
import pytest

from tsfm.errors import InputError
from tsfm.evaluation.evaluation_ledger import EvaluationLedger

OWNER = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}


def test_a_split_by_patient_passes():
    ledger = EvaluationLedger(OWNER)
    ledger.fit("weights", ["a1", "a2"])
    ledger.choose("threshold", ["b1"])
    ledger.score("F1", ["c1"])
    assert [entry[0] for entry in ledger.entries] == ["fit", "choose", "score"]


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([("fit", "a1"), ("score", "a2")], "record_level_split"),
        ([("fit", "a1"), ("score", "a1")], "validation_on_test"),
        ([("choose", "b1"), ("score", "b1")], "threshold_on_test"),
        ([("score", "b1"), ("choose", "b1")], "threshold_on_test"),
        ([("score", "a1"), ("fit", "a2")], "record_level_split"),
        ([("fit", "z9")], "unknown_record"),
    ],
)
def test_each_leak_is_refused_by_name(steps, code):
    ledger = EvaluationLedger(OWNER)
    *before, (last, used) = steps
    for step, record in before:
        getattr(ledger, step)("it", [record])
    with pytest.raises(InputError) as error:
        getattr(ledger, last)("it", [used])
    assert error.value.code == code


def test_one_recording_under_two_names_is_one():
    ledger = EvaluationLedger({"x": 1, "y": 2}, {"x": "same", "y": "same"})
    ledger.fit("weights", ["x"])
    with pytest.raises(InputError, match="scored and used"):
        ledger.score("F1", ["y"])


def test_no_name_of_a_patient_is_in_the_message():
    ledger = EvaluationLedger({"r": "Jane Doe", "s": "Jane Doe"})
    ledger.fit("weights", ["r"])
    with pytest.raises(InputError) as error:
        ledger.score("F1", ["s"])
    assert "Jane" not in str(error.value)


def test_another_fold_starts_afresh():
    ledger = EvaluationLedger(OWNER)
    ledger.fit("weights", ["a1"])
    ledger.fold().score("F1", ["a1"])


@pytest.mark.parametrize("missing", [None, math.nan, np.float64("nan"), np.datetime64("NaT")])
def test_a_record_of_nobody_knows_whom_is_unknown(missing):
    ledger = EvaluationLedger({"r1": missing, "r2": 7})
    ledger.fit("weights", ["r2"])
    for step in (ledger.fit, ledger.choose, ledger.score):
        with pytest.raises(InputError, match="unknown_record"):
            step("it", ["r1"])


def test_pandas_missing_values_are_unknown_too():
    pd = pytest.importorskip("pandas")
    owners = pd.Series([1.0, None], ["r1", "r2"]).to_dict()
    with pytest.raises(InputError, match="unknown_record"):
        EvaluationLedger(owners).score("F1", ["r2"])
    with pytest.raises(InputError, match="unknown_record"):
        EvaluationLedger({"r1": pd.NA}).score("F1", ["r1"])


def test_records_without_a_digest_are_not_one_recording():
    ledger = EvaluationLedger({"x": 1, "y": 2}, {"x": None, "y": None})
    ledger.fit("weights", ["x"])
    ledger.score("F1", ["y"])


def test_a_name_alone_is_no_list_of_records():
    ledger = EvaluationLedger({"a": 1, "b": 2, "ab": 3})
    with pytest.raises(InputError, match="bad_records"):
        ledger.fit("weights", "ab")
    assert ledger.entries == []


def test_a_patient_named_by_number_and_text_is_not_two():
    with pytest.raises(InputError, match="mixed_subjects"):
        EvaluationLedger({"r1": 1, "r2": "1"})
    ledger = EvaluationLedger({"r1": 1, "r2": np.int64(1)})
    ledger.fit("weights", ["r1"])
    with pytest.raises(InputError, match="record_level_split"):
        ledger.score("F1", ["r2"])
