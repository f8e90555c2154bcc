"""Train `forecaster-icu`: `python benchmarks/train_forecaster_icu.py --data DIR --out DIR`.

It is one member of `p12_forecast.py --protocol A`, of four the best on the val stays: trained on
the train stays, its step chosen and its quantiles calibrated on the val stays, in the measurements'
own units. `--out` may be the folder of a seed of that run, `.../forecaster-A-1`: its checkpoint is
taken and nothing is trained again. The last line is one JSON object with the scores of the test
stays, which nothing was chosen on.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from p12_data import TEST, VAL, Protocol, read_protocol, targets_of
from p12_episodes import EpisodeConfig, Stays
from p12_forecast import LEAD_EDGES_HOURS, STEPS, score_part, steps_of
from p12_stays import write_stays
from p12_training import TABLES, Members, PartForecast, forecast_part, model_config

from tsfm.forecasting.conformal import SplitConformal, fit_split_conformal
from tsfm.forecasting.fine_tuning import plain_calibration
from tsfm.models.forecaster import ForecasterModel
from tsfm.models.forecaster_checkpoint import Variable, save_forecaster
from tsfm.models.quantile_head import LEVELS

DEFAULT = Path(os.environ.get("TSFM_DATA", "../shared/data")) / "physionet2012"
# As the data set's own page gives them, in UCUM.
UNITS = {
    "ALP": "U/L", "ALT": "U/L", "AST": "U/L", "Age": "a", "Albumin": "g/dL", "BUN": "mg/dL",
    "Bilirubin": "mg/dL", "Cholesterol": "mg/dL", "Creatinine": "mg/dL", "DiasABP": "mm[Hg]",
    "FiO2": "1", "GCS": "{score}", "Gender": "0 female, 1 male", "Glucose": "mg/dL",
    "HCO3": "mmol/L", "HCT": "%", "HR": "/min", "Height": "cm",
    "ICUType": "1 coronary, 2 cardiac surgery, 3 medical, 4 surgical",
    "K": "mmol/L", "Lactate": "mmol/L", "MAP": "mm[Hg]", "MechVent": "1 while ventilated",
    "Mg": "mmol/L", "NIDiasABP": "mm[Hg]", "NIMAP": "mm[Hg]", "NISysABP": "mm[Hg]",
    "Na": "mmol/L", "PaCO2": "mm[Hg]", "PaO2": "mm[Hg]", "Platelets": "10*3/uL",
    "RespRate": "/min", "SaO2": "%", "SysABP": "mm[Hg]", "Temp": "Cel", "TroponinI": "ug/L",
    "TroponinT": "ug/L", "Urine": "mL", "WBC": "10*3/uL", "Weight": "kg", "pH": "[pH]",
}  # fmt: skip


def in_native_units(model: ForecasterModel, protocol: Protocol) -> ForecasterModel:
    """The model for values as they are measured: only its scales change."""
    location = model.variable_location.double().numpy() * protocol.scale + protocol.location
    scale = model.variable_scale.double().numpy() * protocol.scale
    model.set_variable_scale(torch.from_numpy(location).float(), torch.from_numpy(scale).float())
    return model


def calibration_in_native_units(protocol: Protocol, found: PartForecast) -> SplitConformal:
    """Shifts of the quantiles from the val stays.

    Args:
        protocol: The data.
        found: Forecasts of the val part, in the protocol's units.
    """
    truth = targets_of(protocol, VAL)
    location, scale = protocol.location[truth.variable], protocol.scale[truth.variable]
    return fit_split_conformal(
        np.array(protocol.variables)[truth.variable], truth.hours - protocol.cut_hours, LEVELS,
        found.quantiles * scale[:, None] + location[:, None], truth.value * scale + location,
        groups=truth.stay, lead_edges_hours=LEAD_EDGES_HOURS["A"],
    )  # fmt: skip


def main() -> None:
    """Train, or take what was trained, and write the model directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", default=[DEFAULT], help="folders of stays")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--save", type=Path, required=True, help="model directory to write")
    parser.add_argument("--seed", type=int, default=101, help="member (default: %(default)s)")
    parser.add_argument(
        "--table", type=int, default=TABLES["A"],
        help="width of the table of all variables (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=STEPS["A"], help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="made-up stays and a few steps")
    chosen = parser.parse_args()
    if chosen.quick:
        write_stays(chosen.out / "stays", n_stays=120, seed=0)
        chosen.data, chosen.steps = [chosen.out / "stays"], 4
    protocol = read_protocol(chosen.data, "A")
    stays = Stays(protocol, EpisodeConfig())
    members = Members(
        chosen.data,
        [],
        "A",
        stays.config,
        model_config(protocol, table=chosen.table),
        steps_of(chosen.steps),
    )
    ((model, seconds),) = members.fit([chosen.seed], chosen.out)
    on_val = forecast_part(model, stays, VAL)
    calibration = calibration_in_native_units(protocol, on_val)
    # Scores are invariant to units by variable, so the test part is scored in the protocol's.
    own = fit_split_conformal(
        np.array(protocol.variables)[targets_of(protocol, VAL).variable],
        targets_of(protocol, VAL).hours - protocol.cut_hours, LEVELS, on_val.quantiles,
        targets_of(protocol, VAL).value, groups=targets_of(protocol, VAL).stay,
        lead_edges_hours=LEAD_EDGES_HOURS["A"],
    )  # fmt: skip
    told = score_part(protocol, forecast_part(model, stays, TEST), 0.0, own, seconds).told
    kept = ("macro_mse", "macro_mae", "common_mse", "crps", "coverage_80", "coverage_95")
    scores = {name: float(told[name]) for name in kept}
    n_stays = [int((protocol.part == part).sum()) for part in range(3)]
    facts = {
        "data": "PhysioNet/Computing in Cardiology Challenge 2012 (physionet.org), ODC-By 1.0",
        "command": "benchmarks/train_forecaster_icu.py",
        "task": "24 hours of an intensive care stay after its first 24, protocol A of the page",
        "licence": "Apache-2.0", "page": "docs/benchmarks/p12_forecast.md",
        "steps": chosen.steps, "seed": chosen.seed, "stays for training": n_stays[0],
        "stays for validation and calibration": n_stays[1], "stays for testing": n_stays[2],
        **{f"test {name}": float(f"{value:.4g}") for name, value in scores.items()},
    }  # fmt: skip
    save_forecaster(
        chosen.save, in_native_units(model, protocol),
        variables=[Variable(name, UNITS.get(name, "")) for name in protocol.variables],
        calibration=plain_calibration(calibration), facts=facts,
    )  # fmt: skip
    print(json.dumps(scores | {"seconds": round(seconds)}))


if __name__ == "__main__":
    main()
