"""The peers on PhysioNet 2012 see what they may see, and learn what can be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tsfm.errors import InputError

from .p12_ward import Row, load, ward, write


@pytest.fixture(scope="module", params=["A", "B"])
def protocol(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write(tmp_path_factory.mktemp("ward"), ward(120))
    return load("data").read_protocol([folder], request.param)


class TestFeatures:
    def test_each_column_is_what_its_name_says(self, protocol: Any) -> None:
        features = load("features")
        own = features.history_features(protocol).own
        h = protocol.history
        some = np.unique(np.column_stack([h.stay, h.variable]), axis=0)[::7]
        for stay, variable in some:
            rows = (h.stay == stay) & (h.variable == variable)
            t, x = h.hours[rows], h.value[rows].astype(float)
            found = dict(zip(features.OWN, own[stay, variable].tolist(), strict=True))
            expected = {
                "last": x[-1], "first": x[0], "mean": x.mean(), "sd": x.std(), "min": x.min(),
                "max": x.max(), "count": len(x), "age": protocol.cut_hours - t[-1],
                "second_last": x[-2] if len(x) > 1 else np.nan,
                "third_last": x[-3] if len(x) > 2 else np.nan,
                "forgetting_2h": np.average(x, weights=np.exp((t - t[-1]) / 2)),
                "forgetting_8h": np.average(x, weights=np.exp((t - t[-1]) / 8)),
                "trend": np.polyfit(t, x, 1)[0] if len(x) > 1 else np.nan,
            }  # fmt: skip
            assert found == pytest.approx(expected, rel=2e-4, abs=1e-5, nan_ok=True)
        never = np.argwhere(own[:, :, features.OWN.index("count")] == 0)
        assert len(never)
        assert np.isnan(own[never[0][0], never[0][1]]).sum() == len(features.OWN) - 1

    def test_the_query_pattern_is_that_of_the_other_queries_of_the_stay(
        self, protocol: Any
    ) -> None:
        features, t = load("features"), protocol.targets
        rows = np.arange(0, len(t), 11)
        found = features.QueryPattern(protocol).columns(rows)
        n = len(protocol.variables)
        near = [name for name in features.NEAREST if name in protocol.variables]
        assert found.shape == (len(rows), 2 * n + 3 + len(near))
        for row, columns in zip(rows, found, strict=True):
            stay = t.stay == t.stay[row]
            same = stay & (t.variable == t.variable[row])
            assert columns[:n] == pytest.approx(np.bincount(t.variable[stay], minlength=n))
            together = set(t.variable[stay & (t.hours == t.hours[row])])
            assert set(np.flatnonzero(columns[n : 2 * n])) == together
            before, after = (
                np.append(np.sort(np.abs(t.hours[same & side] - t.hours[row])), np.nan)[0]
                for side in (t.hours < t.hours[row], t.hours > t.hours[row])
            )
            rank = (same & (t.hours < t.hours[row])).sum()
            assert columns[2 * n : 2 * n + 3] == pytest.approx(
                [before, after, rank], abs=1e-4, nan_ok=True
            )
            for name, hours in zip(near, columns[2 * n + 3 :], strict=True):
                asked = stay & (t.variable == protocol.variables.index(name))
                gaps = np.append(np.sort(np.abs(t.hours[asked] - t.hours[row])), np.nan)
                assert hours == pytest.approx(gaps[0], abs=1e-4, nan_ok=True)


class TestPeers:
    def test_rules_of_thumb_follow_the_history_and_fall_back_to_train(self, protocol: Any) -> None:
        data, peers = load("data"), load("peers")
        asked = data.targets_of(protocol, 1, 2)
        last, mean = peers.last_value(protocol), peers.patient_mean(protocol)
        general = peers.train_mean(protocol)
        h = protocol.history
        n_without = 0
        for row in range(0, len(asked), 3):
            own = h.value[(h.stay == asked.stay[row]) & (h.variable == asked.variable[row])]
            n_without += not len(own)
            expected = (own[-1], own.mean()) if len(own) else (general[row], general[row])
            assert (last[row], mean[row]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert n_without
        assert np.allclose(peers.half_last_half_mean(protocol), (last + mean) / 2)

    def test_boosting_beats_the_rules_and_repeats(self, protocol: Any) -> None:
        pytest.importorskip("lightgbm")
        data, score, peers = load("data"), load("scores"), load("peers")
        asked = data.targets_of(protocol, 1, 2)
        test = data.part_of(protocol, asked, 2)
        first = peers.boosting(protocol)
        assert np.array_equal(first, peers.boosting(protocol))
        name = "macro_mse" if protocol.name == "A" else "mse"
        trees, mean = (
            score.scores(protocol, asked.where(test), f[test])[name]
            for f in (first, peers.train_mean(protocol))
        )
        assert trees < mean
        with pytest.raises(InputError, match="unknown_peer"):
            peers.boosting(protocol, mode="both")

    def test_a_seldom_measured_variable_may_start_from_its_last_value(self, tmp_path: Path) -> None:
        pytest.importorskip("lightgbm")
        rng = np.random.default_rng(0)
        rows: list[Row] = []
        for stay in range(150):
            level = float(rng.normal(100, 30))
            for minute in (60, 1500):
                rows.append((stay, minute, "Lactate", level + float(rng.normal(0, 0.1))))
        data, score, peers = load("data"), load("scores"), load("peers")
        protocol = data.read_protocol([write(tmp_path, rows)], "A")
        truth = data.targets_of(protocol, 1, 2)
        plain, corrected = (
            score.scores(protocol, truth, peers.boosting(protocol, few_correct_last=last))
            for last in (False, True)
        )
        assert corrected["macro_mse"] < 0.1 * plain["macro_mse"]

    def test_only_query_pattern_mode_uses_what_else_is_asked(self, tmp_path: Path) -> None:
        pytest.importorskip("lightgbm")
        rng = np.random.default_rng(0)
        rows: list[Row] = []
        for stay in range(200):
            rows.append((stay, 30, "HR", 80.0))
            for minute in range(1500, 2800, 130):
                vented = rng.random() < 0.5
                rows.append((stay, minute, "HR", 100.0 if vented else 60.0))
                if vented:
                    rows.append((stay, minute, "MechVent", 1.0))
        data, score, peers = load("data"), load("scores"), load("peers")
        protocol = data.read_protocol([write(tmp_path, rows)], "A")
        asked = data.targets_of(protocol, 1, 2)
        mse = {
            mode: score.scores(protocol, asked, peers.boosting(protocol, mode))["macro_mse"]
            for mode in ("independent", "query_pattern")
        }
        assert mse["query_pattern"] < 1e-3
        assert mse["independent"] > 0.1

    def test_conformal_quantiles_hold_their_share_on_stays_like_val(self, protocol: Any) -> None:
        data, score, peers = load("data"), load("scores"), load("peers")
        asked = data.targets_of(protocol, 1, 2)
        test = data.part_of(protocol, asked, 2)
        forecast = asked.value - np.random.default_rng(4).gamma(2.0, size=len(asked))
        levels = np.array([0.1, 0.5, 0.9])
        quantiles = peers.conformal_quantiles(protocol, forecast, levels)
        below = (asked.value[test, None] <= quantiles[test]).mean(0)
        three_sd = 1.5 * np.sqrt(1 / test.sum() + 1 / (~test).sum())
        assert below == pytest.approx(levels, abs=three_sd)
        found = score.distribution_scores(protocol, asked.where(test), levels, quantiles[test])
        assert found["coverage_80"] == pytest.approx(below[2] - below[0])


class TestGrud:
    def test_it_learns_repeats_and_leaves_torch_as_it_was(self, protocol: Any) -> None:
        torch = pytest.importorskip("torch")
        data, score, grud = load("data"), load("scores"), load("grud")
        threads, drawn = torch.get_num_threads(), torch.random.get_rng_state()
        log: list[dict[str, float]] = []
        first = grud.grud(protocol, seed=1, epochs=4, log=log)
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.random.get_rng_state(), drawn)
        assert np.array_equal(first, grud.grud(protocol, seed=1, epochs=4))
        asked = data.targets_of(protocol, 1, 2)
        name = "macro_mse" if protocol.name == "A" else "mse"
        mine, mean = (
            score.scores(protocol, asked, f)[name]
            for f in (first, load("peers").train_mean(protocol))
        )
        assert mine < mean
        val = data.part_of(protocol, asked, 1)
        kept = score.scores(protocol, asked.where(val), first[val])
        assert kept[name] == pytest.approx(min(row[name] for row in log), rel=1e-4)

    def test_a_missing_input_decays_to_the_mean_and_a_measured_one_does_not(self) -> None:
        torch = pytest.importorskip("torch")
        module = load("grud")
        torch.manual_seed(0)
        model = module.GruD(2, module.GrudConfig(d_hidden=8))
        torch.nn.init.constant_(model.hidden_decay.weight, 0.0)  # of the input alone
        last, mask = torch.ones(1, 1, 2), torch.zeros(1, 1, 2)
        with torch.no_grad():
            long_ago = model.encode(last, mask, torch.full((1, 1, 2), 1e6))
            mean = model.encode(0 * last, mask, torch.zeros(1, 1, 2))
            measured = [model.encode(last, mask + 1, torch.full((1, 1, 2), h)) for h in (0.1, 9.0)]
        assert torch.allclose(long_ago, mean)
        assert torch.allclose(*measured)
        assert not torch.allclose(measured[0], mean, atol=1e-3)
