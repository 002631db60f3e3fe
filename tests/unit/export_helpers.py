"""A domain of four kinds of things with a real run, to export releases of."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from run_helpers import made_run

from export.release import Exported, export_release
from serving.layout import Layout
from training.config_loading import load_config
from training.dataset import Instruction, Item
from training.derived_run import derive_run
from training.model import InstructionModel
from training.run import Run

KINDS = ("Bags", "Hats", "Shirts", "Shoes")
ITEMS = [
    Item(f"id-{n}", f"{colour} {kind}", f"a {colour} {kind[:-1].lower()} {n}", kind, 1.0, {})
    for n, (kind, colour) in enumerate((kind, colour) for kind in KINDS for colour in ("blue", "red", "green", "black"))
]
INSTRUCTIONS = [
    Instruction(f"ask-{n}", f"i want {item.text}", item.label, {}, {}, ("train", "test")[n % 2])
    for n, item in enumerate(ITEMS)
]
OVERRIDES = ("serving.length_buckets=[16,32]",)


def write_config(folder: Path) -> Path:
    catalogue = "{file: shop/items.csv, item_id: id, title: name, text: '{name}. {text}', label: kind}"
    instructions = "{file: shop/asks.csv, instruction_id: id, text: words, label: kind, split: split}"
    path = folder / "shop.yaml"
    path.write_text(
        "domain: shop\nencoder: {name: unused}\nsources:\n  - name: main\n"
        f"    catalogue: {catalogue}\n    instructions: {instructions}\n",
        encoding="utf-8",
    )
    return path


class Shop:
    """One domain in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.var, self.config = folder / "var", folder / "shop.yaml"
        self.layout = Layout(self.var)
        self.releases = self.layout.releases("shop")
        self.said: list[str] = []

    @property
    def run(self) -> Run:
        return Run.open(self.var / "runs/shop/20260101T000000000Z-aaaaaaaa")

    def export(self, run: Run, *overrides: str, reuse: bool = True) -> Exported:
        config = load_config(self.config, (*OVERRIDES, *overrides))
        return export_release(run, config, self.layout, "fp32", reuse=reuse, say=self.said.append)

    def run_with(self, vectors: np.ndarray) -> Run:
        return derive_run(self.run, self.var, reason="test", catalogue=ITEMS, item_vectors=vectors)


def made_shop(
    folder: Path, encoder: Path, instructions: Sequence[Instruction] = INSTRUCTIONS, items: Sequence[Item] = ITEMS
) -> Shop:
    model = InstructionModel.from_folder(encoder, "mean", 32, 1)
    embed: Callable[[Sequence[str]], np.ndarray] = lambda texts: model.embed(list(texts))  # noqa: E731
    made_run(write_config(folder), folder / "var", items, instructions, encoder=encoder, embed=embed)
    return Shop(folder)
