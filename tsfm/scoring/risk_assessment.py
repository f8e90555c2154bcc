"""Scores as FHIR R4 `RiskAssessment` resources, one line of NDJSON for each scored stay.

The choices that FHIR leaves open are made once, here:

* `probabilityDecimal` is a fraction from 0 to 1, rounded to four decimals, as in HL7's own
  examples (the comment in R4 that speaks of per cent is contradicted by them, and its invariant
  only asks for at most 100).
* `occurrenceDateTime` is the prediction time: the last moment whose facts the score may know. When
  the resource was made is `meta.lastUpdated`.
* FHIR demands an offset with every hour. On the `utc` clock it is true; on the `wall` clock
  `+00:00` is nominal and a note says so.
* `qualitativeRisk` follows `RiskBands` by the decimal beside it, so that word and number agree, and
  only for the outcome that the task asks about: the bands of one outcome mean nothing for another.
* A stay that was not scored has no resource. It stays in `scores.parquet` with its reason, and
  `run.json` counts it: a resource without a prediction invites being read as "no risk".
* Where the source's id of a patient or an encounter is not at hand, the identifier is the number
  that our tables have for it (from FHIR, a hash of the id), and its `system` is `OWN_NUMBERS`: it
  finds the stay in `scores.parquet`, and nothing in the source.
* The id is a hash of subject, prediction time, task and model, so that a repeated run updates
  resources instead of multiplying them.

The same JSON is valid as R4, R4B and R5.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from tsfm import schema
from tsfm.errors import InputError, ModelMismatch
from tsfm.scoring.predictions import SCORED, check_scores

RISK_PROBABILITY = "http://terminology.hl7.org/CodeSystem/risk-probability"
DECIMALS = 4

_NAMESPACE = uuid.UUID("5f6f1f0e-3a63-5d0b-9b53-0f7a7c9f6f21")
OWN_NUMBERS = f"urn:uuid:{_NAMESPACE}"
"""System of identifiers that are numbers of our own tables: no id of the source's."""

_FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_WALL_CLOCK_NOTE = (
    "Times are the source's local clock; the offset +00:00 is nominal and does not mean UTC."
)


@dataclass(frozen=True)
class RiskBands:
    """Where the words of `qualitativeRisk` begin, as probabilities of the task's outcome.

    Below `low` the word is `negligible`, from `low` on `low`, from `moderate` on `moderate`, from
    `high` on `high`. `certain` is never written. There is no default: where "high" begins depends
    on what is done with it.

    Attributes:
        low: Lowest probability called low.
        moderate: Lowest probability called moderate.
        high: Lowest probability called high.
    """

    low: float
    moderate: float
    high: float

    def __post_init__(self) -> None:
        """Refuse bands out of order."""
        if not 0 <= self.low <= self.moderate <= self.high <= 1:
            raise InputError(
                "risk bands do not ascend between 0 and 1",
                code="bad_risk_bands",
                place="bands",
                remedy="Give low <= moderate <= high.",
            )

    def word(self, probability: float) -> str:
        """Code of HL7's risk-probability system for a probability.

        >>> RiskBands(0.05, 0.1, 0.2).word(0.1)
        'moderate'
        """
        if probability >= self.high:
            return "high"
        if probability >= self.moderate:
            return "moderate"
        return "low" if probability >= self.low else "negligible"


@dataclass(frozen=True)
class OutcomeText:
    """A task's outcome in words that a reader of the resource understands.

    Attributes:
        outcome: What a true label means; `probability` is about it.
        competing: What `probability_competing` is about; None where it is not written.
        horizon_days: Days from the prediction time within which the outcome counts; None where the
            end is not fixed in advance, such as the end of the stay.
        short: A few words for axes and tables, such as `readmission within 30 days`.
    """

    outcome: str
    competing: str | None = None
    horizon_days: float | None = None
    short: str = ""


