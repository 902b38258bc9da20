"""What sweeps promise, tried: kills, thousands of cells, a load that comes and goes, benchopt."""
