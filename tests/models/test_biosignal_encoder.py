"""The biosignal encoder: any rate, any leads, any length, whole or as a stream."""

import math

import numpy as np
import pytest
import torch

from tsfm.errors import InputError
from tsfm.models.biosignal_encoder import (
    SLOTS,
    BiosignalConfig,
    BiosignalEncoder,
    lead_slots,
)
from tsfm.models.signal_grid import GridStream, grid_length, to_grid
from tsfm.signals.store import STANDARD_LEADS

SMALL = {
    "d_model": 16, "n_layers": 2, "d_state": 4, "n_filters": 4, "stem_width": 8, "n_summary": 2,
    "d_embedding": 12,
}  # fmt: skip


def _encoder(**changes):
    torch.manual_seed(0)
    encoder = BiosignalEncoder(BiosignalConfig(**{**SMALL, **changes}))
    for module in encoder.modules():  # batch norms that have met something
        if isinstance(module, torch.nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.nn.init.normal_(encoder.amplitude)
    torch.nn.init.normal_(encoder.stem.presence)
    return encoder.eval()


def _waves(seconds, fs_hz, n_leads=3, batch=2, top_hz=24):
    """Band-limited signals that are the same function of time at any rate."""
    t = torch.arange(round(seconds * fs_hz), dtype=torch.float64) / fs_hz
    rows = []
    for i in range(batch * n_leads):
        draws = torch.Generator().manual_seed(i)
        hz = 0.5 + top_hz * torch.rand(6, 1, generator=draws, dtype=torch.float64)
        phase = 6.3 * torch.rand(6, 1, generator=draws, dtype=torch.float64)
        rows.append(torch.sin(2 * math.pi * hz * t + phase).sum(0) / 4)
    return torch.stack(rows).view(batch, n_leads, -1).float()


@pytest.mark.parametrize("fs_hz", [64, 125, 250, 360, 500, 1000])
def test_the_grid_keeps_what_lies_below_its_cut(fs_hz):
    top_hz = min(24, fs_hz / 6)  # the kernel is short: it bends what lies just below its cut
    ours, known = to_grid(_waves(4, fs_hz, top_hz=top_hz), fs_hz=fs_hz, grid_hz=100)
    truth = _waves(4, 100, top_hz=top_hz)
    n = min(ours.shape[-1], truth.shape[-1])
    assert known.all()
    assert ours.shape[-1] == grid_length(4 * fs_hz, fs_hz, 100)
    assert (ours[..., :n] - truth[..., :n])[..., 10:-10].abs().max() < 0.05 * truth.abs().max()


def test_a_gap_costs_only_the_points_in_it():
    whole = _waves(4, 250, 1, 1)
    gapped = whole.clone()
    gapped[..., 400:500] = torch.nan
    values, known = to_grid(gapped, fs_hz=250, grid_hz=100)
    truth, _ = to_grid(whole, fs_hz=250, grid_hz=100)
    assert torch.isfinite(values).all()
    assert not known[..., 162:198].any()
    assert known[..., :158].all()
    assert known[..., 202:].all()
    torch.testing.assert_close(values[..., :150], truth[..., :150])
    torch.testing.assert_close(values[..., 210:], truth[..., 210:])


@pytest.mark.parametrize("scan", ["lti", "selective"])
def test_one_record_at_any_rate_has_one_embedding(scan):
    encoder, leads = _encoder(scan=scan), ("I", "II", "V2")
    with torch.no_grad():
        found = {
            fs: encoder(_waves(6, fs), fs_hz=fs, leads=leads) for fs in (100, 125, 250, 360, 500)
        }
    reference = found[500]
    for encoded in found.values():
        for name in ("embedding", "summary"):
            ours, theirs = getattr(encoded, name), getattr(reference, name)
            assert torch.cosine_similarity(ours.flatten(1), theirs.flatten(1)).min() > 0.99


@pytest.mark.parametrize("scan", ["lti", "selective"])
def test_leads_are_known_by_name_and_not_by_place(scan):
    encoder, signal = _encoder(scan=scan), _waves(3, 100, 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one = encoder(signal, fs_hz=100, leads=STANDARD_LEADS)
        other = encoder(signal[:, order], fs_hz=100, leads=[STANDARD_LEADS[i] for i in order])
        swapped = encoder(signal[:, order], fs_hz=100, leads=STANDARD_LEADS)
    torch.testing.assert_close(one.embedding, other.embedding, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.tokens, other.tokens, atol=1e-4, rtol=1e-4)
    assert (one.embedding - swapped.embedding).abs().max() > 0.01


def test_a_missing_lead_is_as_if_it_were_not_named():
    encoder, signal = _encoder(), _waves(3, 100, 3)
    gone = signal.clone()
    gone[:, 1] = torch.nan
    with torch.no_grad():
        a = encoder(gone, fs_hz=100, leads=("I", "II", "V2"))
        b = encoder(signal[:, [0, 2]], fs_hz=100, leads=("I", "V2"))
        zeros = encoder(gone.nan_to_num(0.0), fs_hz=100, leads=("I", "II", "V2"))
    torch.testing.assert_close(a.embedding, b.embedding, atol=1e-4, rtol=1e-4)
    assert (a.embedding - zeros.embedding).abs().max() > 0.01


@pytest.mark.parametrize("scan", ["lti", "selective"])
def test_what_pads_a_shorter_record_changes_nothing(scan):
    encoder, signal = _encoder(scan=scan), _waves(3, 100, 2)
    padded = torch.cat([signal, signal.new_full((2, 2, 120), torch.nan)], -1)
    with torch.no_grad():
        a = encoder(signal, fs_hz=100, leads=("I", "II"))
        b = encoder(padded, fs_hz=100, leads=("I", "II"))
    n = int(a.mask.sum(1)[0]) - 3  # the last points of the grid lean on what came after
    torch.testing.assert_close(a.tokens[:, : n - 60], b.tokens[:, : n - 60], atol=0.05, rtol=0.05)
    assert torch.cosine_similarity(a.embedding, b.embedding).min() > 0.99
    assert b.mask.sum() <= a.mask.sum()


def test_amplitude_is_kept():
    encoder, signal = _encoder(), _waves(3, 100, 2)
    with torch.no_grad():
        once = encoder(signal, fs_hz=100, leads=("I", "II")).embedding
        thrice = encoder(3 * signal, fs_hz=100, leads=("I", "II")).embedding
    assert (once - thrice).abs().max() > 0.05


@pytest.mark.parametrize("scan", ["lti", "selective"])
@pytest.mark.parametrize("fs_hz", [100, 128, 360])
def test_a_stream_equals_the_whole(scan, fs_hz):
    encoder, leads = _encoder(scan=scan, causal=True), ("I", "V5")
    signal = _waves(3.3, fs_hz, 2)
    signal[:, 0, 150:190] = torch.nan
    with torch.no_grad():
        whole = encoder(signal, fs_hz=fs_hz, leads=leads)
    stream, tokens, at = encoder.stream(fs_hz=fs_hz, leads=leads), [], 0
    draws = torch.Generator().manual_seed(0)
    while at < signal.shape[-1]:
        size = int(torch.randint(0, 71, (1,), generator=draws))
        tokens.append(stream.push(signal[..., at : at + size]))
        at += size
    tokens.append(stream.finish())
    torch.testing.assert_close(torch.cat(tokens, 1), whole.tokens, atol=1e-4, rtol=1e-4)
    pooled = stream.pooled()
    torch.testing.assert_close(pooled.embedding, whole.embedding, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooled.summary, whole.summary, atol=1e-4, rtol=1e-4)


def test_a_causal_token_does_not_change_with_what_comes_later():
    encoder, signal = _encoder(causal=True), _waves(4, 100, 1)
    later = signal.clone()
    later[..., 200:] = 5.0
    with torch.no_grad():
        a = encoder(signal, fs_hz=100, leads=("II",)).tokens
        b = encoder(later, fs_hz=100, leads=("II",)).tokens
    sure = (200 - 6) // 4  # the grid's kernel reaches 60 ms ahead
    torch.testing.assert_close(a[:, :sure], b[:, :sure])
    assert (a - b).abs().max() > 0.01


def test_a_stream_holds_no_more_after_an_hour_than_after_a_minute():
    encoder = _encoder(causal=True)
    stream = encoder.stream(fs_hz=125, leads=("II",))
    minute = _waves(60, 125, 1, 1)

    def held():
        assert stream._stem is not None
        assert stream._sums is not None
        seen = [stream._grid._held, *stream._stem.held, *stream._sums]
        seen += [t for state in stream._states for t in state or ()]
        return sum(t.untyped_storage().nbytes() for t in seen if t is not None)

    stream.push(minute)
    after_one = held()
    for _ in range(59):
        stream.push(minute)
    assert held() <= 1.1 * after_one


def test_it_learns_at_any_number_of_leads():
    encoder = _encoder().train()
    encoded = encoder(_waves(3, 100, 1), fs_hz=100, leads=("PPG",))
    encoded.embedding.square().sum().backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert len(gradients) > 0.9 * len(list(encoder.parameters()))


def test_the_usual_size_is_small():
    assert sum(p.numel() for p in BiosignalEncoder().parameters()) < 4e6


def test_names_of_leads():
    assert SLOTS[int(lead_slots(["MLII"])[0])] == "II"
    assert SLOTS[int(lead_slots(["avr"])[0])] == "aVR"
    assert SLOTS[int(lead_slots(["PLETH"])[0])] == "PPG"
    assert SLOTS[int(lead_slots(["ECG 7"])[0])] == "other"
    assert SLOTS[int(lead_slots(["lead II"])[0])] == "II"
    assert SLOTS[int(lead_slots(["ECG aVR"])[0])] == "aVR"
    assert [SLOTS[i] for i in lead_slots(["ECG MLII", "lead MLI"])] == ["II", "I"]
    assert SLOTS[int(lead_slots(["ECG resp"])[0])] == "other"
    for twice in (["II", "MLII"], ["II", "ii"], ["ECG II", "lead II"]):
        with pytest.raises(InputError, match="twice"):
            lead_slots(twice)


def test_an_exact_name_wins_over_one_with_a_prefix():
    leads = ["ECG II", "V1", "ii", "lead MLII"]
    assert [SLOTS[i] for i in lead_slots(leads)] == ["other", "V1", "II", "other"]


@pytest.mark.parametrize(
    ("signal", "arguments", "code"),
    [
        (torch.zeros(1, 2, 100), {"fs_hz": 100, "leads": ("I",)}, "bad_signal_shape"),
        (torch.zeros(1, 1, 0), {"fs_hz": 100, "leads": ("I",)}, "bad_signal_shape"),
        (torch.zeros(1, 0, 100), {"fs_hz": 100, "leads": ()}, "bad_signal_shape"),
        (torch.zeros(0, 1, 100), {"fs_hz": 100, "leads": ("I",)}, "bad_signal_shape"),
        (torch.zeros(1, 1, 100), {"fs_hz": 5, "leads": ("I",)}, "bad_sampling_rate"),
    ],
)
def test_what_is_no_signal_is_refused(signal, arguments, code):
    with pytest.raises(InputError) as error:
        _encoder()(signal, **arguments)
    assert error.value.code == code


def test_only_a_causal_encoder_streams():
    with pytest.raises(InputError, match="causal"):
        _encoder().stream(fs_hz=100, leads=("I",))


def test_a_stream_says_what_it_can_not_do():
    stream = _encoder(causal=True).stream(fs_hz=100, leads=("II",))
    assert stream.push(torch.zeros(1, 1, 0)).shape[1] == 0
    with pytest.raises(InputError, match="no token"):
        stream.pooled()
    with pytest.raises(InputError, match="without samples"):
        stream.finish()
    stream.push(torch.zeros(1, 1, 50))
    stream.finish()
    with pytest.raises(InputError, match="finished"):
        stream.push(torch.zeros(1, 1, 50))


def test_a_stream_takes_numbers_of_any_type():
    encoder, signal = _encoder(causal=True), (100 * _waves(2, 125, n_leads=1)).round()
    whole = encoder(signal, fs_hz=125, leads=("II",)).tokens
    as_int, big = signal.short(), signal.numpy().astype(">f8")
    for chunk in (signal.double(), as_int, as_int.numpy(), big):
        stream = encoder.stream(fs_hz=125, leads=("II",))
        found = torch.cat([stream.push(chunk), stream.finish()], 1)
        assert found.dtype == whole.dtype
        assert (found - whole).abs().max() < 1e-4


def test_numbers_of_any_type_are_read_in_the_precision_of_the_weights():
    encoder, signal = _encoder(), (100 * _waves(2, 125, n_leads=1)).round()
    whole = encoder(signal, fs_hz=125, leads=("II",)).embedding
    as_int = signal.short()
    for other in (signal.double(), as_int, as_int.numpy(), signal.half()):
        assert torch.equal(encoder(other, fs_hz=125, leads=("II",)).embedding, whole)
    double = encoder.double()(signal, fs_hz=125, leads=("II",)).embedding
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), whole, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="half_precision_weights"):
        encoder.bfloat16()(signal, fs_hz=125, leads=("II",))


