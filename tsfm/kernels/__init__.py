"""The kernels: each op one function with backends that are compared with a plain reference."""

from tsfm.kernels.causal_conv import causal_conv1d
from tsfm.kernels.selective_scan import selective_scan
from tsfm.kernels.ssd import ssd
from tsfm.kernels.state_update import state_update

__all__ = ["causal_conv1d", "selective_scan", "ssd", "state_update"]
