"""What a notebook shows of a forecaster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from torch import nn

from tsfm.models.forecaster_checkpoint import Covariate, Variable

_MOST_SHOWN = 20


def forecaster_html(
    model: nn.Module,
    variables: Sequence[Variable],
    covariates: Sequence[Covariate],
    facts: Mapping[str, str],
) -> str:
    """A small table: parameters, variables, covariates and further facts.

    Args:
        model: Network.
        variables: Its known variables.
        covariates: Its known covariates.
        facts: Further rows; an empty one is left out.
    """
    shown = [f"{v.name} ({v.unit})" if v.unit else v.name for v in variables]
    more = f" and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
    rows = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "variables": ", ".join(shown[:_MOST_SHOWN]) + more or "anonymous series",
        "covariates": ", ".join(c.name for c in covariates) or "none",
        **facts,
    }
    cells = "".join(f"<tr><td>{k}</td><td>{escape(v)}</td></tr>" for k, v in rows.items() if v)
    return f"<b>forecaster</b><table>{cells}</table>"
