"""A state update is the scan of one token; rows read and write the slots they name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.library import opcheck

from tsfm.errors import InputError
from tsfm.kernels import native_library
from tsfm.kernels.selective_scan import selective_scan
from tsfm.kernels.state_update import state_update, state_update_op

KINDS = ("euler", "impulse", "zoh", "foh")
NATIVE = pytest.param(
    "native",
    marks=pytest.mark.skipif(not native_library.available(), reason="no C++ kernels were built"),
)
COMPILED = (NATIVE, "numba")
N_ROWS, N_SLOTS, N_CHANNELS = 11, 14, 37


@pytest.fixture(params=[16, 8, 4])
def lanes(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the kernels for narrower registers too."""
    if not native_library.available():
        pytest.skip("no C++ kernels were built")
    widest = native_library.lanes()
    if native_library.library().tsfm_use_lanes(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param} lanes")
    yield request.param
    native_library.library().tsfm_use_lanes(widest)


def make_inputs(
    kind: str = "impulse",
    n_state: int = 8,
    n_channels: int = N_CHANNELS,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    magnitude = torch.randint(-6, 5, (N_ROWS,), generator=generator)
    return {
        "state": normal(N_SLOTS, n_channels, n_state * (2 if kind == "foh" else 1)),
        "u": normal(N_ROWS, n_channels),
        "delta": normal(N_ROWS, n_channels),
        "A": -normal(n_channels, n_state).abs() - 0.05,
        "B": normal(N_ROWS, n_state),
        "C": normal(N_ROWS, n_state),
        "D": normal(n_channels),
        "z": normal(N_ROWS, n_channels),
        "gap": (normal(N_ROWS).abs().double() * 10.0**magnitude).to(dtype),
        "gap_rate": normal(n_channels).abs() * 0.3,
        "delta_bias": normal(n_channels),
    }


def by_the_scan(
    inputs: dict[str, Any], sources: Any, targets: Any, kind: str, softplus: bool = True
) -> list[torch.Tensor]:
    """y and the table of states by the scan's oracle, a sequence of one token a row."""
    given: dict[str, Any] = {k: None if v is None else v.double() for k, v in inputs.items()}
    table = given.pop("state").clone()
    y, after = selective_scan(
        **given, delta_softplus=softplus, input=kind, backend="reference",
        cu_seqlens=torch.arange(N_ROWS + 1), initial_state=table[sources], return_final_state=True,
    )  # fmt: skip
    table[targets] = after
    return [y, table]


def update(inputs: dict[str, Any], **options: Any) -> list[torch.Tensor]:
    """y and the table of states after an update of a copy."""
    given = {**inputs, "state": inputs["state"].clone()}
    y = state_update(**given, **{"delta_softplus": True, **options})
    return [y, given["state"]]


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(
        float((f.double() - e.double()).abs().max() / e.double().abs().max())
        for f, e in zip(found, expected, strict=True)
    )


def slots() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sources = torch.randint(0, N_SLOTS, (N_ROWS,), generator=generator)
    return sources, torch.randperm(N_SLOTS, generator=generator)[:N_ROWS]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_torch_is_the_scan_of_one_token(kind: str) -> None:
    inputs = make_inputs(kind)
    sources, targets = slots()
    found = update(inputs, input=kind, source_slots=sources, target_slots=targets)
    assert worst(found, by_the_scan(inputs, sources, targets, kind)) < 1e-13


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_state", [1, 4, 7, 8, 16, 20])
@pytest.mark.parametrize("backend", COMPILED)
def test_compiled_is_the_scan_of_one_token(backend: str, n_state: int, kind: str) -> None:
    inputs = make_inputs(kind, n_state, dtype=torch.float32)
    sources, targets = slots()
    found = update(inputs, input=kind, source_slots=sources, target_slots=targets, backend=backend)
    assert worst(found, by_the_scan(inputs, sources, targets, kind)) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_width_of_register_gives_the_scan_of_one_token(lanes: int, kind: str) -> None:
    rows = torch.arange(N_ROWS)
    for n_state in (1, 2, 4, 8, 12, 32):
        for n_channels in (3, 48):
            inputs = make_inputs(kind, n_state, n_channels, torch.float32)
            found = update(inputs, input=kind, backend="native")
            assert worst(found, by_the_scan(inputs, rows, rows, kind)) < 4e-6, (n_state, lanes)


@pytest.mark.parametrize("absent", [("D",), ("z",), ("gap", "gap_rate"), ("delta_bias",)])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("backend", [*COMPILED, "torch"])
def test_whatever_may_be_absent_may_be_absent(
    backend: str, softplus: bool, absent: tuple[str, ...]
) -> None:
    inputs = {**make_inputs(dtype=torch.float32), **dict.fromkeys(absent)}
    if not softplus:
        inputs["delta"] = inputs["delta"].abs() + 5  # a step that is not negative with its bias
    rows = torch.arange(N_ROWS)
    found = update(inputs, input="zoh", delta_softplus=softplus, backend=backend)
    assert worst(found, by_the_scan(inputs, rows, rows, "zoh", softplus)) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", [*COMPILED, "torch"])
def test_token_by_token_is_the_whole_scan(backend: str, kind: str) -> None:
    inputs = make_inputs(kind, dtype=torch.float32)
    table = inputs.pop("state")[:1]
    options = {"delta_softplus": True, "input": kind}
    whole, last = selective_scan(
        **inputs, **options, initial_state=table, return_final_state=True, backend="reference"
    )
    per_channel = {"A", "D", "gap_rate", "delta_bias"}
    for t in range(N_ROWS):
        token = {k: v if k in per_channel else v[t : t + 1] for k, v in inputs.items()}
        y = state_update(table, **token, **options, backend=backend)
        torch.testing.assert_close(y[0], whole[t], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", [*COMPILED, "torch"])
def test_a_fork_goes_its_own_way_and_leaves_the_others_alone(backend: str) -> None:
    inputs = make_inputs(dtype=torch.float32)
    sources = torch.full((N_ROWS,), 12)
    targets = torch.arange(N_ROWS)
    y, table = update(inputs, source_slots=sources, target_slots=targets, backend=backend)
    assert worst([y, table], by_the_scan(inputs, sources, targets, "euler")) < 2e-6
    assert torch.equal(table[N_ROWS:], inputs["state"][N_ROWS:])
    assert len({tuple(row.flatten().tolist()) for row in table}) == N_SLOTS


@pytest.mark.parametrize("backend", [*COMPILED, "torch"])
@pytest.mark.parametrize(
    ("sources", "targets"),
    [
        ([*range(1, N_ROWS), 0], [*range(N_ROWS)]),
        ([*range(N_ROWS)], [*range(N_ROWS - 1, -1, -1)]),
        ([0] * N_ROWS, [*range(N_ROWS)]),
        ([*range(N_ROWS)], [*range(1, N_ROWS + 1)]),
    ],
    ids=["rotation", "reversal", "fork onto the source", "one further"],
)
@pytest.mark.parametrize("few", [0, 1024])
def test_every_row_reads_before_any_row_writes(
    backend: str, sources: list[int], targets: list[int], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some slots are looked at one by one, many by operations on tensors.
    monkeypatch.setattr(sys.modules["tsfm.kernels.state_update"], "_FEW_ROWS", few)
    inputs = make_inputs(dtype=torch.float32)
    read, written = torch.tensor(sources), torch.tensor(targets, dtype=torch.int32)
    found = update(inputs, source_slots=read, target_slots=written, backend=backend)
    assert worst(found, by_the_scan(inputs, read, written.long(), "euler")) < 2e-6


@pytest.mark.parametrize("given", ["source_slots", "target_slots"])
def test_the_slots_not_given_are_the_rows(given: str) -> None:
    inputs = make_inputs(dtype=torch.float32)
    rows, other = torch.arange(N_ROWS), torch.arange(3, N_ROWS + 3)
    both = {"source_slots": rows, "target_slots": rows, given: other}
    found = update(inputs, **{given: other})
    assert all(torch.equal(a, b) for a, b in zip(found, update(inputs, **both), strict=True))


@pytest.mark.parametrize("backend", [*COMPILED, "torch"])
def test_slots_may_be_columns_of_a_table(backend: str) -> None:
    inputs = make_inputs(dtype=torch.float32)
    sources, targets = slots()
    table = torch.stack([sources, targets], 1)
    found = update(inputs, source_slots=table[:, 0], target_slots=table[:, 1], backend=backend)
    assert worst(found, by_the_scan(inputs, sources, targets, "euler")) < 2e-6


@pytest.mark.parametrize("backend", COMPILED)
def test_the_number_of_threads_changes_no_bit(backend: str) -> None:
    inputs = make_inputs(n_state=16, n_channels=300, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(update(inputs, backend=backend))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_width_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = make_inputs("zoh")
    narrow = {k: v if k == "gap" else v.to(dtype) for k, v in inputs.items()}
    narrow |= {"state": inputs["state"].float(), "gap": inputs["gap"].float()}
    y, table = update(narrow, input="zoh")
    wide, expected = update({k: v.float() for k, v in narrow.items()}, input="zoh")
    assert y.dtype == dtype
    assert table.dtype == torch.float32
    assert torch.equal(y, wide.to(dtype))
    assert torch.equal(table, expected)


@pytest.mark.parametrize("backend", [*COMPILED, "torch"])
def test_rows_may_be_strided(backend: str) -> None:
    inputs = make_inputs(dtype=torch.float32)
    strided = dict(inputs)
    for name in ("u", "delta", "z", "B", "C"):
        strided[name] = torch.stack([inputs[name], inputs[name]], 1).flatten(1)
        strided[name] = strided[name][:, : inputs[name].shape[1]]
        assert not strided[name].is_contiguous()
    for name in ("A", "D", "gap", "gap_rate", "delta_bias"):
        strided[name] = torch.stack([inputs[name], inputs[name]], -1)[..., 0]
    assert worst(update(strided, backend=backend), update(inputs, backend=backend)) < 1e-6


def test_a_state_that_is_a_view_is_updated_in_place() -> None:
    inputs = make_inputs(dtype=torch.float32)
    expected = update(inputs)
    room = torch.zeros(N_SLOTS, N_CHANNELS, 16)
    room[..., ::2] = inputs["state"]
    y = state_update(**{**inputs, "state": room[..., ::2]}, delta_softplus=True)
    assert worst([y, room[..., ::2]], expected) < 2e-6
    assert not room[..., 1::2].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", COMPILED)
def test_gaps_of_nothing_and_of_a_thousand_years_stay_finite(backend: str, kind: str) -> None:
    inputs = make_inputs(kind, dtype=torch.float32)
    inputs["gap"] = torch.tensor([0.0, 1e-6, 1e7] * 4)[:N_ROWS]
    inputs["delta"] = torch.full_like(inputs["delta"], -30.0)
    rows = torch.arange(N_ROWS)
    found = update(inputs, input=kind, backend=backend)
    assert all(torch.isfinite(f).all() for f in found)
    assert worst(found, by_the_scan(inputs, rows, rows, kind)) < 2e-6


@pytest.mark.parametrize("kind", ["euler", "impulse", "zoh"])
@pytest.mark.parametrize("backend", COMPILED)
def test_a_gap_without_end_forgets_everything(backend: str, kind: str) -> None:
    inputs = make_inputs(kind, dtype=torch.float32)
    inputs["gap"] = torch.full((N_ROWS,), 3e38)
    inputs["gap_rate"] = torch.full((N_CHANNELS,), 1e3)
    fresh = {**inputs, "state": torch.zeros_like(inputs["state"])}
    rows = torch.arange(N_ROWS)
    y, table = update(inputs, input=kind, backend=backend)
    expected = by_the_scan(fresh, rows, rows, kind)
    assert worst([y, table[:N_ROWS]], [expected[0], expected[1][:N_ROWS]]) < 2e-6


def test_autograd_knows_that_the_state_has_changed() -> None:
    inputs = make_inputs(dtype=torch.float32)
    before = inputs["state"]._version
    state_update(**inputs)
    assert inputs["state"]._version > before


@pytest.mark.parametrize("backend", [*COMPILED, "torch"])
@pytest.mark.parametrize("with_slots", [False, True])
def test_the_operator_keeps_torchs_contract(backend: str, with_slots: bool) -> None:
    inputs = make_inputs("zoh", dtype=torch.float32)
    chosen = slots() if with_slots else (None, None)
    opcheck(state_update_op, (*inputs.values(), True, "zoh", *chosen, backend))


def test_a_compiled_model_steps_as_an_eager_one() -> None:
    # Alone, because the shape checks that tests wrap around every function can't be traced.
    script = """
import torch
from tsfm.kernels.state_update import state_update

def step(state, u, delta, A, B, C, sources, targets):
    return 2 * state_update(state, u, delta, A, B, C, source_slots=sources, target_slots=targets)

def run(form):
    torch.manual_seed(0)
    state = torch.randn(7, 6, 4)
    rows = torch.randn(5, 6), torch.randn(5, 6), -torch.rand(6, 4), *torch.randn(2, 5, 4)
    return form(state, *rows, torch.tensor([0, 0, 1, 2, 3]), torch.tensor([6, 5, 1, 0, 3])), state

traced = run(torch.compile(step, fullgraph=True, backend="aot_eager"))
assert all(torch.equal(a, b) for a, b in zip(run(step), traced, strict=True))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("change", "code", "place"),
    [
        ({"state": torch.zeros(N_SLOTS, N_CHANNELS, 7)}, "wrong_shape", "state"),
        ({"state": torch.zeros(4, N_CHANNELS, 8)}, "slot_out_of_range", "source_slots"),
        ({"u": torch.zeros(N_CHANNELS)}, "wrong_shape", "u"),
        ({"delta": torch.zeros(N_ROWS, 3)}, "wrong_shape", "delta"),
        ({"A": torch.zeros(N_CHANNELS)}, "wrong_shape", "A"),
        ({"B": torch.zeros(N_ROWS, 9)}, "wrong_shape", "B"),
        ({"C": torch.zeros(3, 8)}, "wrong_shape", "C"),
        ({"D": torch.zeros(3)}, "wrong_shape", "D"),
        ({"z": torch.zeros(N_ROWS, 3)}, "wrong_shape", "z"),
        ({"gap": torch.zeros(3)}, "wrong_shape", "gap"),
        ({"gap_rate": torch.zeros(3)}, "wrong_shape", "gap_rate"),
        ({"delta_bias": torch.zeros(3)}, "wrong_shape", "delta_bias"),
        ({"gap": None}, "missing_gap", "gap"),
        ({"gap_rate": None}, "missing_gap_rate", "gap_rate"),
        ({"u": torch.zeros(N_ROWS, N_CHANNELS, dtype=torch.int64)}, "wrong_type", "u"),
        ({"z": torch.zeros(N_ROWS, N_CHANNELS, device="meta")}, "wrong_device", "z"),
        ({"u": torch.zeros(N_ROWS, N_CHANNELS, requires_grad=True)}, "no_gradient", "u"),
        ({"A": -torch.ones(N_CHANNELS, 8, requires_grad=True)}, "no_gradient", "A"),
        ({"input": "linear"}, "unknown_scan_input", "input"),
        ({"input": "foh"}, "wrong_shape", "state"),
        ({"backend": "fast"}, "unknown_backend", "backend"),
        ({"backend": "cuda"}, "backend_without_type", "backend"),
        ({"source_slots": torch.arange(3)}, "wrong_shape", "source_slots"),
        ({"target_slots": torch.zeros(N_ROWS)}, "wrong_type", "target_slots"),
        ({"source_slots": torch.arange(N_ROWS) + 4}, "slot_out_of_range", "source_slots"),
        ({"target_slots": torch.arange(N_ROWS) - 1}, "slot_out_of_range", "target_slots"),
        ({"target_slots": torch.arange(N_ROWS) // 2}, "duplicate_slots", "target_slots"),
        ({"target_slots": torch.arange(N_ROWS, device="meta")}, "wrong_device", "target_slots"),
    ],
)
@pytest.mark.parametrize("few", [0, 1024])
def test_what_does_not_fit_is_named(
    change: dict[str, Any], code: str, place: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["tsfm.kernels.state_update"], "_FEW_ROWS", few)
    inputs = make_inputs(dtype=torch.float32)
    before = inputs["state"].clone()
    with pytest.raises(InputError) as caught:
        state_update(**{**inputs, **change})
    assert (caught.value.code, caught.value.place) == (code, place)
    assert torch.equal(inputs["state"], before)


def test_a_float64_state_has_no_compiled_backend() -> None:
    with pytest.raises(InputError, match="float64"):
        state_update(**make_inputs(), backend="numba")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_gradient_is_no_matter_where_none_is_recorded(mode: Any) -> None:
    expected = update(make_inputs(dtype=torch.float32))
    with mode():
        inputs = make_inputs(dtype=torch.float32)
        inputs["A"].requires_grad_()
        y = state_update(**inputs, delta_softplus=True)
    assert torch.equal(y, expected[0])
    assert torch.equal(inputs["state"], expected[1])
