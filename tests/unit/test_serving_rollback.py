"""What a rollback says of the ways on."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from deploy_helpers import Shop

from serving.__main__ import main
from serving.layout import Layout


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(Layout(tmp_path / "var"), monkeypatch)


def run(shop: Shop, *arguments: str) -> str:
    return CliRunner().invoke(main, [*arguments, "--var", str(shop.layout.var)]).output


def test_a_rollback_says_where_the_next_one_leads(shop: Shop) -> None:
    for number in (1, 2, 3):
        shop.deploy(number)
    once = run(shop, "rollback", "--domain", "shop", "--no-watch").splitlines()
    assert once[0].startswith("shop: release 2 answers again")
    assert once[1:] == ["`make rollback` once more returns to 3, past no gate", "further back: `make rollback TO=1`"]
    furthest = run(shop, "rollback", "--domain", "shop", "--to", "1", "--no-watch").splitlines()
    assert furthest[1:] == ["`make rollback` once more returns to 2, past no gate"]
