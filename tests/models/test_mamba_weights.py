"""Mamba-1 checkpoints of transformers and mamba-ssm give the hidden states that they give there."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tsfm.errors import InputError, IntegrityError, ModelMismatch, TsfmError
from tsfm.models.mamba_weights import load_mamba1, mamba1_from_tensors

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

N_CODES, D_MODEL = 40, 24
CODES = torch.randint(0, N_CODES, (3, 17), generator=torch.Generator().manual_seed(0))
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "biases": {"use_bias": True, "use_conv_bias": False},
    "sizes": {"time_step_rank": 5, "conv_kernel": 3, "expand": 3, "layer_norm_epsilon": 1e-2},
}


def make_peer(kind: str = "MambaModel", **changes: Any) -> Any:
    """A model of transformers with every parameter away from its starting value."""
    torch.manual_seed(0)
    sizes = {"vocab_size": N_CODES, "hidden_size": D_MODEL, "state_size": 6, "num_hidden_layers": 2}
    config = transformers.MambaConfig(**sizes, use_mambapy=False, use_cache=False, **changes)
    peer = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return peer.requires_grad_(False)


def hidden_of(peer: Any, codes: Tensor = CODES) -> Tensor:
    return getattr(peer, "backbone", peer)(codes).last_hidden_state


def worst(found: Tensor, expected: Tensor) -> float:
    return float((found.detach() - expected).abs().max() / expected.abs().max())


def as_mamba_ssm(peer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and configuration of a causal model as mamba-ssm writes them."""
    tensors = {
        name.replace("embeddings.weight", "embedding.weight"): tensor
        for name, tensor in peer.state_dict().items()
    }
    config = {
        "d_model": D_MODEL, "d_intermediate": 0, "n_layer": 2, "vocab_size": N_CODES - 3,
        "ssm_cfg": {"layer": "Mamba1", "d_state": 6}, "attn_layer_idx": [], "attn_cfg": {},
        "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
        "pad_vocab_size_multiple": 8, "tie_embeddings": True,
    }  # fmt: skip
    return tensors, config


def save_mamba_ssm(peer: Any, folder: Path) -> None:
    tensors, config = as_mamba_ssm(peer)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_peer().save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, key: str, value: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_hidden_states_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    peer = make_peer(**VARIANTS[variant])
    peer.save_pretrained(tmp_path)
    model = load_mamba1(tmp_path)
    expected = hidden_of(peer)
    assert worst(model(CODES), expected) < 1e-5
    assert worst(model(CODES[0]), expected[0]) < 1e-5


def test_packed_sequences_of_any_length_are_each_what_transformers_gives(saved: Path) -> None:
    peer, model = make_peer(), load_mamba1(saved)
    packed = torch.cat([CODES[0, :3], CODES[1], CODES[2, :9]])
    hidden = model(packed, torch.tensor([0, 3, 20, 29]))
    for row, (start, end) in enumerate([(0, 3), (3, 20), (20, 29)]):
        assert (
            worst(hidden[start:end], hidden_of(peer, CODES[row : row + 1, : end - start])[0]) < 1e-5
        )


def test_in_float64_they_agree_to_the_last_digits(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mamba import modeling_mamba

    class InDouble:
        """torch, with a float32 twice as wide: transformers narrows inside its layers."""

        float32 = torch.float64

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    peer = make_peer().double()
    monkeypatch.setattr(modeling_mamba, "torch", InDouble())
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    assert worst(load_mamba1(saved, dtype=torch.float64)(CODES), hidden_of(peer)) < 1e-12


@pytest.mark.parametrize("tied", [True, False])
def test_a_causal_model_has_the_logits_of_transformers(tied: bool, tmp_path: Path) -> None:
    peer = make_peer("MambaForCausalLM", tie_word_embeddings=tied)
    peer.save_pretrained(tmp_path)
    model = load_mamba1(tmp_path)
    expected = peer(CODES).logits
    assert (model.head is None) == tied
    assert worst(model.logits(model(CODES)), expected) < 1e-5


def test_weights_in_shards_are_one_model(tmp_path: Path) -> None:
    peer = make_peer()
    peer.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert worst(load_mamba1(tmp_path)(CODES), hidden_of(peer)) < 1e-5


def test_the_names_of_mamba_ssm_are_known(tmp_path: Path) -> None:
    peer = make_peer("MambaForCausalLM")
    save_mamba_ssm(peer, tmp_path)
    model = load_mamba1(tmp_path)
    assert worst(model(CODES), hidden_of(peer)) < 1e-5
    assert model.embedding.num_embeddings == N_CODES  # 37 padded to a multiple of 8


def test_one_more_token_at_a_time_gives_what_transformers_gives_for_the_whole(saved: Path) -> None:
    expected, model = hidden_of(make_peer()), load_mamba1(saved)
    with torch.no_grad():
        hidden, state = model(CODES[:, :5], return_state=True)
    assert worst(hidden, expected[:, :5]) < 1e-5
    for t in range(5, CODES.shape[1]):
        assert worst(model.step(CODES[:, t], state), expected[:, t]) < 1e-5


def test_loading_leaves_the_random_numbers_alone_and_the_model_can_be_trained(saved: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model = load_mamba1(saved)
    assert torch.equal(torch.rand(3), expected)
    model(CODES).sum().backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("layers.1.mixer.A_log", None),
        ("layers.0.mixer.conv1d.weight", torch.zeros(48, 5)),
        ("norm_f.weight", torch.full((D_MODEL,), torch.nan)),
        ("layers.0.mixer.b_norm.weight", torch.ones(6)),
        ("layers.2.norm.weight", torch.ones(D_MODEL)),
        ("backbone.embedding.weight", torch.ones(N_CODES, D_MODEL)),
    ],
)
def test_a_tensor_too_few_too_many_or_wrong_is_named(
    saved: Path, name: str, replacement: Tensor | None
) -> None:
    weights = load_file(saved / "model.safetensors")
    if replacement is None:
        del weights[name]
    else:
        weights[name] = replacement
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(ModelMismatch) as caught:
        load_mamba1(saved)
    assert caught.value.code == "weights_mismatch"
    assert name in str(caught.value)


