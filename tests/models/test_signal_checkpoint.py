"""Model directories of encoders: what was saved is loaded, and nothing else."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tsfm.errors import InputError, IntegrityError, ModelMismatch, TsfmError
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.models.encoder_directory import open_encoder
from tsfm.models.signal_checkpoint import save_encoder

SMALL = BiosignalConfig(
    d_model=8, n_layers=1, d_state=2, n_filters=2, stem_width=4, n_summary=1, d_embedding=4
)


def _saved(folder):
    encoder = BiosignalEncoder(SMALL).eval()
    save_encoder(folder, encoder, facts={"records": 3}, card="# An encoder\n")
    return encoder


def test_it_comes_back_as_it_was(tmp_path):
    encoder = _saved(tmp_path / "m")
    signal = torch.randn(2, 1, 200)
    with torch.no_grad():
        a = encoder(signal, fs_hz=100, leads=("II",)).embedding
        b = open_encoder(tmp_path / "m").encoder(signal, fs_hz=100, leads=("II",)).embedding
    assert torch.equal(a, b)


def test_a_changed_file_is_refused(tmp_path):
    _saved(tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("# Another\n")
    with pytest.raises(IntegrityError):
        open_encoder(tmp_path / "m")


@pytest.mark.parametrize(
    "change",
    [{"d_model": 10**9}, {"d_modell": 8}, {"scan": 3}, {"d_model": "8"}, {"d_model": 0},
     {"d_model": 4096, "expand": 4096}, {"dropout": 5.0}, {"grid_hz": 0.0}, {"grid_hz": None}],
)  # fmt: skip
def test_a_forged_configuration_asks_for_no_memory(tmp_path, change):
    from hashlib import sha256

    _saved(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    stored = json.loads(path.read_text())
    stored["model"] |= change
    if change.get("grid_hz", 0) is None:  # a rate that is missing is no usual one
        del stored["model"]["grid_hz"]
    path.write_text(json.dumps(stored))
    manifest = tmp_path / "m" / "manifest.json"
    digests = json.loads(manifest.read_text())
    digests["config.json"] = sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(digests))
    with pytest.raises(ModelMismatch):
        open_encoder(tmp_path / "m")


def test_what_is_no_configuration_is_refused(tmp_path):
    from hashlib import sha256

    _saved(tmp_path / "m")
    path, manifest = tmp_path / "m" / "config.json", tmp_path / "m" / "manifest.json"
    whole = json.loads(path.read_text())
    for text in (
        "{",
        "[]",
        json.dumps(whole | {"model_type": "forecaster"}),
        json.dumps(whole | {"more": 1}),
        json.dumps({k: v for k, v in whole.items() if k != "facts"}),
        json.dumps(whole | {"facts": {"a": [1]}}),
        json.dumps(whole | {"model": whole["model"] | {"scan": "fast"}}),
    ):
        path.write_text(text)
        digests = json.loads(manifest.read_text())
        digests["config.json"] = sha256(path.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(digests))
        with pytest.raises(ModelMismatch):
            open_encoder(tmp_path / "m")


@pytest.mark.parametrize("fact", [[1], {"a": 1}, np.float32(1.0), (1,)], ids=str)
def test_facts_that_would_not_be_read_are_not_written(tmp_path, fact):
    with pytest.raises(InputError, match="bad_facts"):
        save_encoder(tmp_path / "m", BiosignalEncoder(SMALL), facts={"x": fact}, card="")
    assert not (tmp_path / "m").exists()


def unchecked(**sizes):
    """A configuration as it may be outside of tests, where nobody checks its types."""
    config = replace(SMALL)
    vars(config).update(sizes)
    return config


@pytest.mark.parametrize(
    ("size", "kind"),
    [({"causal": 1}, "bool"), ({"d_model": np.int64(8)}, "int"), ({"taps": 15.0}, "int")],
    ids=str,
)
def test_sizes_that_would_not_be_read_are_not_written(tmp_path, size, kind):
    encoder = BiosignalEncoder(SMALL)
    encoder.config = unchecked(**size)
    with pytest.raises(InputError, match=f"'{next(iter(size))}' is not a plain {kind}"):
        save_encoder(tmp_path / "m", encoder, facts={}, card="")
    assert not (tmp_path / "m").exists()


def test_a_rate_of_numpy_is_saved_and_read(tmp_path):
    encoder = BiosignalEncoder(SMALL)
    encoder.config = unchecked(grid_hz=np.float64(50.0))
    save_encoder(tmp_path / "m", encoder, facts={}, card="")
    assert open_encoder(tmp_path / "m").encoder.config == encoder.config


def test_weights_that_would_not_be_read_are_not_written(tmp_path):
    encoder = BiosignalEncoder(SMALL)
    with torch.no_grad():
        encoder.embed.weight[0, 0] = torch.nan
    with pytest.raises(TsfmError, match=r"weights_not_finite.*embed\.weight"):
        save_encoder(tmp_path / "m", encoder, facts={}, card="")
    assert not (tmp_path / "m").exists()
