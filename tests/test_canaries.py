"""The bugs of canaries.py can still be planted: their script must not rot between two runs."""

from __future__ import annotations

import ast

import pytest

from tests.canaries import CANARIES, REPOSITORY, Canary, Mismatch, plant


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_a_canary_can_be_planted(canary: Canary) -> None:
    for path, text in plant(canary, REPOSITORY).items():
        assert text != path.read_text("utf-8")
        ast.parse(text)
    assert all((REPOSITORY / test).exists() for test in canary.tests)


def test_a_canary_whose_place_is_gone_is_an_error() -> None:
    canary = CANARIES[0]
    gone = canary._replace(edits=(canary.edits[0]._replace(old="what is nowhere"),))
    with pytest.raises(Mismatch, match="0 times"):
        plant(gone, REPOSITORY)


def test_there_are_ten() -> None:
    assert len({canary.name for canary in CANARIES}) == 10
