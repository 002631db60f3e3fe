"""What is asked, and what counts as a right answer."""

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instructrec_client import Item, Reason, Recommendations

from loadtest.errors import LoadTestError
from loadtest.report import report_folder
from loadtest.workload import Query, WrongAnswer, check_answer, expected_release, items_due, read_workload

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)


def answer(*scores, ids=None):
    names = ids or [f"p{rank}" for rank in range(len(scores))]
    items = (Item(name, "a", "b", score, Reason(score, 0, 0, 0)) for name, score in zip(names, scores, strict=True))
    return Recommendations(tuple(items), release="1", model_version="1")


def test_strings_and_objects_are_read(tmp_path):
    path = tmp_path / "instructions.jsonl"
    lines = ['"a shirt"', '{"text": "shoes", "history": ["p1", "p2"]}', "", '{"text": "bag", "label": "Bags"}']
    path.write_text("\n".join(lines))
    assert read_workload(path) == [
        Query(text="a shirt"),
        Query(text="shoes", history=["p1", "p2"]),
        Query(text="bag"),
    ]


@given(st.lists(st.tuples(TEXT.filter(str.strip), st.lists(TEXT)), min_size=1, max_size=5))
def test_any_text_survives(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("workload") / "x.jsonl"
    lines = [json.dumps({"text": text, "history": history}, ensure_ascii=False) for text, history in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_workload(path) == [Query(text=text, history=history) for text, history in rows]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no instruction"),
        ("\n \n", "no instruction"),
        ('"a"\nshirt', "line 2: not JSON"),
        ('"a"\n\n{"history": []}', "line 3: text"),
        ('{"text": "  "}', "line 1: text"),
        ('""', "line 1: text"),
        ('{"text": "a", "history": "p1"}', "line 1: history"),
        ('{"text": "a", "history": [1]}', "line 1: history.0"),
        ("[1]", "line 1: value"),
        ("3", "line 1: value"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, content, said):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(LoadTestError) as raised:
        read_workload(path)
    assert said in raised.value.message
    assert "\n" not in raised.value.message


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(LoadTestError, match="cannot read"):
        read_workload(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'"caf\xe9"')
    with pytest.raises(LoadTestError, match="cannot read"):
        read_workload(tmp_path / "latin.jsonl")


@pytest.mark.parametrize("scores", [(1.0,), (2.0, 1.0), (1.0, 1.0, -3.0)])
def test_right_answers(scores):
    check_answer(answer(*scores), due=len(scores))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (answer(), "0 items where 3 are right"),
        (answer(4.0), "1 items where 3 are right"),
        (answer(4.0, 3.0, 2.0, 1.0), "4 items where 3 are right"),
        (answer(0.0, 1.0, 2.0), "above the one before"),
        (answer(float("nan"), 1.0, 0.0), "finite"),
        (answer(float("inf"), 1.0, 0.0), "finite"),
        (answer(2.0, 1.0, 0.0, ids=["p1", "p2", "p1"]), "twice"),
    ],
)
def test_wrong_answers(wrong, said):
    with pytest.raises(WrongAnswer, match=said):
        check_answer(wrong, due=3)


def test_an_answer_has_to_be_as_long_as_the_releases_catalogue_lets_it_be(tmp_path):
    instructions = tmp_path / "instructions.jsonl"
    assert items_due(instructions, 10) == 10, "of other instructions nothing is known"
    manifest = tmp_path / "manifest.json"
    for items, due in ((7, 7), (10, 10), (44_446, 10)):
        manifest.write_text(json.dumps({"items": items}))
        assert items_due(instructions, 10) == due
    for wrong in ("{}", "[]", "not JSON", '{"items": null}'):
        manifest.write_text(wrong)
        with pytest.raises(LoadTestError, match="how many items") as raised:
            items_due(instructions, 10)
        assert "\n" not in raised.value.message


def test_a_releases_own_instructions_name_the_release_that_is_to_answer(tmp_path):
    instructions = tmp_path / "instructions.jsonl"
    assert expected_release(instructions) is None
    (tmp_path / "manifest.json").write_text(json.dumps({"items": 7, "release": 12}))
    assert expected_release(instructions) == "12"
    (tmp_path / "manifest.json").write_text(json.dumps({"items": 7}))
    with pytest.raises(LoadTestError, match="does not say which release this is"):
        expected_release(instructions)


def test_a_report_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "reports" / "one"
    with pytest.raises(RuntimeError), report_folder(target) as folder:
        (folder / "report.json").write_text("half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with report_folder(target) as folder:
        (folder / "report.json").write_text("whole")
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["one"]
    assert (target / "report.json").read_text() == "whole"
    with pytest.raises(LoadTestError, match="is there already"), report_folder(target):
        pass
    with pytest.raises(LoadTestError, match="cannot write there"), report_folder(target / "report.json" / "x" / "y"):
        pass


def test_of_two_runs_that_began_in_one_second_the_second_says_so_before_it_begins(tmp_path):
    target = tmp_path / "one"
    with report_folder(target) as folder:
        (folder / "report.json").write_text("first")
        with pytest.raises(LoadTestError, match="is there already"), report_folder(target):
            pytest.fail("it began")
    assert (target / "report.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_report_that_cannot_be_written_is_one_clear_line(tmp_path):
    with pytest.raises(LoadTestError, match="No space left") as raised, report_folder(tmp_path / "one"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "\n" not in raised.value.message
    assert list(tmp_path.iterdir()) == []
