"""Takes e-mail addresses, card numbers and telephone numbers out of what people wrote.

Patterns, no understanding: names and addresses stay. 13 to 19 digits that satisfy the Luhn check (ISO/IEC 7812-1, annex
B) are taken for a card. For a telephone are taken 7 to 15 digits (ITU-T E.164) after a plus sign or 00, 9 to 15 after a
trunk 0 or in one piece, and groups of 3-3-4. Others look like sizes, years and prices. Dates are left alone.
"""

from __future__ import annotations

import re

EMAIL, CARD, PHONE = "[email]", "[card]", "[phone]"

_ACCENT = r"\u0300-\u036f"  # on a letter of its own, as decomposed text (NFD) has it
_EMAIL = re.compile(rf"[\w{_ACCENT}.!#$%&'*+/=?^`{{|}}~-]{{1,64}}[@＠](?:[\w{_ACCENT}-]{{1,63}}[.．])+[^\W\d_]{{2,24}}")

_GAP = r"[\s.\-\u2010-\u2015_/·]"
_DIGIT_GROUPS = re.compile(rf"(?<!\d)\d+(?:{_GAP}{{1,3}}\d+)*")
_SHORTEST_CARD, _LONGEST_CARD = 13, 19

_SPACE = r"[\s.()\-\u2010-\u2015/]"
_START = r"(?<!\w)(?<!\d[.,/\-])"  # not within a word, nor within a number such as 1,500 or 3.14
_NEXT = r"(?<!\w)(?<=\d{5}[,/])"  # right after another number
_PHONE = re.compile(
    rf"""
      (?: (?<![\d+＋]) \(? [+＋] | (?<!\w) \(? 00) {_SPACE}{{0,2}} \d (?:{_SPACE}{{0,3}}\d){{6,14}} (?!\d)  # +49 (0)171
    | (?:{_START}|{_NEXT}) \(? 0\d (?:{_SPACE}{{0,4}}\d){{7,13}} (?!\d)  # (0171) - 234 5678
    | {_START} (?:1{_SPACE})? \(? \d{{3}} {_SPACE}{{0,4}} \d{{3}} {_SPACE}{{1,3}} \d{{4}} (?!\w)  # (555) 123-4567
    | {_START} \d{{9,15}} (?!\w)
    """,
    re.VERBOSE,
)
_DAY, _MONTH, _YEAR = "(?:0?[1-9]|[12][0-9]|3[01])", "(?:0?[1-9]|1[0-2])", "(?:19|20)[0-9]{2}"
_DATE = re.compile(
    rf"(?<!\d)(?:{_DAY}([./-]){_MONTH}\1{_YEAR}|{_MONTH}([./-]){_DAY}\2{_YEAR}|{_YEAR}([./-]){_MONTH}\3{_DAY})(?!\d)"
)
_FEWEST_DIGITS = re.compile(r"(?:\d\D*){7}")


def mask(text: str) -> str:
    """Replace every e-mail address, card number and telephone number by `[email]`, `[card]`, `[phone]`."""
    if "@" in text or "＠" in text:
        text = _EMAIL.sub(EMAIL, text)
    if not _FEWEST_DIGITS.search(text):
        return text
    kept, done = [], 0
    for date in _DATE.finditer(text):  # two in a row would have the digits of a card
        kept += [_without_numbers(text[done : date.start()]), date.group()]
        done = date.end()
    return "".join([*kept, _without_numbers(text[done:])])


def _without_numbers(text: str) -> str:
    return _PHONE.sub(PHONE, _DIGIT_GROUPS.sub(_without_cards, text))


def _without_cards(found: re.Match[str]) -> str:
    """Mask the cards in digit groups such as `2 x 4111 1111 1111 1111`, which may begin and end at any group."""
    text = found.group()
    groups = [(group.start(), group.end()) for group in re.finditer(r"\d+", text)]
    kept, done, first = [], 0, 0
    while first < len(groups):
        last = _last_group_of_card(text, groups, first)
        if last is None:
            first += 1
            continue
        kept += [text[done : groups[first][0]], CARD]
        done, first = groups[last][1], last + 1
    return "".join([*kept, text[done:]])


def _last_group_of_card(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """The group at which the longest card number from group `first` on ends.

    The Luhn check doubles every second digit from the end, so two sums grow: one for each end that may come.
    """
    sums, count, found = [0, 0], 0, None
    for place in range(first, min(len(groups), first + _LONGEST_CARD)):
        start, end = groups[place]
        if count + end - start > _LONGEST_CARD:
            break
        for digit in map(int, text[start:end]):
            sums[count % 2] += digit * 2 - 9 if digit > 4 else digit * 2
            count += 1
            sums[count % 2] += digit
        total = sums[count % 2]
        if count >= _SHORTEST_CARD and total > 0 and total % 10 == 0:  # a row of zeros is nobody's card
            found = place
    return found
