"""The problems, one file each; a file here is an option `problem=<file name>`."""
