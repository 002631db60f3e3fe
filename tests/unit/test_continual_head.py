"""A head learns what is new, near the head it was."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from continual.evaluation import Comparison, Judgement, compare_heads
from continual.head_update import Anchor, Examples, HeadWeights, choose_head, distance, mean_loss, update_head
from continual.turn_record import metrics_of

LABELS, WIDTH = 4, 6


def head_of(seed: int, scale: float = 3.0) -> HeadWeights:
    weights = scale * np.random.default_rng(seed).normal(size=(LABELS, WIDTH + 1)).astype(np.float32)
    return HeadWeights(weights[:, :WIDTH], weights[:, WIDTH])


def examples_of(seed: int, count: int, label: int | None = None) -> Examples:
    chooser = np.random.default_rng(seed)
    vectors = chooser.normal(size=(count, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = chooser.integers(0, LABELS, count) if label is None else np.full(count, label)
    return Examples(vectors, ids.astype(np.int64), chooser.uniform(0.1, 3, count))


def test_the_new_is_learned_and_the_old_is_kept() -> None:
    old = head_of(0)
    known = examples_of(1, 300)
    known.vectors[:, -1] = 0  # what is new lies where nothing old does
    known = Examples(known.vectors, old.best_labels(known.vectors), known.weights)
    direction = np.eye(WIDTH, dtype=np.float32)[-1:]
    label = int(old.logits(direction)[0].argmin())  # the last one that the old head would think of
    new = Examples(
        np.repeat(direction, 40, axis=0) + 0.05 * examples_of(2, 40).vectors, np.full(40, label), np.ones(40)
    )
    assert not (old.best_labels(new.vectors) == label).any()
    head = update_head(old, new, known, Anchor(1e-5), replay_ratio=8)
    assert (head.best_labels(new.vectors) == label).all()
    assert (head.best_labels(known.vectors) == known.label_ids).mean() > 0.95


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(0, 20), st.floats(0, 1), st.sampled_from([0.0, 3.0]))
def test_it_is_the_minimum_whatever_the_examples(
    seed: int, new: int, replayed: int, distillation: float, fisher: float
) -> None:
    old, anchor = head_of(seed), Anchor(1e-3, fisher, distillation)
    taught, replay = examples_of(seed + 1, new), examples_of(seed + 2, replayed)
    head = update_head(old, taught, replay, anchor)
    again = update_head(old, taught, replay, anchor)
    np.testing.assert_array_equal(head.weight, again.weight)
    elsewhere = update_head(old, taught, replay, anchor, start=head_of(seed + 3))
    np.testing.assert_allclose(head.weight, elsewhere.weight, atol=0.1)
    assert mean_loss(head, taught) <= mean_loss(old, taught) + 1e-3 or replayed
    assert np.isfinite(head.weight).all()
    assert np.isfinite(head.bias).all()


def test_the_stiffer_the_anchor_the_nearer_the_head() -> None:
    old, new, replay = head_of(0), examples_of(1, 30), examples_of(2, 30)
    moved = [distance(update_head(old, new, replay, Anchor(penalty)), old) for penalty in (1e-4, 1e-2, 1.0, 1e4)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-4


def test_without_weight_there_is_nothing_to_learn() -> None:
    old = head_of(0)
    nothing = examples_of(1, 5)
    assert update_head(old, Examples(nothing.vectors, nothing.label_ids, np.zeros(5)), nothing, Anchor(1e-3)) is old
    assert update_head(old, Examples.none(WIDTH), nothing, Anchor(1e-3)) is old


def test_the_old_heads_own_answers_hold_it_where_it_is() -> None:
    """What is new agrees with the old head, the replay's labels do not: distilled, they do not matter."""
    old, replay = head_of(0, scale=10), examples_of(2, 50)
    new = Examples(replay.vectors[:5], old.best_labels(replay.vectors[:5]), np.ones(5))
    by_labels, distilled = (
        update_head(old, new, replay, Anchor(1e-4, distillation=share), replay_ratio=4) for share in (0.0, 1.0)
    )
    assert distance(distilled, old) < distance(by_labels, old) / 3


