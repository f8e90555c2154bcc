"""Net1D has the released size and layout, and loads a checkpoint whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tsfm.errors import InputError, IntegrityError, ModelMismatch
from tsfm.models.net1d import BLOCKS, FILTERS, Net1D

SMALL = {"n_labels": 3, "filters": (16, 32, 32), "blocks": (2, 1, 2)}


def small(n_leads: int = 2, *, seed: int = 0) -> Net1D:
    torch.manual_seed(seed)
    return Net1D(n_leads, **SMALL).eval()


def with_norms(state: dict[str, Tensor], widths: tuple[int, ...], blocks: tuple[int, ...]) -> dict:
    """The state as released: with norms before every convolution, which are never applied."""
    found = dict(state)

    def add(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{part}"] = torch.rand(width)
        found[f"{name}.num_batches_tracked"] = torch.tensor(7)

    add("first_bn", 64)
    n_in = 64
    for i, (width, n) in enumerate(zip(widths, blocks, strict=True)):
        for j in range(n):
            at = f"stage_list.{i}.block_list.{j}"
            for k, channels in enumerate((n_in, width, width)):
                add(f"{at}.bn{k + 1}", channels)
            n_in = width
    return found


@pytest.mark.parametrize(("n_leads", "least_million"), [(12, 30.75), (1, 30.74)])
def test_it_is_as_large_as_the_released_one_less_its_idle_norms(
    n_leads: int, least_million: float
) -> None:
    with torch.device("meta"):
        model = Net1D(n_leads)
    n = sum(p.numel() for p in model.parameters())
    assert n == pytest.approx(least_million * 1e6, abs=5e3)
    state = with_norms(model.state_dict(), FILTERS, BLOCKS)
    norms = sum(
        tensor.numel() for name, tensor in state.items()
        if name not in model.state_dict() and name.endswith(("weight", "bias"))
    )  # fmt: skip
    assert norms == 66_368
    assert n + norms == {12: 30_819_014, 1: 30_807_750}[n_leads]


def test_names_are_those_of_the_released_layout() -> None:
    names = set(small().state_dict())
    of_a_block = {
        f"stage_list.1.block_list.0.{part}.{what}"
        for part in ("conv1.conv", "conv2.conv", "conv3.conv", "se_fc1", "se_fc2")
        for what in ("weight", "bias")
    }
    assert of_a_block <= names
    assert {n for n in names if not n.startswith("stage_list")} == {
        "first_conv.conv.weight", "first_conv.conv.bias", "dense.weight", "dense.bias",
    }  # fmt: skip


def plain(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network once more, written out for one record of two leads, with plain loops."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = state[f"{name}.conv.weight"], state[f"{name}.conv.bias"]
        taps, n_out = weight.shape[-1], -(-x.shape[-1] // stride)
        lacking = max(0, (n_out - 1) * stride + taps - x.shape[-1])
        padded = F.pad(x, (lacking // 2, lacking - lacking // 2))
        group_in = weight.shape[1]
        group_out = weight.shape[0] // (x.shape[0] // group_in)
        out = torch.empty(weight.shape[0], n_out)
        for channel in range(weight.shape[0]):
            first = channel // group_out * group_in
            for t in range(n_out):
                seen = padded[first : first + group_in, t * stride : t * stride + taps]
                out[channel, t] = (weight[channel] * seen).sum() + bias[channel]
        return out

    def swish(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    x = swish(conv("first_conv", x, 2))
    for i, n_blocks in enumerate(SMALL["blocks"]):
        for j in range(n_blocks):
            at = f"stage_list.{i}.block_list.{j}"
            y = conv(f"{at}.conv1", x if i == j == 0 else swish(x))
            y = conv(f"{at}.conv2", swish(y), 2 if j == 0 else 1)
            y = conv(f"{at}.conv3", swish(y))
            gate = swish(state[f"{at}.se_fc1.weight"] @ y.mean(1) + state[f"{at}.se_fc1.bias"])
            gate = state[f"{at}.se_fc2.weight"] @ gate + state[f"{at}.se_fc2.bias"]
            y = y / (1 + torch.exp(-gate))[:, None]
            if j == 0:
                even = torch.cat([x, torch.zeros(len(x), x.shape[1] % 2)], 1)
                x = torch.maximum(even[:, ::2], even[:, 1::2])
            wider = torch.zeros_like(y)
            first = (len(y) - len(x)) // 2
            if len(x) > len(y):  # a negative pad cuts
                wider = x[-first : -first + len(y)]
            else:
                wider[first : first + len(x)] = x
            x = wider + y
    return state["dense.weight"] @ x.mean(1) + state["dense.bias"]


@pytest.mark.parametrize("n_samples", [48, 45])
def test_it_computes_what_its_description_says(n_samples: int) -> None:
    torch.manual_seed(1)
    model, x = Net1D(2, 3, filters=(64, 80, 96), blocks=SMALL["blocks"]).eval(), torch.randn(
        2, n_samples
    )  # fmt: skip
    with torch.no_grad():
        found = model(x[None])[0]
    torch.testing.assert_close(found, plain(model.state_dict(), x), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_with_idle_norms_gives_the_same_labels() -> None:
    released, model, x = small(seed=1), small(seed=2), torch.randn(2, 2, 200)
    assert not torch.allclose(model(x), released(x))
    state = with_norms(released.state_dict(), SMALL["filters"], SMALL["blocks"])
    model.load_released({f"module.{name}": tensor for name, tensor in state.items()})
    torch.testing.assert_close(model(x), released(x), rtol=0, atol=0)


def test_a_checkpoint_is_read_from_its_file(tmp_path: Path) -> None:
    released, model, x = small(seed=1), small(seed=2), torch.randn(1, 2, 64)
    torch.save({"epoch": 3, "state_dict": released.state_dict()}, tmp_path / "released.pth")
    model.load_released(tmp_path / "released.pth")
    torch.testing.assert_close(model(x), released(x), rtol=0, atol=0)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "nan"])
def test_a_wrong_tensor_is_named_and_nothing_is_loaded(change: str) -> None:
    model, name = small(seed=2), "stage_list.2.block_list.1.conv2.conv.weight"
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = dict(small(seed=1).state_dict())
    if change == "missing":
        del state[name]
    elif change == "extra":
        name = "stage_list.2.block_list.7.conv2.conv.weight"
        state[name] = torch.zeros(1)
    elif change == "shape":
        state[name] = state[name][:-1]
    else:
        state[name] = state[name] * torch.nan
    with pytest.raises(ModelMismatch, match=name.replace(".", r"\.")):
        model.load_released(state)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[key])


class _Harmful:
    def __reduce__(self) -> tuple:
        return print, ("this ran",)


def test_a_file_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": _Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(IntegrityError, match="bad_weights"):
        small().load_released(tmp_path / "bad.pth")
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [b"weights of a network\n", b"hello world", b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"(dp0\n."],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises((IntegrityError, ModelMismatch)):
        small().load_released(tmp_path / "bad.pth")


@pytest.mark.parametrize("state", [{"state_dict": [1, 2]}, {"state_dict": None}, {3: 4}], ids=str)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, state: dict) -> None:
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(IntegrityError, match="bad_weights"):
        small().load_released(tmp_path / "bad.pth")


@pytest.mark.parametrize("kind", ["text", "int8", "complex", "twice"])
def test_what_is_no_weight_is_named(kind: str) -> None:
    model, name = small(seed=2), "stage_list.2.block_list.1.conv2.conv.weight"
    state: dict = dict(small(seed=1).state_dict())
    if kind == "text":
        state[name] = "weight"
    elif kind == "int8":
        state[name] = state[name].to(torch.int8)
    elif kind == "complex":
        state[name] = state[name].to(torch.complex64)
    else:
        state[f"module.{name}"] = state[name] + 1
    with pytest.raises(ModelMismatch, match=name.replace(".", r"\.")):
        model.load_released(state)


@pytest.mark.parametrize(
    "sizes",
    [{"filters": (64, 32), "blocks": (1,)}, {"filters": (40,), "blocks": (1,)},
     {"filters": (16,), "blocks": (0,)}, {"n_labels": 0}, {"filters": (0,), "blocks": (1,)}],
    ids=str,
)  # fmt: skip
def test_sizes_that_are_none_are_refused_when_it_is_built(sizes: dict) -> None:
    with pytest.raises(InputError, match="bad_model_config"):
        Net1D(2, **{"n_labels": 3, **sizes})