OUTCOME_TEXTS: dict[str, OutcomeText] = {
    "readmission_30d": OutcomeText(
        "Readmission to hospital within 30 days of discharge",
        "Death within 30 days of discharge, before any readmission",
        30.0,
        "readmission within 30 days",
    ),
    "mortality_in_hospital": OutcomeText(
        "Death during this hospital stay",
        "Discharge alive from this hospital stay",
        short="death in hospital",
    ),
    "length_of_stay_7d": OutcomeText(
        "Still in hospital 7 days after admission",
        "Death in hospital within 7 days of admission",
        6.0,
        "a stay of more than 7 days",
    ),
    "mortality_30d": OutcomeText(
        "Death within 30 days of admission, in hospital or out of it",
        horizon_days=29.0,
        short="death within 30 days of admission",
    ),
    "claim_denial": OutcomeText(
        "Denial of the claim by its payer",
        "Payment of the claim, in whole or in part",
        180.0,
        "denial of the claim",
    ),
}
"""Words for the tasks of `tsfm.tasks` that are scored."""


def outcome_text(task: str) -> OutcomeText:
    """The words of a task.

    Raises:
        InputError: There are none.
    """
    if task not in OUTCOME_TEXTS:
        raise InputError(
            f"no score is made for task '{task}'",
            code="unknown_task",
            place="--task",
            remedy=f"Use one of {', '.join(OUTCOME_TEXTS)}.",
        )
    return OUTCOME_TEXTS[task]


def write_risk_assessments(
    scores: pl.DataFrame,
    path: str | Path,
    *,
    subject_sources: Mapping[int, str],
    encounter_sources: Mapping[int, str] | None,
    task: str,
    model_name: str,
    model_version: str,
    model_hash: str,
    bands: RiskBands,
    generated_at: datetime,
    clock: str,
    words: OutcomeText | None = None,
) -> int:
    """Write one RiskAssessment for every scored row and return how many.

    Args:
        scores: `schema.SCORES` of one task and model; rows that are not scored are passed over.
        path: NDJSON file, written to a temporary name and then renamed.
        subject_sources: Subject id to the Patient id of the source; a subject that is missing, or
            whose id FHIR can't hold, is referred to by identifier.
        encounter_sources: The same for encounters; None where the source has no such map.
        task: Name of the task; every row must be of it.
        model_name: Name of the model, for `method`.
        model_version: Its version.
        model_hash: Hash of the model directory; every row must carry it.
        bands: Where `qualitativeRisk` changes its word.
        generated_at: Moment of the run, with a time zone.
        clock: Clock of the data set, `utc` or `wall`.
        words: The task's outcome in words; by default those of `OUTCOME_TEXTS`.

    Raises:
        FormatError: `scores` break a rule of `check_scores`.
        InputError: No words for the task, an unknown clock, or `generated_at` without a zone.
        ModelMismatch: A row is of another task or model.
    """
    words = words or outcome_text(task)
    if clock not in ("utc", "wall"):
        raise InputError(
            f"unknown clock '{clock}'",
            code="unknown_clock",
            place="clock",
            remedy="Use utc or wall.",
        )
    if generated_at.tzinfo is None:
        raise InputError(
            "the moment of the run has no time zone",
            code="no_time_zone",
            place="generated_at",
            remedy="Pass datetime.now(UTC).",
        )
    rows = check_scores(scores)
    if rows.filter((pl.col("task") != task) | (pl.col("model_hash") != model_hash)).height:
        raise ModelMismatch(
            "the scores hold rows of another task or model",
            code="mixed_scores",
            place="scores",
            remedy="Pass the rows of one task and one model_hash.",
        )
    frame = {
        "resourceType": "RiskAssessment",
        "status": "final",
        "meta": {"lastUpdated": generated_at.astimezone(UTC).isoformat(timespec="seconds")},
        "code": {"text": task},
        "method": {"text": f"{model_name}, version {model_version}, sha256 {model_hash}"},
    }
    if clock == "wall":
        frame["note"] = [{"text": _WALL_CLOCK_NOTE}]
    resources = (
        {
            **frame,
            "id": resource_id(
                row[schema.SUBJECT_ID], row[schema.PREDICTION_TIME], task, model_hash
            ),
            **_references(row, subject_sources, encounter_sources),
            "occurrenceDateTime": _date_time(row[schema.PREDICTION_TIME]),
            "prediction": _predictions(row, words, bands),
        }
        for row in rows.filter(pl.col("status") == SCORED).iter_rows(named=True)
    )
    return _write_ndjson(resources, Path(path))


