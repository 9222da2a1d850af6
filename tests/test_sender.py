"""What is sent of files that are written to, cut short, gone or unreadable by the time they are wanted."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2psync.core.model import Digest
from p2psync.core.replica import PIECE_BYTES, Content, More, Piece, Source, Want
from p2psync.local import LocalReplica
from tests.support import digest, new_replica, opened, scanned

MIB = 1 << 20
LARGE = os.urandom(5 * MIB + 1)
SMALL = b"small"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = new_replica(tmp_path / "replica", {b"large": LARGE, b"small": SMALL})
    scanned(root)
    return root


@pytest.fixture
def replica(root: Path) -> Iterator[LocalReplica]:
    with opened(root) as replica:
        yield replica


Sent = Callable[[LocalReplica, Digest], Iterator[Piece]]


def whole(replica: LocalReplica, wanted: Digest) -> Iterator[Piece]:
    return (piece for batch in replica.read([wanted]) for piece in batch)


def differences(replica: LocalReplica, wanted: Digest) -> Iterator[Piece]:
    want = Want(Content(wanted, len(LARGE)), [Source(digest(b"unknown"), None)])
    return (piece for batch in replica.differences([want]) for piece in batch)


either_way = pytest.mark.parametrize("send", [whole, differences])


@either_way
def test_all_of_a_file_that_nobody_writes_to_is_sent(replica: LocalReplica, send: Sent) -> None:
    pieces = list(send(replica, digest(LARGE)))
    assert b"".join(piece.data for piece in pieces) == LARGE
    assert [piece.more for piece in pieces] == [More.MORE] * (len(pieces) - 1) + [More.LAST]


def edited(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4 * MIB)
        file.write(b"edited")


def cut_short(path: Path) -> None:
    os.truncate(path, 2 * MIB)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


written_to = pytest.mark.parametrize("write", [edited, cut_short, longer])


@either_way
@written_to
def test_nothing_is_sent_of_a_large_file_that_was_written_to_since_the_scan(
    root: Path, replica: LocalReplica, send: Sent, write: Callable[[Path], None]
) -> None:
    write(root / "large")
    assert list(send(replica, digest(LARGE))) == [Piece(digest(LARGE), b"", More.GONE)]


@either_way
@written_to
def test_no_more_is_sent_of_a_large_file_once_it_is_written_to(
    root: Path, replica: LocalReplica, send: Sent, write: Callable[[Path], None]
) -> None:
    pieces = send(replica, digest(LARGE))
    first = next(pieces)
    write(root / "large")
    rest = list(pieces)
    assert first.more is More.MORE
    assert rest[-1] == Piece(digest(LARGE), b"", More.GONE)
    assert len(first.data) + sum(len(piece.data) for piece in rest) <= 4 * PIECE_BYTES


def test_another_file_with_the_same_contents_is_sent_instead(root: Path) -> None:
    (root / "other").write_bytes(LARGE)
    scanned(root)
    for path in ("large", "other"):
        before = (root / path).stat()
        edited(root / path)
        with opened(root) as replica:
            assert b"".join(piece.data for piece in whole(replica, digest(LARGE))) == LARGE
        (root / path).write_bytes(LARGE)
        os.utime(root / path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_was_only_linked_or_renamed_since_the_scan_is_sent(
    root: Path, replica: LocalReplica
) -> None:
    os.link(root / "large", root / "link")
    os.chmod(root / "large", 0o600)
    assert b"".join(piece.data for piece in whole(replica, digest(LARGE))) == LARGE


@either_way
@pytest.mark.parametrize("readable", [0, 2])
def test_a_file_that_cannot_be_read_to_its_end_is_gone(
    replica: LocalReplica, monkeypatch: pytest.MonkeyPatch, send: Sent, readable: int
) -> None:
    if send is differences:
        assert list(send(replica, digest(LARGE)))[-1].more is More.LAST  # opened, and known
    fail_after(readable, monkeypatch)
    assert list(send(replica, digest(LARGE)))[-1] == Piece(digest(LARGE), b"", More.GONE)


def test_a_small_file_that_cannot_be_read_is_gone(
    replica: LocalReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(0, monkeypatch)
    assert list(whole(replica, digest(SMALL))) == [Piece(digest(SMALL), b"", More.GONE)]


def test_a_file_that_has_gone_is_gone_and_what_follows_is_sent(root: Path, replica: LocalReplica) -> None:
    (root / "large").unlink()
    pieces = [piece for batch in replica.read([digest(LARGE), digest(SMALL)]) for piece in batch]
    assert pieces == [Piece(digest(LARGE), b"", More.GONE), Piece(digest(SMALL), SMALL, More.LAST)]


def fail_after(count: int, patch: pytest.MonkeyPatch) -> None:
    """Have a disk fail after so many reads, by whichever call."""
    real, left = os.read, [count]

    def read(fd: int, size: int) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, size)

    patch.setattr(os, "read", read)
