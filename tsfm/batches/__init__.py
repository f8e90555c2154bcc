"""Packed batches of tokens."""
