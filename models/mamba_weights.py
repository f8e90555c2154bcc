"""Mamba-1 checkpoints of others, read into our blocks.

Two layouts are in use. Their `config.json` differs: Hugging Face's (`MambaModel` and
`MambaForCausalLM`, `"model_type": "mamba"`) and mamba-ssm's (`d_model`, `n_layer`, `ssm_cfg`).
Their tensors have the same names up to a prefix and a plural, and the same shapes; the taps of the
convolution lose an axis of length one here. Every tensor of a file is used, and every parameter
comes from the file, or loading fails by name.

Only numbers are read: safetensors, or a `pytorch_model.bin` by torch's loader of bare tensors. What
such folders can hold beside Mamba-1 (attention, MLPs, layer norm, Mamba-2, the norms of
falcon-mamba) is refused.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tsfm.errors import InputError, IntegrityError, ModelMismatch
from tsfm.kernels.argument_checks import wrong_shape
from tsfm.models.mamba import Mamba, MambaConfig, MambaState

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
# What torch and safetensors raise over damaged files; a text that can't be decoded is a ValueError.
_DAMAGED = (
    OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError,
)  # fmt: skip
_MOST_NAMED = 8
_LARGEST_SIZE = 2**24
# How weights start matters to training only.
_STARTING = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"}
_SSM_KEYS = {"layer", "d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias"} | _STARTING
_OUTSIDE_BLOCKS = {
    "embedding.weight": "embedding.weight",
    "head.weight": "lm_head.weight",
    "backbone.final_norm.weight": "norm_f.weight",
}


class MambaLanguageModel(nn.Module):
    """Token embedding, Mamba-1 stack, and a head over the vocabulary.

    Args:
        config: Form of the stack.
        n_codes: Size of the vocabulary.
        tied: Whether the head is the embedding read backwards; if not it has weights of its own.
    """

    def __init__(self, config: MambaConfig, n_codes: int, *, tied: bool = True) -> None:
        """Build embedding, stack and head."""
        super().__init__()
        self.embedding = nn.Embedding(n_codes, config.d_model)
        self.backbone = Mamba(config)
        self.head = None if tied else nn.Linear(config.d_model, n_codes, bias=False)

    def forward(
        self,
        code: Int[Tensor, "*batch token"],
        cu_seqlens: Int[Tensor, " borders"] | None = None,
        *,
        state: MambaState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Hidden states of tokens, packed (T,) or a batch (B, L) of one length.

        Args:
            code: Indices into the vocabulary.
            cu_seqlens: Borders of packed sequences; None is one sequence. Not with a batch.
            state: What each sequence has left behind.
            return_state: Also return what it leaves behind now.

        Returns:
            Hidden states after the last norm, (T, d_model) or (B, L, d_model); with the state if
            asked for.

        Raises:
            InputError: `cu_seqlens` with a batch, or codes of another shape.
        """
        if code.dim() not in (1, 2):
            raise wrong_shape("code", code, "(T,) or (B, L)")
        if code.dim() == 2:
            if cu_seqlens is not None:
                raise InputError(
                    "cu_seqlens with a batch", code="bad_cu_seqlens", place="cu_seqlens",
                    remedy="Pass packed tokens (T,).",
                )  # fmt: skip
            rows, length = code.shape
            cu_seqlens = torch.arange(rows + 1, device=code.device, dtype=torch.int32) * length
        x = self.embedding(code).flatten(0, -2)
        hidden = self.backbone(x, cu_seqlens=cu_seqlens, state=state, return_state=return_state)
        if not return_state:
            return hidden.view(*code.shape, -1)
        return hidden[0].view(*code.shape, -1), hidden[1]

    def step(
        self,
        code: Int[Tensor, " row"],
        state: MambaState,
        source_slots: Int[Tensor, " row"] | None = None,
        target_slots: Int[Tensor, " row"] | None = None,
    ) -> Float[Tensor, "row model"]:
        """Hidden state after one more token of each row; see `Mamba.step`."""
        with torch.no_grad():
            x = self.embedding(code)
        return self.backbone.step(x, None, state, source_slots, target_slots)

    def logits(self, hidden: Float[Tensor, "*batch model"]) -> Float[Tensor, "*batch code"]:
        """Scores of every code as the next one."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return nn.functional.linear(hidden, weight)


def load_mamba1(path: str | Path, *, dtype: torch.dtype = torch.float32) -> MambaLanguageModel:
    """Load a folder that transformers or mamba-ssm has saved.

    Args:
        path: Folder with `config.json` and `model.safetensors` (whole or in shards) or
            `pytorch_model.bin`.
        dtype: Type of the parameters; narrower ones are widened.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        InputError: There is no such model.
        IntegrityError: A file cannot be read.
        ModelMismatch: It is not Mamba-1, or tensors and configuration do not belong together.
    """
    folder = Path(path)
    config = _read_json(folder / "config.json")
    return mamba1_from_tensors(_read_tensors(folder), config, dtype=dtype)


def mamba1_from_tensors(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, dtype: torch.dtype = torch.float32
) -> MambaLanguageModel:
    """Build the model from a state dict and the contents of `config.json`; see `load_mamba1`."""
    sizes, n_codes, tied = _read_config(config)
    if sizes.n_layers > len(tensors):
        raise _mismatch(f"{len(tensors)} tensors are too few for {sizes.n_layers} layers")
    found = _canonical_names(tensors)
    if tied and "lm_head.weight" in found:
        _check_tied(tensors, found)
        del found["lm_head.weight"]
    # A bare MambaModel has no head to untie.
    tied = tied or "lm_head.weight" not in found
    with torch.device("meta"):  # no memory and no random numbers for what is overwritten
        model = MambaLanguageModel(sizes, n_codes, tied=tied)
    expected = {_their_name(ours): (ours, shape) for ours, shape in _shapes(model).items()}
    wrong = [f"{name} (missing)" for name in sorted(set(expected) - set(found))]
    wrong += [f"{found[name]} (extra)" for name in sorted(set(found) - set(expected))]
    weights: dict[str, Tensor] = {}
    for name in sorted(set(found) & set(expected)):
        ours, shape = expected[name]
        tensor = tensors[found[name]]
        if name.endswith("conv1d.weight") and tensor.dim() == 3 and tensor.shape[1] == 1:
            tensor = tensor.squeeze(1)
        if tensor.shape != shape:
            wrong.append(f"{found[name]} {tuple(tensor.shape)} (not {tuple(shape)})")
        elif not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            wrong.append(f"{found[name]} (not finite numbers)")
        else:
            weights[ours] = tensor.to(dtype).contiguous()
    if wrong:
        more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise _mismatch(f"weights do not fit: {', '.join(wrong[:_MOST_NAMED])}{more}")
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _read_config(config: Mapping[str, Any]) -> tuple[MambaConfig, int, bool]:
    """Form of the stack, size of the vocabulary, and whether the head is tied."""
    if "model_type" in config:
        return _read_hugging_face(config)
    if "ssm_cfg" in config or "n_layer" in config:
        return _read_mamba_ssm(config)
    raise _not_mamba1("config.json is neither transformers' nor mamba-ssm's", "config.json")


def _read_hugging_face(config: Mapping[str, Any]) -> tuple[MambaConfig, int, bool]:
    if config["model_type"] != "mamba":
        raise _not_mamba1(f"a model of type '{config['model_type']}'", "model_type")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _not_mamba1(f"activation '{config['hidden_act']}'", "hidden_act")
    sizes = MambaConfig.mamba1(
        d_model=_size(config, "hidden_size", 768),
        n_layers=_size(config, "num_hidden_layers", 32),
        d_state=_size(config, "state_size", 16),
        expand=_size(config, "expand", 2),
        d_conv=_size(config, "conv_kernel", 4),
        conv_bias=_flag(config, "use_conv_bias", True),
        proj_bias=_flag(config, "use_bias", False),
        dt_rank=_rank(config, "time_step_rank"),
        norm_eps=_positive(config, "layer_norm_epsilon", 1e-5),
    )
    return sizes, _size(config, "vocab_size", 50280), _flag(config, "tie_word_embeddings", True)


def _read_mamba_ssm(config: Mapping[str, Any]) -> tuple[MambaConfig, int, bool]:
    ssm = config.get("ssm_cfg") or {}
    if not isinstance(ssm, Mapping) or set(ssm) - _SSM_KEYS:
        raise _not_mamba1("ssm_cfg holds what Mamba-1 does not know", "ssm_cfg")
    if ssm.get("layer", "Mamba1") != "Mamba1":
        raise _not_mamba1(f"layers of type '{ssm['layer']}'", "ssm_cfg.layer")
    if config.get("d_intermediate", 0) != 0:
        raise _not_mamba1("an MLP after each block", "d_intermediate")
    if config.get("attn_layer_idx"):
        raise _not_mamba1("attention layers", "attn_layer_idx")
    if not _flag(config, "rms_norm", True):
        raise _not_mamba1("layer norm in place of RMS norm", "rms_norm")
    sizes = MambaConfig.mamba1(
        d_model=_size(config, "d_model"),
        n_layers=_size(config, "n_layer"),
        d_state=_size(ssm, "d_state", 16),
        expand=_size(ssm, "expand", 2),
        d_conv=_size(ssm, "d_conv", 4),
        conv_bias=_flag(ssm, "conv_bias", True),
        proj_bias=_flag(ssm, "bias", False),
        dt_rank=_rank(ssm, "dt_rank"),
    )
    multiple = _size(config, "pad_vocab_size_multiple", 8)
    n_codes = -(-_size(config, "vocab_size") // multiple) * multiple
    return sizes, n_codes, _flag(config, "tie_embeddings", True)


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _LARGEST_SIZE:
        raise _not_mamba1(f"'{key}' is no positive whole number of a sane size", key)
    return value


def _positive(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise _not_mamba1(f"'{key}' is no number between 0 and 1", key)
    return float(value)


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise _not_mamba1(f"'{key}' is neither true nor false", key)
    return value


def _rank(config: Mapping[str, Any], key: str) -> int | None:
    return None if config.get(key, "auto") == "auto" else _size(config, key)


def _not_mamba1(what: str, key: str) -> ModelMismatch:
    return ModelMismatch(
        f"not a Mamba-1 checkpoint that can be read: {what}", code="not_mamba1", place=key,
        remedy="Use a Mamba-1 model saved by transformers or mamba-ssm.",
    )  # fmt: skip


def _canonical_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name common to both layouts to the name in the file."""
    found: dict[str, str] = {}
    for name in tensors:
        common = name.removeprefix("backbone.").replace("embeddings.weight", "embedding.weight")
        if common in found:
            raise _mismatch(f"{found[common]} and {name} are the same weights twice")
        found[common] = name
    return found


