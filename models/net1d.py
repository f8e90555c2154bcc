"""Net1D, the network of ECGFounder: grouped convolutions in seven stages, without normalisation.

Li et al. 2025 (NEJM AI; arXiv 2410.04133) label twelve leads of ten seconds at 500 Hz with 150
statements. Each block is 1x1, grouped 16-tap and 1x1 convolutions with squeeze-and-excitation on a
residual, in pre-activation order; the first block of a stage halves the rate, and its shortcut
pools and pads channels with zeros. The released weights use no batch norm, although the released
code allocates the norms: here they are not allocated, and `load_released` leaves theirs out.

It reads one rate and one length of record, divides by the record's own deviation outside, and
cannot stream; our own encoder is `biosignal_encoder`. Names of tensors follow the released layout.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tsfm.errors import InputError, IntegrityError, ModelMismatch

FILTERS = (64, 160, 160, 400, 400, 1024, 1024)
BLOCKS = (2, 2, 2, 3, 3, 4, 4)
N_LABELS = 150
_TAPS, _GROUP_WIDTH = 16, 16
_MOST_NAMED = 6
_STEM_WIDTH = 64
_NO_TENSORS = (
    OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, AttributeError,
    ArithmeticError, struct.error, pickle.UnpicklingError,
)  # fmt: skip
"""What torch raises for a file that is none of its own, as its bytes happen to be."""


class _SameConv(nn.Module):
    """Convolution that keeps ceil(n / stride) points, what it lacks padded half on either side."""

    def __init__(self, n_in: int, n_out: int, taps: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, taps, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        taps, stride = self.conv.kernel_size[0], self.conv.stride[0]
        lacking = max(0, (-(-x.shape[-1] // stride) - 1) * stride + taps - x.shape[-1])
        return self.conv(F.pad(x, (lacking // 2, lacking - lacking // 2)))


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, *, halve: bool, first: bool) -> None:
        super().__init__()
        self.halve, self.first, self.grow = halve, first, n_out - n_in
        self.conv1 = _SameConv(n_in, n_out, 1, 1)
        self.conv2 = _SameConv(n_out, n_out, _TAPS, 2 if halve else 1, n_out // _GROUP_WIDTH)
        self.conv3 = _SameConv(n_out, n_out, 1, 1)
        self.se_fc1 = nn.Linear(n_out, n_out // 2)
        self.se_fc2 = nn.Linear(n_out // 2, n_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else F.silu(x))
        y = self.conv3(F.silu(self.conv2(F.silu(y))))
        gate = self.se_fc2(F.silu(self.se_fc1(y.mean(-1)))).sigmoid()
        y = y * gate.unsqueeze(-1)
        if self.halve:
            odd = x.shape[-1] % 2
            x = F.max_pool1d(F.pad(x, (0, odd)), 2)
        if self.grow:
            x = F.pad(x, (0, 0, self.grow // 2, self.grow - self.grow // 2))
        return x + y


class _Stage(nn.Module):
    def __init__(self, n_in: int, n_out: int, n_blocks: int, *, first: bool) -> None:
        super().__init__()
        self.block_list = nn.ModuleList(
            _Block(n_in if i == 0 else n_out, n_out, halve=i == 0, first=first and i == 0)
            for i in range(n_blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block_list:
            x = block(x)
        return x


class Net1D(nn.Module):
    """The network of ECGFounder.

    Args:
        n_leads: 12, or 1.
        n_labels: 150 as released.
        filters: Channels of each stage; multiples of 16.
        blocks: Blocks of each stage.

    Raises:
        InputError: `bad_model_config`: sizes that are none, or of other stages.
    """

    def __init__(
        self, n_leads: int = 12, n_labels: int = N_LABELS, *, filters: Sequence[int] = FILTERS,
        blocks: Sequence[int] = BLOCKS,
    ) -> None:  # fmt: skip
        """Build stem, stages and head."""
        super().__init__()
        whole = all(n >= _GROUP_WIDTH and n % _GROUP_WIDTH == 0 for n in filters)
        if len(filters) != len(blocks) or not whole or min(n_leads, n_labels, *blocks) < 1:
            raise InputError(
                "sizes that are none, or of other stages", code="bad_model_config", place="Net1D",
                remedy=f"Give channels in multiples of {_GROUP_WIDTH} and a number of blocks for"
                " each stage.",
            )  # fmt: skip
        self.first_conv = _SameConv(n_leads, _STEM_WIDTH, _TAPS, 2)
        widths = (_STEM_WIDTH, *filters)
        self.stage_list = nn.ModuleList(
            _Stage(widths[i], widths[i + 1], n, first=i == 0) for i, n in enumerate(blocks)
        )
        self.dense = nn.Linear(widths[-1], n_labels)

    def embed(self, signal: Float[Tensor, "batch lead sample"]) -> Float[Tensor, "batch channel"]:
        """Mean over time of the last stage."""
        x = F.silu(self.first_conv(signal))
        for stage in self.stage_list:
            x = stage(x)
        return x.mean(-1)

    def forward(self, signal: Float[Tensor, "batch lead sample"]) -> Float[Tensor, "batch label"]:
        """Logits of the labels."""
        return self.dense(self.embed(signal))

    def load_released(self, source: str | Path | Mapping[str, Any]) -> None:
        """Load a released checkpoint strictly; its unused batch norms are left out.

        Args:
            source: A file of torch, of which tensors alone are read, or a state dict. Either may
                hold the tensors below `state_dict`, and names may begin with `module.`.

        Raises:
            IntegrityError: The file cannot be read as tensors.
            ModelMismatch: Tensors are missing, extra, of another shape, not finite, no real
                numbers or under two names; the first are named.
        """
        state: Mapping[Any, Any] = source if isinstance(source, Mapping) else _read(Path(source))
        state = state.get("state_dict", state)
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise _no_state("state_dict")
        kept = [name for name in state if not _is_norm(name)]
        given = {name.removeprefix("module."): state[name] for name in kept}
        twice = {name for name in kept if name.startswith("module.") and name[7:] in state}
        own = self.state_dict()
        wrong = sorted(
            name
            for name in given.keys() | own.keys()
            if name not in given
            or name not in own
            or f"module.{name}" in twice
            or not isinstance(given[name], Tensor)
            or not given[name].is_floating_point()
            or given[name].shape != own[name].shape
            or not bool(torch.isfinite(given[name]).all())
        )
        if wrong:
            named = ", ".join(wrong[:_MOST_NAMED]) + (", ..." if len(wrong) > _MOST_NAMED else "")
            raise ModelMismatch(
                f"{len(wrong)} tensors are missing, extra, misshapen or no finite numbers: {named}",
                code="weights_mismatch", place="Net1D",
                remedy="Build the network with the checkpoint's leads, labels and stages.",
            )  # fmt: skip
        self.load_state_dict({name: given[name] for name in own})


def _read(path: Path) -> Mapping[Any, Any]:
    """A file's tensors; whatever else a pickle could run is refused."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except _NO_TENSORS as error:
        raise IntegrityError(
            "no file of tensors", code="bad_weights", place=path.name,
            remedy="Give the checkpoint as released, or its state dict.",
        ) from error  # fmt: skip
    if not isinstance(found, Mapping):
        raise _no_state(path.name)
    return found


def _no_state(place: str) -> IntegrityError:
    return IntegrityError(
        "no state dict", code="bad_weights", place=place,
        remedy="Give the checkpoint as released, or its tensors by their names.",
    )  # fmt: skip


def _is_norm(name: str) -> bool:
    """Whether a tensor is of a batch norm that the released network holds and never applies."""
    return any(part.startswith(("bn", "first_bn")) for part in name.split("."))
