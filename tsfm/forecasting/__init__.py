"""Forecasts of single variables and what their quantiles promise."""
