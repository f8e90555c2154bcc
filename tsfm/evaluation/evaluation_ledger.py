"""A ledger of what each record of a study was used for, which refuses the usual three leaks.

A published notebook splits by recording although patients have several, takes its validation set
from the test set, and fits thresholds on the records that it reports on. Each of these is easy to
do by accident. Here every step names its records: `fit` (weights, scalers, vocabularies), `choose`
(epochs, thresholds, calibration) and `score`. A score on a record that was used before, or whose
patient was, raises; so does using a record after it was scored. With digests of the samples, one
recording under two names counts as one. A record whose subject is missing (None, NaN) is unknown:
nobody can say whose it is not.

It knows what it is told: a step that is not entered is not seen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from tsfm.errors import InputError

_REMEDIES = {
    "record_level_split": "Split by patient, so that no patient is on both sides.",
    "validation_on_test": "Fit and choose on a part of the training patients.",
    "threshold_on_test": "Choose thresholds, epochs and calibration on training patients.",
    "unknown_record": "Give the ledger the subject of every record.",
    "bad_records": "Give the names in a list, one name too.",
    "mixed_subjects": "Name all subjects by text, or all by numbers.",
}


class EvaluationLedger:
    """What the records of one split were used for.

    Args:
        subject_of: Whose each record is; all subjects as text, or none.
        digest_of: Something that is equal for records with the same samples, such as their sha256;
            optional.

    Raises:
        InputError: `mixed_subjects`: some are text and some are not, so that 1 and "1" would be
            two patients.
    """

    def __init__(
        self,
        subject_of: Mapping[str, Hashable],
        digest_of: Mapping[str, Hashable] | None = None,
    ) -> None:
        """Start with nothing used."""
        self._subject_of = _known(subject_of)
        self._digest_of = _known(digest_of or {})
        if len({isinstance(subject, str) for subject in self._subject_of.values()}) > 1:
            raise _refused("mixed_subjects", "subjects are text and numbers", "subject_of")
        self._used: dict[str, dict[str, set[Hashable]]] = {
            step: {"record": set(), "subject": set()} for step in ("fit", "choose", "score")
        }
        self.entries: list[tuple[str, str, int]] = []

    def fit(self, what: str, records: Iterable[str]) -> None:
        """Enter records that something was fitted on.

        Raises:
            InputError: `validation_on_test` or `record_level_split`: they were scored already, or
                their patients were; `unknown_record`: one has no subject; `bad_records`: a text in
                the place of several names.
        """
        self._enter("fit", what, records, against=("score",))

    def choose(self, what: str, records: Iterable[str]) -> None:
        """Enter records that something was chosen on: an epoch, a threshold, a calibration.

        Raises:
            InputError: As `fit`, `threshold_on_test` in the place of `validation_on_test`.
        """
        self._enter("choose", what, records, against=("score",))

    def score(self, what: str, records: Iterable[str]) -> None:
        """Enter records that a score is reported on.

        Raises:
            InputError: They, or their patients, were fitted or chosen on; `unknown_record` and
                `bad_records` as in `fit`.
        """
        self._enter("score", what, records, against=("fit", "choose"))

    def fold(self) -> EvaluationLedger:
        """A fresh ledger of the same records, for another split of them."""
        return EvaluationLedger(self._subject_of, self._digest_of)

    def _enter(
        self, step: str, what: str, records: Iterable[str], against: tuple[str, ...]
    ) -> None:
        if isinstance(records, str | bytes):  # whose letters would be taken for names
            raise _refused("bad_records", f"the records of '{what}' are one text", what)
        names = list(records)
        strangers = sum(name not in self._subject_of for name in names)
        if strangers:
            raise _refused(
                "unknown_record", f"{strangers} records of '{what}' have no subject", what
            )
        keys = {self._digest_of.get(name, name) for name in names}
        subjects = {self._subject_of[name] for name in names}
        for other in against:
            used = self._used[other]
            both = len(keys & used["record"])
            if both:
                chosen = "choose" in (step, other)
                code = "threshold_on_test" if chosen else "validation_on_test"
                raise _refused(code, f"{both} records of '{what}' are both scored and used", what)
            both = len(subjects & used["subject"])
            if both:
                said = f"{both} patients of '{what}' have records on both sides"
                raise _refused("record_level_split", said, what)
        self._used[step]["record"] |= keys
        self._used[step]["subject"] |= subjects
        self.entries.append((step, what, len(names)))


def _known(given: Mapping[str, Hashable]) -> dict[str, Hashable]:
    """What is there; NaN is unlike itself, and pandas' missing value is neither like nor unlike."""

    def is_there(value: Hashable) -> bool:
        try:
            return value is not None and bool(value == value)
        except TypeError:
            return False

    return {name: value for name, value in given.items() if is_there(value)}


def _refused(code: str, said: str, place: str) -> InputError:
    return InputError(said, code=code, place=place, remedy=_REMEDIES[code])
