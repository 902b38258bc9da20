"""The optimizers, one file each; a file here is an option `optimizer=<file name>`."""