def _their_name(ours: str) -> str:
    """Name in the file, without prefix, of a parameter of `MambaLanguageModel`."""
    if ours in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[ours]
    if norm := re.fullmatch(r"backbone\.norms\.(\d+)\.weight", ours):
        return f"layers.{norm[1]}.norm.weight"
    block = re.fullmatch(r"backbone\.blocks\.(\d+)\.(.+)", ours)
    assert block is not None
    return f"layers.{block[1]}.mixer.{block[2].replace('conv_', 'conv1d.')}"


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _check_tied(tensors: Mapping[str, Tensor], found: Mapping[str, str]) -> None:
    embedding = found.get("embedding.weight")
    head = found["lm_head.weight"]
    if embedding is not None and not torch.equal(tensors[head], tensors[embedding]):
        raise _mismatch(f"{head} differs from {embedding}, though the configuration ties them")


def _mismatch(what: str) -> ModelMismatch:
    return ModelMismatch(
        what, code="weights_mismatch", place="weights",
        remedy="Use the weights that were saved with this config.json.",
    )  # fmt: skip


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            "no model directory", code="missing_model", place=str(path),
            remedy=f"Give a folder with config.json and {_SAFE} or {_PICKLED}.",
        ) from error  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise _unreadable(path) from error
    if not isinstance(content, dict):
        raise _unreadable(path)
    return content


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{_SAFE}.index.json"
    try:
        if (folder / _SAFE).exists():
            return load_file(folder / _SAFE)
        if index.exists():
            shards = _read_json(index).get("weight_map")
            if not isinstance(shards, dict):
                raise _unreadable(index)
            return _read_shards(folder, sorted({str(name) for name in shards.values()}))
        return _read_pickled(folder / _PICKLED)
    except FileNotFoundError as error:
        raise InputError(
            "no weights", code="missing_model", place=str(folder),
            remedy=f"Give a folder with {_SAFE} or {_PICKLED}.",
        ) from error  # fmt: skip
    except _DAMAGED as error:
        raise _unreadable(folder) from error


def _read_shards(folder: Path, names: list[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:  # a shard lies beside its index, nowhere else
            raise _unreadable(folder / f"{_SAFE}.index.json")
        tensors |= load_file(folder / name)
    return tensors


def _read_pickled(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise _unreadable(path)
    return content


def _unreadable(path: Path) -> IntegrityError:
    return IntegrityError(
        "unreadable file of a model", code="bad_weights", place=path.name,
        remedy="Fetch the model again.",
    )  # fmt: skip
