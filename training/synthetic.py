"""Instructions made of the catalogue: what an item is called, said in the manner of people's own instructions.

A catalogue knows what its items are and how they look, but not how people ask for them. Instructions without labels
know how people ask, but not for what. A synthetic instruction joins both: the beginning of one real instruction, a
phrase of an item (the config's `synthetic.phrases`), and the end of another real instruction. It carries the item's
label, and those attributes that its phrase names, so that it teaches the label, the colour and whatever else can be
asked for. The ends are drawn without regard to the item: what stands there must not decide the label.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.config import SyntheticConfig
from training.dataset import AugmentedInstruction, Dataset, Instruction, Item

FREQUENT = 40  # so many of the most frequent words count as joints of a sentence
BEGINNING_WORDS = (2, 5)
BEGINNINGS = 80
MAX_ENDING_WORDS = 10


@dataclass(frozen=True)
class Manner:
    """How people speak: how they begin, each as often as it was seen, and what they add at the end."""

    beginnings: Sequence[str]
    frequencies: Sequence[int]
    endings: Sequence[str]


def learn_manner(texts: Sequence[str]) -> Manner:
    """The most frequent beginnings of `texts`, and from each text the end that begins with a frequent word.

    Nothing of it is bound to a language that writes its words apart, or even to words: where no beginning occurs twice,
    there are none.
    """
    words = [text.split() for text in dict.fromkeys(texts)]
    shortest, longest = BEGINNING_WORDS
    begun = Counter(
        " ".join(own[:count]) for own in words for count in range(shortest, longest + 1) if len(own) > count
    )
    beginnings = [(text, count) for text, count in begun.most_common(BEGINNINGS) if count > 1]
    joints = {word for word, _ in Counter(word for own in words for word in own).most_common(FREQUENT)}
    endings = []
    for own in words:
        middle = len(own) // 2
        starts = [place for place in range(middle, len(own) - 1) if own[place] in joints]
        if starts:
            endings.append(" ".join(own[starts[0] : starts[0] + MAX_ENDING_WORDS]))
    return Manner([text for text, _ in beginnings], [count for _, count in beginnings], endings)


def synthesise(dataset: Dataset, config: SyntheticConfig) -> list[AugmentedInstruction]:
    """Instructions of each label, in the manner of the unlabelled and the training instructions.

    The items of a label are drawn without replacement first, then again. The same inputs give the same instructions.
    """
    generator = np.random.default_rng(config.seed)
    manner = learn_manner([*(one.text for one in dataset.split("train")), *dataset.unlabelled])
    shares = np.array(manner.frequencies, dtype=np.float64)
    shares = shares / shares.sum() if len(shares) else shares
    rows_of_label: dict[str, list[int]] = {}
    for row, item in enumerate(dataset.items):
        rows_of_label.setdefault(item.label, []).append(row)
    made: list[AugmentedInstruction] = []
    for label in sorted(rows_of_label):
        own = rows_of_label[label]
        # The square root: a frequent label is asked for more often, but a rare one must be learned too.
        wanted = max(config.at_least, round(config.per_thousand * (len(own) / 1000) ** 0.5))
        if not wanted:
            continue
        drawn = np.concatenate([generator.permutation(own) for _ in range(-(-wanted // len(own)))])[:wanted]
        for row in drawn:
            item = dataset.items[int(row)]
            phrases = [phrase for phrase in config.phrases if _fits(phrase, item)]
            if not phrases:
                continue
            phrase = phrases[int(generator.integers(len(phrases)))]
            text, attributes = _say(phrase, item)
            if manner.beginnings and generator.random() < config.begun:
                text = f"{manner.beginnings[int(generator.choice(len(shares), p=shares))]} {text}"
            if manner.endings and generator.random() < config.ended:
                text = f"{text} {manner.endings[int(generator.integers(len(manner.endings)))]}"
            instruction = Instruction(f"synthetic-{len(made)}", text, label, attributes, {}, "train")
            # A title is one item's name: for it, items that merely share the label are no answer.
            made.append(AugmentedInstruction(instruction, config.weight, ranked="title" not in _names(phrase)))
    return made


def _names(phrase: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(phrase) if name]


def _fits(phrase: str, item: Item) -> bool:
    return all(name in ("title", "noun", "label") or item.attributes.get(name) for name in _names(phrase))


def _say(phrase: str, item: Item) -> tuple[str, dict[str, str]]:
    """The phrase about the item in small letters, and the attributes that it names."""
    words = re.findall(r"\S+", item.title)
    values = {**item.attributes, "title": item.title, "noun": " ".join(words[-2:]), "label": item.label}
    named = {name: item.attributes[name] for name in _names(phrase) if name in item.attributes}
    return phrase.format_map(values).lower(), named
