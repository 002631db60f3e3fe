"""What the Python steps run inside Triton: numpy and tokenizers, nothing heavier.

`export/` copies this package beside each step's `model.py`, so that a release carries the very code that it was
verified with.
"""
