"""Sizes and parts of a forecaster, checked."""

from __future__ import annotations

from dataclasses import dataclass

from tsfm.errors import InputError
from tsfm.models.attention import AttentionConfig
from tsfm.models.ct_rope import RotaryConfig
from tsfm.models.forecast_blocks import FLOWS

READERS = ("mamba", "attention", "both")
CLOCKS = ("hours", "context")
SCALES = ("variable", "context")


@dataclass(frozen=True)
class ForecasterConfig:
    """Sizes and parts of a forecaster.

    Attributes:
        n_variables: Known variables; 1 for anonymous series.
        d_model: Width.
        n_heads: Heads of every attention.
        reader: How a series is read, one of `READERS`.
        n_reader_layers: Layers of each reader.
        d_state: State components a channel of the Mamba.
        n_variable_layers: Layers in which an entity's variables look at its points and at each
            other. 0, without a table: each series is forecast from itself.
        n_query_layers: Layers of a query's own.
        query_reads_points: In each of its layers a query looks at the points of its series.
        sees_queries: Queries of an entity see which others are asked. Then answers depend on the
            list: the setting of published graph models, not of use.
        experts: Routed experts in each variable layer; 0 is a plain feed-forward layer.
        query_experts: Likewise in each query layer.
        flow: `closed`, `ode` or `none`: how a state goes on after its last point.
        rotary: Tell attention the times.
        rotary_periods_s: Shortest and longest period of the rotary bank, in seconds, or in
            clock units for clock "context".
        clock: One of `CLOCKS`.
        scale: One of `SCALES`: standardise by `set_variable_scale` or by each series' context.
        calendar: Tell points and queries the time of day, week and year, and what the series was
            a day, a week and a year before (`seasonal_lags`).
        n_known: Covariates known for the queries' times.
        fastest: Time constant of the fastest Mamba channel, in clock units.
        slowest: Likewise of the slowest.
        table: Width of the layer that reads the latest numbers of all known variables of an
            entity side by side (`entity_table`); 0 leaves it out.
        dropout: In training, on what each part adds.
    """

    n_variables: int = 1
    d_model: int = 64
    n_heads: int = 4
    reader: str = "mamba"
    n_reader_layers: int = 2
    d_state: int = 8
    n_variable_layers: int = 2
    n_query_layers: int = 2
    query_reads_points: bool = False
    sees_queries: bool = False
    experts: int = 4
    query_experts: int = 0
    flow: str = "closed"
    rotary: bool = True
    rotary_periods_s: tuple[float, float] = (600.0, 2_592_000.0)
    clock: str = "hours"
    scale: str = "variable"
    calendar: bool = False
    n_known: int = 0
    fastest: float = 0.25
    slowest: float = 200.0
    table: int = 0
    dropout: float = 0.15

    def __post_init__(self) -> None:
        """Check what a typing slip would break."""
        choices = {"reader": READERS, "clock": CLOCKS, "scale": SCALES, "flow": FLOWS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"unknown {name} '{getattr(self, name)}'", code="bad_forecaster_config",
                    place=name, remedy=f"Use one of {', '.join(allowed)}.",
                )  # fmt: skip
        if self.table < 0 or (self.table and self.n_variables < 2):
            raise InputError(
                f"a table of width {self.table} for {self.n_variables} variables",
                code="bad_forecaster_config", place="table",
                remedy="Give 0, or a positive width where several variables are known.",
            )  # fmt: skip

    @property
    def attention(self) -> AttentionConfig:
        """The form that all attentions share."""
        shortest, longest = self.rotary_periods_s
        if not self.rotary:  # periods of ages: every phase stands still
            shortest, longest = 1e15, 1e16
        bank = RotaryConfig(
            shortest, longest, learnable=self.rotary, learning_span_s=min(86_400.0, longest)
        )
        return AttentionConfig(self.d_model, self.n_heads, causal=False, rotary=bank)
