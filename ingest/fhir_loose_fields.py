# pyright: strict
"""Fields whose odd shape must not cost what stands beside them.

What wraps a resource (a Bundle's times and requests, a report's `meta`) and what links it to
another is no fact of it. Serializers write nulls there, and numbers for texts. A struct that names
such a field keeps it as JSON (`msgspec.Raw`), and here it is read: what is null or of a wrong type
is as if it were absent.

Facts of patients are not read this way: there a wrong type is set aside, not guessed.
"""

from __future__ import annotations

from typing import cast

import msgspec


def read_loosely(raw: msgspec.Raw) -> object:
    """Value of a field; None if it is absent or unreadable.

    >>> read_loosely(msgspec.Raw(b'{"versionId": 7}')), read_loosely(msgspec.Raw())
    ({'versionId': 7}, None)
    """
    if not memoryview(raw).nbytes:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def text_in(value: object, *names: str) -> str:
    """Text under names in nested objects; "" where anything on the way has another shape.

    >>> text_in({"other": {"reference": "Patient/7"}}, "other", "reference")
    'Patient/7'
    >>> text_in({"other": 7}, "other", "reference"), text_in({"other": 7}, "other")
    ('', '')
    """
    for name in names:
        value = cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""
