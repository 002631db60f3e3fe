"""Several processes that tune one encoder together, as `accelerate launch` starts them.

The main process trains as if it were alone. The others wait until it asks them for help with a tuning, take their share
of its batches, and wait again until it is done: they read the dataset, but write nothing and say nothing. If a process
fails, the launcher ends the others.
"""

import gc
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from accelerate import PartialState  # type: ignore[import-untyped]

DONE, TUNE = 0, 1  # what the main process asks for
PATIENCE = timedelta(days=7)  # the others wait while the main process embeds; its end is the launcher's to notice


def count() -> int:
    """The number of processes; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the only process or the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def ask_for_help() -> None:
    """Let the other processes join the main one's tuning; at once if there are none."""
    agree(TUNE)


def help_main_process(tune: Callable[[], object]) -> NoReturn:
    """Be one of the other processes: call `tune` as often as the main process asks for help, until it is done.

    Ends this process then. An interpreter that ends in order may be aborted by one of Gloo's threads (PyTorch, pull
    request 179291), for which the launcher would end the main process too, before it has said what it made.
    """
    while agree(DONE) == TUNE:
        tune()
    _leave()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def finish() -> None:
    """Tell the other processes that the main one needs them no more; at once if there are none."""
    if count() > 1:
        agree(DONE)
        _leave()


def agree(number: int) -> int:
    """The main process's `number`, in all processes; they wait for each other here."""
    if count() == 1:
        return number
    import torch  # noqa: PLC0415 - a process alone has no need of it here

    state = _state()
    message = torch.tensor([number], device=state.device)
    torch.distributed.broadcast(message, src=0)
    return int(message.item())


def wait() -> None:
    """Wait until all processes are here."""
    agree(0)


def _state() -> "PartialState":
    import torch  # noqa: PLC0415 - a process alone has no need of them here
    from accelerate import PartialState  # noqa: PLC0415

    # Joins the others at the first call; later calls give the same state.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def _leave() -> None:
    import torch  # noqa: PLC0415

    gc.collect()  # what a tuning leaves in cycles would keep Gloo's threads alive
    torch.distributed.destroy_process_group()
