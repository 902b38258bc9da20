"""Keeping runs: the journal first, MLflow second."""
