"""Compare expkit with the tutorials' loops and with careful ones; `make bench` runs them all."""
