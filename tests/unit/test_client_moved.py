"""A client belongs to the process, and an `AsyncClient` to the event loop, that it connected in."""

import asyncio
import subprocess
import sys

import pytest
from client_helpers import PATIENCE, serving
from instructrec_client import AsyncClient, ClientMoved

FORKING = """
import os, sys, threading
from instructrec_client import CanarySplit, Client, ClientMoved

def in_children(ask, number=1):
    "What each of some forked processes says."
    children = []
    for _ in range(number):
        child = os.fork()
        if not child:
            said = 1
            try:
                said = 2 if ask()[0].item_id == "item_id" else 3
            except ClientMoved as error:
                said = 4 if "make one after the fork" in str(error) else 5
            finally:
                os._exit(said)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

before, used = Client(sys.argv[1], timeout=20), Client(sys.argv[1])
print("not used before the fork", *in_children(lambda: before.recommend("a shirt")))
used.recommend("a shirt")
print("used before the fork", *in_children(lambda: used.recommend("a shirt")))
print("a split of it", *in_children(lambda: CanarySplit(used).recommend("a shirt", user_id="u-17")))

def closes():
    used.close()
    used.recommend("a shirt")

print("closed in the child", *in_children(closes))
enough = threading.Event()

def call():
    while not enough.is_set():
        used.recommend("a shirt")

callers = [threading.Thread(target=call) for _ in range(4)]
for caller in callers:
    caller.start()
print("while others call", *in_children(lambda: used.recommend("a shirt"), 6))
enough.set()
for caller in callers:
    caller.join()
print("in the parent", 2 if used.recommend("a shirt")[0].item_id == "item_id" else 3)
"""
ANSWERED, MOVED = "2", "4"


def test_a_child_process_gets_an_answer_or_is_told_that_it_needs_a_client_of_its_own():
    with serving() as (_, url):
        command = [sys.executable, "-c", FORKING, url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"not used before the fork {ANSWERED}",
            f"used before the fork {MOVED}",
            f"a split of it {MOVED}",
            f"closed in the child {MOVED}",
            f"while others call {' '.join([MOVED] * 6)}",
            f"in the parent {ANSWERED}",
        ],
    ), done.stderr


def test_a_second_event_loop_is_told_that_it_needs_a_client_of_its_own():
    with serving() as (_, url):
        client = AsyncClient(url)
        assert asyncio.run(client.recommend("a shirt"))[0].item_id == "item_id"
        with pytest.raises(ClientMoved, match="make an AsyncClient in each"):
            asyncio.run(client.recommend("a shirt"))
        asyncio.run(client.close())
