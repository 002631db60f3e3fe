"""Instructions that nobody labelled: read without those held out, made of the catalogue, or labelled by a teacher."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from training_helpers import Train, command_line, finished, without_interactions

from training.augmentation import augment
from training.config import EncoderTuningConfig
from training.config_loading import load_config
from training.dataset import Dataset
from training.dataset_loading import load_dataset
from training.embedding_cache import EmbeddingCache
from training.encoder_source import locate_encoder
from training.errors import ConfigError, DatasetError
from training.label_names import LabelNames
from training.model import InstructionModel
from training.plan import make_plan
from training.synthetic import learn_manner, synthesise
from training.tuning_examples import Collator, tuning_examples

PHRASES = ["{title}", "{colour} {label}", "{label}"]


@pytest.fixture
def config(tiny_config: Path, tiny_data: Path) -> Path:
    """The tiny config with unlabelled instructions and phrases."""
    asks = (tiny_data / "shop" / "asks.csv").read_text(encoding="utf-8").splitlines()[1:]
    texts = [line.split(",")[1] for line in asks] + ["show me the fish of the sea", "I want a hat for the red bag", ""]
    (tiny_data / "shop" / "words.csv").write_text("words\n" + "\n".join(texts[:-1]) + "\n", encoding="utf-8")
    tree = yaml.safe_load(tiny_config.read_text(encoding="utf-8"))
    tree["sources"][0]["unlabelled"] = {"file": "shop/words.csv", "text": "words"}
    tree["sources"][0]["synthetic"] = {"phrases": PHRASES, "per_thousand": 100, "at_least": 12}
    tiny_config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tiny_config


@pytest.fixture
def made(config: Path, tiny_data: Path, tmp_path: Path) -> Any:
    def call(*overrides: str, stand_ins: bool = False) -> Dataset:
        plan = make_plan(load_config(config, overrides), tiny_data, tmp_path / "var")
        return augment(plan, load_dataset(plan.config, tiny_data), lambda _: None, stand_ins=stand_ins)

    return call


@pytest.fixture
def train(config: Path, tiny_data: Path, tmp_path: Path) -> Train:
    return command_line(without_interactions(config), tiny_data, tmp_path)


def test_what_is_held_out_is_not_among_the_unlabelled(config: Path, tiny_data: Path) -> None:
    dataset = load_dataset(load_config(config), tiny_data)
    held_out = {one.text for one in dataset.instructions if one.split != "train"}
    assert set(dataset.unlabelled) == {one.text for one in dataset.split("train")} | {
        "show me the fish of the sea",
        "I want a hat for the red bag",
    }
    assert not held_out & set(dataset.unlabelled)
    assert any("32 texts that are held out are left out" in note for note in dataset.notes)


def test_an_empty_unlabelled_instruction_is_named(config: Path, tiny_data: Path) -> None:
    path = tiny_data / "shop" / "words.csv"
    path.write_text('words,x\nred hat,1\n" ",2\n', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"words.csv: row 2 .*the instruction is empty"):
        load_dataset(load_config(config), tiny_data)


def test_synthetic_instructions_say_what_their_items_are(made: Any) -> None:
    dataset = made()
    assert {one.instruction.label for one in dataset.augmentation} == set(dataset.labels)
    assert len(dataset.augmentation) == 4 * 12
    beginnings = 0
    for one in dataset.augmentation:
        text, asked = one.instruction.text, one.instruction
        assert asked.split == "train"
        assert one.weight == 0.3
        assert asked.label.lower().rstrip("s") in text
        assert one.ranked == (f"{asked.label[:-1].lower()}s" in text)  # a title names one thing, a label several
        if "colour" in asked.attributes:
            assert f"{asked.attributes['colour']} {asked.label.lower()}" in text
        beginnings += text.startswith(("show me", "buy a", "i want", "I want"))
    assert 20 < beginnings < 48


def test_the_same_inputs_make_the_same_instructions(made: Any) -> None:
    assert made().augmentation == made().augmentation
    assert made().augmentation != made("sources.main.synthetic.seed=1").augmentation


def test_synthetic_instructions_stand_in_for_a_validation_split(made: Any) -> None:
    whole, dataset = made(), made(stand_ins=True)
    stand_ins = dataset.split("validation")
    assert stand_ins
    assert all(one.instruction_id.startswith("synthetic-") for one in stand_ins)
    assert len(stand_ins) == -(-sum(one.ranked for one in whole.augmentation) // 10)
    learned, held = {one.instruction.text for one in dataset.augmentation}, {one.text for one in stand_ins}
    assert not learned & held
    assert learned | held == {one.instruction.text for one in whole.augmentation}
    note = f"no validation instruction is left: {len(stand_ins)} synthetic instructions stand in"
    assert dataset.notes[-1].startswith(note)


def test_a_run_says_what_stands_in_for_validation(train: Train) -> None:
    result = train("var", "training.shots=0")
    run = finished(result)
    stand_ins = [one for one in run.instructions() if one.split == "validation"]
    assert run.manifest.metrics["shots"]["stand_ins"] == len(stand_ins)
    notes = [one for one in run.manifest.metrics["notes"] if "stand in" in one]
    assert [one.partition(",")[0] for one in notes] == [
        f"no validation instruction is left: {len(stand_ins)} synthetic instructions stand in"
    ]
    assert result.stderr.count("stand in") == 1


def test_no_synthetic_instruction_says_what_is_held_out(config: Path, tiny_data: Path, made: Any) -> None:
    names = ("sources.main.synthetic.phrases=['{title}']", "sources.main.synthetic.begun=0")
    said = made(*names, "sources.main.synthetic.ended=0").augmentation[0].instruction.text
    path = tiny_data / "shop" / "asks.csv"
    path.write_text(path.read_text(encoding="utf-8") + f"ask-99,{said},Bags,,,test\n", encoding="utf-8")
    texts = {one.instruction.text for one in made(*names, "sources.main.synthetic.ended=0").augmentation}
    assert texts
    assert said not in texts


def test_a_label_may_want_no_synthetic_instruction(config: Path, tiny_data: Path) -> None:
    settings = ("sources.main.synthetic.at_least=0", "sources.main.synthetic.per_thousand=6")
    loaded = load_config(config, settings)
    dataset, synthetic = load_dataset(loaded, tiny_data), loaded.sources[0].synthetic
    assert synthetic is not None
    hats = [item for item in dataset.items if item.label == "Hats"]
    few = replace(dataset, items=tuple(item for item in dataset.items if item not in hats[3:]))
    made = synthesise(few, synthetic)
    assert {one.instruction.label for one in made} == {"Bags", "Shirts", "Shoes"}
    none = replace(dataset, items=tuple(item for item in dataset.items if item not in hats))
    assert made == synthesise(none, synthetic), "the other labels' are drawn as ever"


@given(st.lists(st.text(max_size=80), max_size=12))
def test_any_texts_have_a_manner(texts: list[str]) -> None:
    manner = learn_manner(texts)
    assert len(manner.beginnings) == len(manner.frequencies)
    assert all(count > 1 for count in manner.frequencies)
    assert all(len(ending.split()) >= 2 for ending in manner.endings)


@pytest.mark.parametrize(
    ("phrase", "problem"), [("{size} {label}", "names 'size'; there are"), ("{label", "is no template"), ("{}", "'';")]
)
def test_a_wrong_phrase_is_refused(config: Path, phrase: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(config, [f"sources.main.synthetic.phrases=['{phrase}']"])


def test_rivals_share_the_label_and_do_not_answer(config: Path, made: Any) -> None:
    dataset = made()
    encoder = encoder_of(config, dataset)
    settings = EncoderTuningConfig(method="lora", ranking_weight=1.0, rivals=2)
    train, _ = tuning_examples(dataset, encoder, settings)
    ranked = [one for one in (train[row]["example"] for row in range(len(train))) if one.candidates]  # type: ignore[attr-defined]
    with_rivals = [one for one in ranked if one.rivals]
    assert with_rivals
    for one in with_rivals:
        assert not set(one.rivals) & set(one.grades)
        labels = {dataset.items[row].label for row in [*one.rivals, *one.grades]}
        assert labels == {dataset.labels[one.label_id]}
    batch = Collator(encoder, settings.rivals)([{"example": one} for one in with_rivals[:3]])
    assert len(batch["input_ids"]) == 3 + 3 * (1 + 2)
    assert np.allclose(batch["targets"].sum(dim=1), 1)
    assert (batch["targets"] == 0).any()


def encoder_of(config: Path, dataset: Dataset) -> InstructionModel:
    folder = locate_encoder(load_config(config).encoder).folder
    return InstructionModel.from_folder(folder, "mean", 32, len(dataset.labels))


def test_a_teacher_labels_what_it_is_sure_of(train: Train, made: Any, tmp_path: Path) -> None:
    teacher = finished(train("var", "training.shots=0"))
    assert teacher.manifest.metrics["shots"]["train"] == 0
    sure = made(f"self_training.teacher={teacher.path}", "self_training.confidence=0", "self_training.nearest=1")
    labelled = [one for one in sure.augmentation if one.instruction.instruction_id.startswith("pseudo-")]
    assert {one.instruction.text for one in labelled} == set(sure.unlabelled)
    assert not any(one.ranked for one in labelled)
    fewer = made(f"self_training.teacher={teacher.run_id}", "self_training.per_label=1", "self_training.confidence=0")
    found = [
        one.instruction.label for one in fewer.augmentation if one.instruction.instruction_id.startswith("pseudo-")
    ]
    assert len(found) == len(set(found)) > 0
    none = made(f"self_training.teacher={teacher.path}", "self_training.confidence=1")
    assert len(none.augmentation) == 48
    student = finished(train("var", "training.shots=0", f"self_training.teacher={teacher.path}"))
    assert student.manifest.fingerprint != teacher.manifest.fingerprint
    assert len(student.instructions()) == len(teacher.instructions())


def test_the_vectors_of_a_teacher_that_pools_and_cuts_otherwise_are_its_own(
    train: Train, made: Any, tmp_path: Path
) -> None:
    teacher = finished(train("var", "training.shots=0"))
    own, students = (
        EmbeddingCache.below(tmp_path / "var", teacher.encoder, pooling, max_length)
        for pooling, max_length in (("mean", 32), ("cls", 5))
    )
    settings = (f"self_training.teacher={teacher.path}", "self_training.confidence=0", "self_training.nearest=1")
    texts = made(*settings).unlabelled
    plain = made(*settings).augmentation
    other = made(*settings, "encoder.pooling=cls", "encoder.max_length=5").augmentation
    assert other == plain
    assert set(own.read(texts)) == set(texts)
    assert not students.read(texts)
    # Were the student's vectors there, as a run of the teacher's encoder makes them, they would be none of the teacher.
    students.write(texts, np.roll(np.stack([own.read(texts)[text] for text in texts]), 1, axis=0))
    assert made(*settings, "encoder.pooling=cls", "encoder.max_length=5").augmentation == plain


def test_a_teacher_whose_weights_were_changed_is_refused(train: Train) -> None:
    teacher = finished(train("var", "training.shots=0"))
    with (teacher.path / "encoder/model.safetensors").open("ab") as stream:
        stream.write(b"x")
    refused = train("var", f"self_training.teacher={teacher.path}")
    assert refused.exit_code == 1
    assert f"self_training.teacher: run {teacher.run_id} is damaged: its encoder is not the one" in refused.stderr


def test_what_texts_name_or_mean_is_learned_from(train: Train, made: Any) -> None:
    teacher = finished(train("var", "training.shots=0"))
    overrides = (f"self_training.teacher={teacher.path}", "self_training.names=true", "self_training.nearest=1")
    augmentation = made(*overrides).augmentation
    named = [one.instruction for one in augmentation if one.instruction.instruction_id.startswith("pseudo-")]
    assert named
    exchanged = [one for one in augmentation if one.instruction.instruction_id.startswith("exchanged-")]
    assert exchanged
    for one in exchanged:
        assert one.weight < 1
        assert one.instruction.label.lower().rstrip("s") in one.instruction.text
    names = LabelNames.learn(made().items)
    for one in named:
        assert names.named(one.text) in {(one.label,), ()}
    label_of = {one.text: one.label for one in named}
    assert "I want a hat for the red bag" not in label_of  # names two labels
    # Names none; to this encoder, which knows no words, all of them are alike, and there are as many hats as bags.
    assert label_of["show me the fish of the sea"] in teacher.labels
    exchanged_texts = [one.instruction.text for one in exchanged]
    assert all(names.named(text) for text in exchanged_texts), "nothing is exchanged where nothing is named"
    student = finished(train("var", "training.shots=0", *overrides))
    plain = finished(train("var", "training.shots=0", overrides[0]))
    assert len({run.manifest.fingerprint for run in (teacher, student, plain)}) == 3


def test_synthetic_instructions_that_name_another_label_are_left_out(train: Train, made: Any, tiny_data: Path) -> None:
    path = tiny_data / "shop" / "items.csv"
    # An item that is called by the name of another label.
    path.write_text(re.sub("item-0,.*", "item-0,bag in red,A bag,Hats,red,0", path.read_text(encoding="utf-8")))
    teacher = finished(train("var", "training.shots=0"))
    names = LabelNames.learn(made().items)

    def contradictions(dataset: Dataset) -> list[str]:
        made_of_items = [one.instruction for one in dataset.augmentation if one.weight == 0.3]
        assert made_of_items
        named = {one.text: names.named(one.text) for one in made_of_items}
        return [one.text for one in made_of_items if named[one.text] and one.label not in named[one.text]]

    settings = ("sources.main.synthetic.phrases=['{title}']", f"self_training.teacher={teacher.path}")
    assert any("bag in red" in text for text in contradictions(made(*settings)))
    assert not contradictions(made(*settings, "self_training.names=true"))


def test_a_teacher_that_does_not_fit_is_refused(train: Train, config: Path, tiny_data: Path) -> None:
    missing = train("var", "self_training.teacher=nobody")
    assert missing.exit_code == 1
    assert "self_training.teacher: nobody is neither the folder of a run nor the id" in missing.output
    teacher = finished(train("var"))
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    del tree["sources"][0]["unlabelled"]
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    without = train("var", f"self_training.teacher={teacher.path}")
    assert without.exit_code == 1
    assert "the source has no unlabelled instructions" in without.output
    assert "Traceback" not in without.output
