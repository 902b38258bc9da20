"""Ratios against the tutorials' loops and careful ones; `make bench` runs them all."""
