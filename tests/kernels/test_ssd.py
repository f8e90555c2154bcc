"""The chunked products are the scan with decays repeated over channels and states."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tsfm.errors import InputError
from tsfm.kernels.selective_scan import selective_scan
from tsfm.kernels.ssd import INPUTS, segment_sums, ssd

BORDERS = torch.tensor([0, 1, 3, 64, 65, 128, 150])
N_TOKENS, N_HEADS, N_CHANNELS, N_STATE, N_SEQUENCES = 150, 4, 3, 5, 6
PER_HEAD = ("A", "D", "gap_rate", "delta_bias")


def make_inputs(n_groups: int | None = None, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    gate = (N_TOKENS, N_STATE) if n_groups is None else (N_TOKENS, n_groups, N_STATE)
    return {
        "x": normal(N_TOKENS, N_HEADS, N_CHANNELS),
        "delta": normal(N_TOKENS, N_HEADS),
        "A": -normal(N_HEADS).abs() - 0.05,
        "B": normal(*gate),
        "C": normal(*gate),
        "D": normal(N_HEADS),
        "z": normal(N_TOKENS, N_HEADS, N_CHANNELS),
        "gap": normal(N_TOKENS).abs() * 5,
        "gap_rate": normal(N_HEADS).abs() * 0.3,
        "delta_bias": normal(N_HEADS),
        "initial_state": normal(N_SEQUENCES, N_HEADS, N_CHANNELS, N_STATE),
    }


def by_the_scan(**given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """y and final states by the scan's oracle, head by head."""
    x, initial = given["x"], given["initial_state"]
    _, n_heads, n_channels = x.shape
    outputs = []
    for head in range(n_heads):
        B, C = given["B"], given["C"]
        if B.dim() == 3:
            group = head // (n_heads // B.shape[1])
            B, C = B[:, group], C[:, group]
        outputs.append(
            selective_scan(
                x[:, head],
                given["delta"][:, head, None].expand(-1, n_channels),
                given["A"][head].expand(n_channels, B.shape[-1]),
                B,
                C,
                given["D"][head].expand(n_channels),
                given["z"][:, head],
                gap=given["gap"],
                gap_rate=given["gap_rate"][head].expand(n_channels),
                delta_bias=given["delta_bias"][head].expand(n_channels),
                initial_state=initial[:, head],
                delta_softplus=True,
                input=given["input"],
                cu_seqlens=BORDERS,
                return_final_state=True,
                backend="reference",
            )
        )
    y, final = zip(*outputs, strict=True)
    return torch.stack(y, 1), torch.stack(final, 1)


def by_chunks(**given: Any) -> Any:
    return ssd(**given, cu_seqlens=BORDERS, delta_softplus=True, return_final_state=True)


