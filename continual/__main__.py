"""`python -m continual`: feedback to a release, once (`tune`) or for as long as it runs (`follow`)."""

from continual.command import main

if __name__ == "__main__":
    main()
