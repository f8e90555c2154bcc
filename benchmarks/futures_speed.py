"""How fast futures are sampled: against reading the whole timeline again for every token.

ETHOS-ARES (arXiv 2502.06124) asks a question by sampling some hundred timelines and, for every
token of each, runs its model over the whole timeline anew, one patient at a time. That loop stands
here around the very model that is decoded from its state, so that what is compared is the way of
decoding and nothing else: equal weights, context and sampling. A few of its tokens are timed, for
they all cost the same.

Beside it stands the risk that needs no futures: one pass over the timeline and the hazard head.
A rollout is taken to be 767 tokens long, as ETHOS-ARES's are for mortality in hospital; rollouts
of both kinds are timed by the token and their seconds worked out from that.

Weights are random, which changes no duration. Ratios are what counts.

    python benchmarks/futures_speed.py            some two minutes on two cores
    python benchmarks/futures_speed.py --quick    small sizes, to see that it runs

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measure import Row, machine, show

from tsfm.batches.batch import Batch, make_batch
from tsfm.models.mamba import MambaConfig
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.models.timeline_stepper import TimelineStepper
from tsfm.rollouts.draws import draw_tokens
from tsfm.rollouts.outcomes import Outcome
from tsfm.rollouts.sample import FutureSource, sample_futures
from tsfm.rollouts.waits import Waits
from tsfm.tokens.value_scale import N_BINS, ValueScale

FAR_DAYS = 36_500.0
DEATH, N_ROLLOUTS, TOKENS_A_ROLLOUT = 1, 100, 767


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run; the vocabulary is as large as ETHOS-ARES's."""

    n_codes: int = 4411
    d_model: int = 128
    n_layers: int = 4
    d_state: int = 16
    context: int = 2048
    n_patients: int = 8
    n_futures: int = 64
    tokens_a_future: int = 48
    tokens_again: int = 12


QUICK = Sizes(
    n_codes=300, d_model=16, n_layers=1, context=256, n_futures=16, tokens_a_future=8,
    tokens_again=3,
)  # fmt: skip


def make_patients(sizes: Sizes, n_patients: int) -> dict[str, Any]:
    """Arguments of `make_batch`."""
    rng = np.random.default_rng(0)
    n = n_patients * sizes.context
    waits = rng.exponential(2e4, (n_patients, sizes.context))
    return {
        "code": rng.integers(2, sizes.n_codes, n).astype(np.int32),
        "value": rng.normal(size=n).astype(np.float32),
        "bin": rng.integers(1, N_BINS + 1, n).astype(np.int8),
        "time_s": 1.5e9 + np.cumsum(waits, axis=1).ravel(),
        "lag_hours": np.zeros(n, np.float32),
        "lengths": np.full(n_patients, sizes.context),
        "subject_id": np.arange(n_patients),
        "birth_s": np.zeros(n_patients),
        "step": np.ones(sizes.n_codes, np.float32),
    }


def make_source(sizes: Sizes) -> FutureSource:
    torch.manual_seed(0)
    backbone = MambaConfig(sizes.d_model, sizes.n_layers, sizes.d_state)
    model = TimelineModel(TimelineConfig(sizes.n_codes, backbone)).eval()
    with torch.no_grad():  # nobody dies while the clock runs
        model.next_event.code.bias[DEATH] = -40.0
    one = np.ones(sizes.n_codes, np.float32)
    edges = np.tile(np.linspace(-1.0, 1.0, N_BINS - 1, dtype=np.float32), (sizes.n_codes, 1))
    return FutureSource(TimelineStepper(model), ValueScale(0 * one, one, edges, one), (DEATH,))


def read_again(source: FutureSource, tokens: dict[str, Any], n_tokens: int) -> None:
    """Sample one timeline of one patient by reading all of it for every token."""
    assert isinstance(source.stepper, TimelineStepper)
    model, rng = source.stepper.model, np.random.default_rng(0)
    none, far = torch.zeros(1, dtype=torch.float64), torch.full((1,), FAR_DAYS * 24.0).double()
    for _ in range(n_tokens):
        hidden = model(make_batch(**tokens))[-1:]
        law = source.stepper.next_token(hidden)
        u = torch.from_numpy(rng.random((2, 1)))
        waits = Waits.create(law, none)
        member = torch.zeros(source.stepper.n_codes, 0)
        drawn = draw_tokens(law, waits, member, u[0], u[1], far, keep_out=False)
        mean, std = source.stepper.next_value(hidden, torch.from_numpy(drawn.code))
        value = (mean + std * float(rng.normal())).numpy().astype(np.float32)
        _, bins = source.scale.apply(drawn.code.astype(np.int32), np.sinh(value))
        new = {
            "code": drawn.code, "value": value, "bin": bins, "lag_hours": np.zeros(1, np.float32),
            "time_s": tokens["time_s"][-1:] + drawn.wait_hours * 3600.0,
        }  # fmt: skip
        # The oldest token makes room for the newest.
        tokens = tokens | {
            k: np.concatenate([tokens[k][1:], v.astype(tokens[k].dtype)]) for k, v in new.items()
        }


