"""Codes find their id, their parent's, or the unknown; the vocabulary can't be swapped."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsfm.errors import ModelMismatch
from tsfm.tokens.vocabulary import Vocabulary, fit_vocabulary

COUNTS = {
    "DIAGNOSIS//ICD//10//I5023": 40,
    "DIAGNOSIS//ICD//10//I5021": 4,
    "LAB//LOINC//718-7//g/dL": 900,
    "GENDER//F": 3,
}


@pytest.fixture
def vocabulary() -> Vocabulary:
    return fit_vocabulary(COUNTS, min_count=10)


def test_a_frequent_code_has_its_own_id(vocabulary: Vocabulary) -> None:
    index, exact = vocabulary.lookup("LAB//LOINC//718-7//g/dL")
    assert exact
    assert vocabulary.codes[index] == "LAB//LOINC//718-7//g/dL"


def test_a_rare_code_takes_its_nearest_parent(vocabulary: Vocabulary) -> None:
    index, exact = vocabulary.lookup("DIAGNOSIS//ICD//10//I5021")
    assert not exact
    assert vocabulary.codes[index] == "DIAGNOSIS//ICD//10//I502"


def test_another_unit_of_a_known_test_is_that_test_without_a_unit(vocabulary: Vocabulary) -> None:
    index, exact = vocabulary.lookup("LAB//LOINC//718-7//mmol/L")
    assert not exact
    assert vocabulary.codes[index] == "LAB//LOINC//718-7"


def test_a_class_never_seen_is_unknown_and_counted(vocabulary: Vocabulary) -> None:
    column = pl.Series(["LAB//LOINC//718-7//g/dL", "GENETICS//BRCA1", "GENDER//M"])
    ids, exact, counts = vocabulary.encode(column)
    assert ids[1] == 0
    assert exact.tolist() == [True, False, False]
    assert (counts.exact, counts.fallback, counts.unknown) == (1, 1, 1)


@given(st.lists(st.text(alphabet="AB/1", min_size=1, max_size=12), min_size=1, max_size=20))
def test_every_event_is_counted_once(codes: list[str]) -> None:
    vocabulary = fit_vocabulary(COUNTS)
    ids, _, counts = vocabulary.encode(pl.Series(codes))
    assert len(ids) == counts.exact + counts.fallback + counts.unknown == len(codes)


def test_a_class_has_all_codes_that_fall_back_to_it() -> None:
    codes = (
        "UNK", "DIAGNOSIS", "DIAGNOSIS//ICD//10//E11", "DIAGNOSIS//ICD//10//E119",
        "DIAGNOSIS//ICD//10//E1190", "DIAGNOSIS//ICD//10//E13", "DIAGNOSIS//ICD//9//E119",
        "MEDICATION//ATC//C03", "MEDICATION//ATC//C03CA01", "MEDICATION//ATC//C04", "LAB//1",
        "LAB//12", "HOSPITAL_ADMISSION", "HOSPITAL_ADMISSION//EMERGENCY",
    )  # fmt: skip
    vocabulary = Vocabulary(codes)

    def below(name: str) -> list[str]:
        return [codes[i].split("//")[-1] for i in vocabulary.ids_of_class(name)]

    assert below("DIAGNOSIS//ICD//10//E11") == ["E11", "E119", "E1190"]
    assert below("DIAGNOSIS//ICD//10//E119") == ["E119", "E1190"]
    assert below("MEDICATION//ATC//C03") == ["C03", "C03CA01"]
    assert below("LAB//1") == ["1"]  # of other codes a part is whole
    assert below("HOSPITAL_ADMISSION") == ["HOSPITAL_ADMISSION", "EMERGENCY"]
    assert below("HOSPITAL_") == []


def test_it_is_read_back_as_written(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path).codes == vocabulary.codes


def test_a_changed_vocabulary_is_refused(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path)
    path = tmp_path / "codes.json"
    stored = json.loads(path.read_text())
    stored["codes"][2], stored["codes"][3] = stored["codes"][3], stored["codes"][2]
    path.write_text(json.dumps(stored))
    with pytest.raises(ModelMismatch) as caught:
        Vocabulary.load(tmp_path)
    assert caught.value.code == "vocabulary_hash_mismatch"
