"""What of a large file the other side holds: told in runs of chunks, and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from p2psync.core.chunking import (
    HASH_BYTES,
    WORTH_BYTES,
    Index,
    Part,
    likely_bases,
    parts,
    ranges,
    unit_of,
)
from p2psync.core.model import Entry, Transition
from tests.support import digest, directory, file, tombstone

LARGE = b"x" * WORTH_BYTES


def cut(pieces: Iterable[bytes]) -> Iterator[tuple[memoryview, bytes]]:
    for piece in pieces:
        yield memoryview(piece), xxh3_64_digest(piece)


def index(held: Iterable[bytes]) -> Index:
    return Index(b"".join(map(xxh3_64_digest, held)))


def together(told: Iterable[Part], held: list[bytes]) -> bytes:
    """Put a file together from what was told of it and what is held."""
    whole = b""
    for part in told:
        run = b"".join(held[part.first : part.first + part.chunks])
        assert part.size == len(run)
        assert not (part.data and part.chunks)
        whole += part.data + run
    return whole


chunks = st.lists(st.sampled_from([b"a", b"bb", b"ccc", b"dddd", b"eeeee"]), max_size=12)


@given(chunks, chunks, st.integers(1, 9))
def test_what_is_told_gives_the_file_again(new: list[bytes], held: list[bytes], most: int) -> None:
    told = list(parts(cut(new), index(held), most))
    assert together(told, held) == b"".join(new)
    assert all(len(part.data) <= most for part in told)
    assert sum(len(part.data) for part in told) == sum(len(chunk) for chunk in new if chunk not in held)


def test_what_follows_in_both_is_one_run() -> None:
    held = [b"a", b"b", b"c", b"a", b"d"]
    assert list(parts(cut([b"a", b"b", b"c", b"new", b"a", b"d"]), index(held), 100)) == [
        Part(b"", 0, 3, 3),
        Part(b"new"),
        Part(b"", 0, 1, 1),
        Part(b"", 4, 1, 1),
    ]
    assert list(parts(cut([b"c", b"a", b"d"]), index(held), 100)) == [Part(b"", 2, 3, 3)]


def test_of_nothing_held_all_is_data() -> None:
    assert list(parts(cut([b"one", b"two"]), index([]), 100)) == [Part(b"onetwo")]


@pytest.mark.parametrize("size", [0, 1 << 20, 1 << 29, 1 << 31, 1 << 33, 1 << 40])
def test_a_larger_file_has_larger_chunks_and_not_many_more(size: int) -> None:
    unit = unit_of(size)
    assert unit == 16 << 10 or size / unit > 1 << 15
    assert size / unit <= 1 << 16 or unit == 1 << 20


def test_where_chunks_are() -> None:
    assert list(ranges([3, 1, 5])) == [0, 3, 4, 9]
    assert len(xxh3_64_digest(b"")) == HASH_BYTES


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


def test_not_more_than_a_few_files_are_looked_into() -> None:
    many = [going(b"d/%d" % number, LARGE + b"%d" % number) for number in range(9)]
    found = likely_bases([*many, Transition(b"d/new", None, file(LARGE))])
    assert found == {digest(LARGE): [digest(LARGE + b"%d" % number) for number in range(4)]}
