"""Computing in the types that were given, whatever `torch.autocast` would have made of them.

A recurrence adds up rounding over all tokens. The compiled kernels are out of autocast's reach; the
forms in plain torch ask for the same here.
"""

from __future__ import annotations

import contextlib

import torch


def own_types(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A stretch of code in which products keep the type of their factors."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
