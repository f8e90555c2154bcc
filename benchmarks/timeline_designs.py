"""One token an event in real time, against ETHOS-ARES's pieces, on patients whose risk is known.

A hospital is simulated, and the same events are tokenised in both designs. Models of equal
parameters learn from equally many tokens; ETHOS's, which needs more tokens for an event, is trained
again on equally many passes. On held-out patients the page compares

- bits per event: what each design pays for the next event, the same outcome for all
  (`timeline_designs_bits.py` says what that is), with intervals over patients,
- AUROC of a linear probe of the states for readmission within 30 days, on the same discharges; with
  the true risks known, also what is to be expected of it without the luck of who came back,
- our model in other forms: blind to gaps, and with attention in place of all recurrence.

How far our model is from the truth once it is fine-tuned is `timeline_ceiling.py`'s to tell.

    python benchmarks/timeline_designs.py --out designs            some fifteen minutes, two cores
    python benchmarks/timeline_designs.py --out designs --quick    a small one, to see that it runs

What is done in the folder is not done again. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

# Threads that wait without spinning: on a shared machine all work, ours too, runs faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from measure import Row, machine, show
from timeline_designs_bits import PARTS, asked_events, ethos_bits, fused_bits
from timeline_designs_ethos import EthosRun, train_ethos
from timeline_designs_forms import FORMS, load_form, pretrain_form
from timeline_designs_hospital import Hospital, make_hospital, tokens_a_patient, training_tokens
from timeline_designs_risk import N_RESAMPLES, READMISSION, compare_probes

from tsfm import schema
from tsfm.models.mamba import MambaConfig
from tsfm.training.loop import TrainConfig

ETHOS = ("ethos, equal tokens", "ethos, equal passes")


@dataclass(frozen=True)
class Setup:
    """What is simulated and how everything is trained."""

    patients: int = 2000
    d_model: int = 64
    n_layers: int = 2
    epochs: int = 6
    lr: float = 3e-3
    max_tokens: int = 2048
    seed: int = 0

    @property
    def backbone(self) -> MambaConfig:
        return MambaConfig(d_model=self.d_model, n_layers=self.n_layers)

    @property
    def training(self) -> TrainConfig:
        return TrainConfig(
            epochs=self.epochs, lr=self.lr, max_tokens=self.max_tokens, seed=self.seed
        )


QUICK = Setup(patients=150, d_model=16, n_layers=1, epochs=1)


def once(out: Path, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work found, with its seconds; read again if it was done before."""
    path = out / "found" / f"{name}.json"
    if not path.exists():
        started = time.perf_counter()
        found = work()
        found["seconds"] = round(time.perf_counter() - started, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    found = json.loads(path.read_text())
    print(f"  {name:34} {found['seconds']:8.1f} s", flush=True)
    return found


Sizes = TypeVar("Sizes")


def open_run(description: str, full: Sizes, small: Sizes) -> tuple[Path, Sizes, bool]:
    """Folder, setup and whether it is the small one; a folder of another setup is refused."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to work in")
    parser.add_argument("--patients", type=int, help="patients to simulate")
    parser.add_argument("--seed", type=int, default=0)
    counts = [name for name in ("members", "boosters") if hasattr(full, name)]
    for name in counts:
        parser.add_argument(f"--{name}", type=int, help=f"default: {getattr(full, name)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    arguments = parser.parse_args()
    given = {"seed": arguments.seed}
    for name in ("patients", *counts):
        if getattr(arguments, name):
            given[name] = getattr(arguments, name)
    setup = replace(small if arguments.quick else full, **given)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    stored = out / "setup.json"
    if stored.exists() and json.loads(stored.read_text()) != asdict(setup):
        parser.error(f"{out} holds a run of another setup: name another folder, or remove it")
    stored.write_text(json.dumps(asdict(setup)))
    return out, setup, arguments.quick


def train_forms(hospital: Hospital, setup: Setup) -> dict[str, dict[str, Any]]:
    return {
        name: once(
            hospital.folder, f"pretrain {name}",
            lambda name=name: pretrain_form(
                name, hospital.store, hospital.form_folder(name), setup.backbone, setup.training
            ),
        )
        for name in FORMS
    }  # fmt: skip


def train_peers(hospital: Hospital, setup: Setup, ours: dict[str, Any]) -> dict[str, EthosRun]:
    """ETHOS's design twice: on as many tokens as ours saw, and on as many passes."""
    per_pass = len(training_tokens(hospital).token)
    budgets = (ours["tokens"], ours["passes"] * per_pass)
    runs: dict[str, EthosRun] = {}
    for name, budget in zip(ETHOS, budgets, strict=True):
        runs[name] = train_ethos(
            hospital.events, hospital.words, hospital.folder / name.replace(", ", "-"),
            n_tokens=int(budget), n_parameters=int(ours["parameters"]),
            n_layers=setup.n_layers,            config=setup.training,
        )  # fmt: skip
        print(f"  pretrain {name:25} {runs[name].facts['seconds']:8.1f} s", flush=True)
    return runs


def compare_bits(hospital: Hospital, peers: dict[str, EthosRun]) -> dict[str, Any]:
    """Bits per held-out event of all models, and differences over resampled patients."""
    asked = asked_events(hospital.events[schema.HELD_OUT], hospital.store, hospital.words)
    sums = {
        name: asked.summed(
            fused_bits(asked, hospital.store, load_form(name, hospital.form_folder(name)))
        )
        for name in FORMS
    }
    for name, run in peers.items():
        sums[name] = asked.summed(ethos_bits(asked, hospital.words, run.model))
    n = asked.n_counted
    found: dict[str, Any] = {
        "n_events": int(n.sum()),
        "share_of_clocked_events": float(n.sum() / asked.clocked.sum()),
        "bits": {k: dict(zip(PARTS, v.sum(0) / n.sum(), strict=True)) for k, v in sums.items()},
        "total": {k: float(v.sum() / n.sum()) for k, v in sums.items()},
    }
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(n), (N_RESAMPLES, len(n)))
    own = sums["mamba"].sum(1)
    for name in sums.keys() - {"mamba"}:
        apart = own - sums[name].sum(1)
        spread = np.quantile(apart[drawn].sum(1) / n[drawn].sum(1), [0.025, 0.975])
        found[f"mamba minus {name}"] = [float(apart.sum() / n.sum()), *map(float, spread)]
    return found