def one_pass(source: FutureSource, batch: Batch) -> None:
    """The risks of a year, of every patient, from one pass and the hazard head."""
    assert isinstance(source.stepper, TimelineStepper)
    model = source.stepper.model
    last = batch.cu_seqlens[1:] - 1
    log_hazard = model.admission(model(batch)[last], torch.zeros(len(last)))
    for days in (30.0, 90.0, 365.0):
        model.admission.cumulative_incidence(log_hazard, days)


def medians_s(works: dict[str, Callable[[], Any]], rounds: int = 3) -> dict[str, float]:
    """Median time of each work; they take turns, so that a busy moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


@torch.no_grad()
def measure(sizes: Sizes) -> tuple[list[Row], dict[str, float]]:
    source = make_source(sizes)
    tokens, alone = make_patients(sizes, sizes.n_patients), make_patients(sizes, 1)
    batch = make_batch(**tokens)
    assert isinstance(source.stepper, TimelineStepper)
    outcomes = [
        Outcome(f"outcome {i}", tuple(range(10 * i + 2, 10 * i + 9)), FAR_DAYS) for i in range(4)
    ]

    def decode() -> None:
        futures = sample_futures(
            source, batch, n_futures=sizes.n_futures, horizon_days=FAR_DAYS, seed=0,
            outcomes=outcomes, max_tokens=sizes.tokens_a_future,
        )  # fmt: skip
        assert int(futures.n_tokens.sum()) == n_decoded

    n_decoded = sizes.n_patients * sizes.n_futures * sizes.tokens_a_future
    times = medians_s(
        {
            "decoding": decode,
            "prefill": lambda: source.stepper.prefill(batch, sizes.n_patients),
            "again": lambda: read_again(source, alone, sizes.tokens_again),
            "risk": lambda: one_pass(source, batch),
        }
    )
    decoding_s, prefill_s = times["decoding"], times["prefill"]
    again_s, risk_s = times["again"] / sizes.tokens_again, times["risk"] / sizes.n_patients
    token_s = (decoding_s - prefill_s) / n_decoded
    rollouts_s = prefill_s / sizes.n_patients + N_ROLLOUTS * TOKENS_A_ROLLOUT * token_s
    again_rollouts_s = N_ROLLOUTS * TOKENS_A_ROLLOUT * again_s
    found = {
        "futures_tokens_per_s": n_decoded / decoding_s,
        "futures_tokens_per_s_past_read": 1.0 / token_s,
        "again_tokens_per_s": 1.0 / again_s,
        "reading_the_past_s_a_patient": prefill_s / sizes.n_patients,
        "rollouts_s_a_patient": rollouts_s,
        "again_rollouts_s_a_patient": again_rollouts_s,
        "one_pass_risk_s_a_patient": risk_s,
    }
    name = f"{N_ROLLOUTS} rollouts of {TOKENS_A_ROLLOUT} tokens"
    rows = [
        Row("futures, tokens a second, against reading again", n_decoded / decoding_s * again_s,
            50, 200, True),
        Row(f"one-pass risk, against {name} by reading again", again_rollouts_s / risk_s,
            1000, 10_000, True),
        Row(f"one-pass risk, against {name} sampled here", rollouts_s / risk_s, 10, 100, True),
    ]  # fmt: skip
    return rows, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    print(
        f"{sizes.n_patients} patients x {sizes.n_futures} futures, context {sizes.context}, "
        f"d_model {sizes.d_model}, {sizes.n_layers} layers, {sizes.n_codes} codes"
    )
    rows, found = measure(sizes)
    for name, value in found.items():
        print(f"  {name:34} {value:12.5g}")
    show(rows)
    print()
    print(
        json.dumps(
            {
                "machine": machine(),
                "quick": arguments.quick,
                "sizes": vars(sizes),
                **{name: round(value, 8) for name, value in found.items()},
                "rows": {row.name: row.value for row in rows},
                "met": {row.name: row.met for row in rows},
            }
        )
    )


if __name__ == "__main__":
    main()
