"""How fast a timeline model is trained, and what five answers cost instead of one.

**Training.** A step is forward, backward and the optimizer's, on full rows of equal length, so that
nobody pads. The peer is transformers' `MambaForCausalLM` on its path without compiled kernels,
which is the one that it takes on a CPU; ours is a language model of the same parameters, width,
layers, states, words and tied head, on the same tokens. The timeline model around the same stack
stands beside them: it has more parameters (tables of values and changes, four losses), which its
row does not forgive. The backward pass of the peer's loop costs more a token the longer its rows
are, so rows are cut to what it gets through; ours is timed at the full context too.

**Answers.** Five tasks are asked of simulated patients: from one forward pass a batch with five
heads, and again task by task, each with a pass of its own over the patients that it asks. A task
that may only be asked of a hidden history reads a second stream of each patient, which saves
nothing: the same with such a task among the five is printed, beside the tokens that are read.

Weights are random, which changes no duration. Ratios are what counts.

    python benchmarks/timeline_speed.py            some ten minutes on two cores, the peer's mostly
    python benchmarks/timeline_speed.py --quick    small sizes, to see that it runs

The last line is one JSON object. Peers: transformers 5 and mambapy 1.2 (`pip install -e '.[dev]'`).
"""

from __future__ import annotations

import os
import sys

# The peer's large temporaries are mapped anew at each step by glibc's defaults: not its doing. So
# the script starts itself again with an allocator that keeps its memory.
_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "TRANSFORMERS_OFFLINE": "1",
}
if __name__ == "__main__" and not _ENVIRONMENT.items() <= os.environ.items():
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ENVIRONMENT})

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import futures_speed
import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from measure import Row, machine, show
from torch import Tensor, nn

import tsfm
from tsfm.batches.batch import make_batch
from tsfm.batches.patient_views import PatientViews
from tsfm.models.mamba import MambaConfig
from tsfm.models.mamba_weights import MambaLanguageModel
from tsfm.models.timeline import TimelineConfig, TimelineModel
from tsfm.tasks.class_tasks import ClassTask
from tsfm.tasks.registry import any_task_named, find_cohort
from tsfm.training.losses import AdmissionTargets, LossWeights, pretraining_loss
from tsfm.training.optimizer import make_optimizer
from tsfm.training.questions import HIDING, Site, hidden_token_store, open_site
from tsfm.training.task_answers import read_answers

_FOUR = ("readmission_30d", "mortality_in_hospital", "length_of_stay_7d", "claim_denial")
WHOLE = (*_FOUR, "mortality_30d")
WITH_HIDDEN = (*_FOUR, "comorbidity_charlson")
INSTALL = "pip install -e '.[dev]' brings it"
Works = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run; the vocabulary is as large as ETHOS-ARES's."""

    n_codes: int = 4411
    d_model: int = 128
    n_layers: int = 4
    d_state: int = 16
    n_rows: int = 8
    context: int = 2048
    peer_tokens: int = 512
    rounds: int = 2
    n_patients: int = 300


QUICK = Sizes(
    n_codes=300, d_model=32, n_layers=1, n_rows=2, context=128, peer_tokens=32, n_patients=40
)


def mamba1(sizes: Sizes) -> MambaConfig:
    return MambaConfig.mamba1(d_model=sizes.d_model, n_layers=sizes.n_layers, d_state=sizes.d_state)


