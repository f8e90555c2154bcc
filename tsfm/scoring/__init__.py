"""From a model and events to one row an eligible stay."""
