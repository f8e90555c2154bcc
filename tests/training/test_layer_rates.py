"""Rates fall from the head to the input, and no parameter is forgotten or met twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tsfm.errors import InputError
from tsfm.models.biosignal_encoder import BiosignalConfig, BiosignalEncoder
from tsfm.training.layer_rates import layer_rate_groups
from tsfm.training.signal_classifier import SignalClassifier

BLOCKS = ("stem", "body.0", "body.1", ("scale", "head"))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.body = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 2)


def test_each_block_has_the_same_share_of_the_rate_above_it() -> None:
    net = Net()
    groups = layer_rate_groups(net, BLOCKS, lr=0.1, factor=0.5, weight_decay=0.01)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(net.head.weight)] == rate[id(net.head.bias)] == rate[id(net.scale)] == 0.1
    assert rate[id(net.body[1].weight)] == 0.05
    assert rate[id(net.body[0].bias)] == 0.025
    assert rate[id(net.stem.weight)] == 0.0125


def test_every_parameter_is_in_one_group_and_matrices_alone_decay() -> None:
    net = Net()
    groups = layer_rate_groups(net, BLOCKS, lr=0.1, factor=0.5, weight_decay=0.01)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in net.parameters())
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, p in net.named_parameters():
        assert decay[id(p)] == (0.01 if name.endswith("weight") else 0.0), name
    torch.optim.AdamW(groups)


def test_frozen_parameters_are_left_out() -> None:
    net = Net()
    net.stem.requires_grad_(False)
    groups = layer_rate_groups(net, BLOCKS, lr=0.1, factor=0.5, weight_decay=0.0)
    assert min(group["depth"] for group in groups) == 1


def test_the_longest_name_counts() -> None:
    net = Net()
    groups = layer_rate_groups(
        net, ("stem", "body", ("body.1", "scale", "head")), lr=1.0, factor=0.1, weight_decay=0.0
    )
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(net.body[1].weight)] == 1.0
    assert rate[id(net.body[0].weight)] == pytest.approx(0.1)


def test_the_first_step_moves_blocks_in_proportion_to_their_rates() -> None:
    torch.manual_seed(0)
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    groups = layer_rate_groups(net, BLOCKS, lr=1e-2, factor=0.5, weight_decay=0.0)
    x = net.stem(torch.randn(5, 3))
    for layer in net.body:
        x = layer(x)
    net.head(x * net.scale).square().sum().backward()
    torch.optim.Adam(groups).step()  # Adam's first step is the rate, whatever the gradient
    moved = {name: (p - before[name]).abs().amax().item() for name, p in net.named_parameters()}
    assert moved["head.weight"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["stem.weight"] == pytest.approx(1e-2 / 8, rel=1e-3)


def test_our_encoder_can_be_named_whole() -> None:
    model = SignalClassifier(BiosignalEncoder(BiosignalConfig(d_model=16, n_layers=2)), 3)
    last = tuple(f"encoder.{name}" for name in ("final_norm", "query", "amplitude", "embed"))
    blocks = ("encoder.stem", "encoder.blocks.0", "encoder.blocks.1", last, "head")
    groups = layer_rate_groups(model, blocks, lr=1.0, factor=0.5, weight_decay=0.1)
    assert sorted({group["lr"] for group in groups}) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (("stem", "body.0", "body.1", "head"), "scale"),
        (("stem", "body", "scale", "head", "neck"), "neck"),
        (("stem", "body", ("scale", "stem"), "head"), "twice"),
        (("stem", "bod", "scale", "head"), "body.0.weight"),
    ],
)
def test_blocks_that_do_not_cover_the_network_are_refused(blocks: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        layer_rate_groups(Net(), blocks, lr=0.1, factor=0.5, weight_decay=0.0)


@pytest.mark.parametrize(("lr", "factor"), [(0.0, 0.5), (0.1, 0.0), (0.1, 1.1)])
def test_rates_out_of_range_are_refused(lr: float, factor: float) -> None:
    with pytest.raises(InputError, match="bad_rate"):
        layer_rate_groups(Net(), BLOCKS, lr=lr, factor=factor, weight_decay=0.0)
