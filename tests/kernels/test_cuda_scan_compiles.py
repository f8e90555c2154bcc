"""The CUDA scan compiles for every supported card, and keeps its states in registers.

A spilled register would put the states into memory that the design counts on not touching.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tsfm.kernels import nvrtc
from tsfm.kernels.cuda_driver import CudaError
from tsfm.kernels.cuda_scan import SOURCES

CUDA = Path(__file__).resolve().parents[2] / "cuda"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
KERNELS = {
    "scan_label", "scan_carry", "scan_summary", "scan_forward", "scan_summary_back",
    "scan_backward", "scan_sum_states", "scan_sum_gaps", "scan_sum_chunks",
}  # fmt: skip
_REPORT = re.compile(
    r"Function properties for (\w+).*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def check_report(log: str) -> None:
    """Every kernel is there, none spills, and the three big ones fit their blocks."""
    reports = {name: tuple(map(int, numbers)) for name, *numbers in _REPORT.findall(log)}
    assert set(reports) == KERNELS
    assert {name: r for name, r in reports.items() if r[0] or r[1]} == {}
    assert reports["scan_forward"][2] <= 128
    assert reports["scan_backward"][2] <= 255


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", sorted(set(SOURCES.values())))
def test_nvrtc_finds_registers_for_everything(source: str, architecture: str) -> None:
    try:
        compiler = nvrtc.find_nvrtc()
    except CudaError as error:
        pytest.skip(f"needs NVRTC: {error}")
    if int(architecture[3:]) not in compiler.architectures:
        pytest.skip(f"this NVRTC does not know {architecture}")
    headers = {path.name: path.read_text() for path in CUDA.glob("*.cuh")}
    options = (f"--gpu-architecture={architecture}", *nvrtc.OPTIONS, "--ptxas-options=-v")
    text = (CUDA / f"{source}.cu").read_text()
    code, log = compiler.compile(f"{source}.cu", text, headers, options)
    assert code.startswith(b"\x7fELF")
    check_report(log)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", sorted(set(SOURCES.values())))
def test_nvcc_finds_registers_for_everything(
    source: str, architecture: str, tmp_path: Path
) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("needs nvcc")
    ended = subprocess.run(
        [compiler, "-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas", "-v",
         "-Werror", "all-warnings", str(CUDA / f"{source}.cu"), "-o", str(tmp_path / "made.cubin")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "Unsupported gpu architecture" in ended.stderr:
        pytest.skip(f"this nvcc does not know {architecture}")
    assert ended.returncode == 0, ended.stderr
    check_report(ended.stderr)
