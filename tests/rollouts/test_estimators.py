"""Monte Carlo, SCOPE and REACH against a hospital whose risks are known exactly."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from tsfm.errors import InputError
from tsfm.rollouts.estimators import METHODS, MONTE_CARLO, REACH, SCOPE, estimate_risks, risks_of
from tsfm.rollouts.outcomes import Outcome
from tsfm.rollouts.sample import sample_futures
from tsfm.tokens.vocabulary import Vocabulary

from .markov_hospital import (
    CLINIC,
    DEAD,
    HOME,
    N_CODES,
    READMITTED,
    MarkovHospital,
    make_hospital,
    make_patients,
    source_of,
)

N_PATIENTS, N_FUTURES = 1000, 24
# Between two whole hours: a token on the hour is on one side of the horizon for sure.
READMISSION = Outcome("readmission", (READMITTED,), 8.5 / 24)
DEATH = Outcome("death", (DEAD,), 5.5 / 24)
BEFORE_HOME = Outcome("care before home", (READMITTED, CLINIC), 3.5 / 24, competing=(HOME,))
# Likely at each step, so that where the horizon cuts a future off weighs most.
USUAL = Outcome("usual", (HOME, CLINIC), 0.5 / 24)


def exact_risks(seed: int) -> dict[str, NDArray[np.float64]]:
    hospital = make_hospital(seed)
    return {
        READMISSION.name: hospital.risk((READMITTED,), (DEAD,), 8),
        DEATH.name: hospital.risk((DEAD,), (), 5),
        BEFORE_HOME.name: hospital.risk((READMITTED, CLINIC), (HOME, DEAD), 3),
        USUAL.name: hospital.risk((HOME, CLINIC), (DEAD,), 0),
    }


@pytest.fixture(scope="module")
def last_code() -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, 4, N_PATIENTS)


@pytest.fixture(scope="module")
def risks(last_code: NDArray[np.int64]) -> pl.DataFrame:
    return estimate_risks(
        source_of(make_hospital(0)), make_patients(last_code),
        [READMISSION, DEATH, BEFORE_HOME, USUAL], n_futures=N_FUTURES, seed=5,
    )  # fmt: skip


def test_the_exact_risk_is_what_waiting_for_it_by_hand_gives() -> None:
    hospital = make_hospital(0, with_same=False)
    on = hospital.follows.copy()
    on[:, [READMITTED, DEAD]] = 0.0
    by_hand = sum(
        np.linalg.matrix_power(on, hours) @ hospital.follows[:, READMITTED] for hours in range(8)
    )
    np.testing.assert_allclose(hospital.risk((READMITTED,), (DEAD,), 8), by_hand, rtol=1e-12)


@pytest.mark.parametrize("name", [READMISSION.name, DEATH.name, BEFORE_HOME.name, USUAL.name])
@pytest.mark.parametrize("method", METHODS)
def test_an_estimate_is_off_by_its_standard_error(
    risks: pl.DataFrame, last_code: NDArray[np.int64], name: str, method: str
) -> None:
    exact = exact_risks(0)[name]
    table = risks.filter((pl.col("outcome") == name) & (pl.col("method") == method))
    assert table["subject_id"].to_list() == list(range(N_PATIENTS))
    found = table["probability"].to_numpy()
    variance = table["standard_error"].to_numpy() ** 2
    # Patients of one last code share a law, so its spread is known better than from one of them.
    error = np.sqrt(np.array([variance[last_code == code].mean() for code in range(4)]))
    z = (found - exact[last_code]) / error[last_code]
    assert abs(z.mean()) < 4 / np.sqrt(N_PATIENTS)
    assert z.std() == pytest.approx(1.0, abs=0.1)
    assert table["n_unfinished"].sum() == 0


def test_reach_varies_less_than_monte_carlo_for_every_kind_of_patient(
    risks: pl.DataFrame, last_code: NDArray[np.int64]
) -> None:
    for name, exact in exact_risks(0).items():
        table = risks.filter((pl.col("outcome") == name) & (pl.col("method") == REACH))
        variance = N_FUTURES * table["standard_error"].to_numpy() ** 2
        for code in range(4):
            coin = exact[code] * (1 - exact[code])
            assert variance[last_code == code].mean() < 0.5 * coin


def test_reach_has_the_variance_of_a_coin_at_most_for_each_patient() -> None:
    patients = make_patients(np.array([0, 1, 2, 3]))
    table = estimate_risks(
        source_of(make_hospital(4)), patients, [READMISSION], n_futures=4000, seed=0,
        methods=[MONTE_CARLO, REACH],
    )  # fmt: skip
    coin, reach = (
        table.filter(pl.col("method") == method)["standard_error"].to_numpy()
        for method in (MONTE_CARLO, REACH)
    )
    assert (reach < coin).all()


def test_the_risks_of_the_set_and_of_what_competes_leave_the_rest() -> None:
    # All that can happen first: the outcome, its rival, death, or none of them.
    codes, rivals = (READMITTED,), (HOME, CLINIC)
    outcomes = [
        Outcome("outcome", codes, 4.5 / 24, competing=rivals),
        Outcome("rival", rivals, 4.5 / 24, competing=codes),
        Outcome("death", (DEAD,), 4.5 / 24, competing=codes + rivals),
        Outcome("any", codes + rivals + (DEAD,), 4.5 / 24),
    ]
    patients = make_patients(np.array([0, 3]))
    table = estimate_risks(
        source_of(make_hospital(2)), patients, outcomes, n_futures=300, seed=0,
        methods=[MONTE_CARLO, SCOPE],
    )  # fmt: skip
    wide = table.pivot("outcome", index=["subject_id", "method"], values="probability")
    parts = wide["outcome"] + wide["rival"] + wide["death"]
    np.testing.assert_allclose(parts, wide["any"], rtol=1e-6)


def test_a_future_that_is_cut_off_is_counted_as_unfinished() -> None:
    patients = make_patients(np.array([0, 1]))
    table = estimate_risks(
        source_of(make_hospital(0)), patients, [DEATH], n_futures=50, seed=0, max_tokens=2
    )
    assert (table["n_unfinished"] > 0).all()
    assert (table["n_unfinished"] <= table["n_futures"]).all()
    whole = estimate_risks(source_of(make_hospital(0)), patients, [DEATH], n_futures=50, seed=0)
    cut, full = table["probability"].to_numpy(), whole["probability"].to_numpy()
    assert (cut <= full).all()
    assert cut.sum() < 0.6 * full.sum()
    assert whole["n_unfinished"].sum() == 0


def test_an_outcome_is_named_by_classes_of_codes() -> None:
    vocabulary = Vocabulary(("UNK", "ICU_ADMISSION", "ICU_ADMISSION//MICU", "MEDS_DEATH", "LAB"))
    outcome = Outcome.of_classes(
        "icu", vocabulary, ["ICU_ADMISSION"], horizon_days=7.0, competing=["MEDS_DEATH"]
    )
    assert outcome == Outcome("icu", (1, 2), 7.0, (3,))
    with pytest.raises(InputError) as caught:
        Outcome.of_classes("x", vocabulary, ["PROCEDURE"], horizon_days=7.0)
    assert caught.value.code == "unknown_outcome_code"


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("empty", (), 1.0),
        Outcome("outside", (N_CODES,), 1.0),
        Outcome("both", (1, 2), 1.0, (2,)),
        Outcome("now", (1,), 0.0),
        Outcome("never", (1,), float("inf")),
        Outcome("words", (1,), "30"),  # type: ignore[arg-type]
        Outcome("names", ("A",), 1.0),  # type: ignore[arg-type]
        Outcome("reals", (1.0,), 1.0),  # type: ignore[arg-type]
        Outcome("one id", 1, 1.0),  # type: ignore[arg-type]
    ],
    ids=lambda outcome: outcome.name,
)
def test_an_outcome_that_makes_no_sense_is_refused(outcome: Outcome) -> None:
    with pytest.raises(InputError, match="bad_outcome"):
        estimate_risks(
            source_of(make_hospital(0)), make_patients(np.array([0])), [READMISSION, outcome],
            n_futures=1, seed=0,
        )  # fmt: skip


def test_the_dead_run_no_risk_and_do_not_stop_the_others() -> None:
    # A hospital that does not know that death is final.
    hospital = make_hospital(0)
    follows = hospital.follows.copy()
    follows[DEAD] = follows[HOME]
    source = source_of(MarkovHospital(follows, hospital.same))
    outcomes = [READMISSION, DEATH]
    found, expected = (
        estimate_risks(source, make_patients(np.array(last)), outcomes, n_futures=30, seed=0)
        for last in ([HOME, DEAD, CLINIC], [HOME, HOME, CLINIC])
    )
    dead = pl.col("subject_id") == 1
    assert found.filter(~dead).equals(expected.filter(~dead))
    own = found.filter(dead)
    assert own.height == 2 * len(METHODS)
    for name in ("probability", "standard_error", "n_unfinished"):
        assert own[name].to_list() == [0] * own.height


def test_outcomes_and_methods_may_come_one_by_one() -> None:
    source, patients = source_of(make_hospital(0)), make_patients(np.array([0, 1]))
    found = estimate_risks(
        source, patients, (one for one in [READMISSION, DEATH]), n_futures=3, seed=0,
        methods=(one for one in [SCOPE, REACH]),
    )  # fmt: skip
    expected = estimate_risks(
        source, patients, [READMISSION, DEATH], n_futures=3, seed=0, methods=[SCOPE, REACH]
    )
    assert found.equals(expected)
    assert found.height == 8


def test_estimates_that_the_futures_do_not_hold_are_refused() -> None:
    source, patients = source_of(make_hospital(0)), make_patients(np.array([0]))
    ordinary = sample_futures(
        source, patients, n_futures=2, horizon_days=1.0, seed=0, outcomes=[DEATH]
    )
    kept = sample_futures(source, patients, n_futures=2, horizon_days=1.0, seed=0, kept_from=DEATH)
    for futures, method in ((ordinary, REACH), (kept, SCOPE), (ordinary, "guess")):
        with pytest.raises(InputError) as caught:
            risks_of(futures, method)
        assert caught.value.code == "wrong_futures"
    with pytest.raises(InputError):
        estimate_risks(source, patients, [DEATH, DEATH], n_futures=2, seed=0)
    with pytest.raises(InputError):
        estimate_risks(source, patients, [DEATH], n_futures=2, seed=0, methods=["guess"])