def run(form: Any, inputs: dict[str, torch.Tensor], **options: Any) -> list[torch.Tensor]:
    """Output, final state and all gradients of one weighted sum of both."""
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    y, final = form(**leaves, **options)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y.dtype).view_as(y)
    others = torch.linspace(1, -1, final.numel(), dtype=torch.float64).to(final.dtype)
    ((y * weights).sum() + (final * others.view_as(final)).sum()).backward()
    gradients = [leaf.grad for leaf in leaves.values()]
    assert all(g is not None for g in gradients)
    return [y.detach(), final.detach(), *(g for g in gradients if g is not None)]


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(
        float((f.double() - e).abs().max() / e.abs().max())
        for f, e in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("n_groups", [None, 1, 2, 4])
def test_it_is_the_scan_with_repeated_decays_and_all_gradients(
    kind: str, n_groups: int | None
) -> None:
    inputs = make_inputs(n_groups)
    expected = run(by_the_scan, inputs, input=kind)
    for chunk_size in (1, 7, 64, 1000):
        found = run(by_chunks, inputs, input=kind, chunk_size=chunk_size)
        assert worst(found, expected) < 1e-12, chunk_size


def test_float32_is_close_to_float64() -> None:
    inputs = make_inputs(2)
    narrow = {k: v.float() for k, v in inputs.items()}
    expected = run(by_chunks, {k: v.double() for k, v in narrow.items()}, input="zoh")
    assert worst(run(by_chunks, narrow, input="zoh"), expected) < 5e-6


def test_a_gap_of_a_thousand_years_does_not_blur_the_seconds_beside_it() -> None:
    gaps = torch.tensor([0.0, 1e-6, 2e-6, 1e7, 1e-6, 1e-6, 3e-6, 1e7, 2e-6, 1e-6])
    # Rates at which a thousand years leave nothing, and seconds only just count.
    inputs: dict[str, Any] = {
        "x": torch.ones(10, 1, 1),
        "delta": torch.zeros(10, 1),
        "A": torch.tensor([-1.0]),
        "B": torch.eye(10),
        "C": torch.ones(10, 10),
        "gap_rate": torch.tensor([3e4]),
    }
    _, state = ssd(**inputs, gap=gaps, input="impulse", return_final_state=True)
    exact = [0.0] * 7 + [float(torch.exp(torch.tensor(-0.09))), float(torch.tensor(-0.03).exp()), 1]
    torch.testing.assert_close(state.flatten(), torch.tensor(exact), rtol=1e-5, atol=0)


def test_segment_sums_add_only_what_lies_between() -> None:
    a = torch.tensor([1e7, 1e-6, 2e-6, -1e7, 5e-6])
    found = segment_sums(a)
    exact = torch.zeros(5, 5, dtype=torch.float64)
    for i in range(5):
        for j in range(i):
            exact[i, j] = a.double()[j + 1 : i + 1].sum()
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", INPUTS)
def test_gradients_are_finite_where_every_decay_underflows(kind: str) -> None:
    inputs = {k: v.float() for k, v in make_inputs().items()}
    inputs["gap"] = torch.tensor([0.0, 1e-6, 1e7]).repeat(50)
    assert all(torch.isfinite(g).all() for g in run(by_chunks, inputs, input=kind))


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_a_packed_subject_is_the_subject_alone(chunk_size: int) -> None:
    inputs = make_inputs()
    initial = inputs.pop("initial_state")
    options: dict[str, Any] = {"return_final_state": True, "chunk_size": chunk_size}
    y, final = ssd(**inputs, cu_seqlens=BORDERS, initial_state=initial, **options)
    for s, (start, end) in enumerate(itertools.pairwise(BORDERS.tolist())):
        alone = {k: v if k in PER_HEAD else v[start:end] for k, v in inputs.items()}
        found, state = ssd(**alone, initial_state=initial[s : s + 1], **options)
        torch.testing.assert_close(found, y[start:end])
        torch.testing.assert_close(state[0], final[s])


def test_no_subject_feels_the_one_before_it() -> None:
    inputs = make_inputs()
    inputs["x"].requires_grad_()
    y = ssd(**inputs, cu_seqlens=BORDERS)
    (gradient,) = torch.autograd.grad(y[65:128].sum(), inputs["x"])
    assert gradient[65:128].any()
    assert not gradient[:65].any()
    assert not gradient[128:].any()


@pytest.mark.parametrize("cut", [1, 31, 63, 64, 65, 149])
@pytest.mark.parametrize("chunk_size", [16, 64])
def test_a_sequence_cut_in_two_goes_on_from_its_state(cut: int, chunk_size: int) -> None:
    inputs = make_inputs(2)
    inputs["initial_state"] = inputs["initial_state"][:1]
    options: dict[str, Any] = {"return_final_state": True, "chunk_size": chunk_size, "input": "zoh"}
    y, final = ssd(**inputs, **options)
    whole = (*PER_HEAD, "initial_state")
    head = {k: v if k in whole else v[:cut] for k, v in inputs.items()}
    tail = {k: v if k in whole else v[cut:] for k, v in inputs.items()}
    first, tail["initial_state"] = ssd(**head, **options)
    second, last = ssd(**tail, **options)
    torch.testing.assert_close(torch.cat([first, second]), y)
    torch.testing.assert_close(last, final)


@pytest.mark.parametrize("n_groups", [None, 2])
def test_a_batch_is_its_packed_form(n_groups: int | None) -> None:
    inputs = make_inputs(n_groups)
    packed = ssd(**inputs, cu_seqlens=torch.arange(0, 151, 25))
    whole = (*PER_HEAD, "initial_state")
    batch = {k: v if k in whole else v.unflatten(0, (6, 25)) for k, v in inputs.items()}
    torch.testing.assert_close(ssd(**batch).flatten(0, 1), packed)


def test_its_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    leaves = [leaf(7, 2, 2), leaf(7, 2), leaf(2), leaf(7, 2), leaf(7, 2), leaf(2, 2, 2, 2)]

    def form(x: Any, delta: Any, rate: Any, B: Any, C: Any, initial: Any) -> Any:
        return ssd(
            x, delta, -rate.abs() - 0.1, B, C, gap=torch.linspace(0, 2, 7).double(),
            gap_rate=torch.ones(2).double(), delta_softplus=True, input="zoh", chunk_size=3,
            cu_seqlens=torch.tensor([0, 2, 7]), initial_state=initial, return_final_state=True,
        )  # fmt: skip

    assert torch.autograd.gradcheck(form, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_width_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    narrow = make_inputs(dtype=dtype)
    y, final = by_chunks(**narrow, input="euler")
    wide, last = by_chunks(**{k: v.float() for k, v in narrow.items()}, input="euler")
    assert y.dtype == dtype
    assert torch.equal(y, wide.to(dtype))
    assert torch.equal(final, last)


@pytest.mark.parametrize(
    ("change", "code", "place"),
    [
        ({"x": torch.zeros(150, 12)}, "wrong_shape", "x"),
        ({"delta": torch.zeros(150, 4, 3)}, "wrong_shape", "delta"),
        ({"A": torch.zeros(4, 5)}, "wrong_shape", "A"),
        ({"B": torch.zeros(150, 3, 5), "C": torch.zeros(150, 3, 5)}, "wrong_shape", "B"),
        ({"B": torch.zeros(150)}, "wrong_shape", "B"),
        ({"C": torch.zeros(150, 6)}, "wrong_shape", "C"),
        ({"D": torch.zeros(3)}, "wrong_shape", "D"),
        ({"z": torch.zeros(150, 4)}, "wrong_shape", "z"),
        ({"gap": torch.zeros(3)}, "wrong_shape", "gap"),
        ({"gap_rate": torch.zeros(3)}, "wrong_shape", "gap_rate"),
        ({"delta_bias": torch.zeros(3)}, "wrong_shape", "delta_bias"),
        ({"initial_state": torch.zeros(6, 4, 5, 3)}, "wrong_shape", "initial_state"),
        ({"gap": None}, "missing_gap", "gap"),
        ({"gap_rate": None}, "missing_gap_rate", "gap_rate"),
        ({"delta": torch.zeros(150, 4, dtype=torch.int64)}, "wrong_type", "delta"),
        ({"C": torch.zeros(150, 5, device="meta")}, "wrong_device", "C"),
        ({"input": "foh"}, "unknown_scan_input", "input"),
        ({"chunk_size": 0}, "bad_chunk_size", "chunk_size"),
        ({"cu_seqlens": torch.tensor([0, 20, 10, 150])}, "bad_cu_seqlens", "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 100])}, "bad_cu_seqlens", "cu_seqlens"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], code: str, place: str) -> None:
    given: dict[str, Any] = {**make_inputs(), "cu_seqlens": BORDERS, **change}
    with pytest.raises(InputError) as caught:
        ssd(**given)
    assert (caught.value.code, caught.value.place) == (code, place)
