"""When a plan deletes too much, and what it is called."""

from __future__ import annotations

import pytest

from p2psync.core.guard import HALF, MaxDelete, deleted, is_too_much, parse_max_delete, plan_id
from p2psync.core.model import Entry, Transition
from p2psync.core.vector import ReplicaId
from tests.support import directory, file, symlink, tombstone, version

HERE, THERE = ReplicaId(1), ReplicaId(2)


def gone(path: bytes, what: Entry) -> Transition:
    return Transition(path, what, tombstone(version(9)))


@pytest.mark.parametrize(
    ("transitions", "count"),
    [
        ([], 0),
        ([gone(b"f", file(b"1"))], 1),
        ([gone(b"f", file(b"1")), gone(b"g", file(b"1"))], 2),
        ([gone(b"f", file(b"1")), Transition(b"g", None, file(b"1"))], 0),
        ([gone(b"f", file(b"1")), Transition(b"g", tombstone(), file(b"1"))], 0),
        ([gone(b"f", file(b"1")), gone(b"g", file(b"1")), Transition(b"h", None, file(b"1"))], 1),
        ([gone(b"f", file(b"1")), Transition(b"g", None, file(b"2"))], 1),
        ([gone(b"f", file(b"1")), Transition(b"g", None, file(b"2")), Transition(b"h", None, file(b"2"))], 1),
        ([Transition(b"f", file(b"1"), file(b"2"))], 0),
        ([Transition(b"f", file(b"1"), directory())], 1),
        ([Transition(b"f", file(b"1"), symlink(b"1"))], 1),
        ([gone(b"d", directory()), gone(b"l", symlink(b"x"))], 0),
        ([Transition(b"f", file(b"1"), file(b"1", 0o600))], 0),
    ],
)
def test_files_are_deleted_whose_contents_come_nowhere_else(
    transitions: list[Transition], count: int
) -> None:
    assert deleted(transitions) == count


@pytest.mark.parametrize(
    ("count", "files", "limit", "too_much"),
    [
        (20, 30, HALF, False),
        (21, 30, HALF, True),
        (21, 42, HALF, False),
        (22, 43, HALF, True),
        (5, 5, HALF, False),
        (6, 6, HALF, True),
        (6, 7, HALF, False),
        (3, 100, MaxDelete(None, 3), False),
        (4, 100, MaxDelete(None, 3), True),
        (6, 6, MaxDelete(None, 6), False),
        (1, 100, MaxDelete(0, 0), True),
        (10, 100, MaxDelete(10, 0), False),
        (11, 100, MaxDelete(10, 0), True),
        (100, 100, MaxDelete(100, 0), False),
    ],
)
def test_more_than_the_limit_is_too_much_and_so_is_all_there_is(
    count: int, files: int, limit: MaxDelete, too_much: bool
) -> None:
    assert is_too_much(count, files, limit) == too_much


def test_a_limit_is_a_number_or_a_share() -> None:
    assert parse_max_delete("7") == MaxDelete(None, 7)
    assert parse_max_delete("30%") == MaxDelete(30, 0)
    for wrong in ("", "%", "x", "-1", "1.5", "101%", "5 %", "\u0665"):
        with pytest.raises(ValueError, match="number of files"):
            parse_max_delete(wrong)


def test_a_plan_has_the_same_name_whoever_makes_it_and_whenever() -> None:
    one, two = gone(b"f", file(b"1")), Transition(b"g", None, file(b"2"))
    later = Transition(b"f", file(b"1"), tombstone(version(8, 77)))
    name = plan_id([(HERE, [one]), (THERE, [two])])
    assert name == plan_id([(THERE, [two]), (HERE, [later])])
    assert len({name, plan_id([(HERE, [two]), (THERE, [one])]), plan_id([(HERE, [one])])}) == 3


@pytest.mark.parametrize(
    "other",
    [
        gone(b"g", file(b"1")),
        gone(b"f", file(b"2")),
        gone(b"f", file(b"1", 0o600)),
        Transition(b"f", file(b"1"), file(b"2")),
        Transition(b"f", None, tombstone()),
    ],
)
def test_a_plan_that_does_something_else_has_another_name(other: Transition) -> None:
    assert plan_id([(HERE, [gone(b"f", file(b"1"))])]) != plan_id([(HERE, [other])])
