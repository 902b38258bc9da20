"""The option files of the core's groups; a package so that Hydra finds them as pkg://expkit.conf."""
