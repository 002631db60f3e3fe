"""Write the sample dataset: catalogue, instructions and interactions of `data/ecommerce`.

    python data/generate.py            # write the three files
    python data/generate.py --check    # exit 1 if the files on disk differ from what would be written

Only the standard library is used. Every draw goes through `random.Random(text).random()`, the one generator whose
sequence Python promises to keep, so every Python writes the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from phrases import AUDIENCE_WISH, FRAMES, NAMED, OCCASION_TEXT, OCCASION_WISH, POSSESSIVE, TASTES
from vocabulary import KINDS, Kind

FOLDER = Path(__file__).resolve().parent / "ecommerce"
SEED = "instructrec-sample-1"
USERS = 60
FIRST_DAY = 1704067200  # 2024-01-01 00:00 UTC
DAY = 86400
STRAY = 0.1  # the share of events that follow no taste
EVENT_VALUES = (1, 1, 1, 2, 3)  # three views to one basket (2) and one purchase (3)

ATTRIBUTES = ("colour", "material", "occasion", "audience")
ITEM_COLUMNS = ("item_id", "title", "text", "label", *ATTRIBUTES, "price", "prior")
INSTRUCTION_COLUMNS = ("instruction_id", "instruction", "label", *ATTRIBUTES, "relevant", "split")
INTERACTION_COLUMNS = ("user_id", "item_id", "value", "timestamp")

Row = dict[str, str]
T = TypeVar("T")


class HandwrittenError(ValueError):
    """A row of handwritten.csv does not fit the catalogue; the message names file, row, column and fix."""


def pick(rng: random.Random, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
    """Return one of `options`, as likely as its weight (all weigh the same without `weights`)."""
    if weights is None:
        return options[int(rng.random() * len(options))]
    remaining = rng.random() * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        remaining -= weight
        if remaining < 0:
            return option
    return options[-1]


def spread(rng: random.Random, words: str, count: int) -> list[str]:
    """Return `count` of the `|`-separated `words`, each about equally often, in a random order."""
    options = words.split("|")
    repeated = [options[place % len(options)] for place in range(count)]
    keys = [rng.random() for _ in repeated]
    return [repeated[place] for place in sorted(range(count), key=keys.__getitem__)]


def sentence(words: str) -> str:
    """Return `words` with a capital first letter."""
    return words[0].upper() + words[1:]


# -- catalogue ---------------------------------------------------------------------------------------------------------


def item_title(rng: random.Random, kind: Kind, style: str, item: Row) -> str:
    """Return a short title in one of three word orders, naming the audience unless it is everyone."""
    colour, material, owner = item["colour"], item["material"], POSSESSIVE.get(item["audience"])
    orders = [f"{style} {colour} {material} {kind.noun}" + (f" for {item['audience']}" if owner else "")]
    orders.append((f"{owner} " if owner else "") + f"{colour} {material} {kind.noun}, {style}")
    orders.append((f"{owner} " if owner else "") + f"{style} {material} {kind.noun} in {colour}")
    return sentence(pick(rng, orders))


def item_text(rng: random.Random, kind: Kind, style: str, detail: str, item: Row) -> str:
    """Return one sentence that names the attributes, the style and a detail."""
    singular, plural = ("this", "has", "comes", "suits", "is"), ("these", "have", "come", "suit", "are")
    this, has, comes, suits, be = plural if kind.plural else singular
    occasion = pick(rng, OCCASION_TEXT[item["occasion"]].split("|"))
    fabric = f"{item['colour']} {item['material']}"
    whose = f" for {item['audience']}" if item["audience"] in POSSESSIVE else ""
    orders = [
        f"{this} {style} {kind.noun}{whose} in {fabric} {has} {detail} and {suits} {occasion}.",
        f"made of {fabric}, {this} {style} {kind.noun}{whose} {comes} with {detail}, just right for {occasion}.",
        f"with {detail}, {this} {style} {kind.noun}{whose} in {fabric} {be} meant for {occasion}.",
    ]
    return sentence(pick(rng, orders))


def fitting_audience(kind: Kind, occasion: str, audience: str) -> str:
    """Return `audience`, or another where the occasion asks for it: school is for kids, work is not."""
    offered = kind.audiences.split("|")
    if occasion == "school" and "kids" in offered:
        return "kids"
    return offered[0] if audience == "kids" and occasion == "work" else audience


def kind_items(label: str, kind: Kind) -> Iterable[Row]:
    """Yield the products of one label, without ids; attributes are spread evenly, and no title comes twice."""
    rng = random.Random(f"{SEED} catalogue {label}")
    numbers = "|".join(str(number) for number in range(len(kind.lines)))
    columns = [spread(rng, words, kind.count) for words in (numbers, kind.colours, kind.audiences)]
    titles: set[str] = set()
    for number, colour, drawn in zip(*columns, strict=True):
        line = kind.lines[int(number)]
        audience = fitting_audience(kind, line.occasion, drawn)
        while True:
            material, style, detail = (
                pick(rng, words.split("|")) for words in (line.materials, line.styles, line.details)
            )
            item = {
                "label": label,
                "colour": colour,
                "material": material,
                "occasion": line.occasion,
                "audience": audience,
            }
            item["title"] = item_title(rng, kind, style, item)
            if item["title"] not in titles:
                break
        titles.add(item["title"])
        item["text"] = item_text(rng, kind, style, detail, item)
        low, high = kind.price
        item["price"] = f"{low + int(rng.random() ** 2 * (high - low))}.{pick(rng, ('00', '50', '90', '99'))}"
        # Few products are popular, most are not.
        item["prior"] = f"{0.05 + 0.95 * rng.random() ** 2.5:.3f}"
        yield item


def make_catalogue() -> list[Row]:
    """Return the products of every label, numbered in a mixed order so that an id tells nothing of the label."""
    items = [item for label, kind in KINDS.items() for item in kind_items(label, kind)]
    rng = random.Random(f"{SEED} order")
    keys = [rng.random() for _ in items]
    mixed = [items[place] for place in sorted(range(len(items)), key=keys.__getitem__)]
    return [{"item_id": f"sku-{number:04d}", **item} for number, item in enumerate(mixed, start=1)]


# -- instructions ------------------------------------------------------------------------------------------------------


def wish(rng: random.Random, kind: Kind, attributes: Row) -> str:
    """Return what a person asks for ("a blue cotton shirt for work") with the `attributes` that are named."""
    audience, occasion = attributes.get("audience", ""), attributes.get("occasion", "")
    owner = POSSESSIVE[audience] if audience and occasion else ""
    noun = pick(rng, (kind.noun, kind.noun, *kind.aliases.split("|")))
    words = " ".join(filter(None, (owner, attributes.get("colour"), attributes.get("material"), noun)))
    article = pick(rng, ("some", "a pair of")) if kind.plural else "an" if words[0].lower() in "aeiou" else "a"
    ends = [pick(rng, AUDIENCE_WISH[audience].split("|"))] if audience and not occasion else []
    ends += [pick(rng, OCCASION_WISH[occasion].split("|"))] if occasion else []
    return " ".join((article, words, *ends))


def label_instructions(place: int, label: str, items: Sequence[Row]) -> Iterable[Row]:
    """Yield the training instructions of one label; each is drawn from an item, so the catalogue can answer it."""
    rng = random.Random(f"{SEED} train {label}")
    kind = KINDS[label]
    uses = spread(rng, kind.uses, NAMED.count("use"))
    for turn, names in enumerate(NAMED):
        # A prime step through the frames: no frame twice within a label, every frame with many labels.
        frame = FRAMES[(place * 5 + turn) % len(FRAMES)]
        named: Row = {}
        if names == "use":
            asked = uses.pop()
        else:
            item = pick(
                rng, [item for item in items if item["audience"] in POSSESSIVE or "audience" not in names] or items
            )
            named = {name: item[name] for name in names.split("|") if item[name] != "unisex"}
            asked = wish(rng, kind, named)
        yield {"instruction": frame.format(wish=asked), "label": label, **named, "relevant": "", "split": "train"}


def make_train(catalogue: Sequence[Row]) -> list[Row]:
    """Return the training split: frames times vocabulary."""
    rows = [
        row
        for place, label in enumerate(KINDS)
        for row in label_instructions(place, label, [item for item in catalogue if item["label"] == label])
    ]
    return [{"instruction_id": f"train-{number:04d}", **row} for number, row in enumerate(rows, start=1)]


def read_handwritten(catalogue: Sequence[Row], folder: Path = FOLDER) -> list[Row]:
    """Return the hand-written validation and test rows.

    Raises:
        HandwrittenError: the file is not UTF-8, or a label, attribute, item id, grade or split is unknown.
    """
    known = {column: {item[column] for item in catalogue} for column in ("item_id", "label", *ATTRIBUTES)}
    known["split"] = {"validation", "test"}
    try:
        text = (folder / "handwritten.csv").read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise HandwrittenError(f"handwritten.csv: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for number, row in enumerate(rows, start=2):
        where = f"handwritten.csv row {number}"
        if tuple(row) != INSTRUCTION_COLUMNS or None in row.values():
            raise HandwrittenError(f"{where}: needs the columns {', '.join(INSTRUCTION_COLUMNS)}; quote commas")
        for column in ("label", *ATTRIBUTES, "split"):
            if row[column] not in known[column] and (row[column] or column not in ATTRIBUTES):
                raise HandwrittenError(f"{where}, column {column}: {row[column]!r} is unknown; use a catalogue value")
        for judged in filter(None, row["relevant"].split("|")):
            item_id, _, grade = judged.partition(":")
            if item_id not in known["item_id"] or grade not in {"1", "2"}:
                raise HandwrittenError(f"{where}, column relevant: {judged!r}; write item ids with grade 1 or 2")
    return rows


# -- interactions ------------------------------------------------------------------------------------------------------


def user_events(user_id: str, taste: str, catalogue: Sequence[Row]) -> Iterable[Row]:
    """Yield one person's events, oldest first: mostly their labels, their colour and their audience."""
    rng = random.Random(f"{SEED} {user_id}")
    labels = taste.split("|")
    near = [item for item in catalogue if item["label"] in labels]
    audience = "women" if {"Dresses", "Skirts", "Swimwear"} & set(labels) else pick(rng, ("men", "women"))
    suitable = [item for item in near if item["audience"] in (audience, "unisex")]
    colour = pick(rng, suitable)["colour"]
    weights = [(14.0 if item["colour"] == colour else 1.0) * (0.3 + float(item["prior"])) for item in suitable]
    time = FIRST_DAY + int(rng.random() * 200 * DAY)
    for _ in range(8 + int(rng.random() * 13)):
        if rng.random() < STRAY:
            item = pick(rng, catalogue)
        else:
            place = pick(rng, range(len(suitable)), weights)
            item = suitable[place]
            weights[place] *= 0.5  # people come back to a product, but not for ever
        yield {
            "user_id": user_id,
            "item_id": item["item_id"],
            "value": str(pick(rng, EVENT_VALUES)),
            "timestamp": str(time),
        }
        time += 60 + int(rng.random() ** 2 * 20 * DAY)


