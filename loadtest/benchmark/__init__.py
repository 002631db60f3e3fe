"""How much of the encoder's own speed reaches the caller: `python -m loadtest.benchmark`, or `make bench`."""