def test_the_anchor_is_chosen_by_what_is_not_learned_from() -> None:
    old, new, replay = head_of(0), examples_of(1, 30), examples_of(2, 30)
    held_out = [
        Examples(old_examples.vectors, old.best_labels(old_examples.vectors), old_examples.weights)
        for old_examples in (examples_of(3, 50),)
    ]
    anchors = [Anchor(1e-5), Anchor(1e4)]
    assert choose_head(old, new, replay, held_out, anchors, 1).anchor == Anchor(1e4), "labels by chance teach nothing"
    assert choose_head(old, new, replay, [new], anchors, 1).anchor == Anchor(1e-5)


@pytest.mark.parametrize(("lost", "refused"), [(0, False), (1, False), (2, True), (30, True)])
def test_the_budget_decides_and_one_example_does_not(lost: int, refused: bool) -> None:
    before, after = head_of(0), head_of(0)
    examples = examples_of(1, 100)
    ids = before.best_labels(examples.vectors)
    right = Examples(examples.vectors, ids, np.ones(100))
    worse = compare_heads(before, after, right)
    assert worse.change is not None
    assert worse.change.value == 0
    # A head that is wrong on the first `lost` examples: told by measuring it on examples that it has wrong.
    wrong = ids.copy()
    wrong[:lost] = (wrong[:lost] + 1) % LABELS

    class Fixed(HeadWeights):
        def best_labels(self, vectors: np.ndarray) -> np.ndarray:
            return wrong

    old = compare_heads(before, Fixed(after.weight, after.bias), right)
    assert bool(judged(old=old).reason_against(1.0, 50.0)) is refused
    assert judged(old=old).reason_against(50.0, 50.0) is None


def judged(**parts: Comparison) -> Judgement:
    nothing = Comparison(0)
    return Judgement(**({"old": nothing, "earlier": nothing, "new": nothing, "trained": nothing} | parts))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("earlier", "earlier held-out feedback"),
        ("new", "held-out feedback"),
        ("trained", "old held-out instructions since the training"),
    ],
)
def test_feedback_and_all_turns_together_must_not_get_worse_either(part: str, name: str) -> None:
    before, after = head_of(0), head_of(5)
    examples = examples_of(1, 60)
    worse = compare_heads(before, after, Examples(examples.vectors, before.best_labels(examples.vectors), np.ones(60)))
    same = compare_heads(before, before, examples_of(2, 2_000))
    # However much else is as it was: what is lost on one kind of words hides behind no other.
    judgement = judged(**({"old": same, "earlier": same, "new": same} | {part: worse}))
    assert (judgement.reason_against(1.0, 3.0) or "").startswith(f"accuracy on {name} falls by more than ")


def test_few_words_of_people_decide_nothing() -> None:
    before, after = head_of(0), head_of(5)
    examples = examples_of(1, 15)
    worse = compare_heads(before, after, Examples(examples.vectors, before.best_labels(examples.vectors), np.ones(15)))
    assert worse.change is not None
    assert worse.change.value < -50
    assert judged(earlier=worse, new=worse).reason_against(1.0, 3.0) is None


def test_a_turn_of_the_head_alone_still_says_how_the_encoder_came_to_be():
    was = {"encoder_tuning": {"method": "lora"}, "distillation": {"teacher": "t"}, "test": {"labels": {}}, "notes": []}
    run: Any = SimpleNamespace(run=SimpleNamespace(manifest=SimpleNamespace(metrics=was)), validation=(), test=())
    nothing = SimpleNamespace(old=Comparison(0), new=Comparison(0))
    trial: Any = SimpleNamespace(head=None, encoder=None, until=3, judgement=nothing)
    metrics = metrics_of(run, trial)
    assert {name: metrics.get(name) for name in was} == {**was, "test": None}
