"""The house keeps its own rules: layout, layers, names, sizes, and what an import costs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import tsfm
from tsfm.kernels.gated_norm import gated_rms_norm

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("cuda", "ingest", "models")
SOURCE_FOLDERS = ("tsfm", "ingest", "models", "benchmarks", "cuda", "notebooks")
MOST_LINES = 400
MOST_SECONDS = 0.5
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "factory", "core"}
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "Makefile",
    "pyproject.toml",
    ".ci/run",
)
# Split in two, so that this file does not name what it forbids.
FORBIDDEN = ("/wo" + "rk/", "/ro" + "ot/", "TO" + "DO", "FIX" + "ME", "XX" + "X")


def source_files(*suffixes: str) -> list[Path]:
    """Files of the source folders, each once: the links in `tsfm/` are not followed."""
    found = [
        Path(folder, name)
        for top in SOURCE_FOLDERS
        for folder, _, names in os.walk(ROOT / top)
        for name in names
        if "__pycache__" not in folder and ".ipynb_checkpoints" not in folder
    ]
    return sorted(p.relative_to(ROOT) for p in found if not suffixes or p.suffix in suffixes)


def python_files() -> list[Path]:
    """Python files of the source folders and of the tests."""
    tests = [p.relative_to(ROOT) for p in (ROOT / "tests").rglob("*.py")]
    return source_files(".py") + sorted(tests)


def settings() -> dict[str, Any]:
    """Contents of `pyproject.toml`."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def run_python(code: str) -> str:
    """What a fresh interpreter prints; it must end well."""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def script(name: str) -> str:
    """A tool beside the interpreter that runs the tests."""
    path = Path(sys.executable).with_name(name)
    return str(path) if path.exists() else shutil.which(name) or pytest.skip(f"needs {name}")


def fastest(command: list[str]) -> float:
    """Least time of three runs, in seconds of a core: a busy machine is no fault of ours."""
    seconds: list[float] = []
    for _ in range(3):
        before = os.times()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        after = os.times()
        seconds.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    return min(seconds)


def test_importing_the_package_is_quick() -> None:
    assert fastest([sys.executable, "-c", "import tsfm"]) < MOST_SECONDS


def test_asking_for_help_is_quick() -> None:
    assert fastest([script("tsfm"), "--help"]) < MOST_SECONDS


