"""What the published MIRA code makes of given weights and inputs: the judge of `mira_released`.

Run by an interpreter with sktime 1.2 and transformers 4.40.1 (see `test_mira_released.py`):

    python released_mira_peer.py FOLDER

Each FOLDER/NAME.asked.safetensors holds a configuration (metadata `config`), `weights/<name>` and,
for each case, `<case>/values` and `<case>/times` (row, point), `<case>/targets` (row, target).
FOLDER/NAME.answered.safetensors gets all that and, for each case, `positions` (normalised times),
`next`, `next_by_ode` and `forecast`; and FOLDER/NAME the checkpoint as the published code saves it,
whose config.json is put into the metadata, too.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    peer: Any = importlib.import_module("sktime.libs.mira")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for asked in sorted(folder.glob("*.asked.safetensors")):
        answer(peer, asked, folder / asked.name.removesuffix(".asked.safetensors"))


def answer(peer: Any, asked: Path, checkpoint: Path) -> None:
    tensors = load_file(asked)
    with safe_open(asked, framework="pt") as file:
        metadata = file.metadata()
    config = peer.MIRAConfig(**json.loads(metadata["config"]))
    model = peer.MIRAForPrediction(config).eval()
    prefix = "weights/"
    weights = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
    model.load_state_dict(weights, strict=True)
    model.save_pretrained(checkpoint)
    metadata["config.json"] = (checkpoint / "config.json").read_text()
    for case in sorted({n.split("/")[0] for n in tensors if not n.startswith(prefix)}):
        values, times, targets = (
            tensors[f"{case}/{kind}"] for kind in ("values", "times", "targets")
        )
        n_points = values.shape[1]
        positions, _, _ = peer.normalize_time_for_ctrope(times, seq_length=n_points)
        with torch.no_grad():
            plain = model(input_ids=values.unsqueeze(-1), time_values=times)
            carried = model(
                input_ids=values.unsqueeze(-1), time_values=times,
                next_target_time_values=targets[:, 0],
            )  # fmt: skip
        # Their loop normalises by the mean and deviation given, and looks at the first points only.
        rows = [
            peer.mira_predict_autoregressive_norm(
                model, torch.cat([v, torch.zeros(targets.shape[1])])[None], torch.cat([t, q])[None],
                n_points, targets.shape[1], 0.0, 1.0,
            )
            for v, t, q in zip(values, times, targets, strict=True)
        ]  # fmt: skip
        tensors[f"{case}/positions"] = positions
        tensors[f"{case}/next"] = plain.logits[:, 0, 0]
        tensors[f"{case}/next_by_ode"] = carried.logits[:, 0, 0]
        tensors[f"{case}/forecast"] = torch.stack([row.flatten() for row in rows])
    answered = checkpoint.with_name(f"{checkpoint.name}.answered.safetensors")
    save_file({n: x.contiguous() for n, x in tensors.items()}, answered, metadata)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
