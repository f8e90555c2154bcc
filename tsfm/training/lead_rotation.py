"""Leads turned and leads taken away, so that a model does not hang on one placement of electrodes.

The limb leads are projections of one heart vector on axes in the frontal plane: lead I lies at 0
degrees, aVL at -30, -aVR at 30, II at 60, -III at -60, aVF at 90 and -aVF at -90. All follow from
I and II, up to the factor 2/sqrt(3) by which augmented leads are smaller, which is left as it is
(Li et al. 2025, section 2.2 of their recipe for single leads). A model of lead I that has seen them
has seen hearts that lie otherwise.

Missing leads are NaN, as everywhere; a mask says which ones are left for models that want zeros.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tsfm.errors import InputError

VIEWS = {
    "aVL": (1.0, -0.5), "-aVR": (0.5, 0.5), "II": (0.0, 1.0), "-III": (1.0, -1.0),
    "aVF": (-0.5, 1.0), "-aVF": (0.5, -1.0),
}  # fmt: skip
"""What stands in for lead I, as shares of leads I and II."""


def rotate_lead_one(
    lead_one: Float[Tensor, "record sample"],
    lead_two: Float[Tensor, "record sample"],
    draws: torch.Generator,
    *,
    chance: float = 0.5,
) -> Float[Tensor, "record sample"]:
    """Lead I, or by chance one of `VIEWS`, each as often as the others.

    Args:
        lead_one: Lead I.
        lead_two: Lead II, of the same moments.
        draws: Source of chance, on the CPU.
        chance: Of being replaced.

    Raises:
        InputError: The leads have different shapes, or the chance is none.
    """
    if lead_one.shape != lead_two.shape or lead_one.dim() != 2:
        raise InputError(
            "leads I and II have different shapes", code="bad_signal_shape", place="lead_two",
            remedy="Give both as (record, sample).",
        )  # fmt: skip
    _check(chance)
    n = len(lead_one)
    pick = torch.randint(len(VIEWS), (n,), generator=draws)
    share = torch.tensor(list(VIEWS.values()))[pick]
    turned = torch.rand(n, generator=draws) < chance
    share = torch.where(turned.unsqueeze(-1), share, share.new_tensor([1.0, 0.0])).to(lead_one)
    mixed = share[:, :1] * lead_one + share[:, 1:] * lead_two
    # Nought times a gap is a gap, and lead II alone takes nothing from lead I.
    mixed = torch.where(share[:, :1] == 0, share[:, 1:] * lead_two, mixed)
    # Where lead I stays, a gap of lead II is no gap of it.
    return torch.where(turned.unsqueeze(-1).to(lead_one.device), mixed, lead_one)


def mask_leads(
    signal: Float[Tensor, "record lead sample"], draws: torch.Generator, *, chance: float = 0.5
) -> tuple[Float[Tensor, "record lead sample"], Bool[Tensor, "record lead"]]:
    """Take leads away, each by its own coin; one that was measured always stays.

    Args:
        signal: NaN where nothing was measured.
        draws: Source of chance, on the CPU.
        chance: Of each lead to go.

    Returns:
        The signal with NaN in what is gone, and the leads that are left with something measured.

    Raises:
        InputError: The chance is none.
    """
    _check(chance)
    measured = ~torch.isnan(signal).all(-1)
    stays = torch.rand(signal.shape[:2], generator=draws) >= chance
    order = torch.rand(signal.shape[:2], generator=draws).to(signal.device)
    spared = torch.where(measured, order, -1.0).argmax(1, keepdim=True)
    kept = stays.to(signal.device).scatter(1, spared, True)
    return signal.masked_fill(~kept.unsqueeze(-1), float("nan")), kept & measured


def _check(chance: float) -> None:
    if not 0 <= chance <= 1:
        raise InputError(
            "a chance outside 0 to 1", code="bad_chance", place="chance",
            remedy="Give a probability.",
        )  # fmt: skip
