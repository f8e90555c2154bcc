"""Random numbers that belong to a future, not to the run that draws them.

Philox (Salmon et al. 2011) is a function of a key and a counter. The key is (seed, subject), the
counter holds the future's number and its step, so a future meets the same numbers whoever else is
in the batch, in whatever order and on however many machines.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PER_STEP = 4
"""Uniform numbers a step: one block of the counter."""


def uniforms(
    seed: int, subject_id: int, future: int, first_step: int, n_steps: int
) -> NDArray[np.float64]:
    """Uniform numbers of some successive steps of one future, in [0, 1), (n_steps, `PER_STEP`).

    >>> a = uniforms(1, 10001, 0, first_step=0, n_steps=8)
    >>> bool((uniforms(1, 10001, 0, first_step=5, n_steps=3) == a[5:]).all())
    True
    """
    words = [np.array([word], np.int64).view(np.uint64)[0] for word in (seed, subject_id)]
    counter = np.array([first_step, 0, future, 0], np.uint64)
    bits = np.random.Philox(key=np.array(words, np.uint64), counter=counter)
    return np.random.Generator(bits).random((n_steps, PER_STEP))
