"""A forecaster's training learns, keeps the best weights, and goes on where it was stopped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tsfm.errors import ModelMismatch
from tsfm.models.forecast_data import ForecastContext, ForecastQueries
from tsfm.models.forecaster import ForecasterConfig, ForecasterModel
from tsfm.training.forecast import (
    Episode,
    ForecastTrainConfig,
    ForecastTrainResult,
    forecast_loss,
    train_forecaster,
)

N_SERIES, N_POINTS = 8, 5
CONFIG = ForecastTrainConfig(n_steps=6, validate_every=2, lr=5e-3)
SMALL = ForecasterConfig(
    n_variables=2, d_model=8, n_heads=2, d_state=2, n_reader_layers=1, n_variable_layers=1,
    n_query_layers=1, experts=0, dropout=0.2,
)  # fmt: skip


def make_model(seed: int = 0, dropout: float = 0.2) -> ForecasterModel:
    torch.manual_seed(seed)
    return ForecasterModel(replace(SMALL, dropout=dropout))


def draw(step: int) -> Episode:
    """Series that turn their sign at each point: the next value is minus the last one."""
    generator = torch.Generator().manual_seed(step)
    size = torch.randn(N_SERIES, 1, generator=generator)
    signs = (-1.0) ** torch.arange(N_POINTS + 1)
    values = size * signs
    hours = torch.arange(N_POINTS, dtype=torch.float64).repeat(N_SERIES)
    context = ForecastContext(
        3600 * hours, values[:, :-1].reshape(-1), torch.arange(N_SERIES + 1) * N_POINTS,
        torch.arange(N_SERIES) % 2, torch.arange(0, N_SERIES + 1, 2),
        torch.full((N_SERIES // 2,), 3600.0 * (N_POINTS - 1), dtype=torch.float64),
    )  # fmt: skip
    queries = ForecastQueries(
        torch.full((N_SERIES,), 3600.0 * N_POINTS, dtype=torch.float64), torch.arange(N_SERIES + 1)
    )
    ones = torch.ones(N_SERIES)
    return Episode(context, queries, values[:, -1], ones, ones)


def validate(model: ForecasterModel) -> tuple[float, dict[str, float]]:
    assert not model.training
    loss, parts = forecast_loss(model, draw(10_000), CONFIG)
    return float(loss.detach()), parts


def train(
    model: ForecasterModel, folder: Path, config: ForecastTrainConfig = CONFIG, **changes: Any
) -> ForecastTrainResult:
    arguments: dict[str, Any] = {"draw": draw, "validate": validate, "fingerprint": "one"}
    arguments |= changes
    return train_forecaster(
        model, arguments["draw"], arguments["validate"], config,
        folder=folder, fingerprint=arguments["fingerprint"], progress=False,
    )  # fmt: skip


class Scores:
    """Gives scores in a row, and keeps the weights that it was shown."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.shown: list[dict[str, torch.Tensor]] = []

    def __call__(self, model: ForecasterModel) -> tuple[float, dict[str, float]]:
        self.shown.append({k: v.clone() for k, v in model.state_dict().items()})
        return self.scores[len(self.shown) - 1], {}


