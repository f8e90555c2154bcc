"""Episodes repeat themselves, ask about the time after now, and never look at it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tsfm.errors import InputError
from tsfm.forecasting import zero_episodes
from tsfm.forecasting.series_prior import draw_series
from tsfm.forecasting.zero_episodes import Series, ZeroEpisodes
from tsfm.training.forecast import Episode

SMALL: dict[str, Any] = {"n_series": 4, "most_context": 48, "most_queries": 16}
STEPS = range(6)


def real_series(n: int = 300, seed: int = 0) -> Series:
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.uniform(1, 3, n)), np.cumsum(rng.normal(size=n))


def tensors(episode: Episode) -> dict[str, torch.Tensor]:
    parts = {
        **vars(episode.context), **{f"query_{k}": v for k, v in vars(episode.queries).items()},
        **vars(episode),
    }  # fmt: skip
    return {k: v for k, v in parts.items() if isinstance(v, torch.Tensor) and k[0] != "_"}


def what_is_known(episode: Episode) -> dict[str, torch.Tensor]:
    return {k: v for k, v in tensors(episode).items() if k != "truth"}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def differ(a: Episode, b: Episode) -> bool:
    return a.truth.shape != b.truth.shape or not torch.equal(a.truth, b.truth)


def points(episode: Episode) -> list[set[tuple[float, float]]]:
    """Context and future points of each series."""
    lengths, asked = episode.context.cu_points.diff(), episode.queries.cu_queries.diff()
    columns = (
        (episode.context.seconds, lengths), (episode.context.values, lengths),
        (episode.queries.seconds, asked), (episode.truth, asked),
    )  # fmt: skip
    split = [column.double().split(sizes.tolist()) for column, sizes in columns]
    return [
        set(zip([*s.tolist(), *t.tolist()], [*v.tolist(), *y.tolist()], strict=True))
        for s, v, t, y in zip(*split, strict=True)
    ]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_step_gives_the_same_episode_whatever_came_before(share: float) -> None:
    made = {**SMALL, "real": (real_series(),), "real_share": share}
    one, other = ZeroEpisodes(3, **made), ZeroEpisodes(3, **made)
    one.episode(0)
    one.episode(5)
    assert_same(tensors(one.episode(4)), tensors(other.episode(4)))
    assert differ(one.episode(4), one.episode(5))
    assert differ(one.episode(4), ZeroEpisodes(4, **made).episode(4))


def test_steps_that_share_a_draw_cut_the_same_series() -> None:
    episodes = ZeroEpisodes(0, **SMALL, reuse=2)
    first, second, third = (points(episodes.episode(step)) for step in range(3))
    assert all(a & b for a, b in zip(first, second, strict=True))
    assert not any(a & b for a, b in zip(first, third, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_an_episode_is_sound_and_within_its_bounds(share: float) -> None:
    episodes = ZeroEpisodes(1, **SMALL, real=(real_series(), real_series(20)), real_share=share)
    for step in STEPS:
        episode = episodes.episode(step)
        context, queries = episode.context, episode.queries
        context.check()
        n_points, n_asked = context.cu_points.diff(), queries.cu_queries.diff()
        assert len(n_points) == len(n_asked) == 4
        assert bool((n_points >= 1).all() & (n_points <= 48).all())
        assert bool((n_asked >= 1).all() & (n_asked <= 16).all())
        assert bool((queries.seconds > context.now_of_series()[queries.series()]).all())
        assert bool(episode.truth.isfinite().all())
        assert len(episode.truth) == len(queries.seconds)
        for weight in (episode.square_weight, episode.crps_weight):
            assert weight.shape == episode.truth.shape
            assert bool((weight > 0).all() & weight.isfinite().all())


def test_now_is_the_last_known_point() -> None:
    context = ZeroEpisodes(1, **SMALL).episode(0).context
    assert torch.equal(context.now_of_series(), context.last_seconds())


def test_a_future_of_the_prior_has_no_say_in_what_is_known(monkeypatch: Any) -> None:
    one = ZeroEpisodes(2, **{**SMALL, "n_series": 1})
    for step in STEPS:
        episode = one.episode(step)
        now = float(episode.context.now_seconds)

        def other_future(*args: Any, now: float = now) -> Any:
            batch = draw_series(*args)
            return replace(batch, values=np.where(batch.seconds > now, 1e6, batch.values))

        with monkeypatch.context() as patch:
            patch.setattr(zero_episodes, "draw_series", other_future)
            changed = one.episode(step)
        assert bool((changed.truth == 1e6).all())
        assert_same(what_is_known(changed), what_is_known(episode))


def test_a_real_future_has_no_say_in_what_is_known() -> None:
    seconds, values = real_series()
    made = {**SMALL, "n_series": 1, "real_share": 1.0}
    for step in STEPS:
        episode = ZeroEpisodes(2, **made, real=((seconds, values),)).episode(step)
        # Points that are missing are not known: the cut is where the questions begin.
        future = np.where(seconds >= float(episode.queries.seconds[0]), 1e6, values)
        changed = ZeroEpisodes(2, **made, real=((seconds, future),)).episode(step)
        assert bool((changed.truth == 1e6).all())
        assert_same(what_is_known(changed), what_is_known(episode))


def test_real_points_are_taken_as_they_are() -> None:
    series = real_series()
    episode = ZeroEpisodes(5, **SMALL, real=(series,), real_share=1.0).episode(0)
    known = set(zip(*(column.tolist() for column in series), strict=True))
    assert all(part <= known for part in points(episode))


def test_a_smooth_series_weighs_more_than_a_rough_one() -> None:
    t = np.arange(200.0)
    smooth, rough = np.sin(t / 60), np.random.default_rng(0).normal(size=200)
    made = {**SMALL, "real_share": 1.0}
    weights = [
        ZeroEpisodes(0, **made, real=((t, values),)).episode(0).square_weight.mean()
        for values in (smooth, rough)
    ]
    assert weights[0] > weights[1]


@pytest.mark.parametrize("n", [2, 3, 15, 16, 17])
def test_short_real_series_serve(n: int) -> None:
    episodes = ZeroEpisodes(0, **SMALL, real=(real_series(n),), real_share=1.0)
    for step in STEPS:
        episodes.episode(step).context.check()


@pytest.mark.parametrize(
    ("n", "most_context"), [(1, 48), (300, 8)], ids=["one point", "context of eight"]
)
def test_too_short_a_series_or_context_is_refused(n: int, most_context: int) -> None:
    made = {**SMALL, "most_context": most_context, "most_queries": 48, "real_share": 1.0}
    with pytest.raises(InputError, match="too short"):
        ZeroEpisodes(0, **made, real=(real_series(n),))