def table(
    tokens: dict[str, float], forms: dict[str, Any], peers: dict[str, EthosRun],
    bits: dict[str, Any], probes: dict[str, Any],
) -> list[Row]:  # fmt: skip
    total, rank = bits["total"], probes["expected_auroc"]
    fused, equal, passes = "mamba", *ETHOS
    unequal = abs(peers[equal].facts["parameters"] / forms[fused]["parameters"] - 1)
    return [
        Row("difference in parameters", unequal, 0.02, 0.0, False, ""),
        Row("tokens a patient, ETHOS's over ours", tokens["ethos"] / tokens["fused"], 1.3, 2, True),
        Row("bits an event, ours over ETHOS's, equal tokens", total[fused] / total[equal],
            1.0, 0.9, False, ""),
        Row("bits an event, ours over ETHOS's, equal passes", total[fused] / total[passes],
            1.0, 0.9, False, ""),
        Row("bits an event, real time over gap-blind", total[fused] / total["gap-blind"],
            1.0, 0.95, False, ""),
        Row("bits an event, Mamba over attention", total[fused] / total["attention"],
            1.0, 0.95, False, ""),
        *(
            Row(f"AUROC expected of a probe, ours minus {name}", rank[fused] - rank[name],
                0.0, 0.02, True, "")
            for name in (*ETHOS, "gap-blind", "attention")
        ),
    ]  # fmt: skip


def tell(bits: dict[str, Any], probes: dict[str, Any]) -> None:
    print(f"\nbits an event, {bits['n_events']:,} events of held-out patients")
    print(f"{'':22}" + "".join(f"{part:>9}" for part in (*PARTS, "total")))
    for name, parts in bits["bits"].items():
        values = (*parts.values(), bits["total"][name])
        print(f"{name:22}" + "".join(f"{value:9.3f}" for value in values))
    print(f"\nlinear probe of {READMISSION}, {probes['n']:,} held-out discharges")
    for name, value in probes["auroc"].items():
        print(f"{name:22} AUROC {value:.4f}, expected {probes['expected_auroc'][name]:.4f}")
    print(f"{'truth':22} AUROC {probes['ceiling']:.4f}, expected {probes['expected_ceiling']:.4f}")


def main() -> None:
    out, setup, quick = open_run(__doc__ or "", Setup(), QUICK)
    hospital = make_hospital(out, setup.patients, setup.seed)
    tokens = tokens_a_patient(hospital)
    forms = train_forms(hospital, setup)
    peers = train_peers(hospital, setup, forms["mamba"])
    bits = once(out, "bits", lambda: compare_bits(hospital, peers))
    probes = once(out, "probes", lambda: compare_probes(hospital, peers))
    tell(bits, probes)
    rows = table(tokens, forms, peers, bits, probes)
    show(rows)
    print()
    print(
        json.dumps(
            {
                "benchmark": "timeline_designs",
                "machine": machine(),
                "quick": quick,
                "setup": asdict(setup),
                "tokens_a_patient": tokens,
                "forms": forms,
                "ethos": {name: run.facts for name, run in peers.items()},
                "bits": bits,
                "probes": probes,
                "rows": {row.name: row.value for row in rows},
                "met": {row.name: row.met for row in rows},
            }
        )
    )


if __name__ == "__main__":
    main()
