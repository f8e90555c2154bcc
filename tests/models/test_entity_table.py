"""The table's row holds what stands there, whatever the order, and says nothing at the start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.models.entity_table import N_FEATURES, EntityTable
from tsfm.models.forecast_data import ForecastContext
from tsfm.models.forecaster_config import ForecasterConfig
from tsfm.models.series_summary import SeriesSummary, summarise

HOUR = 3600.0
N_VARIABLES, WIDTH, D_MODEL = 4, 6, 5


def context_of(values: list[list[float]], variable: list[int], n_entities: int) -> ForecastContext:
    """Series of hourly values up to one hour before now, as many an entity."""
    hours = torch.tensor([float(i) for series in values for i in range(-len(series), 0)])
    n = len(values) // n_entities
    context = ForecastContext(
        hours.double() * HOUR, torch.tensor([v for series in values for v in series]),
        torch.tensor([0, *(len(series) for series in values)]).cumsum(0), torch.tensor(variable),
        torch.arange(n_entities + 1) * n, torch.zeros(n_entities, dtype=torch.float64),
    )  # fmt: skip
    return context.with_clock(HOUR)


def summary_of(context: ForecastContext) -> SeriesSummary:
    return summarise(context.values, context.clock_times(), context.cu_points)


def awake() -> EntityTable:
    torch.manual_seed(0)
    table = EntityTable(N_VARIABLES, WIDTH, D_MODEL, 0.0).eval()
    torch.nn.init.normal_(table.out.weight)
    return table


def row_of(table: EntityTable, context: ForecastContext) -> Tensor:
    """The row that the layer reads, of one entity."""
    seen: list[Tensor] = []
    hook = table.read.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    table(context, summary_of(context))
    hook.remove()
    return seen[0].view(N_VARIABLES, N_FEATURES)


def test_the_row_holds_last_mean_drift_and_age_of_each_variable() -> None:
    context = context_of([[2.0, 4.0], []], [2, 0], 1)
    row = row_of(awake(), context)
    weights = torch.tensor([2.0 ** (-1 / 8), 1.0])
    level = float((weights * torch.tensor([2.0, 4.0])).sum() / weights.sum())
    expected = torch.tensor([1.0, 4.0, 3.0, 4.0 - level, 0.0])
    expected[1:4] = expected[1:4].asinh()
    expected[4] = torch.log1p(torch.tensor(1.0)) / 3
    torch.testing.assert_close(row[2], expected)
    assert not bool(row[[0, 1, 3]].any())  # empty, and not of this entity


def test_series_of_one_variable_share_their_places() -> None:
    one, other = [[1.0, 3.0]], [[5.0]]
    alone = [row_of(awake(), context_of(values, [1], 1)) for values in (one, other)]
    both = row_of(awake(), context_of(one + other, [1, 1], 1))
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


def test_the_order_of_series_and_other_entities_change_nothing() -> None:
    table = awake()
    values, variable = [[1.0, 2.0], [-3.0], [0.5]], [3, 0, 1]
    context = context_of(values, variable, 1)
    alone = table(context, summary_of(context))
    turned = context_of(values[::-1], variable[::-1], 1)
    torch.testing.assert_close(table(turned, summary_of(turned)).flip(0), alone)
    two = context_of([*values, [9.0], [], [7.0, 8.0]], [*variable, *variable], 2)
    torch.testing.assert_close(table(two, summary_of(two))[:3], alone)


def test_it_says_nothing_at_the_start() -> None:
    context = context_of([[1.0, 2.0], [4.0]], [0, 1], 1)
    table = EntityTable(N_VARIABLES, WIDTH, D_MODEL, 0.5)
    assert not bool(table(context, summary_of(context)).any())


def test_a_wild_value_stays_finite_in_value_and_gradient() -> None:
    table = awake()
    context = context_of([[1e4, -1e4], [0.0]], [0, 1], 1)
    found = table(replace(context), summary_of(context))
    found.square().sum().backward()
    grads = [p.grad for p in table.parameters() if p.grad is not None]
    assert len(grads) == 4
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize(("width", "n_variables"), [(-1, 3), (8, 1)])
def test_a_table_needs_several_known_variables(width: int, n_variables: int) -> None:
    with pytest.raises(InputError) as raised:
        ForecasterConfig(n_variables=n_variables, table=width)
    assert (raised.value.code, raised.value.place) == ("bad_forecaster_config", "table")
