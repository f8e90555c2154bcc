"""A calibration as plain scalars and lists: it comes back whole, and is not taken from others."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from tsfm.errors import FormatError
from tsfm.forecasting.conformal import SplitConformal, fit_split_conformal


def calibration(n: int) -> SplitConformal:
    generator = np.random.default_rng(0)
    return fit_split_conformal(
        generator.choice(["heart rate", "lactate"], n),
        generator.choice([1.0, 12.0, 48.0], n),
        (0.05, 0.5, 0.95),
        np.sort(generator.standard_normal((n, 3)), axis=1),
        generator.standard_normal(n),
        lead_edges_hours=(6.0, 24.0),
        min_points=20,
    )


def test_it_survives_json_and_refuses_any_other() -> None:
    fitted = calibration(300)
    text = json.dumps(fitted.to_dict(), allow_nan=False)
    assert SplitConformal.from_dict(json.loads(text)) == fitted
    nothing = calibration(0)
    assert SplitConformal.from_dict(json.loads(json.dumps(nothing.to_dict()))) == nothing
    cell = fitted.to_dict()["cells"][0]
    changes: list[dict[str, Any]] = [
        {"more": 1},
        {"levels": [0.5, 0.1, 0.6]},
        {"levels": [0.1, 0.5]},
        {"lead_edges_hours": [6.0, math.nan]},
        {"lead_edges_hours": [24.0, 6.0]},
        {"lead_edges_hours": [6.0]},
        {"n_points": -1},
        {"n_ignored": 1.5},
        {"n_ignored": True},
        {"spread": [1.0]},
        {"spread": {"x": "1"}},
        {"spread": {"x": -1.0}},
        {"cells": 3},
        {"cells": ["x"]},
        {"cells": [cell, cell]},
        {"cells": [{**cell, "more": 1}]},
        {"cells": [{**cell, "shift": [0.0] * 2}]},
        {"cells": [{**cell, "shift": [0.0] * 2 + [math.inf]}]},
        {"cells": [{**cell, "lead_bin": 3}]},
        {"cells": [{**cell, "lead_bin": "0"}]},
        {"cells": [{**cell, "variable": 7}]},
        {"cells": [{**cell, "variable": ["x"]}]},
        {"cells": [{**cell, "n_groups": None}]},
    ]
    for change in changes:
        with pytest.raises(FormatError, match="bad_conformal_calibration"):
            SplitConformal.from_dict({**fitted.to_dict(), **change})
    for key in fitted.to_dict():
        lacking = {k: v for k, v in fitted.to_dict().items() if k != key}
        with pytest.raises(FormatError, match="keys"):
            SplitConformal.from_dict(lacking)
