"""The parts of training: config and overrides, encoder source, ranking fit, metrics."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.atomic import new_folder
from training.config import READ_LATER, DomainConfig, EncoderConfig, TrainingConfig
from training.config_loading import load_config, read_yaml
from training.dataset import Interaction
from training.encoder_source import locate_encoder, weights_sha256
from training.errors import ConfigError, EncoderError
from training.head import HeadExamples, balanced, label_centroids, tune_head
from training.history import HistoryExample, history_examples, pair_with_queries
from training.metrics import label_accuracy, ranking_metrics, zero_shot_label_scores
from training.ranking import RankingExamples, fit_score_weights
from training.score import ZERO_SHOT, CatalogueSide, ScoreWeights, log_softmax

CONFIGS = Path(__file__).parents[2] / "configs"


# --- config ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_committed_configs_are_valid_and_say_how_to_run(path: Path) -> None:
    assert load_config(path).domain == path.stem
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_overrides_reach_sections_lists_and_passed_through_mappings(tiny_config: Path) -> None:
    config = load_config(
        tiny_config,
        ["training.epochs=7", "sources.0.name=first", "sources.first.catalogue.file=a.csv", "serving.max_batch_size=8"],
    )
    assert config.training.epochs == 7
    assert config.sources[0].catalogue.file == "a.csv"
    assert config.serving == {"max_batch_size": 8}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=7", r"unknown key 'training\.epoch'; did you mean 'epochs'\?"),
        ("sources.main.catalogue.titel=x", r"unknown key 'sources\.0\.catalogue\.titel'; did you mean 'title'\?"),
        ("sources.main.interactions.usr_id=x", r"did you mean 'user_id'\?"),
        ("trainig.epochs=7", r"unknown key 'trainig'; did you mean 'training'\?"),
        ("zzz=7", r"unknown key 'zzz'; known keys: domain, sources"),
        ("training.epochs=many", r"training\.epochs: .*valid integer.*got 'many'"),
        ("training.epochs=0", r"training\.epochs: .*greater than or equal to 1, got 0"),
        ("training.learning_rate=.nan", r"training\.learning_rate: .*finite number"),
        ("training.epochs", r"write it as key=value"),
        ("=3", r"write it as key=value"),
        ("training.epochs=[1", r"not valid YAML"),
        ("encoder.name=2024-13-01", r"override 'encoder\.name=2024-13-01': .*put it in quotes"),
        ("training.epochs.deep=1", r"training\.epochs is a value, not a section"),
        ("sources.nope.name=x", r"no entry 'nope'; there are main"),
        ("sources.main.instructions.attributes.size=s", r"the attribute 'size', which the catalogue does not have"),
        ("domain=My Shop", r"domain: .*pattern"),
        ("encoder.pooling=max", r"encoder\.pooling: .*'mean', 'cls' or 'last', got 'max'"),
    ],
)
def test_a_bad_override_is_one_line(tiny_config: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tiny_config, [override])
    assert "\n" not in caught.value.message


def test_an_override_of_a_list_changes_the_entry_of_its_index(tiny_config: Path) -> None:
    config = load_config(tiny_config, ["training.untaught_weights=[1.0, 1.0]", "training.untaught_weights.1=0.5"])
    assert list(config.training.untaught_weights) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "not valid YAML"),
        (b"- 1", "mapping"),
        (b"\xff", "UTF-8"),
        (b"a: 2024-13-01", r"not valid YAML: month must be in 1\.\.12; put a text .* in quotes"),
        (b"a: 1\nb: {}\na: 2", "line 3: the key 'a' stands twice"),
        (b"a:\n  b: 1\n  b: 1", "line 3: the key 'b' stands twice"),
    ],
)
def test_a_bad_config_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_a_key_that_is_merged_and_written_stands_once() -> None:
    merged = "x:\n  y: &b\n    <<: {a: 1}\n    a: 2\nleaf:\n  <<: *b\n  c: 3"
    assert read_yaml(merged) == {"x": {"y": {"a": 2}}, "leaf": {"a": 2, "c": 3}}
    assert read_yaml("") is None


def test_a_copied_config_whose_domain_is_still_the_other_one_is_refused(tiny_config: Path) -> None:
    copied = tiny_config.rename(tiny_config.with_name("films.yaml"))
    with pytest.raises(
        ConfigError, match=r"films\.yaml: domain: is 'shop'.* write domain: films, or name .* shop\.yaml"
    ):
        load_config(copied)
    assert load_config(copied, ["domain=films"]).domain == "films"


def test_the_sections_of_later_rooms_are_those_that_training_does_not_validate(tiny_config: Path) -> None:
    for section in DomainConfig.model_fields:
        with contextlib.suppress(ConfigError):
            load_config(tiny_config, [f"{section}={{no_such_key: 1}}"])
            assert section in READ_LATER
    for section in READ_LATER:
        load_config(tiny_config, [f"{section}={{no_such_key: 1}}"])


# --- encoder --------------------------------------------------------------------------------------------------------


def test_the_encoder_is_checked_against_its_sha256(tiny_encoder: Path) -> None:
    digest = weights_sha256(tiny_encoder)
    assert locate_encoder(EncoderConfig(name=str(tiny_encoder), sha256=digest)).folder == tiny_encoder
    with pytest.raises(EncoderError, match=f"has sha256 {digest}, the config says 0000"):
        locate_encoder(EncoderConfig(name=str(tiny_encoder), sha256="0" * 64))


def test_an_encoder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="pip install no-such-package"):
        locate_encoder(EncoderConfig(name="package:no-such-package"))
    with pytest.raises(EncoderError, match=r"the package holds no model\.safetensors"):
        locate_encoder(EncoderConfig(name="package:click"))
    with pytest.raises(EncoderError, match=r"holds no config\.json"):
        locate_encoder(EncoderConfig(name=str(tmp_path)))
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(EncoderError, match="only safetensors are read"):
        locate_encoder(EncoderConfig(name=str(tmp_path)))
    with pytest.raises(EncoderError, match="neither a local folder nor to be had from the hub"):
        locate_encoder(EncoderConfig(name="not/a/hub/name"))


# --- head -----------------------------------------------------------------------------------------------------------


def test_the_head_separates_what_can_be_separated_and_keeps_untaught_labels() -> None:
    vectors = np.eye(3, 8, dtype=np.float32)
    catalogue = CatalogueSide(vectors, [0, 1, 2], [0, 0, 0])
    # People mean the other one by the first two labels, and nobody says anything of the third: its item speaks.
    swapped = HeadExamples(vectors, np.array([1, 0, 2]), np.array([1, 1, 0.1], np.float32))
    head = tune_head(swapped, swapped, label_centroids(catalogue, 3), TrainingConfig(epochs=300))
    assert (vectors @ head.weight.T + head.bias).argmax(axis=1).tolist() == [1, 0, 2]


def test_balancing_gives_every_label_the_same_weight() -> None:
    examples = balanced(HeadExamples(np.zeros((4, 2), np.float32), np.array([0, 0, 0, 2]), np.ones(4, np.float32)))
    assert examples.weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])


# --- score weights --------------------------------------------------------------------------------------------------


def random_catalogue(items: int = 60, labels: int = 5, seed: int = 0) -> CatalogueSide:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(items, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return CatalogueSide(vectors, generator.integers(0, labels, items).tolist(), generator.random(items).tolist())


def random_examples(catalogue: CatalogueSide, true: ScoreWeights, count: int, seed: int = 1) -> RankingExamples:
    """Examples whose one relevant item is drawn from the softmax of the `true` score."""
    generator = np.random.default_rng(seed)
    h = generator.normal(size=(count, 16)).astype(np.float32)
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    logs = log_softmax(generator.normal(size=(count, 5)).astype(np.float32))
    histories = [generator.integers(0, len(catalogue), 3).tolist() for _ in range(count)]
    blank = RankingExamples(h, logs, histories, [{0: 1.0}] * count, np.ones(count, np.float32))
    scores = np.concatenate(
        [np.tensordot(true.terms(), terms, axes=1) for _, terms in blank.chunks(catalogue, true.history_decay)]
    )
    noise = generator.gumbel(size=scores.shape)
    grades: list[dict[int, float]] = [{int(row): 1.0} for row in (scores + noise).argmax(axis=1)]
    return RankingExamples(h, logs, histories, grades, np.ones(count, np.float32))


def test_the_fit_finds_the_weights_that_made_the_data() -> None:
    catalogue = random_catalogue()
    true = ScoreWeights(alpha=6, beta=1.5, gamma=4, delta=2, history_decay=0.5)
    fit = fit_score_weights(random_examples(catalogue, true, 3_000), catalogue, history=True, prior=True, seed=0)
    assert fit.weights.terms() == pytest.approx(true.terms(), rel=0.2)
    assert fit.weights.history_decay == 0.5


def test_a_term_that_misleads_gets_no_weight() -> None:
    catalogue = random_catalogue()
    true = ScoreWeights(alpha=6, beta=0, gamma=0, delta=0, history_decay=1)
    examples = random_examples(catalogue, true, 500)
    against = RankingExamples(
        examples.h, -examples.log_probabilities, examples.histories, examples.grades, examples.weights
    )
    fit = fit_score_weights(against, catalogue, history=True, prior=False, seed=0)
    assert fit.weights.delta == 0
    assert fit.weights.beta < 0.3
    assert fit.weights.gamma < 1


def test_a_prior_of_any_unit_fits_the_same() -> None:
    catalogue = random_catalogue()
    true = ScoreWeights(alpha=6, beta=1, gamma=0, delta=2, history_decay=1)
    examples = random_examples(catalogue, true, 500)
    large = CatalogueSide(catalogue.vectors, catalogue.label_ids.tolist(), (catalogue.priors * 1e6).tolist())
    small = fit_score_weights(examples, catalogue, history=False, prior=True, seed=0).weights
    scaled = fit_score_weights(examples, large, history=False, prior=True, seed=0).weights
    assert scaled.delta * 1e6 == pytest.approx(small.delta, rel=0.01)


def test_scores_that_are_all_equal_fit_without_failing() -> None:
    catalogue = CatalogueSide(np.ones((4, 2), np.float32), [0, 0, 0, 0], [1, 1, 1, 1])
    examples = RankingExamples(
        np.ones((3, 2), np.float32),
        np.zeros((3, 1), np.float32),
        [(), (0,), ()],
        [{1: 1.0}] * 3,
        np.ones(3, np.float32),
    )
    weights = fit_score_weights(examples, catalogue, history=True, prior=True, seed=0).weights
    assert np.isfinite(weights.terms()).all()
    assert ranking_metrics(examples, catalogue, weights)["mrr"] == 0.5  # ties rank in catalogue order


def test_many_examples_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.ranking.MAX_SCORES", 60 * 40)
    catalogue = random_catalogue()
    examples = random_examples(catalogue, ZERO_SHOT, 100)
    assert fit_score_weights(examples, catalogue, history=False, prior=False, seed=0).examples == 40


# --- history --------------------------------------------------------------------------------------------------------


def test_the_last_event_is_the_target_and_the_history_is_newest_first() -> None:
    events = [("u", "c", 3.0), ("u", "a", 1.0), ("u", "b", 2.0), ("v", "a", 1.0)]
    interactions = [Interaction(user, item, 1.0, time) for user, item, time in events]
    disliked = Interaction("u", "a", 0.0, 9.0)
    (example,) = history_examples([*interactions, disliked], {"a": 0, "b": 1, "c": 2}, max_history=20)
    assert (example.history, example.target) == ((1, 0), 2)
    (short,) = history_examples(interactions, {"a": 0, "b": 1, "c": 2}, max_history=1)
    assert short.history == (1,)


def test_the_history_vector_decays_and_is_zero_without_a_history() -> None:
    catalogue = CatalogueSide(np.eye(2, dtype=np.float32), [0, 0], [0, 0])
    assert catalogue.history_vector([], 0.5).tolist() == [0, 0]
    assert catalogue.history_vector([0, 1], 0.5).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_queries_are_shared_out_among_the_people_of_an_item() -> None:
    people = [HistoryExample((), target, held_out=False) for target in (7, 7, 7, 8)]
    relevant: list[Mapping[int, float]] = [{7: 1.0}, {1: 1.0}, {7: 2.0}]
    assert pair_with_queries(people, relevant) == [0, 2, 0, None]


# --- metrics --------------------------------------------------------------------------------------------------------


def one_ranking(scores: list[float], grades: dict[int, float]) -> dict[str, float]:
    """The metrics of items with these scores: each score is an item's similarity to the one query."""
    catalogue = CatalogueSide(np.array(scores, np.float32)[:, None], [0] * len(scores), [0.0] * len(scores))
    one = np.ones((1, 1), np.float32)
    return ranking_metrics(RankingExamples(one, 0 * one, [()], [grades], one[0]), catalogue, ZERO_SHOT)


