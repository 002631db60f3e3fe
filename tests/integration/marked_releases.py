"""Releases made of one real release so that an answer proves which encoder, head and items produced it.

The encoder's vectors have their entries in an order of the encoder's own, and so have the head's weights and the item
vectors that belong to it; the head's logits have an order of the head's own, and so have the labels. Within a release
all orders agree, so that every release answers with the items and scores of the first; across releases they do not,
and the scores would be far off. Titles end in the number of the release whose items they are of.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from instructrec_client import Recommendations
from onnx import helper, numpy_helper

from export.head_graph import VECTOR, export_head
from serving.files import sha256_of
from serving.live_repository import format_config, parse_config
from serving.manifest import Step, files_below
from serving.releases import Release
from serving.steps.catalogue import Catalogue, StringTable
from serving.steps.text_encoder import Head

TOLERANCE = 1e-3
"""Of a score; one from two releases is off by far more than that."""


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system
        shutil.copy2(source, target)


def _order(kind: int, number: int, length: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([kind, number]).permutation(length)


@dataclass(frozen=True)
class Marker:
    """Makes numbered releases of a base.

    Attributes:
        base: a real release, as exported.
        store: the folder of the domain's releases, where the made ones go.
    """

    base: Release
    store: Path

    def make(self, number: int, *, encoder: int | None = None) -> Release:
        """Make release `number`, with the encoder of an earlier release or a new one.

        The tokenizer is that of release 1 throughout. Served in one step, everything is of the release's own number.
        """
        manifest = self.base.manifest
        staged = self.store / f".making-{number}"
        steps: dict[str, Step] = {}
        for name, step in manifest.steps.items():
            own = {"tokenizer": 1, "encoder": encoder or number}.get(name, number)
            source, target = self.base.models / step.model, staged / "models" / step.model
            shutil.copytree(source, target, copy_function=_link)
            (target / str(step.version)).rename(target / str(own))
            self._mark(target / str(own), number, encoder or number)
            steps[name] = Step(model=step.model, version=own, digest=f"{name} {own}")
        self._pin(staged, number, steps)
        _link(self.base.instructions, staged / self.base.instructions.name)
        made = manifest.model_copy(
            update={
                "release": number,
                "steps": steps,
                "export_fingerprint": f"marked {number}",
                "files": {name: sha256_of(staged / name) for name in sorted(files_below(staged))},
            }
        )
        made.write(staged)
        staged.rename(self.store / str(number))
        return Release(self.store / str(number))

    def _pin(self, staged: Path, number: int, steps: dict[str, Step]) -> None:
        domain = self.base.manifest.domain
        ensemble = staged / "models" / domain
        (ensemble / str(number)).mkdir(parents=True)
        (ensemble / str(number) / "release").write_text(f"{number}\n")
        config = parse_config((self.base.models / domain / "config.pbtxt").read_text())
        versions = {step.model: step.version for step in steps.values()}
        for entry in config.ensemble_scheduling.step:
            entry.model_version = versions[entry.model_name]
        (ensemble / "config.pbtxt").write_text(format_config(config))

    def _mark(self, folder: Path, number: int, encoder: int) -> None:
        """Reorder whatever of encoder, head and items lies in a version folder; its files are links to the base's."""
        if (folder / "model.onnx").is_file():
            graph = onnx.load(folder / "model.onnx")
            (folder / "model.onnx").unlink()
            weights = {one.name: one for one in graph.graph.initializer}
            if graph.graph.output[0].name == VECTOR:
                onnx.save(_reordered_encoder(graph, encoder), folder / "model.onnx")
            else:
                weight, bias = (numpy_helper.to_array(weights[name]) for name in ("weight", "bias"))
                export_head(*_reordered_head(weight, bias, number, encoder), folder / "model.onnx")
        if (folder / "head_weight.npy").is_file():
            weight, bias = (np.load(folder / f"head_{part}.npy") for part in ("weight", "bias"))
            for part in ("weight", "bias"):
                (folder / f"head_{part}.npy").unlink()
            Head(*_reordered_head(weight, bias, number, encoder)).write(folder)
        if (folder / "catalogue.json").is_file():
            items = _reordered_items(Catalogue.open(folder), number, encoder)
            for name in ("catalogue.json", *(path.name for path in folder.glob("*.npy") if "head" not in path.name)):
                (folder / name).unlink()
            items.write(folder)


def _reordered_encoder(model: onnx.ModelProto, encoder: int) -> onnx.ModelProto:
    graph = model.graph
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == VECTOR:
                node.output[place] = "vector_in_order"
    width = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    graph.initializer.append(numpy_helper.from_array(_order(1, encoder, width), "order"))
    graph.node.append(helper.make_node("Gather", ["vector_in_order", "order"], [VECTOR], axis=1))
    return model


def _reordered_head(
    weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], number: int, encoder: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rows, columns = _order(2, number, len(bias)), _order(1, encoder, weight.shape[1])
    return weight[rows][:, columns], bias[rows]


def _reordered_items(items: Catalogue, number: int, encoder: int) -> Catalogue:
    rows = _order(2, number, len(items.labels))
    marked = replace(
        items,
        release=str(number),
        item_vectors=np.array(items.item_vectors)[:, _order(1, encoder, items.item_vectors.shape[1])],
        label_index=np.argsort(rows)[items.label_index].astype(np.int32),
        prior=np.array(items.prior),
        place=None if items.place is None else np.array(items.place),
        labels=tuple(items.labels[row] for row in rows),
        titles=StringTable.of_bytes([title + b" [%d]" % number for title in items.titles]),
        item_ids=StringTable.of_bytes(list(items.item_ids)),
        history_vectors=None if items.history_vectors is None else np.array(items.history_vectors),
        lookup=None,
        folder=None,
    )
    return marked.reordered(np.argsort(marked.label_index, kind="stable"))


def difference(answer: Recommendations, expected: Recommendations) -> str:
    """What is wrong with an answer, given one of another whole release to the same question; empty if nothing is.

    Two items whose scores differ by less than rounding may change places.
    """
    if answer.model_version != answer.release:
        return f"version {answer.model_version} of the ensemble, release {answer.release}"
    if any(not item.title.endswith(f" [{answer.release}]") for item in answer):
        return f"release {answer.release} with the items of another: {answer[0].title}"
    if len(answer) != len(expected):
        return f"{len(answer)} items, expected {len(expected)}"
    apart = max(map(abs, _terms(answer) - _terms(expected)), default=0.0)
    return f"release {answer.release}: scores are off by {apart:.3g}" if apart > TOLERANCE else ""


def _terms(items: Sequence) -> npt.NDArray[np.float64]:  # type: ignore[type-arg]
    return np.array([item.score for item in items])
