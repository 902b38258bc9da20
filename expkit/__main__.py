"""`python -m expkit`."""

from expkit.cli import console

if __name__ == "__main__":
    console()
