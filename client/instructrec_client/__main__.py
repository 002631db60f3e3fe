"""`python -m instructrec_client "I want …"`: asks once and prints the answer."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Sequence

from ._client import Client
from ._errors import InstructRecError
from ._models import Recommendations
from ._table import table
from ._timeout import Deadline, Timeout


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask once and print the answer.

    Args:
        arguments: The command line without the program's name; the process's own where None.

    Returns:
        0, or 1 after an error, which is printed as one line.
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal has no letters for, as stderr shows it
    history = [item_id.strip() for item_id in options.history.split(",") if item_id.strip()]
    try:
        deadline = Deadline(Timeout(options.timeout))
        with Client(options.url, domain=options.domain) as client:
            # Connects, so that the latency below is that of the answer alone.
            client.ready(timeout=deadline.remaining() / 2)
            start = time.perf_counter()
            answer = client.recommend(options.instruction, history=history, k=options.k, timeout=deadline.remaining())
            latency_ms = (time.perf_counter() - start) * 1000
    except (InstructRecError, ValueError) as error:
        sys.stderr.write(f"Error: {' '.join(str(error).split())}\n")  # a server's words may have several lines
        return 1
    shown = _as_json(answer, latency_ms) if options.json else _as_text(answer, latency_ms)
    try:
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough; Python would complain again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m instructrec_client", description="Ask a server for recommendations."
    )
    parser.add_argument("instruction", help="what is wanted, in your own words")
    parser.add_argument("--history", default="", metavar="ID,ID", help="ids of items chosen before, newest first")
    parser.add_argument("--k", type=int, default=10, help="how many items, 1 to 100 (default: %(default)s)")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the gRPC endpoint (default: %(default)s)")
    parser.add_argument("--domain", default="ecommerce", help="the domain to ask (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=Timeout().total, metavar="SECONDS", help="the deadline (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _as_json(answer: Recommendations, latency_ms: float) -> str:
    content = {**dataclasses.asdict(answer), "latency_ms": round(latency_ms, 3)}
    return json.dumps(content, indent=2)  # in ASCII, so that it is JSON on any terminal


def _as_text(answer: Recommendations, latency_ms: float) -> str:
    return f"{table(answer)}\n\nrelease {answer.release}, {latency_ms:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
