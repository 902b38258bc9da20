"""`python -m expkit`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # The current folder comes first: a file `random.py` in it would stand for Python's own.
        sys.path.append(sys.path.pop(0))

    from expkit.cli import console

    console()
