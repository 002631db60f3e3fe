"""Entry point of `python -m loadtest`."""

import sys

from loadtest.cli import main
from loadtest.ending import exit_on_sigterm

if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
