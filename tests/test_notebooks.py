"""Notebooks are pairs of equal cells, without outputs, and run from the first to the last."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted((REPOSITORY / "notebooks").glob("*.py"))
NAMES = [path.stem for path in SOURCES]

jupytext = pytest.importorskip("jupytext")


def test_every_notebook_is_one_of_a_pair() -> None:
    assert SOURCES
    assert sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_both_files_of_a_pair_have_the_same_cells(source: Path) -> None:
    text, notebook = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    cells = [[(cell.cell_type, cell.source) for cell in one.cells] for one in (text, notebook)]
    assert cells[0] == cells[1], "make it anew with `jupytext --sync notebooks/*.py`"
    for one in (text, notebook):
        assert one.metadata["jupytext"]["formats"] == "ipynb,py:percent"


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_the_notebook_is_kept_without_outputs(source: Path) -> None:
    notebook = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    # What a person's own kernel or editor adds would change with every visit.
    assert set(notebook["metadata"]) == {"jupytext", "kernelspec"}


def run_notebook(source: Path, folder: Path) -> Any:
    """Run all cells with this interpreter, whatever kernels the machine knows; return them."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    kernel = folder / "kernels" / "this"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "this", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    known = KernelSpecManager(kernel_dirs=[str(kernel.parent)], ensure_native_kernel=False)
    manager = AsyncKernelManager(kernel_name="this", kernel_spec_manager=known)
    notebook = jupytext.read(source)
    client = nbclient.NotebookClient(notebook, km=manager, timeout=600)
    client.execute(cwd=str(folder))
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_the_notebook_runs_and_shows_its_pictures_and_tables(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = run_notebook(source, tmp_path)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    shown = [
        out["data"] for out in outputs if out["output_type"] in ("display_data", "execute_result")
    ]
    assert sum("image/png" in data for data in shown) >= 3
    assert sum("text/html" in data for data in shown) >= 3
    said = "".join(out["text"] for out in outputs if out.get("name") == "stderr")
    assert "Warning" not in said
    assert not list(tmp_path.glob("tsfm-notebook-*"))  # its folder is gone
