"""The kernels: each op one function with backends that are compared with a plain reference."""

from tsfm.kernels.selective_scan import selective_scan

__all__ = ["selective_scan"]
