"""Models and their parts: tensors in, tensors out."""
