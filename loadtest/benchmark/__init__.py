"""How much of the encoder's own speed reaches the caller: `python -m loadtest.benchmark`, or `make bench`.

What is compared must be opened as the server opens it: so this part of `loadtest` imports `serving`, and no other does.
"""
