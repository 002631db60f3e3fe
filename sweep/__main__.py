"""`python -m sweep`, or `make tune-serving`."""

from sweep.command import main

if __name__ == "__main__":
    main()
