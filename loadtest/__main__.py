"""Entry point of `python -m loadtest`."""

import sys

from loadtest.cli import main
from loadtest.ending import exit_when_told

if __name__ == "__main__":
    exit_when_told()
    sys.exit(main())
