"""What of a large file the other side holds: told in runs of chunks, and put together again."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from xxhash import xxh3_64_digest

from p2psync.core import chunking
from p2psync.core.chunking import (
    HASH_BYTES,
    WORTH_BYTES,
    Chunks,
    Index,
    Part,
    likeliest,
    likely_bases,
    parts,
    sampled,
    unit_of,
    windows,
)
from p2psync.core.model import Entry, Transition
from tests.support import digest, directory, file, tombstone

LARGE = b"x" * WORTH_BYTES


def cut(pieces: Iterable[bytes]) -> Iterator[tuple[memoryview, bytes]]:
    for piece in pieces:
        yield memoryview(piece), xxh3_64_digest(piece)[:HASH_BYTES]


def index(*held: list[bytes]) -> Index:
    return Index(
        [Chunks(array("I", map(len, chunks)), b"".join(value for _, value in cut(chunks))) for chunks in held]
    )


def together(told: Iterable[Part], *held: list[bytes]) -> bytes:
    """Put a file together from what was told of it and what is held."""
    whole = b""
    for part in told:
        run = b"".join(held[part.source])[part.offset : part.offset + part.size] if part.size else b""
        assert part.size == len(run)
        assert not (part.data and run)
        whole += part.data + run
    return whole


chunks = st.lists(st.sampled_from([b"a", b"bb", b"ccc", b"dddd", b"eeeee"]), max_size=12)


@given(chunks, chunks, chunks, st.integers(1, 9))
def test_what_is_told_gives_the_file_again(
    new: list[bytes], held: list[bytes], other: list[bytes], most: int
) -> None:
    told = list(parts(cut(new), index(held, other), most))
    assert together(told, held, other) == b"".join(new)
    assert all(len(part.data) <= most for part in told)
    lacking = [chunk for chunk in new if chunk not in (*held, *other)]
    assert sum(len(part.data) for part in told) == sum(map(len, lacking))


def test_what_follows_in_both_is_one_run() -> None:
    held = [b"a", b"bb", b"c", b"a", b"d"]
    assert list(parts(cut([b"a", b"bb", b"c", b"new", b"a", b"d"]), index([b"e"], held), 100)) == [
        Part(b"", 1, 0, 4),
        Part(b"new"),
        Part(b"", 1, 0, 1),
        Part(b"", 1, 5, 1),
    ]
    assert list(parts(cut([b"c", b"a", b"d"]), index(held), 100)) == [Part(b"", 0, 3, 3)]


def test_a_long_run_is_told_in_parts_so_that_it_is_copied_meanwhile() -> None:
    held = [b"%d" % number + bytes(12 << 20) for number in range(6)]
    told = list(parts(cut(held), index(held), 100))
    assert [part.size >> 20 for part in told] == [36, 36]
    assert together(told, held) == b"".join(held)


def test_of_nothing_held_all_is_data() -> None:
    assert list(parts(cut([b"one", b"two"]), index([]), 100)) == [Part(b"onetwo")]


@pytest.mark.parametrize("size", [0, 1 << 20, 1 << 29, 1 << 31, 1 << 33, 1 << 40])
def test_a_larger_file_has_larger_chunks_and_not_many_more(size: int) -> None:
    unit = unit_of(size)
    assert unit == 16 << 10 or size / unit > (1 << 15) * 7 / 8
    assert size / unit <= 1 << 16 or unit == 1 << 20


@pytest.mark.parametrize("power", range(20, 41))
def test_what_is_as_large_as_a_power_of_two_may_grow_and_is_cut_as_before(power: int) -> None:
    size = 1 << power
    assert unit_of(size * 7 // 8 + 1) == unit_of(size) == unit_of(size + 1) == unit_of(size * 3 // 2)


# -- what to make it of


def going(path: bytes, data: bytes) -> Transition:
    return Transition(path, file(data), tombstone())


def test_what_is_replaced_is_the_base() -> None:
    old, new = LARGE + b"old", LARGE + b"new"
    assert likely_bases([Transition(b"p", file(old), file(new))]) == {digest(new): [digest(old)]}


@pytest.mark.parametrize("before", [None, tombstone(), directory(), file(b"small")])
def test_what_replaces_nothing_large_is_made_of_nothing_held(before: Entry | None) -> None:
    assert likely_bases([Transition(b"p", before, file(LARGE))]) == {digest(LARGE): []}


def test_small_files_and_those_that_stay_what_they_are_have_no_base() -> None:
    small = Transition(b"p", file(LARGE), file(b"small"))
    touch = Transition(b"q", file(LARGE), file(LARGE, mtime_ns=7))
    assert likely_bases([small, touch, going(b"r", LARGE)]) == {}


def test_what_was_moved_and_edited_is_made_of_what_goes_away() -> None:
    new = LARGE + b"new"
    made = Transition(b"there/name", None, file(new))
    same_name, same_folder = going(b"here/name", LARGE + b"1"), going(b"there/other", LARGE + b"2")
    elsewhere = going(b"here/other", LARGE + b"3")
    assert likely_bases([elsewhere, same_folder, same_name, made]) == {digest(new): [digest(LARGE + b"1")]}
    assert likely_bases([elsewhere, same_folder, made]) == {digest(new): [digest(LARGE + b"2")]}
    assert likely_bases([elsewhere, made]) == {digest(new): []}


@pytest.mark.parametrize(
    ("new", "first", "second"),
    [
        ({b"a/report-v2": 500}, b"a/report", b"a/other"),
        ({b"b/report": 500}, b"a/report", b"b/more"),
        ({b"a/thing-v2": 105}, b"b/thing", b"a/report"),
        ({b"a/x": 395, b"z/report": 101}, b"a/report", b"a/other"),
    ],
    ids=["beside", "copied elsewhere", "as large beside", "several"],
)
def test_a_new_file_is_like_those_of_its_name_and_those_of_its_size_by_turns(
    new: dict[bytes, int], first: bytes, second: bytes
) -> None:
    others = {b"b/thing": 104, b"a/other": 400, b"a/report": 100, b"b/more": 500}
    order = likeliest(new, others)
    assert order[:2] == [first, second]
    assert sorted(order) == sorted(others)


def test_a_name_that_is_between_two_new_ones_is_like_the_liker_one() -> None:
    new = {b"a/m": 100, b"b/report-v2": 500}
    assert likeliest(new, {b"c/mp": 1000, b"c/report": 1001}) == [b"c/report", b"c/mp"]


def test_in_the_same_folder_comes_first_what_is_as_large_and_what_has_as_like_a_name() -> None:
    assert likeliest({b"a/new": 9}, {b"b/x": 9, b"a/y": 1}) == [b"a/y", b"b/x"]
    assert likeliest({b"a/new": 9}, {b"b/n": 9, b"a/n": 1, b"a/x": 9}) == [b"a/n", b"a/x", b"b/n"]


def test_the_copy_of_what_loses_is_made_of_what_wins() -> None:
    loser, winner = LARGE + b"mine", LARGE + b"theirs"
    copy = Transition(b"p.conflict", None, file(loser))
    displaced = Transition(b"p", file(loser), file(winner), after=(b"p.conflict",))
    assert likely_bases([copy], [displaced]) == {digest(loser): [digest(winner)]}
    assert likely_bases([copy], [structs.replace(displaced, after=())]) == {digest(loser): []}


@given(st.integers(0, 1 << 42))
def test_windows_are_apart_inside_the_file_and_do_not_grow_with_it(size: int) -> None:
    found = windows(size)
    ends = [offset + length for offset, length in found]
    assert all(end <= offset for end, (offset, _) in zip(ends, found[1:], strict=False))
    assert found[0][0] == 0
    assert ends[-1] == size
    assert sum(length for _, length in found) <= max(128 * unit_of(size), 1)


@given(st.lists(st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES)))
def test_of_like_chunks_the_same_are_looked_up_wherever_they_are(hashes: list[bytes]) -> None:
    assert sorted(sampled(b"".join(hashes))) == sorted(chain(*map(sampled, hashes)))


def test_one_of_eight_chunks_is_looked_up() -> None:
    assert len(sampled(random.Random(1).randbytes(8000 * HASH_BYTES))) == pytest.approx(1000, rel=0.1)


def test_what_is_many_times_as_large_is_no_base() -> None:
    fits, too_large = b"y" * 4 * len(LARGE), b"z" * 5 * len(LARGE)
    made = Transition(b"d/new", None, file(LARGE))
    found = likely_bases([going(b"d/1", too_large), going(b"d/2", fits), made])
    assert found == {digest(LARGE): [digest(fits)]}


def test_not_more_than_a_few_files_are_looked_into() -> None:
    many = [going(b"d/%d" % number, LARGE + b"%d" % number) for number in range(9)]
    found = likely_bases([*many, Transition(b"d/new", None, file(LARGE))])
    assert found == {digest(LARGE): [digest(LARGE + b"%d" % number) for number in range(4)]}


def test_of_very_many_chunks_that_are_held_the_first_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "MOST_HELD", 3)
    held = index([b"a", b"b"], [b"c", b"d"])
    wanted = [held.find(value, -1) for _, value in cut([b"a", b"b", b"c", b"d"])]
    assert wanted == [0, 1, 2, None]
    assert held.place(2) == (1, 0)
