"""The backend follows from what the tensors are and what this machine has, and says why."""

from __future__ import annotations

import pytest
import torch

from tsfm.kernels import backends, native_library
from tsfm.kernels.backends import OPS, choose_backend, diagnose

CPU = torch.device("cpu")


def chosen(op: str, dtype: torch.dtype = torch.float32, input: str = "impulse") -> str:
    return choose_backend(op, device=CPU, dtype=dtype, input=input).backend


@pytest.mark.parametrize("op", ["selective_scan", "state_update", "causal_conv1d"])
def test_the_compiled_kernels_come_first_and_numba_takes_their_place(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_library, "available", lambda: True)
    monkeypatch.setattr(native_library, "describe", lambda: "C++ kernels")
    assert chosen(op) == chosen(op, torch.bfloat16) == "native"
    assert chosen(op, torch.float64) == "torch"
    monkeypatch.setattr(native_library, "available", lambda: False)
    assert chosen(op) == "numba"


def test_a_rising_input_without_the_compiled_kernels_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native_library, "available", lambda: True)
    assert chosen("selective_scan", input="foh") == "native"
    monkeypatch.setattr(native_library, "available", lambda: False)
    assert chosen("selective_scan", input="foh") == "torch"


def test_other_devices_are_served_by_torch() -> None:
    choice = choose_backend("selective_scan", device=torch.device("mps"), dtype=torch.float32)
    assert choice.backend == "torch"
    assert "mps" in choice.reason


def test_a_gpu_without_its_compiler_falls_back_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = backends.Availability(False, "NVRTC is not installed")
    monkeypatch.setattr(backends, "_cuda_kernels", lambda: missing)
    choice = choose_backend("state_update", device=torch.device("cuda"), dtype=torch.float32)
    assert (choice.backend, choice.reason) == ("torch", "NVRTC is not installed")


def test_the_diagnosis_names_every_op_with_a_reason() -> None:
    found = [choice for device, choice in diagnose() if device == "cpu"]
    assert [choice.op for choice in found] == list(OPS)
    assert all(choice.reason for choice in found)