def make_interactions(catalogue: Sequence[Row]) -> list[Row]:
    """Return the events of all users; they know the catalogue alone, never an instruction."""
    users = [(f"user-{number:03d}", TASTES[number % len(TASTES)]) for number in range(1, USERS + 1)]
    return [event for user_id, taste in users for event in user_events(user_id, taste, catalogue)]


# -- files -------------------------------------------------------------------------------------------------------------


def as_csv(columns: Sequence[str], rows: Iterable[Row]) -> bytes:
    """Return `rows` as UTF-8 CSV with a header; a column that a row lacks is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def make_files(folder: Path = FOLDER) -> dict[str, bytes]:
    """Return the content of every generated file by its name; `folder` holds handwritten.csv."""
    catalogue = make_catalogue()
    instructions = make_train(catalogue) + read_handwritten(catalogue, folder)
    return {
        "catalogue.csv": as_csv(ITEM_COLUMNS, catalogue),
        "instructions.csv": as_csv(INSTRUCTION_COLUMNS, instructions),
        "interactions.csv": as_csv(INTERACTION_COLUMNS, make_interactions(catalogue)),
    }


def write(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary sibling, so that no half-written file is ever seen."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def main() -> int:
    """Write the files, or with `--check` compare them; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the sample dataset.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not up to date")
    check = parser.parse_args().check
    try:
        files = make_files()
    except (HandwrittenError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    stale = [
        name
        for name, content in files.items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_bytes() != content
    ]
    if check:
        for name in stale:
            sys.stderr.write(f"Error: {FOLDER.name}/{name} is not what data/generate.py writes; run it and commit\n")
        return 1 if stale else 0
    for name in stale:
        write(FOLDER / name, files[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
