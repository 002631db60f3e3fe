"""What the client's distribution promises: few imports, and twins that agree."""

import inspect
import pickle
import subprocess
import sys

import instructrec_client
import pytest
from instructrec_client import (
    AsyncClient,
    Client,
    InstructRecError,
    InvalidRequest,
    ModelUnloaded,
    QueueFull,
    ServerUnavailable,
)

IMPORT_WITHOUT = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
for name in {blocked!r}:
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " was not blocked")
import instructrec_client
import instructrec_client.__main__
instructrec_client.Client("127.0.0.1:1").close()
"""
HEAVY = ["torch", "transformers", "tokenizers", "onnxruntime", "pandas", "pydantic", "click", "rich", "yaml", "locust"]
HEAVY += ["training", "export", "serving", "loadtest"]


def public_methods(client):
    return {
        name: member for name, member in inspect.getmembers(client) if not name.startswith("_") and callable(member)
    }


def test_imports_with_nothing_but_tritonclient_and_numpy():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT.format(blocked=HEAVY)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_all_names_exist_and_belong_to_the_package():
    for name in instructrec_client.__all__:
        assert getattr(instructrec_client, name).__module__ == "instructrec_client"


def test_twins_have_the_same_names_and_signatures():
    blocking, awaited = public_methods(Client), public_methods(AsyncClient)
    assert (
        set(blocking)
        == set(awaited)
        == {"recommend", "recommend_batch", "feedback", "feedback_batch", "ready", "close"}
    )
    for name in ["__init__", *blocking]:
        assert inspect.signature(getattr(Client, name)) == inspect.signature(getattr(AsyncClient, name)), name
    assert all(inspect.iscoroutinefunction(method) for method in awaited.values())
    assert not any(inspect.iscoroutinefunction(method) for method in blocking.values())


def test_every_error_is_an_instructrec_error():
    errors = [
        value
        for value in vars(instructrec_client).values()
        if isinstance(value, type) and issubclass(value, Exception) and value is not InstructRecError
    ]
    assert len(errors) == 10
    assert all(issubclass(error, InstructRecError) for error in errors)
    assert issubclass(QueueFull, ServerUnavailable)
    assert issubclass(ModelUnloaded, ServerUnavailable)


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(InvalidRequest("k must be from 1 to 100, got 0")))  # noqa: S301 - our own bytes
    assert isinstance(error, InvalidRequest)
    assert str(error) == "k must be from 1 to 100, got 0"


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://127.0.0.1:8000"},
        {"url": ""},
        {"domain": ""},
        {"timeout": 0},
        {"timeout": -1.0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": 1e10},
        {"timeout": True},
        {"timeout": "5"},
        {"retries": -1},
        {"retries": 1.5},
        {"retries": True},
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_connected(client, settings):
    with pytest.raises(ValueError, match=next(iter(settings)).removesuffix("s")):
        client(**settings)
