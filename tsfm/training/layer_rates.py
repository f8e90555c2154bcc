"""Learning rates that fall from the head to the input, for fine-tuning.

What is near the input holds for many tasks and is to move little; the head is new and moves most
(Howard and Ruder 2018). The caller names the blocks of a network from the input to the output, and
each is trained at a fixed fraction of the rate of the one above it. Every parameter must belong to
a named block, so that none is forgotten when a network grows.

Weight decay is that of `optimizer`: on the matrices of linear layers alone. A schedule should
multiply the groups' rates, as torch's own do, not set them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tsfm.errors import InputError

_MOST_NAMED = 6


def layer_rate_groups(
    model: nn.Module,
    blocks: Sequence[str | Sequence[str]],
    *,
    lr: float,
    factor: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser.

    Args:
        model: Network; parameters that need no gradient are left out.
        blocks: Names of modules or parameters from the input to the output, such as
            `("stem", "blocks.0", "blocks.1", ("final_norm", "head"))`; names in one tuple are
            equally deep. Of several names that fit a parameter, the longest counts.
        lr: Rate of the last block.
        factor: Rate of a block as a share of the next one's, more than 0 and at most 1.
        weight_decay: Of the matrices of linear layers.

    Returns:
        At most two groups a block, in the order of `blocks`, each with `params`, `lr`,
        `weight_decay` and `depth` (0 at the input).

    Raises:
        InputError: A parameter belongs to no block, a block has no parameter, a name is given
            twice, or a rate is out of range.
    """
    if not 0 < factor <= 1 or not lr > 0:
        raise InputError(
            "rate or factor out of range", code="bad_rate", place="layer_rate_groups",
            remedy="Give a positive rate and a factor in (0, 1].",
        )  # fmt: skip
    depth_of = _depths(blocks)
    matrices = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight.dim() == 2
    }
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    used: set[str] = set()
    strays: list[str] = []
    for name, parameter in model.named_parameters():
        block = _block_of(name, depth_of)
        if block is None:
            strays.append(name)
            continue
        used.add(block)
        if parameter.requires_grad:
            key = depth_of[block], id(parameter) not in matrices
            members.setdefault(key, []).append(parameter)
    _refuse("parameters belong to no block", strays)
    _refuse("blocks have no parameter of their own", sorted(depth_of.keys() - used))
    top = len(blocks) - 1
    return [
        {
            "params": found,
            "lr": lr * factor ** (top - depth),
            "weight_decay": 0.0 if plain else weight_decay,
            "depth": depth,
        }
        for (depth, plain), found in sorted(members.items(), key=lambda item: item[0])
    ]


def _depths(blocks: Sequence[str | Sequence[str]]) -> dict[str, int]:
    depth_of: dict[str, int] = {}
    for depth, block in enumerate(blocks):
        for name in (block,) if isinstance(block, str) else block:
            if name in depth_of:
                _refuse("blocks are named twice", [name])
            depth_of[name] = depth
    return depth_of


def _block_of(parameter: str, depth_of: dict[str, int]) -> str | None:
    """The longest block name that is the parameter's or begins it at a dot."""
    parts = parameter.split(".")
    for n in range(len(parts), 0, -1):
        name = ".".join(parts[:n])
        if name in depth_of:
            return name
    return None


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = ", ..." if len(names) > _MOST_NAMED else ""
        raise InputError(
            f"{len(names)} {what}: {', '.join(names[:_MOST_NAMED])}{more}", code="bad_blocks",
            place="blocks", remedy="Name every block of the network once.",
        )  # fmt: skip
