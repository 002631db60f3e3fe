"""What can go wrong with feedback.

FeedbackError
├── InvalidEventError   a row that a caller sent breaks the contract; its neighbours do not
└── StoreError          the store cannot be read or written now, or not by this version
"""


class FeedbackError(Exception):
    """Base of this room's errors; messages never hold an event's text or ids, for they end up in logs."""


class InvalidEventError(FeedbackError):
    """An event breaks the contract; the message names row and field."""


class StoreError(FeedbackError):
    """The store cannot be read or written; nothing of the batch was stored, and sending it again is safe."""
