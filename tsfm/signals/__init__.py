"""Waveforms on disk and the first looks at them."""
