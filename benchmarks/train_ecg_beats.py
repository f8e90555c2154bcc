"""Train `ecg-beats`: `python benchmarks/train_ecg_beats.py [--train DIR] [--out DIR]`.

The recipe of `beats.py` (`tsfm.training.beat_classifier`) on all records of a folder, with the
figures of its folds in the card: every beat is scored by fits on other people. The weight of S was
chosen on the same folds, so the F1 of S is a little flattered. `--quick` takes made-up records. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
from mitdb_records import made_up, read_records
from numpy.typing import NDArray

import tsfm
from tsfm.models.beat_checkpoint import save_beat_classifier
from tsfm.models.beat_classifier import CLASSES, decide
from tsfm.models.checkpoint import refuse_existing
from tsfm.training.beat_classifier import (
    F_SCALE,
    N_FOLDS,
    N_SEEDS,
    BeatTable,
    choose_s_scale,
    class_f1,
    class_rates,
    fit_beat_classifier,
    out_of_fold,
)

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "wfdb" / "mitdb"
OUT = Path(tsfm.__file__).parent / "pretrained" / "ecg-beats"
DATA = (
    "MIT-BIH Arrhythmia Database 1.0.0 (PhysioNet, doi 10.13026/C2F305), Open Data Commons"
    " Attribution License 1.0; records"
)
CITED = (
    "Moody GB, Mark RG. IEEE Eng Med Biol 20(3):45-50, 2001; Goldberger AL et al. Circulation"
    " 101(23):e215-e220, 2000"
)


def figures(table: BeatTable, found: NDArray[np.int64]) -> dict[str, float]:
    """F1, sensitivity and predictivity of V and S, F1 of F."""
    told = {}
    for name in ("V", "S", "F"):
        k = CLASSES.index(name)
        told[f"F1 of {name}"] = class_f1(table.y, found, k)
        if name != "F":
            rates = class_rates(table.y, found, k)
            told[f"sensitivity of {name}"], told[f"predictivity of {name}"] = rates
    return {name: round(float(value), 3) for name, value in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, default=DEFAULT, help="folder of WFDB records")
    parser.add_argument("--out", type=Path, default=OUT, help="model directory to write")
    parser.add_argument("--quick", action="store_true", help="made-up records, seconds")
    chosen = parser.parse_args()
    refuse_existing(chosen.out)
    started = time.perf_counter()
    records = made_up(8, seed=0) if chosen.quick else read_records(chosen.train)
    table = BeatTable(records)
    s_scale = choose_s_scale(table, out_of_fold(table, n_seeds=1))
    n_seeds = 1 if chosen.quick else N_SEEDS
    folded = out_of_fold(table, n_seeds=n_seeds)
    found = decide(folded, table.regular, s_scale=s_scale, f_scale=F_SCALE)
    told = figures(table, found)
    classifier = fit_beat_classifier(table, n_seeds=n_seeds, s_scale=s_scale)
    names = " ".join(sorted(r.name for r in records))
    counts = np.bincount(table.y, minlength=len(CLASSES)).tolist()
    facts = {
        "data": f"made-up records ({len(records)})" if chosen.quick else f"{DATA} {names}",
        "cited": "nothing" if chosen.quick else CITED,
        "command": "benchmarks/train_ecg_beats.py" + " --quick" * chosen.quick,
        "licence": "Apache-2.0",
        "page": "docs/benchmarks/beats.md",
        "people": len(set(table.subject.values())),
        **{f"beats of {name}": n for name, n in zip(CLASSES, counts, strict=True)},
        "seeds": n_seeds,
        "scored": f"on beats of other people, in {N_FOLDS} folds of the same records, beats at"
        " their annotated places; the weight of S was chosen on these folds too",
        **{f"{name}, in folds": value for name, value in told.items()},
    }
    save_beat_classifier(chosen.out, classifier, facts=facts)
    n_bytes = sum(path.stat().st_size for path in chosen.out.iterdir())
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps(told | {"s_scale": s_scale, "bytes": n_bytes, "seconds": seconds}))


if __name__ == "__main__":
    main()
