"""A batch in runs of like length gives what the whole batch gives, and one long text does not pad the others."""

from pathlib import Path

import pytest
import torch

from training.model import InstructionModel
from training.tuning_trainer import forward_by_length

TEXTS = ["show me", "i want to buy a plain blue shirt for the red hat, size 42, with a bag", "shoe", "", "a green bag"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_rows_of_like_length_run_together_and_come_back_in_their_order(tiny_encoder: Path, pooling: str) -> None:
    model = InstructionModel.from_folder(tiny_encoder, pooling, 48, labels=4)  # type: ignore[arg-type]
    ids, mask = model.pad([encoding.ids for encoding in model.tokenizer.encode_batch(TEXTS)])
    whole = model(ids, mask)
    for apart, together in zip(forward_by_length(model, ids, mask), whole, strict=True):
        torch.testing.assert_close(apart, together, atol=2e-5, rtol=1e-4)


def test_short_texts_are_not_padded_to_the_longest(tiny_encoder: Path) -> None:
    model = InstructionModel.from_folder(tiny_encoder, "mean", 48, labels=4)
    ids, mask = model.pad([encoding.ids for encoding in model.tokenizer.encode_batch(TEXTS)])
    shapes: list[tuple[int, ...]] = []
    model.encoder.embeddings.register_forward_hook(lambda *call: shapes.append(tuple(call[-1].shape[:2])))
    forward_by_length(model, ids, mask)
    assert sum(rows for rows, _ in shapes) == len(TEXTS)
    assert sum(rows * length for rows, length in shapes) < ids.numel()
