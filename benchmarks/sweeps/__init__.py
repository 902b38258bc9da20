"""Tests of what sweeps promise: kills, thousands of cells, a load half-way, and benchopt."""
