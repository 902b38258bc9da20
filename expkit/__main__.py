"""`python -m expkit`."""

import sys

from expkit.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
