"""What one request may ask for, and what is said and read where too many wait."""

MAX_TOP_K = 100
MAX_HISTORY = 1_000
"""Entries of one row's history."""
METRICS_VARIABLE = "INSTRUCTREC_METRICS"
"""The environment variable that holds `host:port` of Triton's metrics; where it is not set, they are at the default."""
REFUSED_METRIC = "instructrec_refused_requests"
"""Counts what a version of a first step refused because too many waited."""
QUEUE_FULL = "Exceeds maximum queue size"
"""Begins a refusal because too many wait, as it begins Triton's own; callers know it by that."""