def resource_id(subject_id: int, prediction_time: datetime, task: str, model_hash: str) -> str:
    """Id of the resource: the same for the same subject, moment, task and model.

    >>> len(resource_id(7, datetime(2020, 1, 2), "readmission_30d", "ab12"))
    36
    """
    return str(
        uuid.uuid5(_NAMESPACE, f"{subject_id}|{prediction_time.isoformat()}|{task}|{model_hash}")
    )


def _predictions(
    row: Mapping[str, Any], words: OutcomeText, bands: RiskBands
) -> list[dict[str, Any]]:
    start: datetime = row[schema.PREDICTION_TIME]
    period = {"start": _date_time(start)}
    if words.horizon_days is not None:
        period["end"] = _date_time(start + timedelta(days=words.horizon_days))
    probability = float(row["probability"])
    decimal = round(probability, DECIMALS)
    word = bands.word(decimal)
    predictions: list[dict[str, Any]] = [
        {
            "outcome": {"text": words.outcome},
            "probabilityDecimal": decimal,
            "qualitativeRisk": {
                "coding": [{"system": RISK_PROBABILITY, "code": word, "display": _DISPLAY[word]}]
            },
            "whenPeriod": period,
        }
    ]
    if words.competing is not None and row["probability_competing"] is not None:
        predictions.append(
            {
                "outcome": {"text": words.competing},
                "probabilityDecimal": round(float(row["probability_competing"]), DECIMALS),
                "whenPeriod": period,
            }
        )
    return predictions


_DISPLAY = {
    "negligible": "Negligible likelihood",
    "low": "Low likelihood",
    "moderate": "Moderate likelihood",
    "high": "High likelihood",
}


def _references(
    row: Mapping[str, Any],
    subject_sources: Mapping[int, str],
    encounter_sources: Mapping[int, str] | None,
) -> dict[str, Any]:
    subject = row[schema.SUBJECT_ID]
    found = {"subject": _reference("Patient", subject, subject_sources.get(subject))}
    encounter = row[schema.ENCOUNTER_ID]
    if encounter is not None:
        source = (encounter_sources or {}).get(encounter)
        found["encounter"] = _reference("Encounter", encounter, source)
    return found


def _reference(kind: str, number: int, source_id: str | None) -> dict[str, Any]:
    """By the source's resource id, or by identifier where that is unknown or not a FHIR id."""
    if source_id and _FHIR_ID.fullmatch(source_id):
        return {"reference": f"{kind}/{source_id}"}
    if source_id:
        return {"type": kind, "identifier": {"value": source_id}}
    own = {"type": {"text": f"{kind} number of tsfm"}, "system": OWN_NUMBERS, "value": str(number)}
    return {"type": kind, "identifier": own}


def _date_time(moment: datetime) -> str:
    # FHIR allows fractions of a second; a stay's end seldom has one.
    return moment.isoformat(timespec="auto") + "+00:00"


def _write_ndjson(resources: Iterator[dict[str, Any]], path: Path) -> int:
    import msgspec

    encode = msgspec.json.Encoder().encode
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    written = 0
    try:
        with temporary.open("wb") as file:
            for resource in resources:
                file.write(encode(resource))
                file.write(b"\n")
                written += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return written
