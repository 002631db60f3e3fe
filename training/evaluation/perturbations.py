"""Ways in which people write the same wish otherwise. All are seeded, and none knows a language."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TYPO_RATE = 0.05
WORD_DROP_RATE = 0.2
PREFIXES = (
    "hey, could you please find me",
    "any chance you have",
    "so I was wondering, and sorry to bother you, but",
)
Generator = np.random.Generator


@dataclass(frozen=True)
class Perturbation:
    """A way to write a text otherwise."""

    name: str
    title: str
    apply: Callable[[str, Generator], str]


def typos(text: str, generator: Generator) -> str:
    """Each letter or digit is hit at `TYPO_RATE`: swapped with the next one, dropped, or followed by another one."""
    characters, letters = list(text), [character for character in text if character.isalnum()]
    written: list[str] = []
    place = 0
    while place < len(characters):
        character = characters[place]
        place += 1
        if not character.isalnum() or generator.random() >= TYPO_RATE:
            written.append(character)
            continue
        kind = generator.integers(3)
        if kind == 0 and place < len(characters) and characters[place].isalnum():
            written += [characters[place], character]
            place += 1
        elif kind == 1 and len(letters) > 1:
            continue
        else:  # one of the text's own, so that the script stays the same
            written += [character, letters[generator.integers(len(letters))]]
    return "".join(written) or text


def drop_words(text: str, generator: Generator) -> str:
    """Each word is left out at `WORD_DROP_RATE`; at least one stays."""
    words = text.split()
    kept = [word for word in words if generator.random() >= WORD_DROP_RATE]
    if not kept and words:
        kept = [words[generator.integers(len(words))]]
    return " ".join(kept)


def _prefixed(prefix: str) -> Perturbation:
    return Perturbation(f"prefix: {prefix}", f"“{prefix} …”", lambda text, _: f"{prefix} {text}")


PERTURBATIONS = (
    Perturbation("typos", f"typos in {TYPO_RATE:.0%} of the letters", typos),
    Perturbation("upper_case", "UPPER CASE", lambda text, _: text.upper()),
    Perturbation("lower_case", "lower case", lambda text, _: text.lower()),
    Perturbation("word_drops", f"{WORD_DROP_RATE:.0%} of the words dropped", drop_words),
    *(_prefixed(prefix) for prefix in PREFIXES),
)


def perturb(texts: list[str], perturbation: Perturbation, seed: int) -> list[str]:
    """Each text once more, written otherwise; what is drawn depends on the seed and the text's place alone."""
    number = next(place for place, known in enumerate(PERTURBATIONS) if known.name == perturbation.name)
    return [perturbation.apply(text, np.random.default_rng([seed, number, place])) for place, text in enumerate(texts)]