def assert_weights(model: ForecasterModel, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_score_falls(tmp_path: Path) -> None:
    config = ForecastTrainConfig(n_steps=30, validate_every=10, lr=2e-2, average_decay=0.5)
    model = make_model(dropout=0.0)
    before = validate(model.eval())[0]
    result = train(model, tmp_path, config)
    assert [entry["step"] for entry in result.history] == [10, 20, 30]
    assert result.best_score < 0.7 * before
    assert validate(model)[0] == pytest.approx(result.best_score)


def delayed(step: int) -> Episode:
    """The second variable is the first an hour ago: what comes of it is the other's last value."""
    n, generator = 24, torch.Generator().manual_seed(step)
    noise = torch.randn(n, 6, generator=generator)
    hours = torch.tensor([0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5], dtype=torch.float64).repeat(n)
    borders = torch.zeros(2 * n + 1, dtype=torch.int64)
    borders[1:] = torch.tensor([6, 5]).repeat(n).cumsum(0)
    context = ForecastContext(
        3600 * hours, torch.cat([noise, noise[:, :5]], 1).flatten(), borders,
        torch.tensor([0, 1]).repeat(n), torch.arange(0, 2 * n + 1, 2),
        torch.full((n,), 5 * 3600.0, dtype=torch.float64),
    )  # fmt: skip
    cu_queries = torch.arange(2 * n + 1) // 2  # of the second variable alone
    queries = ForecastQueries(torch.full((n,), 6 * 3600.0, dtype=torch.float64), cu_queries)
    return Episode(context, queries, noise[:, -1], torch.ones(n), torch.ones(n))


def test_what_another_variable_knows_is_learnt_with_variable_layers_alone(tmp_path: Path) -> None:
    def unseen(model: ForecasterModel) -> tuple[float, dict[str, float]]:
        loss, parts = forecast_loss(model, delayed(10_000), config)
        return float(loss), parts

    config = ForecastTrainConfig(n_steps=120, validate_every=120, lr=1e-2, average_decay=0.9)
    scores = []
    for n_layers in (1, 0):
        torch.manual_seed(0)
        sizes = replace(SMALL, d_model=16, dropout=0.0, n_variable_layers=n_layers)
        model, folder = ForecasterModel(sizes), tmp_path / str(n_layers)
        scores.append(train(model, folder, config, draw=delayed, validate=unseen).best_score)
    assert scores[1] > 1.0  # noise of variance one
    assert scores[0] < 0.5 * scores[1]


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = make_model()
    expected = train(whole, tmp_path / "whole")

    def draw_or_stop(step: int) -> Episode:
        if step == 3:  # between two validations: step 2 is to be done again
            raise KeyboardInterrupt
        return draw(step)

    with pytest.raises(KeyboardInterrupt):
        train(make_model(), tmp_path / "cut", draw=draw_or_stop)
    drawn: list[int] = []

    def draw_and_note(step: int) -> Episode:
        drawn.append(step)
        return draw(step)

    torch.manual_seed(99)
    resumed = make_model(seed=5)  # what is resumed is the checkpoint, not the model brought along
    result = train(resumed, tmp_path / "cut", draw=draw_and_note)
    assert result.resumed
    assert not expected.resumed
    assert drawn == [2, 3, 4, 5]
    for a, b in zip(result.history, expected.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert_weights(resumed, whole.state_dict())


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first, again = make_model(), make_model(seed=3)
    result = train(first, tmp_path)
    repeated = train(again, tmp_path, draw=lambda step: pytest.fail("nothing is left to do"))
    assert repeated.resumed
    assert repeated.best_score == result.best_score
    assert_weights(again, first.state_dict())


def test_the_weights_of_the_best_validation_are_kept(tmp_path: Path) -> None:
    scores = Scores(3.0, 1.0, 2.0)
    model = make_model()
    result = train(model, tmp_path, validate=scores)
    assert (result.best_step, result.best_score) == (4, 1.0)
    assert_weights(model, scores.shown[1])
    assert not model.training
    assert any(not torch.equal(scores.shown[1][k], scores.shown[2][k]) for k in scores.shown[1])


def test_patience_stops(tmp_path: Path) -> None:
    scores = Scores(1.0, *range(2, 30))
    config = replace(CONFIG, n_steps=40, patience=3)
    result = train(make_model(), tmp_path, config, validate=scores)
    assert len(result.history) == 4
    assert result.best_step == 2


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, n_steps=2)
    train(make_model(), tmp_path, config)
    with pytest.raises(ModelMismatch, match="checkpoint_of_another_run"):
        train(make_model(), tmp_path, config, fingerprint="two")


def test_validation_is_of_averaged_weights_and_leaves_training_alone(tmp_path: Path) -> None:
    """More validations between the same steps change nothing of the last average."""
    often, seldom = Scores(*[9.0] * 5, 1.0), Scores(1.0)
    train(make_model(), tmp_path / "a", replace(CONFIG, validate_every=1), validate=often)
    train(make_model(), tmp_path / "b", replace(CONFIG, validate_every=6), validate=seldom)
    for name, tensor in often.shown[-1].items():
        assert torch.equal(tensor, seldom.shown[-1][name])


def test_a_weight_of_nought_takes_a_query_out_of_the_loss() -> None:
    model, episode = make_model().eval(), draw(0)
    weight = torch.ones(N_SERIES)
    weight[3] = 0.0
    weighted = replace(episode, square_weight=weight, crps_weight=weight)
    truth = episode.truth.clone()
    truth[3] += 4.0
    loss, parts = forecast_loss(model, weighted, CONFIG)
    other, _ = forecast_loss(model, replace(weighted, truth=truth), CONFIG)
    assert torch.equal(loss, other)
    whole, _ = forecast_loss(model, replace(episode, truth=truth), CONFIG)
    assert whole > loss
    assert float(loss.detach()) == pytest.approx(parts["square"] + parts["crps"])


def test_a_slip_of_the_pen_pulls_no_harder_than_the_bound() -> None:
    model, episode = make_model().eval(), draw(0)
    gradients = []
    for slip in (1e3, 1e9):
        truth = episode.truth.clone()
        truth[0] = slip
        model.zero_grad()
        forecast_loss(model, replace(episode, truth=truth), CONFIG)[0].backward()
        bias = model.head.out.bias.grad
        assert bias is not None
        gradients.append(bias.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_logged_losses_are_means_of_a_short_last_stretch_too(tmp_path: Path) -> None:
    config = replace(CONFIG, n_steps=4, validate_every=3, lr=0.0, weight_decay=0.0)
    result = train(make_model(dropout=0.0), tmp_path, config, draw=lambda step: draw(0))
    first, last = (entry["train_square"] for entry in result.history)
    assert last == pytest.approx(first)


def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    result = train(make_model(), tmp_path, validate=Scores(math.nan, 2.0, 1.0))
    assert result.best_score == 1.0