def test_a_tied_head_that_differs_is_refused() -> None:
    tensors, config = as_mamba_ssm(make_peer("MambaForCausalLM"))
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    with pytest.raises(ModelMismatch) as caught:
        mamba1_from_tensors(tensors, config)
    assert "lm_head.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "falcon_mamba"),
        ("hidden_act", "gelu"),
        ("hidden_size", 0),
        ("state_size", "6"),
        ("use_bias", 1),
    ],
)
def test_what_is_not_mamba1_in_transformers_is_refused(saved: Path, key: str, value: Any) -> None:
    change(saved, key, value)
    with pytest.raises(ModelMismatch) as caught:
        load_mamba1(saved)
    assert (caught.value.code, caught.value.place) == ("not_mamba1", key)


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("ssm_cfg", {"layer": "Mamba2"}, "ssm_cfg.layer"),
        ("ssm_cfg", {"headdim": 64}, "ssm_cfg"),
        ("attn_layer_idx", [1], "attn_layer_idx"),
        ("d_intermediate", 96, "d_intermediate"),
        ("rms_norm", False, "rms_norm"),
    ],
)
def test_what_is_not_mamba1_in_mamba_ssm_is_refused(key: str, value: Any, place: str) -> None:
    tensors, config = as_mamba_ssm(make_peer("MambaForCausalLM"))
    with pytest.raises(ModelMismatch) as caught:
        mamba1_from_tensors(tensors, {**config, key: value})
    assert (caught.value.code, caught.value.place) == ("not_mamba1", place)


def test_more_layers_than_tensors_are_refused_at_once(saved: Path) -> None:
    change(saved, "num_hidden_layers", 1_000_000)
    with pytest.raises(ModelMismatch) as caught:
        load_mamba1(saved)
    assert caught.value.code == "weights_mismatch"


class Payload:
    """Makes a folder when unpickled by a loader that runs what it reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    peer = make_peer("MambaForCausalLM")
    save_mamba_ssm(peer, tmp_path)
    torch.save({"payload": Payload(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(IntegrityError):
        load_mamba1(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_shard_outside_the_folder_is_not_opened(tmp_path: Path) -> None:
    inside = tmp_path / "model"
    make_peer().save_pretrained(inside)
    os.replace(inside / "model.safetensors", tmp_path / "model.safetensors")
    index = {"weight_map": {"norm_f.weight": "../model.safetensors"}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError):
        load_mamba1(inside)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_a_clear_error(saved: Path, missing: str) -> None:
    (saved / missing).unlink()
    with pytest.raises(InputError) as caught:
        load_mamba1(saved)
    assert caught.value.code == "missing_model"


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors"])
def test_a_broken_file_is_a_clear_error(saved: Path, broken: str) -> None:
    (saved / broken).write_bytes(b"{")
    with pytest.raises(TsfmError) as caught:
        load_mamba1(saved)
    assert caught.value.code == "bad_weights"


@pytest.mark.parametrize("value", ["abc", None, float("nan"), -1.0, 0, True])
def test_a_norm_without_a_small_positive_number_is_refused(saved: Path, value: Any) -> None:
    change(saved, "layer_norm_epsilon", value)
    with pytest.raises(ModelMismatch) as caught:
        load_mamba1(saved)
    assert (caught.value.code, caught.value.place) == ("not_mamba1", "layer_norm_epsilon")


def test_a_configuration_nested_without_end_is_a_clear_error(saved: Path) -> None:
    (saved / "config.json").write_text("[" * 100_000)
    with pytest.raises(TsfmError) as caught:
        load_mamba1(saved)
    assert caught.value.code == "bad_weights"


def test_every_damaged_byte_of_a_pickle_is_a_clear_error(tmp_path: Path) -> None:
    peer = make_peer("MambaForCausalLM")
    save_mamba_ssm(peer, tmp_path)
    whole = (tmp_path / "pytorch_model.bin").read_bytes()
    at = whole.index(b"backbone")
    (tmp_path / "pytorch_model.bin").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(TsfmError):
        load_mamba1(tmp_path)


def test_codes_with_an_axis_too_many_are_refused() -> None:
    tensors, config = as_mamba_ssm(make_peer("MambaForCausalLM"))
    model = mamba1_from_tensors(tensors, config)
    with pytest.raises(InputError) as caught:
        # As users call it: in tests shapes are checked before.
        inspect.unwrap(type(model).forward)(model, torch.zeros(1, 3, 7, dtype=torch.int64))
    assert (caught.value.code, caught.value.place) == ("wrong_shape", "code")
