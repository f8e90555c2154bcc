"""Subject-level splits: train, tuning, held_out.

The split of a subject is a hash of its id and a salt: it does not depend on the other subjects, so
a patient who arrives tomorrow never moves somebody else between training and test.
"""

from __future__ import annotations

import hashlib

from tsfm.schema import HELD_OUT, TRAIN, TUNING


def split_of(
    subject_id: int, *, tuning: float = 0.15, held_out: float = 0.15, salt: str = "tsfm"
) -> str:
    """Split of one subject.

    >>> split_of(10000032) == split_of(10000032)
    True
    """
    digest = hashlib.blake2b(f"{salt}:{subject_id}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position < held_out:
        return HELD_OUT
    if position < held_out + tuning:
        return TUNING
    return TRAIN
