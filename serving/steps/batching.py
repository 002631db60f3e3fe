"""Answer a batch of Triton requests so that one bad request never harms its neighbours.

A Python model that raises in `execute` fails the whole batch, leaks the requests and can hang the model in UNLOADING;
so nothing may escape from here. See https://github.com/triton-inference-server/python_backend#error-handling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import triton_python_backend_utils as pb_utils

from . import string_tensors
from .invalid_request import InvalidRequestError
from .unavailable import UnavailableError

string_tensors.install(pb_utils)

Parsed = TypeVar("Parsed")
Result = TypeVar("Result")


def answer_batch(
    requests: Sequence[Any],
    read: Callable[[Any], Parsed],
    compute: Callable[[list[Parsed]], Sequence[Result | Exception]],
    write: Callable[[Result], list[Any]],
) -> list[Any]:
    """Answer every request with exactly one response, in order.

    Args:
        requests: what Triton hands to `execute`.
        read: checks one request and takes its tensors; raises InvalidRequestError to have that request refused.
        compute: the step's work on all requests that could be read, at once; one result each, in order. A result that
            is an exception is that request's error.
        write: makes a result into the response's tensors.

    Returns:
        One `InferenceResponse` a request: its tensors, an INVALID_ARG error for a bad request, an UNAVAILABLE error
        where `compute` says so, or an INTERNAL error for a request that breaks the step itself.
    """
    responses: list[Any] = [None] * len(requests)
    parsed: list[Parsed] = []
    positions: list[int] = []
    for position, request in enumerate(requests):
        try:
            parsed.append(read(request))
            positions.append(position)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this one request
            responses[position] = _error_response(error)
    for position, answer in zip(positions, _compute_each(parsed, compute), strict=True):
        responses[position] = _response(answer, write)
    return responses


def _response(answer: Result | Exception, write: Callable[[Result], list[Any]]) -> Any:
    if isinstance(answer, Exception):
        return _error_response(answer)
    try:
        return pb_utils.InferenceResponse(output_tensors=write(answer))
    except Exception as error:  # noqa: BLE001 - see the module's docstring
        return _error_response(error)


def _compute_each(
    parsed: list[Parsed], compute: Callable[[list[Parsed]], Sequence[Result | Exception]]
) -> list[Result | Exception]:
    """Compute all at once; if that fails, one by one, so that only the guilty request gets the error."""
    if not parsed:
        return []
    try:
        results: list[Result | Exception] = list(compute(parsed))
        if len(results) != len(parsed):
            raise RuntimeError(f"{len(results)} results for {len(parsed)} requests")
        return results
    except Exception as error:  # noqa: BLE001 - see the module's docstring
        if len(parsed) == 1:
            return [error]
    answers: list[Result | Exception] = []
    for one in parsed:
        answers.extend(_compute_each([one], compute))
    return answers


def _error_response(error: Exception) -> Any:
    """Make an exception into a response; only our own messages reach the caller, others might repeat people's text."""
    if isinstance(error, InvalidRequestError):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
    if isinstance(error, UnavailableError):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE))
    pb_utils.Logger.log_error(f"step failed: {type(error).__name__} at {_origin(error)}")
    message = f"the step failed on this request ({type(error).__name__}); the server's log says where"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL))


def _origin(error: Exception) -> str:
    """File and line that raised, without the message, which may hold a person's text."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "an unknown place"
    return f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"


def tensor(request: Any, name: str) -> Any:
    """The named input of a request as a numpy array; BYTES come as an object array of `bytes`.

    Raises:
        InvalidRequestError: the request lacks the input.
    """
    found = pb_utils.get_input_tensor_by_name(request, name)
    if found is None:
        raise InvalidRequestError(f"input {name} is missing")
    return found.as_numpy()
