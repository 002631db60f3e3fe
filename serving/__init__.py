"""The serving room: the live repository, the embedded Triton, and the code that Triton's Python steps share."""
