"""Training on users' series gives another forecaster, decided by the seed, that is calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import tsfm
from tsfm.errors import InputError
from tsfm.forecasting.forecaster import DECILES, Forecaster
from tsfm.models.forecaster import ForecasterConfig

from .frame_cases import LONG, long_frame

SMALL: dict[str, Any] = {
    "d_model": 16, "n_heads": 2, "n_reader_layers": 1, "n_variable_layers": 1, "n_query_layers": 1,
    "experts": 2, "d_state": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def zero() -> Forecaster:
    config = ForecasterConfig(
        clock="context", scale="context", calendar=True, query_reads_points=True,
        rotary_periods_s=(2.0, 2000.0), **SMALL,
    )  # fmt: skip
    return Forecaster.new(config=config)


@pytest.fixture(scope="module")
def long() -> pl.DataFrame:
    return long_frame()


def test_fitting_makes_another_forecaster_and_the_seed_decides_all(
    long: pl.DataFrame, tmp_path: Path
) -> None:
    config = ForecasterConfig(n_variables=3, n_known=1, **SMALL)
    new = Forecaster.new(variables=["HR", "K", "Na"], covariates=["dose"], config=config, seed=5)
    before = {k: v.clone() for k, v in new.model.state_dict().items()}
    options = {"steps": 4, "batch_size": 4, "validation_fraction": 0.25, **LONG}
    state = torch.get_rng_state()
    first, second = (new.fit(long, seed=1, progress=False, **options) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in new.model.state_dict().items())
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.calibration == second.calibration
    assert (first.facts["n_training_items"], first.facts["n_held_out_items"]) == (6, 2)
    assert first.model.variable_location[:2].tolist() == pytest.approx([4.0, 4.0], abs=1.0)
    assert first.covariates[0].location == pytest.approx(5.0, abs=0.5)
    again = first.fit(long, seed=1, progress=False, **options)
    assert torch.equal(again.model.variable_scale, first.model.variable_scale)
    first.save_pretrained(tmp_path / "model")
    loaded = tsfm.load(tmp_path / "model")
    assert isinstance(loaded, Forecaster)
    assert loaded.calibration == first.calibration
    assert loaded.predict_df(long, prediction_length=2, **LONG).equals(
        first.predict_df(long, prediction_length=2, **LONG)
    )


def test_calibrated_quantiles_hold_on_items_like_those(zero: Forecaster) -> None:
    rng = np.random.default_rng(4)

    def items(n: int) -> pl.DataFrame:
        return pl.DataFrame({
            "item_id": np.repeat(np.arange(n), 30), "timestamp": np.tile(np.arange(30.0), n),
            "target": rng.normal(size=30 * n),
        })  # fmt: skip

    calibrated = zero.calibrate(items(60), time_unit="h", prediction_length=5)
    assert zero.calibration is None
    judged = items(60)
    past = judged.filter(pl.col("timestamp") < 25)
    future = judged.filter(pl.col("timestamp") >= 25).select("item_id", "timestamp")
    truth = judged.filter(pl.col("timestamp") >= 25)["target"].to_numpy()
    shares = []
    for use in (True, False):
        found = calibrated.predict_df(past, future, time_unit="h", calibrated=use)
        assert (
            np.diff(found.select([str(level) for level in DECILES]).to_numpy(), axis=1) >= 0
        ).all()
        inside = (found["0.1"].to_numpy() <= truth) & (truth <= found["0.9"].to_numpy())
        shares.append(inside.mean())
    assert 0.72 < shares[0] < 0.95
    assert abs(shares[0] - 0.8) < abs(shares[1] - 0.8)


def test_one_item_is_too_few_to_train_on(zero: Forecaster) -> None:
    one = pl.DataFrame({"item_id": ["a"] * 9, "timestamp": np.arange(9.0), "target": np.ones(9)})
    with pytest.raises(InputError) as caught:
        zero.fit(one, time_unit="h", steps=2)
    assert caught.value.code == "too_few_items"
