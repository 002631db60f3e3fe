"""Which label a text names.

Where a person says the name of a label, that is what is asked for, whatever the text resembles besides: "women's
sandals" are Sandals also where titles call many Flats and Heels sandals. No labelled instruction is looked at.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from training.dataset import Item

WORDS = 4  # the longest name, in words
PURITY = 0.6  # of the titles that hold a singular or plural of a name, so many must be of its label


class LabelNames:
    """Finds the labels that a text names, by forms: words in small letters, joined without blanks.

    So "T shirt", "t-shirt" and "tshirt" are one form.
    """

    def __init__(self, label_of_form: Mapping[str, str]) -> None:
        """Know these forms and no others."""
        self._label_of_form = label_of_form

    @classmethod
    def learn(cls, items: Sequence[Item]) -> "LabelNames":
        """The names of the items' labels, and of those their parts, singulars and plurals.

        "Perfume and Body Mist" has two parts. What would name two labels names none. "Short" is no singular of Shorts
        where many titles that hold it are those of other labels (short kurtas).
        """
        exact, variants = _of_labels({item.label for item in items})
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        everything = cls({**variants, **exact})
        for title, label in {(item.title, item.label) for item in items}:
            for _, _, form in everything.matches(words_of(title)):
                found[form][label] += 1
        kept = {
            form: label
            for form, label in variants.items()
            if found[form][label] >= PURITY * found[form].total()  # also where no title holds it
        }
        return cls({**kept, **exact})

    def names_of(self, label: str) -> list[str]:
        """The names of `label` that name it alone, as they are written: the whole label and its parts."""
        return [part for part in _parts(label) if self.named(part) == (label,)]

    def named(self, text: str) -> tuple[str, ...]:
        """The labels that `text` names, in order, each once.

        The longest name counts, and of names that follow upon each other the last: a dress shirt is a shirt.
        """
        labels: list[str] = []
        last_end = -1
        for start, end, form in self.matches(words_of(text)):
            if start == last_end:
                labels.pop()
            labels.append(self._label_of_form[form])
            last_end = end
        return tuple(dict.fromkeys(labels))

    def exchanged(self, text: str, name: str) -> str | None:
        """The words of `text` with `name` in place of the name that stands there, in its number.

        None where `text` holds no name or several: what else it says might then depend on the other.
        """
        words = words_of(text)
        found = list(self.matches(words))
        if len(found) != 1:
            return None
        start, end, form = found[0]
        new = singular(" ".join(words_of(name)))
        return " ".join([*words[:start], new if singular(form) == form else _plural(new), *words[end:]])

    def matches(self, words: Sequence[str]) -> Iterable[tuple[int, int, str]]:
        """Start, end and form of each name in `words`, from left to right, the longest first."""
        start = 0
        while start < len(words):
            for end in range(min(start + WORDS, len(words)), start, -1):
                form = "".join(words[start:end])
                if form in self._label_of_form:
                    yield start, end, form
                    start = end
                    break
            else:
                start += 1


def words_of(text: str) -> list[str]:
    """The words in small letters, without apostrophes: "Men's T-shirt" is men, t, shirt."""
    return re.findall(r"\w+", re.sub(r"['’]s\b|['’]", "", text.casefold()))


def _of_labels(labels: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The labels of forms as they are written, and of their singulars and plurals."""
    exact: defaultdict[str, set[str]] = defaultdict(set)
    variants: defaultdict[str, set[str]] = defaultdict(set)
    for label in labels:
        for part in _parts(label):
            if form := "".join(words_of(part)):
                exact[form].add(label)
                for variant in (singular(form), _plural(singular(form))):
                    variants[variant].add(label)
    single = [{form: min(own) for form, own in forms.items() if len(own) == 1} for forms in (exact, variants)]
    return single[0], {form: label for form, label in single[1].items() if form not in exact}


def _parts(label: str) -> list[str]:
    """The label and, of one like "Perfume and Body Mist", its parts."""
    parts = re.split(r"\band\b|[,/&|]", label, flags=re.IGNORECASE)
    return list(dict.fromkeys([label, *(part.strip() for part in parts)]))


def singular(word: str) -> str:
    """The English singular of a plural, by its letters; other words as they are."""
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and re.search(r"(s|x|z|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word


def _plural(word: str) -> str:
    """The English plural of a singular, by its letters."""
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")
