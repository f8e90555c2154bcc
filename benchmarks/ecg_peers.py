"""Peers of the biosignal encoder, trained from scratch on the same records.

xresnet1d101 (the best convolutional model of the PTB-XL benchmark, Strodthoff et al. 2021), a small
ResNet, Net1D (ECGFounder's network) and an S4-style stack of diagonal state-space layers. Each is
written from its published description; all are trained alike: AdamW with one cycle, random crops,
labels as they are, no choice of epoch.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tsfm.kernels.lti_scan import lti_scan
from tsfm.models.net1d import Net1D

KINDS = ("resnet", "xresnet1d101", "net1d", "s4")
EPOCHS = {"resnet": 30, "xresnet1d101": 15, "net1d": 10, "s4": 12}
RATES = {"resnet": 3e-3, "xresnet1d101": 3e-3, "net1d": 5e-4, "s4": 3e-3}
CROP, BATCH = 500, 32


class _Residual(nn.Module):
    def __init__(self, n_in: int, n_out: int, taps: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(n_in, n_out, taps, stride, taps // 2, bias=False), nn.BatchNorm1d(n_out),
            nn.ReLU(), nn.Conv1d(n_out, n_out, taps, 1, taps // 2, bias=False),
            nn.BatchNorm1d(n_out),
        )  # fmt: skip
        self.short = nn.Sequential(
            nn.Conv1d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm1d(n_out)
        ) if n_in != n_out or stride > 1 else nn.Identity()  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.short(x) + self.body(x))


class SmallResNet(nn.Module):
    """Four residual stages, 64 to 256 channels."""

    def __init__(self, n_leads: int, n_labels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(n_leads, 64, 15, 2, 7, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
            _Residual(64, 64, 7, 2), _Residual(64, 128, 7, 2), _Residual(128, 128, 7, 2),
            _Residual(128, 256, 7, 2),
        )  # fmt: skip
        self.head = _Head(256, n_labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class _Head(nn.Module):
    """Maximum and mean over time, dropout, linear."""

    def __init__(self, width: int, n_labels: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.3)
        self.linear = nn.Linear(2 * width, n_labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(torch.cat([x.amax(-1), x.mean(-1)], 1)))


class _Bottleneck(nn.Module):
    """1, k, 1 with a pooled shortcut, the last norm starting at zero (xresnet, He et al. 2019)."""

    def __init__(self, n_in: int, width: int, stride: int, taps: int = 5) -> None:
        super().__init__()
        n_out = 4 * width
        last = nn.BatchNorm1d(n_out)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(
            nn.Conv1d(n_in, width, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, taps, stride, taps // 2, bias=False), nn.BatchNorm1d(width),
            nn.ReLU(), nn.Conv1d(width, n_out, 1, bias=False), last,
        )  # fmt: skip
        parts: list[nn.Module] = [nn.AvgPool1d(2, ceil_mode=True)] if stride > 1 else []
        if n_in != n_out:
            parts += [nn.Conv1d(n_in, n_out, 1, bias=False), nn.BatchNorm1d(n_out)]
        self.short = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.short(x) + self.body(x))


class XResNet1d101(nn.Module):
    """Blocks 3, 4, 23, 3 behind three small convolutions, kernels of five."""

    def __init__(self, n_leads: int, n_labels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (n_leads, 32, 32, 64)
        for i in range(3):
            layers += [
                nn.Conv1d(widths[i], widths[i + 1], 5, 2 if i == 0 else 1, 2, bias=False),
                nn.BatchNorm1d(widths[i + 1]), nn.ReLU(),
            ]  # fmt: skip
        layers.append(nn.MaxPool1d(3, 2, 1))
        n_in = 64
        for stage, (width, depth) in enumerate(zip((64,) * 4, (3, 4, 23, 3), strict=True)):
            for i in range(depth):
                layers.append(_Bottleneck(n_in, width, 2 if i == 0 and stage else 1))
                n_in = 4 * width
        self.body = nn.Sequential(*layers)
        self.head = _Head(n_in, n_labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class S4Style(nn.Module):
    """Convolution of stride two, four diagonal state-space layers both ways, mean over time."""

    def __init__(self, n_leads: int, n_labels: int, width: int = 128, n_state: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv1d(n_leads, width, 3, 2, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mixes = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(4))
        self.log_step = nn.Parameter(
            torch.rand(4, 2, width) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)
        )
        self.log_decay = nn.Parameter(torch.full((4, 2, width, n_state), math.log(0.5)))
        pitch = math.pi * torch.arange(n_state).float()
        self.pitch = nn.Parameter(pitch.expand(4, 2, width, n_state).clone())
        self.C = nn.Parameter(torch.randn(4, 2, width, n_state, 2) * math.sqrt(2.0))
        self.skip = nn.Parameter(torch.ones(4, width))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(width, n_labels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).transpose(1, 2)
        for i, (norm, mix) in enumerate(zip(self.norms, self.mixes, strict=True)):
            u = norm(x)
            y = self.skip[i] * u
            for way in range(2):
                step = self.log_step[i, way].exp().unsqueeze(1)
                rate = torch.complex(
                    -self.log_decay[i, way].exp() * step, self.pitch[i, way] * step
                )
                C = torch.view_as_complex(self.C[i, way].contiguous()) * step
                y = y + lti_scan(u, rate, C, reverse=way == 1)
            x = x + self.dropout(F.glu(mix(F.gelu(y)), dim=-1))
        return self.head(x.mean(1))


def build(kind: str, n_leads: int, n_labels: int) -> nn.Module:
    if kind == "net1d":
        return Net1D(n_leads, n_labels)
    return {"resnet": SmallResNet, "xresnet1d101": XResNet1d101, "s4": S4Style}[kind](
        n_leads, n_labels
    )


def fit_predict(
    kind: str,
    x_train: NDArray[np.float32],
    y_train: NDArray[np.float32],
    x_test: NDArray[np.float32],
    *,
    seed: int,
    epochs: int | None = None,
    exclusive: bool = False,
) -> NDArray[np.float64]:
    """Train a peer and predict.

    Args:
        kind: One of `KINDS`.
        x_train: (record, lead, sample) at 100 Hz.
        y_train: (record, label) 1 or 0.
        x_test: As `x_train`.
        seed: Of weights and batches.
        epochs: The kind's usual number by default.
        exclusive: Exactly one label holds.

    Returns:
        (record, label) probabilities of the test records, from their crops.
    """
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    x, y, other = torch.from_numpy(x_train), torch.from_numpy(y_train), torch.from_numpy(x_test)
    size = x.std().clamp(min=1e-6)
    x, other = x / size, other / size
    model = build(kind, x.shape[1], y.shape[1])
    epochs = EPOCHS[kind] if epochs is None else epochs
    n_batches = math.ceil(len(x) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[kind], weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATES[kind], total_steps=epochs * n_batches + 1
    )
    crop = min(CROP, x.shape[-1])
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=draws).tensor_split(n_batches):
            start = torch.randint(x.shape[-1] - crop + 1, (len(rows), 1, 1), generator=draws)
            at = (start + torch.arange(crop)).expand(-1, x.shape[1], -1)
            logits = model(x[rows].gather(-1, at))
            loss = (
                F.cross_entropy(logits, y[rows])
                if exclusive
                else F.binary_cross_entropy_with_logits(logits, y[rows])
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            cycle.step()
    model.eval()
    found = torch.zeros(len(other), y.shape[1])
    starts = range(0, max(1, other.shape[-1] - crop + 1), max(1, crop // 2))
    with torch.no_grad():
        for start in starts:
            logits = torch.cat([model(part) for part in other[..., start : start + crop].split(64)])
            found += logits.softmax(-1) if exclusive else logits.sigmoid()
    return (found / len(starts)).double().numpy()
