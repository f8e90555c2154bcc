"""What the selective scan refuses: each refusal names its argument and holds none of its values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tsfm.errors import InputError
from tsfm.kernels import selective_scan

T, D, N, S = 6, 3, 2, 2

# A value that would be seen if a message printed what a tensor holds.
TELLTALE = 987.25
FLOATING = ("u", "delta", "A", "B", "C", "D", "z", "gap", "gap_rate", "delta_bias", "initial_state")
ROWS = ("u", "delta", "B", "C", "z", "gap")


def good_arguments() -> dict[str, Any]:
    """Every argument, valid, filled with the value that must not show."""
    shapes = {"u": (T, D), "delta": (T, D), "A": (D, N), "B": (T, N), "C": (T, N), "D": (D,)}
    shapes |= {"z": (T, D), "gap": (T,), "gap_rate": (D,), "delta_bias": (D,)}
    shapes["initial_state"] = (S, D, N)
    arguments: dict[str, Any] = {name: torch.full(size, TELLTALE) for name, size in shapes.items()}
    arguments["A"] = -arguments["A"]
    return {**arguments, "cu_seqlens": torch.tensor([0, 4, 6])}


def assert_refused(place: str, **changes: Any) -> None:
    """The scan with these changes raises an `InputError` at `place` that shows no values."""
    with pytest.raises(InputError) as caught:
        selective_scan(**{**good_arguments(), **changes})
    assert caught.value.place == place
    text = str(caught.value)
    assert caught.value.code
    assert caught.value.remedy
    assert "987" not in text
    assert "tensor(" not in text
    for hidden in (tensor for tensor in changes.values() if isinstance(tensor, Tensor)):
        assert str(hidden) not in text


def test_the_arguments_are_good_before_one_is_spoilt() -> None:
    y, final = selective_scan(**good_arguments(), return_final_state=True)
    assert y.shape == (T, D)
    assert final.shape == (S, D, N)


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("more", [1, -1])
def test_an_axis_too_long_or_too_short_names_its_argument(name: str, axis: int, more: int) -> None:
    size = list(good_arguments()[name].shape)
    size[axis] += more
    # Others are compared with u and A: where u's or A's size is wrong, the other side is named.
    named = {"u": {0: "cu_seqlens", -1: "delta"}, "A": {0: "A", -1: "B"}}
    with pytest.raises(InputError) as caught:
        selective_scan(**{**good_arguments(), name: torch.full(size, TELLTALE)})
    allowed = {name, named[name][axis], *FLOATING[1:]} if name in named else {name}
    assert caught.value.place in allowed
    assert "987" not in str(caught.value)


@pytest.mark.parametrize("name", FLOATING)
def test_an_axis_too_many_names_its_argument(name: str) -> None:
    if name == "u":  # A (B, L, D) u is a batch: then cu_seqlens is what can't be.
        assert_refused("cu_seqlens", u=torch.full((1, T, D), TELLTALE))
    else:
        assert_refused(name, **{name: good_arguments()[name][None]})


@pytest.mark.parametrize("name", FLOATING)
def test_a_scalar_names_its_argument(name: str) -> None:
    assert_refused(name, **{name: torch.tensor(TELLTALE)})


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.complex64])
def test_an_input_that_is_not_floating_names_its_argument(name: str, dtype: torch.dtype) -> None:
    assert_refused(name, **{name: good_arguments()[name].to(dtype)})


@pytest.mark.parametrize("name", FLOATING)
def test_an_input_on_another_device_names_its_argument(name: str) -> None:
    spoilt = {**good_arguments(), name: good_arguments()[name].to("meta")}
    with pytest.raises(InputError) as caught:
        selective_scan(**spoilt)
    # u tells the device that all others must have: with u elsewhere, any of them differs.
    assert caught.value.place in ((*FLOATING, "cu_seqlens") if name == "u" else {name})


def test_borders_on_another_device_name_cu_seqlens() -> None:
    assert_refused("cu_seqlens", cu_seqlens=torch.tensor([0, 4, 6], device="meta"))


def test_a_gap_needs_its_rate_and_a_rate_its_gap() -> None:
    for missing, present in (("gap_rate", "gap"), ("gap", "gap_rate")):
        with pytest.raises(InputError) as caught:
            selective_scan(**{**good_arguments(), missing: None})
        assert caught.value.place in {missing, present}
        assert missing in str(caught.value)
        assert present in str(caught.value)


@pytest.mark.parametrize(
    "borders",
    [
        pytest.param(torch.tensor([0, 6, 4, 6]), id="unsorted"),
        pytest.param(torch.tensor([0, 5, 4]), id="overlapping and too short"),
        pytest.param(torch.tensor([6, 4, 0]), id="falling"),
        pytest.param(torch.tensor([1, 4, 6]), id="not from zero"),
        pytest.param(torch.tensor([-1, 4, 6]), id="from below zero"),
        pytest.param(torch.tensor([0, 4, 5]), id="too short"),
        pytest.param(torch.tensor([0, 4, 7]), id="too long"),
        pytest.param(torch.tensor([0, 4, 4, 6]), id="an empty sequence"),
        pytest.param(torch.tensor([0]), id="one border"),
        pytest.param(torch.tensor([], dtype=torch.int64), id="no border"),
        pytest.param(torch.tensor(6), id="a scalar"),
        pytest.param(torch.tensor([[0, 4, 6]]), id="two axes"),
        pytest.param(torch.tensor([0.0, 4.0, 6.0]), id="floating"),
        pytest.param(torch.tensor([False, True]), id="truth values"),
    ],
)
def test_bad_borders_name_cu_seqlens(borders: Any) -> None:
    assert_refused("cu_seqlens", cu_seqlens=borders, initial_state=None)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_good_borders_may_be_of_either_integer_type(dtype: torch.dtype) -> None:
    borders = torch.tensor([0, 4, 6], dtype=dtype)
    assert selective_scan(**{**good_arguments(), "cu_seqlens": borders}).shape == (T, D)


def test_a_batch_takes_no_borders() -> None:
    batch = {name: good_arguments()[name][None] for name in ROWS}
    assert_refused("cu_seqlens", **batch)
    alone = {**good_arguments(), **batch, "cu_seqlens": None}
    alone["initial_state"] = alone["initial_state"][:1]
    assert selective_scan(**alone).shape == (1, T, D)


@pytest.mark.parametrize("name", ROWS[1:])
def test_a_packed_row_among_batched_ones_names_its_argument(name: str) -> None:
    batch = {row: good_arguments()[row][None] for row in ROWS if row != name}
    assert_refused(name, **batch, cu_seqlens=None, initial_state=None)


@pytest.mark.parametrize("unknown", ["", "ZOH", "bilinear"])
def test_an_unknown_input_is_refused(unknown: Any) -> None:
    assert_refused("input", input=unknown)


@pytest.mark.parametrize("unknown", ["", "cpp", "NATIVE"])
def test_an_unknown_backend_is_refused(unknown: Any) -> None:
    assert_refused("backend", backend=unknown)


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_float64_is_refused_by_backends_of_float32(backend: str) -> None:
    doubles = {name: good_arguments()[name].double() for name in FLOATING}
    assert_refused("backend", **doubles, backend=backend)


def test_a_backend_without_foh_says_so() -> None:
    assert_refused("backend", backend="numba", input="foh")


@pytest.mark.parametrize("backend", [None, "torch", "reference", "numba"])
def test_no_tokens_at_all_are_refused(backend: str | None) -> None:
    empty = {name: good_arguments()[name][:0] for name in ROWS}
    assert_refused("u", **empty, cu_seqlens=None, initial_state=None, backend=backend)


@pytest.mark.parametrize("size", [(0, 4), (2, 0)])
def test_a_batch_without_tokens_is_refused(size: tuple[int, int]) -> None:
    empty = {name: torch.zeros(*size, *good_arguments()[name].shape[1:]) for name in ROWS}
    assert_refused("u", **empty, cu_seqlens=None, initial_state=None)


def test_a_state_twice_as_wide_is_for_foh_only() -> None:
    wide = torch.full((S, D, 2 * N), TELLTALE)
    assert selective_scan(**{**good_arguments(), "initial_state": wide}, input="foh").shape == (
        T,
        D,
    )
    for kind in ("euler", "impulse", "zoh"):
        assert_refused("initial_state", initial_state=wide, input=kind)