def test_ranking_metrics_of_a_worked_example() -> None:
    found = one_ranking([5.0, 4, 3, *([0.0] * 10), -1], {1: 2.0, 2: 1.0, 13: 1.0})
    gained, ideal = 2 / np.log2(3) + 1 / np.log2(4), 2 + 1 / np.log2(3) + 1 / np.log2(4)
    assert found == pytest.approx({"ndcg@10": gained / ideal, "recall@10": 2 / 3, "precision@10": 0.2, "mrr": 0.5})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30), st.data())
def test_ranking_metrics_stay_within_their_bounds(scores: list[float], data: st.DataObject) -> None:
    rows = st.integers(0, len(scores) - 1)
    grades = data.draw(st.dictionaries(rows, st.floats(0.5, 5), min_size=1))
    assert all(0 <= value <= 1 + 1e-9 for value in one_ranking(scores, grades).values())
    perfect = [grades.get(row, 0.0) for row in range(len(scores))]
    assert one_ranking(perfect, grades)["ndcg@10"] == pytest.approx(1)


def test_label_metrics() -> None:
    scores = np.array([[3, 2, 1, 0], [3, 2, 1, 0], [1, 1, 1, 1]], np.float32)
    assert label_accuracy(scores, np.array([0, 2, 3])) == pytest.approx(
        {"top1_accuracy": 1 / 3, "top3_accuracy": 2 / 3}
    )
    catalogue = CatalogueSide(np.eye(3, dtype=np.float32), [2, 0, 2], [0, 0, 0])
    found = zero_shot_label_scores(np.array([[0.1, 0.2, 0.9]], np.float32), catalogue, 4)
    assert found[0, [0, 2]].tolist() == pytest.approx([0.2, 0.9])
    assert np.isneginf(found[0, [1, 3]]).all()


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    killed = [tmp_path / ".old.tmp-999999999", tmp_path / f".run.tmp-{os.getpid()}"]
    for leftover in killed:  # the second was left by a process of the same number: in a container it always is
        leftover.mkdir()
        (leftover / "file").write_text("half", encoding="utf-8")

    def fail() -> None:
        with new_folder(tmp_path / "run") as folder:
            (folder / "file").write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with new_folder(tmp_path / "other") as alive:
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert list(tmp_path.iterdir()) == [alive], "what is being written stays"
    shutil.rmtree(tmp_path / "other")
    with new_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("whole", encoding="utf-8")
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run/file").read_text(encoding="utf-8") == "whole"
