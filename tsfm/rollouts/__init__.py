"""Sampled futures: many timelines from one shared state, and what they estimate."""
