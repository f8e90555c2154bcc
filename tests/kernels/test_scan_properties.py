"""What every backend of the selective scan keeps, against a float64 loop of its equations.

The loop gives each token, channel and state component a copy of its own of every input. A sum's
summands are then at hand, and an error is measured against the largest of them: a gradient whose
parts cancel is no more exact than its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsfm.kernels import native_library, selective_scan
from tsfm.kernels.scan_inputs import INPUTS

BACKENDS = ("native", "numba", "torch", "reference")
NO_NATIVE = pytest.mark.skipif(
    not native_library.available(), reason="the C++ kernels are not built here"
)
SERVED = [
    pytest.param(backend, kind, marks=NO_NATIVE if backend == "native" else ())
    for backend in BACKENDS
    for kind in INPUTS
    if (backend, kind) != ("numba", "foh")
]
served = pytest.mark.parametrize(("backend", "kind"), SERVED)

# Largest error allowed, as a part of the largest summand.
TOLERANCE = {torch.float32: 2.5e-6, torch.float64: 1e-10}  # roundings differ between processors
UNDERFLOW = 1e-18  # What torch's own derivative of expm1 leaves of a vanished decay, in float64.
MOST_ELEMENTS = 25_000  # Components times tokens of a case: the loop's time grows with it.
PARTS = frozenset({"gap", "D", "z", "delta_bias"})
WIDE = ("u", "delta", "B", "C", "z", "gap")
LENGTHS = (1, 1, 2, 3, 31, 32, 33, 64)

few = settings(max_examples=6, deadline=None, derandomize=True)
fewer = settings(max_examples=3, deadline=None, derandomize=True)

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A packed scan and the gradients that come back to its output and its final states."""

    inputs: Inputs
    lengths: tuple[int, ...]
    softplus: bool
    reverse: bool
    dy: Tensor
    dfinal: Tensor

    def scan(self, inputs: Inputs, lengths: tuple[int, ...], **how: Any) -> tuple[Tensor, Tensor]:
        options: Any = {"delta_softplus": self.softplus, "reverse": self.reverse, **how}
        return selective_scan(
            **inputs, cu_seqlens=torch.tensor(borders(lengths)), return_final_state=True, **options
        )

    def whole(self, **how: Any) -> Callable[[Inputs], tuple[Tensor, Tensor]]:
        return lambda inputs: self.scan(inputs, self.lengths, **how)


def borders(lengths: tuple[int, ...]) -> list[int]:
    return [sum(lengths[:index]) for index in range(len(lengths) + 1)]


