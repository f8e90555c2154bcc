"""Training by participants finds people again, and is the same every time."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tsfm.errors import InputError, TsfmError
from tsfm.models.efficientnet1d import EfficientNet1d, EfficientNet1dConfig, standardise
from tsfm.models.ppg_contrastive import ContrastConfig
from tsfm.simulation.ppg_participants import simulate_cohort
from tsfm.training.participant_contrast import (
    ParticipantContrastConfig,
    _RandomPairs,
    embed_segments,
    participant_retrieval,
    train_participant_contrast,
)

SMALL = ParticipantContrastConfig(
    n_steps=3, contrast=ContrastConfig(hidden_width=16, projection_width=8)
)


def new_encoder() -> EfficientNet1d:
    torch.manual_seed(0)
    return EfficientNet1d(EfficientNet1dConfig(1, 1))


def cohort(
    n_participants: int = 4, n_segments: int = 2, duration_s: float = 4.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return simulate_cohort(
        np.random.default_rng(0), n_participants=n_participants, n_segments=n_segments,
        fs_hz=64, duration_s=duration_s,
    )  # fmt: skip


def test_training_finds_participants_again_in_segments_it_has_not_seen() -> None:
    torch.set_num_threads(1)
    segments, owners = cohort(12, 32, 8.0)
    train = np.tile(np.arange(32) < 20, 12)
    encoder = new_encoder()
    untrained = copy.deepcopy(encoder).train()
    with torch.no_grad():  # a rival whose norms know the data, though its weights do not
        for _ in range(30):
            untrained(standardise(torch.from_numpy(segments[train])))

    def found(encoder: EfficientNet1d) -> float:
        return participant_retrieval(embed_segments(encoder, segments[~train]), owners[~train])

    config = ParticipantContrastConfig(n_steps=120)
    result = train_participant_contrast(
        encoder, segments[train], owners[train], config, progress=False
    )
    assert result.losses[-20:, 1].mean() < result.losses[:20, 1].mean() - 1.0
    assert found(encoder) > found(untrained) + 0.1


def test_the_same_seed_gives_the_same_encoder_and_leaves_torchs_own_alone() -> None:
    segments, owners = cohort()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    encoders = [new_encoder() for _ in range(3)]
    torch.manual_seed(7)
    results = [
        train_participant_contrast(
            encoder, segments, owners, replace(SMALL, seed=seed), progress=False
        )
        for encoder, seed in zip(encoders, (1, 1, 2), strict=True)
    ]
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(results[0].losses, results[1].losses)
    assert not np.array_equal(results[0].losses, results[2].losses)
    same, again = (e.state_dict() for e in encoders[:2])
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not encoders[0].training


def test_every_participant_with_two_segments_is_in_each_epoch_and_no_other() -> None:
    owners = np.array([4, 7, 7, 4, 9, 1, 1, 1])
    config = ParticipantContrastConfig(n_steps=1, n_participants_per_batch=2)
    sampler = _RandomPairs(owners, config)
    seen = set()
    for _ in range(20):
        # Of three usable participants the last is alone in its batch, and left out for once.
        for first, second in sampler:
            assert (owners[first] == owners[second]).all()
            assert (first != second).all()
            assert len(set(owners[first])) == len(first) == 2
            seen |= set(first) | set(second)
    assert seen == {0, 1, 2, 3, 5, 6, 7}


def test_pairs_can_come_from_a_sampler_of_ones_own() -> None:
    segments, owners = cohort()
    pairs = [(np.array([0, 2]), np.array([1, 3]))]
    results = [
        train_participant_contrast(
            new_encoder(), part, owners, SMALL, pairs=pairs, progress=False
        ).losses
        for part in (segments, np.concatenate([segments[:4], 0 * segments[4:]]))
    ]
    np.testing.assert_array_equal(results[0], results[1])  # nobody else was looked at
    with pytest.raises(InputError, match="no_pairs"):
        train_participant_contrast(new_encoder(), segments, owners, SMALL, pairs=[], progress=False)


def test_the_rate_halves_at_its_steps() -> None:
    """Adam's step is nearly its rate, so weights drift at most so far."""
    segments, owners = cohort()
    moved = []
    for halve_every in (0, 1):
        encoder = new_encoder()
        before = encoder.state_dict()["stem.0.weight"].clone()
        config = replace(SMALL, n_steps=6, halve_every=halve_every)
        train_participant_contrast(encoder, segments, owners, config, progress=False)
        after = encoder.state_dict()["stem.0.weight"]
        moved.append(float((after - before).abs().max()))
    assert moved[1] < 2.2e-3  # 1e-3 (1 + 1/2 + 1/4 ...)
    assert moved[0] > moved[1]