def test_a_stream_of_a_year_still_moves():
    encoder = _encoder(causal=True)
    stream = encoder.stream(fs_hz=100, leads=("II",))
    signal = _waves(4, 100, n_leads=1, batch=1)
    stream.push(signal)
    assert stream._sums is not None
    n = 365 * 86400 / 4  # as if the same four seconds had come all the time
    one = stream._sums
    moved = {"n_tokens", "total", "weight", "weighted", "n_points", "first", "second"}
    stream._sums = one._replace(**{name: getattr(one, name) * n for name in moved})
    before = stream._sums
    for i in range(0, 400, 4):
        stream.push(signal[..., i : i + 4])
    after = stream._sums
    assert (after.n_tokens - before.n_tokens).item() == 100
    assert (after.n_points - before.n_points).item() == 400
    assert (after.second - before.second).item() == pytest.approx(
        signal.square().sum().item(), rel=0.1
    )


def test_a_stream_tells_the_deviation_beside_a_large_offset():
    encoder, signal = _encoder(causal=True), 0.2 * _waves(10, 100, n_leads=1, batch=1)
    sizes = []
    for offset in (0.0, 1000.0):
        stream = encoder.stream(fs_hz=100, leads=("II",))
        stream.push(signal + offset)
        assert stream._sums is not None
        sizes.append(encoder._sizes(stream._sums, stream._slots))
    torch.testing.assert_close(sizes[0], sizes[1], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    "change",
    [{"d_model": 0}, {"d_model": 10**9}, {"d_model": 4096, "expand": 4096}, {"d_state": 0},
     {"expand": 0}, {"n_filters": 0}, {"taps": 0}, {"taps": 1}, {"dropout": 5.0},
     {"dropout": float("nan")}, {"grid_hz": 0.0}, {"grid_hz": -5.0}, {"grid_hz": float("inf")},
     {"n_layers": -1}],
    ids=str,
)  # fmt: skip
def test_a_size_that_no_encoder_has_is_refused_before_anything_is_built(change):
    with pytest.raises(InputError, match="bad_model_config"):
        BiosignalConfig(**change)