def make_case(
    seed: int,
    kind: str,
    lengths: tuple[int, ...],
    n_channels: int,
    n_state: int,
    *,
    parts: frozenset[str] = PARTS,
    gaps: tuple[float, ...] = (),
    softplus: bool = True,
    reverse: bool = False,
    state_width: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Normal inputs; some gaps replaced by those of `gaps`, every fourth gap rate zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    T, D, N, S = sum(lengths), n_channels, n_state, len(lengths)
    inputs = {
        "u": normal(T, D),
        "delta": normal(T, D),
        "A": -normal(D, N).exp(),
        "B": normal(T, N),
        "C": normal(T, N),
        "D": normal(D),
        "z": normal(T, D),
        "gap": normal(T).exp(),
        "gap_rate": normal(D).exp() * (torch.rand(D, generator=generator) > 0.25),
        "delta_bias": normal(D),
    }
    if not softplus:  # A negative step would let the state grow without bound.
        inputs["delta"], inputs["delta_bias"] = inputs["delta"].abs(), inputs["delta_bias"].abs()
    for index, gap in enumerate(gaps):
        inputs["gap"][index :: 2 * len(gaps)] = gap
    for name in PARTS - parts:
        del inputs[name]
    if "gap" not in parts:
        del inputs["gap_rate"]
    if state_width:
        inputs["initial_state"] = normal(S, D, state_width * N)
    return Case(
        {name: tensor.to(dtype) for name, tensor in inputs.items()},
        lengths,
        softplus,
        reverse,
        normal(T, D).to(dtype),
        normal(S, D, N * (2 if kind == "foh" else 1)).to(dtype),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    kind: str,
    lengths: st.SearchStrategy[Sequence[int]] | None = None,
    reverse: bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> Case:
    packed = st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=4)
    long = st.sampled_from([[257], [300], [1, 299, 1]])
    chosen = tuple(draw(st.one_of(packed, packed, long) if lengths is None else lengths))
    n_state = draw(st.one_of(st.integers(1, 20), st.sampled_from([16, 64])))
    most_channels = max(1, min(40, MOST_ELEMENTS // (sum(chosen) * n_state)))
    return make_case(
        draw(st.integers(0, 2**31)),
        kind,
        chosen,
        draw(st.integers(1, most_channels)),
        n_state,
        parts=draw(st.frozensets(st.sampled_from(sorted(PARTS)))),
        gaps=draw(st.sampled_from([(), (0.0, 1e-6, 1e7)])),
        softplus=draw(st.booleans()),
        reverse=draw(st.booleans()) if reverse is None else reverse,
        state_width=draw(st.sampled_from([0, 1, 2] if kind == "foh" else [0, 1])),
        dtype=dtype,
    )


def _weights(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e^x - 1) / x and (e^x - 1 - x) / x^2, by their series near zero, derivatives as exact."""
    near = x.abs() < 0.5
    small, large = torch.where(near, x, 0.0), torch.where(near, -1.0, x)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(14, -1, -1):
        first = first * small + 1 / math.factorial(k + 1)
        second = second * small + 1 / math.factorial(k + 2)
    held = torch.expm1(large)
    far_second = (held - large) / large**2
    return torch.where(near, first, held / large), torch.where(near, second, far_second)


def _walk(p: Inputs, state: Tensor | None, case: Case, kind: str) -> tuple[Tensor, Tensor]:
    """Walk the equations with inputs (T, D, N): outputs a state component, and final states."""
    N = p["A"].shape[2]
    step = p["delta"] + p.get("delta_bias", 0)
    step = torch.logaddexp(step, torch.zeros_like(step)) if case.softplus else step
    s = step + p["gap_rate"] * p["gap"] if "gap" in p else step
    decay = torch.exp(p["A"] * s).unbind()
    v = p["B"] * p["u"]
    held = rising = torch.ones_like(v)
    if kind in ("zoh", "foh"):
        held, rising = (s * weight for weight in _weights(p["A"] * s))
    alone = {"euler": step, "impulse": held, "zoh": held, "foh": rising}[kind] * v
    alone, from_before = alone.unbind(), (held - rising).unbind()
    tokens, finals = {}, []
    for index, start in enumerate(borders(case.lengths)[:-1]):
        order = range(start, start + case.lengths[index])
        h = torch.zeros_like(v[0]) if state is None else state[index, :, :N]
        before = state[index, :, N:] if state is not None and state.shape[2] == 2 * N else None
        for t in reversed(order) if case.reverse else order:
            term = alone[t]
            if kind == "foh":
                before = v[t] if before is None else before
                term = from_before[t] * before + term
                before = v[t]
            h = decay[t] * h + term
            tokens[t] = p["C"][t] * h
        finals.append(h if before is None else torch.cat((h, before), -1))
    y = torch.stack([tokens[t] for t in sorted(tokens)])
    # The skip goes by the first component: it is one summand, whatever N.
    y = y + p["D"] * p["u"] * torch.eye(1, N, dtype=y.dtype) if "D" in p else y
    y = y * p["z"] * torch.sigmoid(p["z"]) if "z" in p else y
    return y, torch.stack(finals)


def loop_of(case: Case, kind: str) -> dict[str, tuple[Tensor, float]]:
    """Output, final state and gradients in float64, each with the size of its largest summand."""
    T, D = case.inputs["u"].shape
    N = case.inputs["A"].shape[1]
    place = {"A": (1, D, N), "B": (T, 1, N), "C": (T, 1, N), "gap": (T, 1, 1)}
    place |= dict.fromkeys(("D", "gap_rate", "delta_bias"), (1, D, 1))
    exact = {name: tensor.double() for name, tensor in case.inputs.items()}
    state = exact.pop("initial_state", None)
    own = {name: tensor.reshape(place.get(name, (T, D, 1))) for name, tensor in exact.items()}
    own = {name: part.expand(T, D, N).clone().requires_grad_() for name, part in own.items()}
    leaves = own if state is None else {**own, "initial_state": state.requires_grad_()}
    y, final = _walk(own, state, case, kind)
    loss = (y * case.dy.double()[:, :, None]).sum() + (final * case.dfinal.double()).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    parts = dict(zip(leaves, gradients, strict=True))
    found = {"y": (y.sum(2), y), "final": (final, final)}
    for name, g in parts.items():
        whole = g if name == "initial_state" else g.sum_to_size(place.get(name, (T, D, 1)))
        found[name] = (whole.reshape(case.inputs[name].shape), g)
    size = {name: max(x.abs().max().item() for x in both) for name, both in found.items()}
    return {name: (whole.detach(), size[name]) for name, (whole, _) in found.items()}


def assert_is_the_loop(
    case: Case, kind: str, compute: Callable[[Inputs], tuple[Tensor, Tensor]]
) -> None:
    """`compute` gives the loop's output, final state and gradients of every input."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in case.inputs.items()}
    y, final = compute(leaves)
    loss = (y * case.dy).sum() + (final * case.dfinal).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    got = {"y": y, "final": final, **dict(zip(leaves, gradients, strict=True))}
    dtype, moved = case.dy.dtype, None
    for name, (wanted, size) in loop_of(case, kind).items():
        assert got[name].dtype == dtype, name
        assert got[name].shape == wanted.shape, name
        assert torch.isfinite(got[name]).all(), name
        error, allowed = (got[name].double() - wanted).abs(), TOLERANCE[dtype] * size + UNDERFLOW
        if error.max() > allowed:
            # exp(A s) at A s = -50 is known to 50 roundings: what A's last bit moves, four times.
            last_bit = {
                **case.inputs,
                "A": case.inputs["A"].double() * (1 + torch.finfo(dtype).eps),
            }
            moved = moved or loop_of(replace(case, inputs=last_bit), kind)
            error = error - 4 * (moved[name][0] - wanted).abs()
        assert error.max() <= allowed, (name, error.max().item(), size)


def rows_of(inputs: Inputs, rows: list[int], sequences: list[int] | None = None) -> Inputs:
    """The inputs with other token rows and, where given, the states of other sequences."""
    chosen = {name: x[rows] if name in WIDE else x for name, x in inputs.items()}
    if sequences is not None and "initial_state" in inputs:
        chosen["initial_state"] = inputs["initial_state"][sequences]
    return chosen


def inverse(permutation: list[int]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)


@pytest.mark.parametrize(
    ("backend", "kind", "dtype"),
    [pytest.param(*p.values, torch.float32, marks=p.marks) for p in SERVED]
    + [(backend, kind, torch.float64) for backend in ("torch", "reference") for kind in INPUTS],
)
@few
@given(data=st.data())
def test_a_backend_is_the_loop_in_values_and_gradients(
    backend: str | None, kind: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    case = data.draw(cases(kind, dtype=dtype))
    assert_is_the_loop(case, kind, case.whole(input=kind, backend=backend))


@served
@fewer
@given(data=st.data())
def test_sequences_cut_anywhere_and_continued_from_their_states_are_the_sequences(
    backend: str, kind: str, data: st.DataObject
) -> None:
    lengths = st.lists(st.sampled_from([2, 3, 32, 33, 65]), min_size=1, max_size=3)
    case = data.draw(cases(kind, lengths))
    starts = borders(case.lengths)
    cuts = tuple(data.draw(st.integers(1, length - 1)) for length in case.lengths)
    heads = [s + t for s, cut in zip(starts, cuts, strict=False) for t in range(cut)]
    tails = sorted(set(range(starts[-1])) - set(heads))
    rests = tuple(length - cut for length, cut in zip(case.lengths, cuts, strict=True))
    halves = [(heads, cuts), (tails, rests)]

    def in_two(inputs: Inputs) -> tuple[Tensor, Tensor]:
        first, second = reversed(halves) if case.reverse else halves
        how = {"input": kind, "backend": backend}
        y_first, state = case.scan(rows_of(inputs, first[0]), first[1], **how)
        after = {**rows_of(inputs, second[0]), "initial_state": state}
        y_second, final = case.scan(after, second[1], **how)
        return torch.cat((y_first, y_second))[inverse(first[0] + second[0])], final

    assert_is_the_loop(case, kind, in_two)


@served
@fewer
@given(data=st.data())
def test_subjects_packed_in_another_order_keep_their_outputs_and_states(
    backend: str, kind: str, data: st.DataObject
) -> None:
    lengths = st.lists(st.sampled_from(LENGTHS), min_size=2, max_size=5)
    case = data.draw(cases(kind, lengths))
    order = data.draw(st.permutations(range(len(case.lengths))))
    starts = borders(case.lengths)
    rows = [t for s in order for t in range(starts[s], starts[s + 1])]

    def shuffled(inputs: Inputs) -> tuple[Tensor, Tensor]:
        lengths = tuple(case.lengths[s] for s in order)
        y, final = case.scan(rows_of(inputs, rows, order), lengths, input=kind, backend=backend)
        return y[inverse(rows)], final[inverse(order)]

    assert_is_the_loop(case, kind, shuffled)


@served
@fewer
@given(data=st.data())
def test_a_batch_is_its_sequences_packed(backend: str, kind: str, data: st.DataObject) -> None:
    lengths = st.tuples(st.sampled_from([1, 5, 33]), st.integers(1, 4)).map(lambda p: [p[0]] * p[1])
    case = data.draw(cases(kind, lengths))
    size = (len(case.lengths), case.lengths[0])

    def batched(inputs: Inputs) -> tuple[Tensor, Tensor]:
        shaped = {n: x.unflatten(0, size) if n in WIDE else x for n, x in inputs.items()}
        form: Any = {"delta_softplus": case.softplus, "reverse": case.reverse, "input": kind}
        y, final = selective_scan(**shaped, **form, return_final_state=True, backend=backend)
        assert y.shape == (*size, inputs["u"].shape[1])
        return y.flatten(0, 1), final

    assert_is_the_loop(case, kind, batched)


@served
@fewer
@given(data=st.data())
def test_walking_backwards_is_flipping_inputs_and_output(
    backend: str, kind: str, data: st.DataObject
) -> None:
    case = data.draw(cases(kind, reverse=True))
    starts = borders(case.lengths)
    rows = [t for s, end in enumerate(starts[1:]) for t in range(end - 1, starts[s] - 1, -1)]

    forward = replace(case, reverse=False).whole(input=kind, backend=backend)

    def flipped(inputs: Inputs) -> tuple[Tensor, Tensor]:
        y, final = forward(rows_of(inputs, rows))
        return y[rows], final

    assert_is_the_loop(case, kind, flipped)


@served
@pytest.mark.parametrize("rate", [-1e-6, -1e-2, -1e4])
@pytest.mark.parametrize("gaps", [(), (0.0, 1e-6, 1e7)], ids=["", "any gaps"])
@pytest.mark.parametrize("softplus", [True, False])
def test_slow_and_fast_rates_and_any_gap_are_the_loop_and_finite(
    backend: str, kind: str, rate: float, gaps: tuple[float, ...], softplus: bool
) -> None:
    case = make_case(3, kind, (1, 33, 6), 5, 3, gaps=gaps, softplus=softplus, state_width=1)
    case.inputs["A"].fill_(rate)
    case.inputs["gap_rate"][0] = 0.0
    assert_is_the_loop(case, kind, case.whole(input=kind, backend=backend))


@served
@fewer
@given(seed=st.integers(0, 2**31), first=st.floats(0, 20), second=st.floats(0, 20))
def test_without_input_two_gaps_are_one_and_the_state_fades_by_the_exact_solution(
    backend: str, kind: str, seed: int, first: float, second: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    A, kappa = -torch.rand(17, 5, generator=generator), torch.rand(17, generator=generator)
    state = torch.randn(1, 17, 5, generator=generator)
    # No input and, with delta at zero, no step: time alone acts.
    quiet: Any = {"A": A, "gap_rate": kappa, "initial_state": state, "input": kind}

    def after(*gaps: float) -> Tensor:
        rows, columns = torch.zeros(len(gaps), 17), torch.ones(len(gaps), 5)
        told: Any = {
            "u": rows,
            "delta": rows,
            "B": columns,
            "C": columns,
            "gap": torch.tensor(gaps),
        }
        return selective_scan(**told, **quiet, return_final_state=True, backend=backend)[1][..., :5]

    exact = state.double() * (A.double() * kappa.double()[:, None] * (first + second)).exp()
    for got in (after(first, second), after(first + second), after(first + second, 0.0)):
        assert (got - exact).abs().max() <= 2e-6 * state.abs().max()
