"""Sweeps: many cells, each with an interpreter of its own, measured in turn."""