def stepped(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One training step of a model."""
    model.train()
    optimizer = make_optimizer(model, lr=1e-4, weight_decay=0.05)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def language_model(sizes: Sizes, n_tokens: int) -> tuple[Callable[[], None], int]:
    """Our step on rows of so many tokens, and the parameters."""
    model = MambaLanguageModel(mamba1(sizes), sizes.n_codes)
    code = rows_of_codes(sizes, n_tokens)

    def loss() -> Tensor:
        logits = model.logits(model(code)[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), code[:, 1:].flatten())

    return stepped(model, loss), n_parameters(model)


def timeline_model(sizes: Sizes, n_tokens: int) -> tuple[Callable[[], None], int]:
    """The same for the timeline model in real time with all of its pretraining losses."""
    backbone = MambaConfig(d_model=sizes.d_model, n_layers=sizes.n_layers, d_state=sizes.d_state)
    model = TimelineModel(TimelineConfig(sizes.n_codes, backbone))
    shapes = futures_speed.Sizes(n_codes=sizes.n_codes, context=n_tokens)
    tokens = futures_speed.make_patients(shapes, sizes.n_rows)
    targets = AdmissionTargets(np.arange(2, 8), np.array([1]), None)
    batch = make_batch(**tokens)

    def loss() -> Tensor:
        return pretraining_loss(model, batch, model(batch), targets, LossWeights())[0]

    return stepped(model, loss), n_parameters(model)


def peer_model(
    sizes: Sizes, n_tokens: int, *, use_mambapy: bool = False
) -> tuple[Callable[[], None], int]:
    """The same for transformers' language model."""
    from transformers import MambaConfig as PeerConfig
    from transformers import MambaForCausalLM

    model = MambaForCausalLM(
        PeerConfig(
            vocab_size=sizes.n_codes, hidden_size=sizes.d_model, state_size=sizes.d_state,
            num_hidden_layers=sizes.n_layers, use_cache=False, use_mambapy=use_mambapy,
        )
    )  # fmt: skip
    code = rows_of_codes(sizes, n_tokens)
    return stepped(model, lambda: model(input_ids=code, labels=code).loss), n_parameters(model)


def rows_of_codes(sizes: Sizes, n_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(sizes.n_codes, (sizes.n_rows, n_tokens), generator=generator)


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def medians_s(works: Works, rounds: int) -> dict[str, float]:
    """Median seconds of each work; they take turns, so that a busy moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def training_rows(sizes: Sizes) -> tuple[list[Row], dict[str, float]]:
    short = sizes.peer_tokens
    built = {
        "ours": language_model(sizes, short),
        "timeline": timeline_model(sizes, short),
        "ours_full_context": language_model(sizes, sizes.context),
        "timeline_full_context": timeline_model(sizes, sizes.context),
    }
    note = ""
    try:
        built["transformers"] = peer_model(sizes, short)
        # What is compiled or read when first used is not what a step costs.
        peer_model(replace(sizes, n_rows=1), 8)[0]()
    except ImportError:
        note = f"no transformers: {INSTALL}"
    try:
        import mambapy  # noqa: F401

        if not note:
            built["transformers_mambapy"] = peer_model(sizes, short, use_mambapy=True)
    except ImportError:
        print(f"no mambapy: {INSTALL}")
    for name in ("ours", "timeline", "ours_full_context", "timeline_full_context"):
        built[name][0]()
    seconds = medians_s({name: step for name, (step, _) in built.items()}, sizes.rounds)
    length = {name: sizes.context if name.endswith("_context") else short for name in built}
    rate = {name: sizes.n_rows * length[name] / seconds[name] for name in built}
    found = {f"{name}_tokens_per_s": value for name, value in rate.items()}
    found |= {f"{name}_parameters": float(n) for name, (_, n) in built.items()}
    peer = rate.get("transformers")
    rows: list[Row] = []
    if peer is not None:
        unequal = abs(built["ours"][1] / built["transformers"][1] - 1)
        rows.append(
            Row("difference in parameters, ours and transformers'", unequal, 0.02, 0.0, False, "")
        )
    for name, what in (("ours", "Mamba, equal parameters"), ("timeline", "timeline model")):
        ratio = None if peer is None else rate[name] / peer
        rows.append(Row(f"training, {what}, against transformers", ratio, 10, 20, True, note=note))
    return rows, found


@dataclass(frozen=True)
class Asked:
    """A model with a head a task, a simulated hospital's streams, and the tasks' cohorts."""

    model: TimelineModel
    folder: Path
    vocabulary_hash: str
    cohorts: dict[str, pl.DataFrame]

    def site(self, *names: str) -> Site:
        """Some tasks; streams that none of them reads are left out."""
        site = open_site(
            self.folder / "tokens", {name: self.cohorts[name] for name in names},
            hidden_tokens=self.folder / "hidden", vocabulary_hash=self.vocabulary_hash,
            known=False,
        )  # fmt: skip
        return replace(site, views=site.views[-1:]) if set(names) <= set(HIDING) else site


def simulated(sizes: Sizes, folder: Path) -> Asked:
    tsfm.simulate_hospital(
        folder / "hospital", n_patients=sizes.n_patients, seed=0, waveform_fraction=0.0,
        claims=True, progress=False,
    )  # fmt: skip
    tsfm.ingest_fhir(folder / "hospital" / "fhir", folder / "events", progress=False)
    store = tsfm.build_token_store(folder / "events", folder / "tokens")
    hidden_token_store(folder / "events", folder / "hidden", vocabulary_from=folder / "tokens")
    names = dict.fromkeys((*WHOLE, *WITH_HIDDEN))
    n_classes = {
        name: len(task.classes)
        for name in names
        for task in [any_task_named(name)]
        if isinstance(task, ClassTask)
    }
    backbone = MambaConfig(d_model=sizes.d_model, n_layers=sizes.n_layers, d_state=sizes.d_state)
    model = TimelineModel(
        TimelineConfig(
            len(store.vocabulary), backbone,
            tasks=tuple(name for name in names if name not in n_classes),
            class_tasks=tuple(n_classes), n_classes=tuple(n_classes.values()),
        )
    )  # fmt: skip
    cohorts = {name: find_cohort(folder / "events", name) for name in names}
    return Asked(model.eval(), folder, store.vocabulary.hash, cohorts)


def answer_rows(sizes: Sizes) -> tuple[list[Row], dict[str, float]]:
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="tsfm-") as folder:
        asked = simulated(sizes, Path(folder))
        for what, names in (("five_tasks", WHOLE), ("five_tasks_one_hidden", WITH_HIDDEN)):
            together = (asked.site(*names), asked.site(*names).patients(None))
            apart = [(site, site.patients(None)) for name in names for site in [asked.site(name)]]

            def read(*sites: tuple[Site, PatientViews]) -> None:
                for site, patients in sites:
                    read_answers(asked.model, site, patients)

            works: Works = {"one": partial(read, together), "five": partial(read, *apart)}
            medians_s(works, 1)
            times = medians_s(works, 2 * sizes.rounds + 1)
            found[f"{what}_one_pass_s_a_patient"] = times["one"] / len(together[1])
            found[f"{what}_five_passes_s_a_patient"] = times["five"] / len(together[1])
            found[f"{what}_tokens_ratio"] = (
                sum(patients.n_tokens for _, patients in apart) / together[1].n_tokens
            )
            found[f"{what}_times_ratio"] = times["five"] / times["one"]
    name = "five tasks of a patient from one pass, against five passes"
    return [Row(name, found["five_tasks_times_ratio"], 3, 4.5, True)], found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    torch.manual_seed(0)
    print(
        f"{sizes.n_rows} rows of {sizes.peer_tokens} tokens (full context {sizes.context}), "
        f"d_model {sizes.d_model}, {sizes.n_layers} layers, {sizes.n_codes} codes"
    )
    rows, found = training_rows(sizes)
    more_rows, more = answer_rows(sizes)
    rows, found = rows + more_rows, found | more
    for name, value in found.items():
        print(f"  {name:38} {value:12.5g}")
    show(rows)
    print()
    print(
        json.dumps(
            {
                "benchmark": "timeline_speed",
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
