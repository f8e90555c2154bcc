"""`tsfm doctor` says what would compute, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tsfm.kernels.backends import OPS, diagnose


def test_every_op_has_a_line_with_its_backend(tsfm: Callable[..., Any]) -> None:
    ended = tsfm("doctor")
    assert ended.code == 0
    lines = ended.stdout.splitlines()
    for device, choice in diagnose():
        assert any(
            line.split()[:3] == [device, choice.op, choice.backend] and choice.reason in line
            for line in lines
        )


def test_the_json_says_the_same(tsfm: Callable[..., Any]) -> None:
    found = json.loads(tsfm("doctor", "--json").stdout)
    assert [line["op"] for line in found["ops"] if line["device"] == "cpu"] == list(OPS)
    assert {"tsfm", "torch", "gpu"} <= set(found)
