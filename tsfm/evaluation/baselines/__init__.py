"""What a model must beat to be worth deploying."""
