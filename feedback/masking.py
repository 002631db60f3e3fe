"""Takes e-mail addresses, card numbers and telephone numbers out of what people wrote.

Patterns, no understanding: names and addresses stay. 13 to 19 digits that satisfy the Luhn check (ISO/IEC 7812-1, annex
B) are taken for a card. For a telephone are taken 7 to 15 digits (ITU-T E.164) after a plus sign or 00, 9 to 15 after a
trunk 0 or in one piece, and groups of 3-3-4. Others look like sizes, years and prices.
"""

from __future__ import annotations

import re

EMAIL, CARD, PHONE = "[email]", "[card]", "[phone]"

_EMAIL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}[@＠](?:[\w-]{1,63}[.．])+[^\W\d_]{2,24}")

_GAP = r"[\s.\-\u2010-\u2015_/·]"
_DIGIT_GROUPS = re.compile(rf"(?<!\d)\d+(?:{_GAP}{{1,2}}\d+)*")
_SHORTEST_CARD, _LONGEST_CARD = 13, 19

_SPACE = r"[\s.()\-\u2010-\u2015/]"
_PHONE = re.compile(
    rf"""
      (?<![\w+])      \(? (?:[+＋]|00) {_SPACE}{{0,2}} \d (?:{_SPACE}{{0,3}}\d){{6,14}} (?!\d)  # +49 (0)171 234 5678
    | (?<![\w.,/\-]) \(? 0\d (?:{_SPACE}{{0,2}}\d){{7,13}} (?!\d)                           # (0171) 234-5678
    | (?<![\w.,/\-]) (?:1{_SPACE})? \(? \d{{3}} {_SPACE}{{0,2}} \d{{3}} {_SPACE} \d{{4}} (?!\w)  # (555) 123-4567
    | (?<![\w.,]) \d{{9,15}} (?!\w)
    """,
    re.VERBOSE,
)
_FEWEST_DIGITS = re.compile(r"(?:\d\D*){7}")


def mask(text: str) -> str:
    """Replace every e-mail address, card number and telephone number by `[email]`, `[card]`, `[phone]`."""
    if "@" in text or "＠" in text:
        text = _EMAIL.sub(EMAIL, text)
    if _FEWEST_DIGITS.search(text):
        text = _PHONE.sub(PHONE, _DIGIT_GROUPS.sub(_without_cards, text))
    return text


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
    """The group at which the longest card number from group `first` on ends."""
    digits, found = "", None
    for place, (start, end) in enumerate(groups[first:], start=first):
        digits += text[start:end]
        if len(digits) > _LONGEST_CARD:
            break
        if len(digits) >= _SHORTEST_CARD and _luhn(digits):
            found = place
    return found


def _luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it; a row of zeros is nobody's card."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total > 0 and total % 10 == 0
