"""Which label is meant where a text names none: a hoodie is a Sweatshirt, whatever else the text says of its fabric.

No labelled instruction is looked at: only titles, texts that nobody labelled, and an encoder that knows words.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from training.dataset import Item
from training.label_names import PURITY, LabelNames, singular, words_of

FOLLOWS = 0.01  # the share of all names that a word follows, from which on it is what comes after the thing asked for
FOLLOWED = 3  # names that it follows at least
TITLES = 5  # that hold a phrase, from which on they say what it means
ALIKE = 0.5  # the least cosine of a phrase and a label's name
FAVOUR = 0.02  # of a label with e times as many items, in cosine
Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]


class WordMeanings:
    """The labels of phrases of one or two words.

    What a text asks for stands where names of labels stand: before words like "with", "in" or "that", or at its end.
    Of the phrases that stand there, the one that is most like some label's name counts.
    """

    def __init__(self, meanings: Mapping[str, tuple[str, float]], after: frozenset[str]) -> None:
        """Know each phrase's label and how like it is to the most like of all names, and the words `after` names."""
        self._meanings = meanings
        self._after = after

    @classmethod
    def learn(cls, texts: Sequence[str], items: Sequence[Item], names: LabelNames, embed: Embed) -> "WordMeanings":
        """What the phrases of `texts` mean that name no label.

        A phrase means the label of most titles that hold it, if they agree as much as they must for a variant of a name
        (`PURITY`). Names of labels do not count there: that Track Pants are called so does not make pants Track Pants.
        Other phrases mean the label whose name is most like them, with some favour for labels that have many items. A
        phrase that is like no name (`ALIKE`) is of nothing here, and means nothing.

        Args:
            texts: what people say.
            items: the catalogue.
            names: of its labels.
            embed: vectors of phrases and names, float32 [n, H], of length 1. An encoder that is not tuned knows most.
        """
        after = _words_after_names(texts, names)
        phrases = sorted({one for text in texts if not names.named(text) for one in _phrases(words_of(text), after)})
        counts = Counter(item.label for item in items)
        labels = sorted(counts)
        if not phrases:
            return cls({}, after)
        cosines = embed(phrases) @ embed([label.casefold() for label in labels]).T
        nearest = (cosines + FAVOUR * np.log([counts[label] for label in labels])).argmax(axis=1)
        by_titles = _labels_of_titles(items, names)
        return cls(
            {
                phrase: (by_titles.get(_singulars(phrase.split()), labels[column]), float(row.max()))
                for phrase, row, column in zip(phrases, cosines, nearest, strict=True)
                if row.max() >= ALIKE
            },
            after,
        )

    def meant(self, text: str) -> str | None:
        """The label that `text` means by the phrase most like a label's name; None where no phrase is like any."""
        found = [self._meanings[one] for one in _phrases(words_of(text), self._after) if one in self._meanings]
        return max(found, key=lambda meaning: meaning[1])[0] if found else None


def _words_after_names(texts: Sequence[str], names: LabelNames) -> frozenset[str]:
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        words = words_of(text)
        found = list(names.matches(words))
        starts = {start for start, _, _ in found}
        total += len(found)
        # A dress shirt is a shirt: the second of two names does not come after what is asked for, it is that.
        counts.update(words[end] for _, end, _ in found if end < len(words) and end not in starts)
    return frozenset(word for word, count in counts.items() if count >= max(FOLLOWED, FOLLOWS * total))


def _phrases(words: Sequence[str], after: frozenset[str]) -> Iterator[str]:
    """The last word, and the last two, before each word of `after` and before the end."""
    for place, word in enumerate(words):
        if word in after or not (place + 1 == len(words) or words[place + 1] in after):
            continue
        yield word
        if place and words[place - 1] not in after:
            yield f"{words[place - 1]} {word}"


def _labels_of_titles(items: Sequence[Item], names: LabelNames) -> dict[str, str]:
    """The label of phrases in singular whose titles agree on it."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for title, label in {(item.title, item.label) for item in items}:
        for part in _between_names(words_of(title), names):
            phrases = {_singulars(part[place : place + count]) for count in (1, 2) for place in range(len(part))}
            for phrase in phrases:
                found[phrase][label] += 1
    best = {phrase: counts.most_common(1)[0] for phrase, counts in found.items() if counts.total() >= TITLES}
    return {phrase: label for phrase, (label, count) in best.items() if count >= PURITY * found[phrase].total()}


def _between_names(words: Sequence[str], names: LabelNames) -> Iterator[Sequence[str]]:
    at = 0
    for start, end, _ in names.matches(words):
        yield words[at:start]
        at = end
    yield words[at:]


def _singulars(words: Sequence[str]) -> str:
    return " ".join(singular(word) for word in words)
