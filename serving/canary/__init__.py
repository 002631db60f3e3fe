"""A release that answers some of the people, beside the live one, until evidence decides between the two.

docs/canary.md says how it is used and judged.
"""
