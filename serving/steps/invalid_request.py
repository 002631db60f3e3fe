"""The one exception that a step raises when a caller's request, and only that request, is at fault."""


class InvalidRequestError(ValueError):
    """A request breaks the wire contract; its message goes to the caller as INVALID_ARGUMENT.

    Messages name the tensor and the limit. They never repeat the caller's text or item ids: messages end up in logs.
    """
