"""`python -m sweep`, or `make tune-serving`."""

from loadtest.ending import exit_when_told
from sweep.command import main

if __name__ == "__main__":
    exit_when_told()
    main()
