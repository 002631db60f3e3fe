"""A model that is one graph: what the Python-based backends have in common.

They refuse at load what the native backends refuse: names, dtypes and dims of the config that differ from the graph's.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from .batching import answer_batch, tensor
from .encoder_engine import Engine, TensorInfo
from .invalid_request import InvalidRequestError
from .length_runs import TOKENS_A_RUN, split_into_runs

Tensors = dict[str, npt.NDArray[Any]]

MASK = "attention_mask"
TEXT_INPUTS = ("input_ids", MASK)
"""The inputs of a text encoder; what lies beyond the last place of the mask that is not zero changes no answer."""


class GraphModel:
    """One open graph an instance; requests of equal shape run as one batch, texts in runs of similar length."""

    default_filename: str
    length_multiple = 16
    """What a text's length is rounded up to where padding is cut off; engines whose sums do not depend on it say 1."""
    session: Engine

    def open(self, config: dict[str, Any], path: Path) -> Engine:
        """Open the graph with the config's settings; each backend has its own."""
        raise NotImplementedError

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and check the config against it."""
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] != "CPU":
            raise pb_utils.TritonModelException(
                f"{args['model_name']}: this backend runs on KIND_CPU only; "
                f"for {args['model_instance_kind']} use a stock Triton image"
            )
        filename = config["default_model_filename"] or self.default_filename
        self.use(self.open(config, Path(args["model_repository"]) / args["model_version"] / filename), config)

    def use(self, session: Engine, config: dict[str, Any]) -> None:
        """Answer with an open graph from now on.

        Raises:
            TritonModelException: the config's tensors are not the graph's.
        """
        self.session = session
        batched = config["max_batch_size"] > 0
        check_tensors("input", config["input"], session.inputs, batched=batched)
        check_tensors("output", config["output"], session.outputs, batched=batched)
        self.input_names = [one["name"] for one in config["input"]]
        self.output_names = [one["name"] for one in config["output"]]
        self.variable_inputs = [one["name"] for one in config["input"] if -1 in map(int, one["dims"])]
        fixed_outputs = not any(-1 in map(int, one["dims"]) for one in config["output"])
        self.reads_texts = batched and fixed_outputs and sorted(self.input_names) == sorted(TEXT_INPUTS)
        self.longest_text = longest_warm_up(config) if self.reads_texts else None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with the graph's outputs, or with an error of its own."""
        return answer_batch(requests, self._read, self._run, self._write)

    def _read(self, request: Any) -> Tensors:
        feed = {name: tensor(request, name) for name in self.input_names}
        if self.longest_text is not None and (places := max(one.shape[1] for one in feed.values())) > self.longest_text:
            raise InvalidRequestError(
                f"a text has {places:,} tokens; this encoder is served texts of at most {self.longest_text:,}: "
                "cut it as the tokenizer step does"
            )
        return feed

    def _run(self, feeds: list[Tensors]) -> list[Tensors]:
        return self._run_texts(feeds) if self.reads_texts else self._run_shapes(feeds)

    def _run_texts(self, feeds: list[Tensors]) -> list[Tensors]:
        """Run texts of all lengths together, without the padding that brought them to a bucket's length."""
        rows = [(feed, row) for feed in feeds for row in range(len(feed[MASK]))]
        lengths = [length for feed in feeds for length in text_lengths(feed[MASK])]
        outputs: dict[str, npt.NDArray[Any]] = {}
        for run in split_into_runs(lengths, multiple=self.length_multiple):
            batch = {}
            for name in self.input_names:
                batch[name] = np.zeros((len(run.positions), run.length), feeds[0][name].dtype)
                for at, position in enumerate(run.positions.tolist()):
                    feed, row = rows[position]
                    own = feed[name][row, : run.length]
                    batch[name][at, : len(own)] = own
            for name, values in zip(self.output_names, self.session.run(self.output_names, batch), strict=True):
                if name not in outputs:
                    outputs[name] = np.empty((len(rows), *values.shape[1:]), values.dtype)
                outputs[name][run.positions] = values
        ends = np.cumsum([0] + [len(feed[MASK]) for feed in feeds]).tolist()
        return [
            {name: values[start:stop] for name, values in outputs.items()} for start, stop in itertools.pairwise(ends)
        ]

    def _run_shapes(self, feeds: list[Tensors]) -> list[Tensors]:
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for position, feed in enumerate(feeds):
            groups.setdefault(tuple(feed[name].shape[1:] for name in self.input_names), []).append(position)
        results: list[Tensors] = [{} for _ in feeds]
        for positions in groups.values():
            batch = {name: joined([feeds[position][name] for position in positions]) for name in self.input_names}
            outputs = self._infer(batch)
            start = 0
            for position in positions:
                stop = start + len(feeds[position][self.input_names[0]])
                results[position] = {
                    name: values[start:stop] for name, values in zip(self.output_names, outputs, strict=True)
                }
                start = stop
        return results

    def _infer(self, batch: Tensors) -> list[npt.NDArray[Any]]:
        """Run a batch, in equal parts where it is large: what leaves the cache is slower, and takes memory for good."""
        rows = len(batch[self.input_names[0]])
        longest = max((int(np.prod(batch[name].shape[1:])) for name in self.variable_inputs), default=0)
        parts = -(-rows // max(1, TOKENS_A_RUN // longest)) if longest else 1
        if parts == 1:
            return self.session.run(self.output_names, batch)
        edges = np.linspace(0, rows, parts + 1).astype(int).tolist()
        outputs = [
            self.session.run(self.output_names, {name: values[start:stop] for name, values in batch.items()})
            for start, stop in itertools.pairwise(edges)
        ]
        return [np.concatenate(values) for values in zip(*outputs, strict=True)]

    def _write(self, result: Tensors) -> list[Any]:
        return [pb_utils.Tensor(name, np.ascontiguousarray(values)) for name, values in result.items()]


def text_lengths(mask: npt.NDArray[Any]) -> list[int]:
    """The places of each row up to the last that counts, at least one; `mask` is [rows, places]."""
    counts = mask != 0
    lengths = mask.shape[1] - counts[:, ::-1].argmax(axis=1)
    return np.where(counts.any(axis=1), lengths, 1).tolist()  # type: ignore[no-any-return]


def longest_warm_up(config: dict[str, Any]) -> int | None:
    """The length of the longest text that a config warms up: the last bucket, so that no tokenizer step sends more.

    None where it warms nothing up. What a caller sends by itself could cost any time and memory.
    """
    samples = (sample["inputs"] for sample in config.get("model_warmup", []))
    return max((int(inputs[MASK]["dims"][0]) for inputs in samples if MASK in inputs), default=None)


def joined(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One batch from several requests' rows; a single request is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def parameters(config: dict[str, Any]) -> dict[str, str]:
    """A config's parameters, by name."""
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}


def whole_number(name: str, value: str, largest: int) -> int:
    """A parameter's value as a number from 0 to `largest`.

    Raises:
        TritonModelException: it is anything else.
    """
    if not (value.isascii() and value.isdecimal() and int(value) <= largest):
        raise pb_utils.TritonModelException(
            f"parameter {name} is {value!r}; it must be a whole number from 0 to {largest}"
        )
    return int(value)


def refuse(config: dict[str, Any], backend: str, unknown: Sequence[str]) -> None:
    """Refuse what a backend does not honour: a setting that is silently ignored is a wrong setting.

    Raises:
        TritonModelException: there is something unknown.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    names = sorted(unknown) + [name for name, value in accelerators.items() if value]
    if names:
        raise pb_utils.TritonModelException(
            f"{config['name']}: the Python-based {backend} backend does not know {', '.join(names)}; "
            "remove it from config.pbtxt"
        )


def check_tensors(role: str, configured: list[dict[str, Any]], actual: Sequence[TensorInfo], *, batched: bool) -> None:
    """Hold the config's tensors against the graph's, as the native backends do at load.

    Raises:
        TritonModelException: a name, dtype or dim differs, or an input is left out.
    """
    by_name = {one.name: one for one in actual}
    missing = set(by_name) - {one["name"] for one in configured} if role == "input" else set()
    if missing:
        raise pb_utils.TritonModelException(f"config.pbtxt lacks the model's {role} {', '.join(sorted(missing))}")
    for one in configured:
        if one["name"] not in by_name:
            raise pb_utils.TritonModelException(
                f"config.pbtxt names {role} {one['name']}; the model has {', '.join(sorted(by_name))}"
            )
        _check_tensor(role, one, by_name[one["name"]], batched=batched)


def _check_tensor(role: str, configured: dict[str, Any], model: TensorInfo, *, batched: bool) -> None:
    name = configured["name"]
    if model.data_type != configured["data_type"]:
        raise pb_utils.TritonModelException(
            f"{role} {name} is {configured['data_type']} in config.pbtxt and {model.described} in the model"
        )
    if batched and (not model.shape or model.shape[0] is not None):
        raise pb_utils.TritonModelException(
            f"{role} {name} has no free batch dimension in the model (shape {_shown(model.shape)}); "
            "set max_batch_size: 0 or export it anew"
        )
    dims = [int(dim) for dim in configured["dims"]]
    expected = model.shape[1:] if batched else model.shape
    fits = len(dims) == len(expected) and all(
        size is None or dim == size for dim, size in zip(dims, expected, strict=True)
    )
    if not fits:
        raise pb_utils.TritonModelException(
            f"{role} {name} has dims {dims} in config.pbtxt and {_shown(expected)} in the model"
        )


def _shown(shape: Sequence[int | None]) -> list[int]:
    return [-1 if size is None else size for size in shape]
