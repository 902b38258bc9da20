"""Ratios against loops as the tutorials write them; `make bench` runs them all."""
