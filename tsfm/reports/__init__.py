"""Pages and pictures that people read."""
