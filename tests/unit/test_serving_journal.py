"""The journal survives a crash in the middle of a line, and knows what to go back to."""

from pathlib import Path

import pytest

from serving.errors import PublishError
from serving.journal import Journal


def test_what_answered_before_is_what_the_last_publication_replaced(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal" / "shop.jsonl")
    assert journal.publications() == []
    assert journal.live_before(1) is None
    for release, before in ((1, None), (2, 1), (3, 2), (1, 3)):
        journal.write(release, before, "deploy")
    assert [one.release for one in journal.publications()] == [1, 2, 3, 1]
    assert journal.live_before(1) == 3
    assert journal.live_before(3) == 2
    assert journal.live_before(7) is None


def test_what_went_live_before_both_ends_of_a_rollback_is_further_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "shop.jsonl")
    assert journal.further_back(1) is None
    for release, before in ((1, None), (2, 1), (1, 2), (3, 1)):
        journal.write(release, before, "deploy")
    journal.write(1, 3, "rollback")
    assert (journal.live_before(1), journal.further_back(1)) == (3, 2)
    journal.write(3, 1, "rollback")
    assert (journal.live_before(3), journal.further_back(3)) == (1, 2)
    journal.write(2, 3, "rollback")
    assert (journal.live_before(2), journal.further_back(2)) == (3, 1)


def test_a_line_that_a_crash_cut_off_does_not_count_nor_harm_the_next(tmp_path: Path) -> None:
    path = tmp_path / "shop.jsonl"
    journal = Journal(path)
    journal.write(1, None, "deploy")
    journal.write(2, 1, "deploy", forced=["latency"])
    path.write_bytes(path.read_bytes()[:-9])
    assert [one.release for one in journal.publications()] == [1]
    journal.write(3, 1, "deploy")
    assert [one.release for one in journal.publications()] == [1, 3]


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="cannot write the journal"):
        Journal(tmp_path / "file" / "shop.jsonl").write(1, None, "deploy")