def test_retrieval_counts_nearest_neighbours_of_the_same_participant() -> None:
    vectors = np.array([[1, 0.1], [1, 0.0], [-1, 0.1], [0.1, -1], [-1, 0.0]])
    assert participant_retrieval(vectors, [0, 0, 1, 1, 1]) == pytest.approx(0.8)


def test_embedding_leaves_the_mode_as_it_was_and_takes_any_unit() -> None:
    segments, _ = cohort()
    encoder = new_encoder().train()
    vectors = embed_segments(encoder, 50 * segments + 3, batch_size=3)
    assert encoder.training
    assert vectors.shape == (8, 256)
    np.testing.assert_allclose(vectors, embed_segments(encoder, segments), atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "owners", "code"),
    [
        (8, [0, 0, 1, 1, 2, 2, 3], "bad_segments"),
        (8, [0.0, 0, 1, 1, 2, 2, 3, 3], "bad_segments"),
        (8, [0, 1, 2, 3, 4, 5, 6, 7], "no_pairs"),
        (8, [0, 0, 0, 0, 0, 0, 0, 1], "no_pairs"),
    ],
)
def test_data_that_holds_no_pairs_is_refused(rows: int, owners: list[int], code: str) -> None:
    segments, _ = cohort()
    with pytest.raises(InputError, match=code):
        train_participant_contrast(new_encoder(), segments[:rows], owners, SMALL, progress=False)


def test_other_channels_than_the_encoders_are_refused() -> None:
    segments, owners = cohort()
    with pytest.raises(InputError, match="bad_segments"):
        train_participant_contrast(
            new_encoder(), segments.repeat(2, axis=1), owners, SMALL, progress=False
        )


def test_infinite_samples_are_refused() -> None:
    segments, owners = cohort()
    segments[3, 0, 5] = np.inf
    encoder = new_encoder()
    with pytest.raises(InputError, match="infinite_signal"):
        train_participant_contrast(encoder, segments, owners, SMALL, progress=False)
    with pytest.raises(InputError, match="infinite_signal"):
        embed_segments(encoder, segments)


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights() -> None:
    segments, owners = cohort()
    encoder = new_encoder()
    with torch.no_grad():
        encoder.get_parameter("top.0.weight")[0] = torch.inf
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(TsfmError, match="loss_not_finite"):
        train_participant_contrast(encoder, segments, owners, SMALL, progress=False)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not encoder.training


def test_numbers_of_any_type_train_alike() -> None:
    segments, owners = cohort()
    counts = (1000 * segments).round()
    own = train_participant_contrast(new_encoder(), counts, owners, SMALL, progress=False)
    for other in (counts.astype(np.float64), counts.astype(np.int16), torch.tensor(counts).short()):
        found = train_participant_contrast(new_encoder(), other, owners, SMALL, progress=False)  # pyright: ignore[reportArgumentType]
        np.testing.assert_array_equal(found.losses, own.losses)


@pytest.mark.parametrize(
    "pair", [([0, 2], [2, 0]), ([0, 2], [0, 3]), ([0, 2], [1]), ([0, 2], [1, 99]), ([], [])]
)
def test_pairs_that_are_none_are_refused(pair: tuple[list[int], list[int]]) -> None:
    segments, owners = cohort()
    pairs = [(np.array(pair[0]), np.array(pair[1]))]
    with pytest.raises(InputError, match="bad_pairs"):
        train_participant_contrast(
            new_encoder(), segments, owners, SMALL, pairs=pairs, progress=False
        )


def test_embeddings_that_are_no_numbers_find_nobody() -> None:
    for vectors, owners in (
        (np.full((4, 3), np.nan), [0, 0, 1, 1]), (np.ones((1, 3)), [0]), (np.ones((4, 3)), [0]),
    ):  # fmt: skip
        with pytest.raises(InputError, match="bad_embeddings"):
            participant_retrieval(vectors, owners)


def test_settings_that_train_nothing_are_refused() -> None:
    changes: list[dict] = [{"n_participants_per_batch": 0}, {"n_steps": -1}, {"lr": float("nan")}]
    for change in changes:
        with pytest.raises(InputError, match="bad_training"):
            replace(SMALL, **change)
    changes = [{"temperature": 0.0}, {"momentum": 2.0}, {"projection_width": 0}]
    for change in changes:
        with pytest.raises(InputError, match="bad_contrast_config"):
            ContrastConfig(**change)