@pytest.mark.parametrize("scan", ["lti", "selective"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_estimate_of_parameters_is_close(scan, causal):
    config = BiosignalConfig(scan=scan, causal=causal)
    with torch.device("meta"):
        n = sum(p.numel() for p in BiosignalEncoder(config).parameters())
    assert config.n_parameters == pytest.approx(n, rel=0.05)


def test_a_stream_keeps_its_records():
    stream = _encoder(causal=True).stream(fs_hz=125, leads=("II",))
    stream.push(torch.zeros(2, 1, 50))
    for other in (torch.zeros(3, 1, 50), torch.zeros(3, 1, 0), torch.zeros(2, 2, 50)):
        with pytest.raises(InputError, match="bad_signal_shape"):
            stream.push(other)
    with pytest.raises(InputError, match="bad_signal_shape"):
        stream.push(np.zeros(50))
    with pytest.raises(InputError, match="bad_signal"):
        stream.push(np.array([[["a"]]]))


def test_finishing_twice_is_refused_and_changes_nothing():
    encoder, signal = _encoder(causal=True), _waves(2, 360, n_leads=1)
    stream = encoder.stream(fs_hz=360, leads=("II",))
    stream.push(signal)
    stream.finish()
    before = stream.pooled().embedding
    with pytest.raises(InputError) as error:
        stream.finish()
    assert error.value.code == "stream_finished"
    assert torch.equal(stream.pooled().embedding, before)


@pytest.mark.parametrize("fs_hz", [100, 128, 360, 62.5, 62.4725, 257, 499.9])
def test_a_point_is_given_as_soon_as_its_kernel_is_heard(fs_hz):
    signal = _waves(2, fs_hz, n_leads=2, batch=1)
    signal[0, 1, 20:60] = torch.nan
    grid, n_points, values, known = GridStream(fs_hz=fs_hz, grid_hz=100), 0, [], []
    for i in range(signal.shape[-1]):
        found = grid.push(signal[..., i : i + 1])
        n_points += found[0].shape[-1]
        values.append(found[0])
        known.append(found[1])
        due = math.floor((i / fs_hz - 0.06 - 1 / fs_hz) * 100) + 1  # a sample more than it needs
        assert n_points >= due, i
    found = grid.finish()
    whole = to_grid(signal, fs_hz=fs_hz, grid_hz=100)
    assert (torch.cat([*values, found[0]], -1) - whole[0]).abs().max() < 1e-5
    assert torch.equal(torch.cat([*known, found[1]], -1), whole[1])


@pytest.mark.parametrize("fs_hz", [62.4725, 249.9, 499.9])
def test_the_grid_keeps_time_at_rates_that_are_no_small_ratio(fs_hz):
    assert grid_length(round(3600 * fs_hz), fs_hz, 100) == pytest.approx(360_000, abs=2)
    ours, known = to_grid(_waves(60, fs_hz, top_hz=8), fs_hz=fs_hz, grid_hz=100)
    truth = _waves(60, 100, top_hz=8)
    n = min(ours.shape[-1], truth.shape[-1])
    assert known.all()
    assert (ours[..., :n] - truth[..., :n])[..., 10:-10].abs().max() < 0.02 * truth.abs().max()


def test_an_unknown_scan_is_refused():
    with pytest.raises(InputError, match="scan"):
        BiosignalConfig(scan="fast")
