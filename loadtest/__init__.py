"""Proves, or disproves, that a server keeps its latency SLA under load."""