@pytest.mark.parametrize(
    "statement",
    [
        "import tsfm",
        "import tsfm.cli",
        "import tsfm.ingest.fhir_ndjson",
        "import tsfm.ingest.mimic4",
        "import tsfm.ingest.eicu, tsfm.ingest.physionet2012, tsfm.ingest.diabetes130",
        "import tsfm.ingest.meds_dataset",
        "import tsfm.ingest.wfdb_records",
        "import tsfm.tokens.token_store",
        "import tsfm.tasks.registry",
        "import tsfm.signals.store",
        "import tsfm.simulation.hospital",
        "import tsfm.evaluation.baselines.panel",
    ],
)
def test_rooms_below_the_models_load_no_torch(statement: str) -> None:
    heavy = "[n for n in ('torch', 'matplotlib', 'sklearn', 'lightgbm') if n in sys.modules]"
    assert run_python(f"import sys\n{statement}\nprint({heavy})").strip() == "[]"


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom tsfm import cli\nsys.argv = ['tsfm', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    assert run_python(code).splitlines()[-1] == "False"


def test_every_public_name_can_be_had() -> None:
    code = "import tsfm\nfor name in tsfm.__all__:\n    getattr(tsfm, name)\nprint(dir(tsfm))"
    assert "'load'" in run_python(code)


def test_the_readme_lists_every_file_with_a_duty() -> None:
    listed: list[Path] = []
    folder = Path()
    text = (ROOT / "README.md").read_text().split("## The files")[1].split("\n## ")[0]
    for line in text.splitlines():
        if heading := re.fullmatch(r"\*\*`(.+/)`\*\*", line):
            folder = Path(heading[1])
        elif entry := re.match(r"- `([^`]+)`: \S.*", line):
            listed.append(folder / entry[1])
    expected = {
        p
        for p in source_files()
        if p.suffix in {".py", ".j2", ".ipynb", ".cu", ".cuh", ".md", ".cpp", ".h", ".inc"}
        and (p.name != "__init__.py" or p.parent == Path("tsfm"))
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == expected


def test_packages_are_the_folders_of_the_tree() -> None:
    tools = settings()["tool"]["setuptools"]
    linked = {link: Path("tsfm", link) for link in LINKS}
    found = {p.parent for p in source_files(".py") if p.parts[0] in {"tsfm", *LINKS}}
    found.add(Path("cuda"))  # sources without Python
    places = [linked.get(p.parts[0], Path(p.parts[0])).joinpath(*p.parts[1:]) for p in found]
    assert sorted(tools["packages"]) == sorted(".".join(place.parts) for place in places)
    mapping = {"tsfm": "tsfm", **{f"tsfm.{link}": link for link in LINKS}}
    assert tools["package-dir"] == mapping


@pytest.mark.parametrize("name", LINKS)
def test_the_packages_at_the_top_are_committed_links(name: str) -> None:
    link = ROOT / "tsfm" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to see how the link is committed")
    ended = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--stage", f"tsfm/{name}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.startswith("120000 ")


def test_the_folder_of_cuda_sources_hides_no_package_of_that_name() -> None:
    assert not (ROOT / "cuda" / "__init__.py").exists()


def test_no_file_is_longer_than_400_lines() -> None:
    long = {str(p): n for p in python_files() if (n := _count_lines(ROOT / p)) > MOST_LINES}
    assert long == {}


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [str(p) for p in python_files() if set(p.stem.split("_")) & VAGUE] == []


def test_no_file_has_the_name_of_a_dependency() -> None:
    project = settings()["project"]
    named = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    plain = {re.split(r"[\[<>=!; ]", one)[0].lower().replace("-", "_") for one in named}
    imported = (plain - {"tsfm", "pyyaml", "fhir.resources", "scikit_learn"}) | {
        "yaml", "fhir", "sklearn", "pandas", "scipy",
    }  # fmt: skip
    assert [str(p) for p in source_files(".py") if p.stem in imported] == []
    assert importlib.util.find_spec("sklearn") is not None  # the names are those of real packages


def test_nothing_names_a_machine_or_leaves_work_undone() -> None:
    files = [*python_files(), *source_files(".md", ".j2", ".ipynb"), *map(Path, DOCUMENTS)]
    files += [p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md")]
    found = [
        f"{path}: {word}"
        for path in files
        for word in FORBIDDEN
        if re.search(rf"(?<!\w){re.escape(word)}", (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert found == []


def test_links_in_the_documents_lead_somewhere() -> None:
    pages = [ROOT / name for name in DOCUMENTS if name.endswith(".md")]
    pages += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "cuda").glob("*.md")]
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert dead == []


def test_schema_ingest_and_tokens_are_typed_strictly() -> None:
    strict = [p for p in source_files(".py") if p.parts[0] == "ingest" or "tokens" in p.parts]
    strict.append(Path("tsfm", "schema.py"))
    lax = [
        str(p)
        for p in strict
        if p.name != "__init__.py"
        and not (ROOT / p).read_text(encoding="utf-8").startswith("# pyright: strict")
    ]
    assert lax == []


def test_the_version_is_said_once() -> None:
    assert settings()["project"]["version"] == tsfm.__version__
    assert f"## {tsfm.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_shapes_of_models_and_kernels_are_checked_in_tests() -> None:
    y, u, skip, scale = torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(4), torch.zeros(3)
    with pytest.raises(TypeError, match="channel"):
        gated_rms_norm(y, u, u, skip, scale, 1e-5)


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--no-cache", "--check", "."],
        ["lint-imports", "--no-cache"],
        pytest.param(["pyright"], marks=pytest.mark.slow),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_tool_finds_nothing(command: list[str]) -> None:
    ended = subprocess.run(
        [script(command[0]), *command[1:]],
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, f"\n{ended.stdout}\n{ended.stderr}"
