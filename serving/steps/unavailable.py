"""The exception that says: not now, through no fault of the request."""


class UnavailableError(RuntimeError):
    """What the model needs is out of reach; its message goes to the caller as UNAVAILABLE, who may ask again."""
