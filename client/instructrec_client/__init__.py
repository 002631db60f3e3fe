"""Client of an InstructRec server: an instruction and a history in, ranked items with their reasons out; feedback back.

Example:
    from instructrec_client import Client, Feedback

    with Client("127.0.0.1:8001", domain="ecommerce", timeout=0.5) as client:
        answer = client.recommend("I want to buy a blue shirt", history=["10012"], k=5)
        client.feedback(Feedback("click", answer[0].item_id, user_id="u-17", release=answer.release))
"""

from ._async_canary_split import AsyncCanarySplit
from ._async_client import AsyncClient
from ._canary_split import CanarySplit
from ._client import Client
from ._errors import (
    ClientClosed,
    ClientMoved,
    DeadlineExceeded,
    InstructRecError,
    InvalidRequest,
    ModelNotFound,
    ModelUnloaded,
    ProtocolError,
    QueueFull,
    ServerError,
    ServerUnavailable,
)
from ._feedback import Feedback
from ._models import Item, Reason, Recommendations
from ._split import CanaryState, SplitCounts
from ._timeout import Timeout
from ._tls import Tls

__all__ = [
    "AsyncCanarySplit",
    "AsyncClient",
    "CanarySplit",
    "CanaryState",
    "Client",
    "ClientClosed",
    "ClientMoved",
    "DeadlineExceeded",
    "Feedback",
    "InstructRecError",
    "InvalidRequest",
    "Item",
    "ModelNotFound",
    "ModelUnloaded",
    "ProtocolError",
    "QueueFull",
    "Reason",
    "Recommendations",
    "ServerError",
    "ServerUnavailable",
    "SplitCounts",
    "Timeout",
    "Tls",
]

__version__ = "0.1.0"

# Users see, pickle and document the names where they import them from, not where they are written.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
