"""What one request may ask for, and where a step learns how many wait."""

MAX_TOP_K = 100
MAX_HISTORY = 1_000
"""Entries of one row's history."""
METRICS_VARIABLE = "INSTRUCTREC_METRICS"
"""The environment variable that holds `host:port` of Triton's metrics; where it is not set, they are at the default."""
