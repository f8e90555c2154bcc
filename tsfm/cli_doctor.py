"""`tsfm doctor`: what this installation would compute with, and why."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Say which backend each op uses on this machine, and why.

    Scores do not depend on the backend beyond rounding; how long they take does. A line that says
    numba or torch where C++ or CUDA was expected says what is missing.
    """
    import os
    import platform

    import torch

    from tsfm import __version__
    from tsfm.kernels import backends, nvrtc

    found = backends.diagnose()
    versions = {
        "tsfm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "gpu": nvrtc.available().explanation,
    }
    if as_json:
        ops = [
            {"device": device, "op": c.op, "backend": c.backend, "reason": c.reason}
            for device, c in found
        ]
        typer.echo(json.dumps({**versions, "ops": ops}))
        return
    for name, value in versions.items():
        typer.echo(f"{name:8} {value}")
    rows = [("device", "op", "backend", "why")]
    rows += [(device, c.op, c.backend, c.reason) for device, c in found]
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    typer.echo()
    for row in rows:
        cells = (text.ljust(width) for text, width in zip(row[:3], widths, strict=True))
        typer.echo("  ".join((*cells, row[3])))
