"""What one request may ask for."""

MAX_TOP_K = 100
MAX_HISTORY = 1_000
"""Entries of one row's history."""
