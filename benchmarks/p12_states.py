"""What a forecaster of intensive care knows of a stay: the states of `forecaster-icu`.

The forecaster has learned from measurements alone what comes next in intensive care; nobody has
told it who died. Here it reads the first 48 hours of each stay, and a logistic regression on the
principal components of its states, one vector a variable, answers a question about the stay. A
variable that was never measured has a state too, which `Forecaster.embed` does not give: it answers
for the series that are there.

Its weights were trained on measurements of the public sets a and b. Where a fifth of these is the
test, it has met their measurements, never their outcomes; of stays in other folders it has met
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from p12_data import read_protocol
from p12_episodes import EpisodeConfig, Stays
from tqdm import tqdm

from tsfm.models.forecaster_checkpoint import load_forecaster

READ_HOURS = 48.001  # what stands at hour 48 is read too
N_COMPONENTS = 300
STRENGTH = 0.001  # inverse of the ridge, as scikit-learn counts it


@torch.no_grad()
def forecaster_states(
    train: Sequence[Path], test: Sequence[Path], subjects: NDArray[np.int64],
    model: str = "forecaster-icu",
) -> NDArray[np.float32]:  # fmt: skip
    """States of all variables of each stay, side by side.

    Args:
        train: Folders of `observations-*.parquet`.
        test: Folders of other stays.
        subjects: (n,) record ids, the order of what is returned.
        model: Directory or name of a forecaster of these variables.

    Returns:
        (n, variable * width).
    """
    protocol = read_protocol(train, "A", test)
    stays = Stays(protocol, EpisodeConfig())
    found = load_forecaster(model)
    network = found.model.eval()
    location, scale = torch.from_numpy(protocol.location), torch.from_numpy(protocol.scale)
    rows = []
    for some in tqdm(
        np.array_split(np.arange(len(protocol.part)), max(1, len(protocol.part) // 64)),
        desc="read stays", disable=None, leave=False,
    ):  # fmt: skip
        cut = np.full(len(some), READ_HOURS)
        context, _, _, _ = stays.cut(some, cut, np.zeros(len(some)))
        variable = context.variable[context.series_of_point()]
        native = context.values.double() * scale[variable] + location[variable]
        context = replace(context, values=native.float())
        rows.append(network.encode(context).tokens.reshape(len(some), -1).numpy())
    place = {int(name): i for i, name in enumerate(protocol.record_ids)}
    return np.concatenate(rows)[[place[int(name)] for name in subjects]]


def probe(
    states: NDArray[np.float32], y: NDArray[np.float64], asked: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Probabilities of the asked stays by a logistic regression on the principal components."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_components = min(N_COMPONENTS, len(states) - 1)
    model = make_pipeline(
        StandardScaler(), PCA(n_components, svd_solver="randomized", random_state=0),
        LogisticRegression(C=STRENGTH, max_iter=500),
    )  # fmt: skip
    return model.fit(states, y).predict_proba(asked)[:, 1].astype(np.float64)
