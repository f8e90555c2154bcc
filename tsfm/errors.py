"""The errors that `tsfm` raises on purpose.

Every one says what is wrong, where, and what to do about it, in one line that never holds a
patient's values. `code` is stable: scripts may branch on it. `exit_code` is what the command line
returns (0 done, 1 failure, 2 usage, 3 done in part, 4 integrity).
"""

from __future__ import annotations


class TsfmError(Exception):
    """Root of all errors raised on purpose.

    Args:
        message: What is wrong, without any patient's values.
        code: Stable machine-readable name of the problem, such as `truncated_gzip`.
        place: File, line, column or option where it was found.
        remedy: What the reader can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, code: str, place: str = "", remedy: str = "") -> None:
        """Build the one-line text from its parts."""
        self.message = message
        self.code = code
        self.place = place
        self.remedy = remedy
        where = f" ({place})" if place else ""
        what_to_do = f" {remedy}" if remedy else ""
        super().__init__(f"[{code}] {message}{where}.{what_to_do}")


class InputError(TsfmError, ValueError):
    """An argument or an input folder can't be used as given."""


class FormatError(InputError):
    """A file is not what its format promises."""


class LimitExceeded(TsfmError):
    """An input is larger or deeper than what is read on trust."""


class ModelMismatch(TsfmError):
    """Model, vocabulary, configuration and data do not belong together."""


class IntegrityError(TsfmError):
    """Bytes on disk differ from what was written."""

    exit_code = 4
