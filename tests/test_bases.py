"""Kept texts on their own: what is kept, and what is read back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.bases import Bases
from p2psync.core.model import Extent
from tests.support import digest


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[int]:
    """An empty sidecar, open."""
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def bases(sidecar: int) -> Iterator[Bases]:
    bases = Bases(sidecar, lambda digests: set())
    yield bases
    bases.close()


def keep(bases: Bases, *texts: bytes) -> dict[bytes, Extent]:
    for text in texts:
        bases.add(digest(text), text)
    return {text: extent for extent in bases.flush() for text in texts if extent.digest == digest(text)}


def test_kept_texts_are_read_back_each_by_itself(bases: Bases) -> None:
    texts = [b"one\n", b"two\n" * 1000, b"three"]
    extents = keep(bases, *texts) | keep(bases, b"later\n")
    assert {text: bases.read(extent) for text, extent in extents.items()} == {
        text: text for text in [*texts, b"later\n"]
    }


def test_texts_beyond_a_block_are_kept_too(bases: Bases) -> None:
    texts = [b"%d\n" % number + bytes([65 + number]) * 300_000 for number in range(5)]
    extents = keep(bases, *texts)
    assert [bases.read(extents[text]) for text in texts] == texts
    assert len({extent.offset for extent in extents.values()}) > 1


def test_only_texts_are_kept(bases: Bases) -> None:
    assert keep(bases, b"", b"\0", b"x" * (1 << 20) + b"x", b"text").keys() == {b"text"}


def test_a_text_that_is_not_what_it_is_said_to_be_is_not_kept(bases: Bases) -> None:
    bases.add(digest(b"before\n"), b"edited\n")
    assert bases.flush() == []
    assert keep(bases, b"before\n").keys() == {b"before\n"}


def test_a_text_that_is_kept_already_is_not_written_again(tmp_path: Path, sidecar: int) -> None:
    bases = Bases(sidecar, lambda digests: {digest(b"known\n")})
    assert keep(bases, b"known\n", b"new\n").keys() == {b"new\n"}
    bases.close()


@pytest.mark.parametrize("damage", ["cut", "overwritten", "lost", "another text"])
def test_a_kept_text_that_was_damaged_is_none(tmp_path: Path, bases: Bases, damage: str) -> None:
    extent = keep(bases, b"text\n" * 100)[b"text\n" * 100]
    path = tmp_path / "bases"
    match damage:
        case "cut":
            os.truncate(path, extent.length - 1)
        case "overwritten":
            path.write_bytes(os.urandom(extent.length))
        case "lost":
            path.write_bytes(b"")
        case _:
            extent = extent._replace(start=1, size=extent.size - 1)
    assert bases.read(extent) is None


def test_only_what_is_between_blocks_is_freed(bases: Bases, tmp_path: Path) -> None:
    data = [os.urandom(20_000).hex().encode() for _ in range(7)]
    extents = [keep(bases, text)[text] for text in data]
    stay = [(text, extent) for text, extent in zip(data, extents, strict=True) if extent in extents[1::2]]
    before = (tmp_path / "bases").stat().st_blocks
    bases.free_all_but((extent.offset, extent.length) for _, extent in stay)
    assert [bases.read(extent) for _, extent in stay] == [text for text, _ in stay]
    assert (tmp_path / "bases").stat().st_blocks < before * 0.7
    bases.free_all_but([])
    assert (tmp_path / "bases").stat().st_blocks < before * 0.1


def test_texts_kept_by_two_runs_do_not_overwrite_each_other(bases: Bases, sidecar: int) -> None:
    other = Bases(sidecar, lambda digests: set())
    mine, theirs = keep(bases, b"mine\n"), keep(other, b"theirs\n")
    assert bases.read(theirs[b"theirs\n"]) == b"theirs\n"
    assert other.read(mine[b"mine\n"]) == b"mine\n"
    other.close()
