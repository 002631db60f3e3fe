"""The `feedback` model in the live repository: put there by a deploy, untouched by every publish after it.

It is one model for all domains and belongs to no release, so its version follows its own code alone.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import psutil
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

import feedback

from .admin import admin_client, refusal
from .channel import connect
from .errors import PublishError, ServerError
from .files import remove, rename_into_place, write_atomically
from .layout import Layout
from .live_repository import CONFIG_NAME, INCOMING, contents, format_config, parse_config, read_config
from .step_configs import replace_if_changed

MODEL = "feedback"
SOURCE = Path(__file__).resolve().parent.parent / "model_repository" / MODEL
FOLDER = "folder"
"""The parameter of its config that says where the store lies."""
STEPS_CODE = Path(__file__).resolve().parent / "steps"
STEPS_USED = ("__init__.py", "batching.py", "invalid_request.py", "string_tensors.py", "unavailable.py")
"""Of `serving/steps/`: a change to the others is no reason to reload this model."""


def is_staged(layout: Layout) -> bool:
    """Whether the live repository holds the model."""
    return (layout.live / MODEL / CONFIG_NAME).is_file()


def stage_feedback(layout: Layout) -> bool:
    """Bring the model into the live repository, or its new code as its next version.

    Returns:
        Whether anything changed, which a running server has to load.

    Raises:
        PublishError: the folder cannot be written.
    """
    folder = layout.live / MODEL
    try:
        live = _pinned(folder)
        number = (live or 0) + 1
        incoming = folder / f"{INCOMING}{number}"
        remove(incoming)
        _assemble(incoming)
        if live is not None and (folder / str(live)).is_dir() and contents(incoming) == contents(folder / str(live)):
            remove(incoming)
            number = live
        else:
            remove(folder / str(number))  # staged by a deploy that was killed before it switched
            rename_into_place(incoming, folder / str(number))
        config = _config(layout, number)
        if live == number and (folder / CONFIG_NAME).read_bytes() == config:
            return False
        write_atomically(folder / CONFIG_NAME, config)
        return True
    except shutil.Error as error:
        raise PublishError(f"cannot write the live repository {folder}: {error.args[0][0][2]}") from None
    except OSError as error:
        raise PublishError(f"cannot write the live repository {folder}: {error.strerror or error}") from None


def repoint_feedback(layout: Layout) -> None:
    """Have the model that is there write where its `VAR` lies now: it may have been moved or copied since the deploy.

    Nothing else of it is brought up to date: what is started is what has answered.

    Raises:
        PublishError: its config is damaged or cannot be written.
    """
    path = layout.live / MODEL / CONFIG_NAME
    try:
        if _pinned(path.parent) is None:
            return
        config = read_config(path)
        config.parameters[FOLDER].string_value = str(layout.feedback)
        replace_if_changed(path, format_config(config).encode())
    except OSError as error:
        raise PublishError(f"cannot write {path}: {error.strerror or error}") from None


def publish_feedback(layout: Layout, url: str) -> None:
    """Have a running server serve the model as it is now; nothing happens where it does already.

    Raises:
        PublishError: the folder cannot be written, or Triton refuses the model; what was there before still answers.
    """
    path = layout.live / MODEL / CONFIG_NAME
    try:
        before = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise PublishError(f"cannot read {path}: {error.strerror or error}") from None
    changed = stage_feedback(layout)
    try:
        with admin_client(layout, url) as client:
            # By its version: a deploy that was killed may have staged one that it did not load.
            if changed or not client.is_model_ready(MODEL, str(_pinned(layout.live / MODEL)), client_timeout=10):
                client.load_model(MODEL, client_timeout=120)
    except InferenceServerException as error:
        refused = refusal(MODEL, error)
        try:
            if changed and before is not None:
                write_atomically(path, before)
            elif changed:
                path.unlink()
        except OSError as full:
            raise PublishError(f"{refused}; and {path} cannot be put back: {full.strerror or full}") from None
        raise PublishError(refused) from None


def probe_feedback(url: str, *, timeout_seconds: float = 5.0) -> float:
    """Ask whether an event would be stored now, without storing one.

    Returns:
        The milliseconds that it took, as the caller saw it.

    Raises:
        ServerError: no answer, or the store cannot be written; the message says why.
    """
    inputs = []
    for name, value in (("event_id", b"probe"), ("domain", b"probe"), ("event", b"probe"), ("item_id", b"probe")):
        tensor = grpc.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
        inputs.append(tensor)
    started = time.perf_counter()
    try:
        with connect(url) as client:
            client.infer(MODEL, inputs, client_timeout=timeout_seconds)
    except InferenceServerException as error:
        raise ServerError(f"{MODEL} at {url} takes no events: {error.message()}") from None
    return (time.perf_counter() - started) * 1_000


def store_in_use(layout: Layout, pid: int) -> str:
    """The store that a server writes to, without a password; and the one that commands read here, if it is another.

    The server's is where its model's config says, which is below another folder where `VAR` was moved since.

    Args:
        layout: of the server.
        pid: the server's process, whose environment may name another store than this process's does.
    """
    # Here, for no other command of this room should wait for SQLAlchemy.
    from feedback.errors import FeedbackError  # noqa: PLC0415
    from feedback.location import URL_VARIABLE, Location  # noqa: PLC0415

    try:
        config = read_config(layout.live / MODEL / CONFIG_NAME)
        folder = Path(config.parameters[FOLDER].string_value).resolve()
        servers, ours = Location(folder, psutil.Process(pid).environ()), Location(layout.feedback)
        if servers.url() == ours.url():
            return servers.name
        if folder != layout.feedback:
            why = f"the server goes by {folder}, where VAR was when it was started; run `make stop start`"
        else:
            why = (
                f"{URL_VARIABLE} differs between the server's environment and this one, "
                f"so put the URL into {ours.url_file} instead"
            )
        return f"{servers.name}; COMMANDS HERE READ {ours.name}: {why}"
    except (FeedbackError, OSError, PublishError, psutil.Error) as error:
        return f"a store that cannot be named ({error})"


def _pinned(folder: Path) -> int | None:
    path = folder / CONFIG_NAME
    versions = read_config(path).version_policy.specific.versions if path.is_file() else ()
    return versions[0] if versions else None


def _assemble(folder: Path) -> None:
    """The model's code and what it imports, as one folder that needs nothing else of this project."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "1", folder, ignore=ignore)
    shutil.copytree(Path(feedback.__file__).parent, folder / "feedback", ignore=ignore)
    (folder / "steps").mkdir()
    for name in STEPS_USED:
        shutil.copy2(STEPS_CODE / name, folder / "steps")
    for package in (folder, folder / "feedback", folder / "steps"):
        # Instead of a folder of byte code, whose appearance would look like a changed model to Triton.
        (package / "__pycache__").touch()


def _config(layout: Layout, version: int) -> bytes:
    config = parse_config((SOURCE / CONFIG_NAME).read_text(encoding="utf-8"))
    config.version_policy.specific.versions.append(version)
    config.parameters[FOLDER].string_value = str(layout.feedback)
    return format_config(config).encode()
