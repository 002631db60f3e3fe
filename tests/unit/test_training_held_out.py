"""What is held out is learned from no item that says it word for word, and validation is by groups where they are."""

from pathlib import Path

import pandas as pd
import pytest
from training_helpers import command_line, finished, without_interactions

from training import encoder_tuning, objective, shots, train, tuning_examples
from training.config_loading import load_config
from training.dataset_loading import load_dataset
from training.head import sample_items
from training.model import InstructionModel
from training.plan import make_plan
from training.shots import limit_shots

SAID = {"item-1", "item-9", "item-17", "item-25", "item-2"}
FAST = ("training.epochs=2", "training.items_per_label=8")
TUNED = ("encoder_tuning.method=full", "encoder_tuning.epochs=1", "encoder_tuning.ranking_weight=1.0")


@pytest.fixture
def said(tiny_data: Path) -> Path:
    """The data, in which four test instructions are titles of items, and a validation instruction is one's text."""
    items = pd.read_csv(tiny_data / "shop/items.csv", dtype=str)
    path = tiny_data / "shop/asks.csv"
    asks = pd.read_csv(path, dtype=str, keep_default_na=False)
    asks.loc[asks.index[asks["split"] == "test"][:4], ["words", "kind"]] = items.loc[
        [1, 9, 17, 25], ["name", "kind"]
    ].to_numpy()
    asks.loc[asks.index[asks["split"] == "validation"][0], ["words", "kind"]] = [
        f" {items.loc[2, 'name']}.  {items.loc[2, 'text']}".upper(),  # the same to many an encoder
        items.loc[2, "kind"],
    ]
    asks.to_csv(path, index=False)
    return tiny_data


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The ids of all items that any part of a training draws as examples."""
    found: set[str] = set()

    def spy(items: object, *arguments: object) -> list[int]:
        rows = sample_items(items, *arguments)  # type: ignore[arg-type]
        found.update(items[row].item_id for row in rows)  # type: ignore[index]
        return rows

    for module in (encoder_tuning, objective, shots, train, tuning_examples):
        monkeypatch.setattr(module, "sample_items", spy)
    return found


def test_items_that_are_held_out_are_not_drawn_and_the_others_as_before(tiny_config: Path, said: Path) -> None:
    dataset = load_dataset(load_config(tiny_config), said)
    assert "4 test instructions are the very text or title of an item" in dataset.notes
    before = [dataset.items[row].item_id for row in sample_items(dataset.items, 99, 3)]
    after = [dataset.items[row].item_id for row in sample_items(dataset.items, 99, 3, dataset.held_out)]
    assert after == [item_id for item_id in before if item_id not in SAID]
    assert len(sample_items(dataset.items, 4, 3, dataset.held_out)) == 4 * 4  # others take their place


@pytest.mark.parametrize("overrides", [(), TUNED, ("training.shots=0", *TUNED)])
def test_no_training_learns_from_an_item_that_is_held_out(
    tiny_config: Path, said: Path, drawn: set[str], tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    run = finished(command_line(without_interactions(tiny_config), said, tmp_path)("var", *FAST, *overrides))
    assert len(drawn) == 32 - len(SAID)
    assert not drawn & SAID
    assert len(run.catalogue()) == 32  # they can be recommended all the same


def test_no_trial_of_a_search_does_either(tiny_config: Path, said: Path, drawn: set[str], tmp_path: Path) -> None:
    trial = make_plan(load_config(tiny_config, FAST), said, tmp_path)
    objective.objective(trial, load_dataset(trial.config, said))
    assert drawn
    assert not drawn & SAID


def test_they_answer_no_instruction_while_the_encoder_learns(tiny_config: Path, said: Path, tiny_encoder: Path) -> None:
    config = load_config(tiny_config, TUNED)
    dataset = load_dataset(config, said)
    model = InstructionModel.from_folder(tiny_encoder, "mean", 32, len(dataset.labels))
    learned, _ = tuning_examples.tuning_examples(dataset, model, config.encoder_tuning)
    examples = [learned[row]["example"] for row in range(len(learned))]
    joined = {dataset.items[row].item_id for one in examples for row in (*one.candidates, *one.rivals)}  # type: ignore[attr-defined]
    assert joined
    assert not joined & SAID


def test_titles_that_stand_in_for_validation_are_not_held_out_for_the_test(tiny_config: Path, said: Path) -> None:
    config = load_config(tiny_config, ["training.shots=0", "training.items_per_label=3"])
    cut, _ = limit_shots(load_dataset(config, said), config)
    titles = {one.text for one in cut.split("validation")}
    assert titles
    assert not titles & {one.text for one in cut.split("test")}


def test_a_validation_split_that_nobody_asked_for_holds_whole_groups(tiny_config: Path, tiny_data: Path) -> None:
    path = tiny_data / "shop/asks.csv"
    asks = pd.read_csv(path, dtype=str, keep_default_na=False)
    asks["dialogue"] = [f"d{row // 3}" for row in range(len(asks))]
    asks.to_csv(path, index=False)
    split = "sources.main.instructions.split={draw: {train: 0.8, test: 0.2}, by: dialogue}"
    dataset = load_dataset(load_config(tiny_config, [split]), tiny_data)
    group = dict(zip(asks["id"], asks["dialogue"], strict=True))
    taught, held = ({group[one.instruction_id] for one in dataset.split(name)} for name in ("train", "validation"))
    assert taught
    assert held
    assert not taught & held
    count = len(dataset.split("validation"))
    assert f"no validation split: {count} training instructions are held out for it" in dataset.notes
