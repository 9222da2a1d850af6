"""Folders are the ones asked for; parts of files are copied right, and holes stay holes; sweeping."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.disk import HOLE, Root, Span, copy_span, digest_of, sweep, write_sparse
from tests.support import digest, make_tree, mounted, snapshot


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def copied(source: Path, target: Path, *parts: tuple[int, int], before: bytes = b"") -> bytes:
    """Copy parts of `source` one after the other to what follows `before` in `target`; return its bytes."""
    with opened(source, os.O_RDONLY) as one, opened(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as other:
        os.write(other, before)
        for offset, size in parts:
            copy_span(Span(one, offset, size), other)
        os.ftruncate(other, os.lseek(other, 0, os.SEEK_CUR))
    return target.read_bytes()


def cannot_copy_ranges(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)


@pytest.mark.parametrize("how", [None, errno.EXDEV, errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize("before", [0, 1, 4096, 5000])
def test_a_span_is_copied_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: int | None, before: int
) -> None:
    if how is not None:
        cannot_copy_ranges(how, monkeypatch)
    data = os.urandom(3 << 20)
    (tmp_path / "source").write_bytes(data)
    parts = ((0, 10), (4096, 8192), (5, 1 << 20), (100, 2 << 20), (4095, 4098), (0, 0), ((3 << 20) - 7, 7))
    wanted = b"x" * before + b"".join(data[offset : offset + size] for offset, size in parts)
    assert copied(tmp_path / "source", tmp_path / "target", *parts, before=b"x" * before) == wanted


def test_a_file_system_that_copies_nothing_and_does_not_say_so_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, counts = os.copy_file_range, iter((1000, 0))

    def copy(source: int, target: int, count: int, start: int, at: int) -> int:
        some = next(counts)
        return real(source, target, some, start, at) if some else 0

    monkeypatch.setattr(os, "copy_file_range", copy)
    data = os.urandom(1 << 20)
    (tmp_path / "source").write_bytes(data)
    assert copied(tmp_path / "source", tmp_path / "target", (1, (1 << 20) - 1)) == data[1:]


def test_another_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cannot_copy_ranges(errno.EIO, monkeypatch)
    (tmp_path / "source").write_bytes(b"data")
    with pytest.raises(OSError, match="Input/output"):
        copied(tmp_path / "source", tmp_path / "target", (0, 4))


def test_what_the_source_does_not_hold_reads_as_zeros(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"data")
    assert copied(tmp_path / "source", tmp_path / "target", (2, 6)) == b"ta" + bytes(4)


def test_holes_are_copied_as_holes(tmp_path: Path) -> None:
    with (tmp_path / "source").open("wb") as file:
        for at in (1 << 20, 9 << 20):
            file.seek(at)
            file.write(b"data" * 1000)
        file.truncate(20 << 20)
    assert (
        copied(tmp_path / "source", tmp_path / "target", (0, 20 << 20)) == (tmp_path / "source").read_bytes()
    )
    assert (tmp_path / "target").stat().st_blocks * 512 < 1 << 20


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3 * HOLE)), max_size=5), st.integers(0, HOLE))
def test_long_runs_of_zeros_are_not_written_and_read_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[bool, int]], at: int
) -> None:
    data = b"".join(bytes(size) if zeros else os.urandom(size) for zeros, size in runs)
    path = tmp_path_factory.mktemp("sparse") / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * at)
        write_sparse(fd, data)
        os.ftruncate(fd, at + len(data))
        os.lseek(fd, 0, os.SEEK_SET)
        assert digest_of(fd) == digest(b"x" * at + data)


def test_a_file_of_zeros_takes_no_room(tmp_path: Path) -> None:
    with opened(tmp_path / "file", os.O_RDWR | os.O_CREAT) as fd:
        write_sparse(fd, bytes(1 << 20))
        os.ftruncate(fd, 1 << 20)
    assert (tmp_path / "file").read_bytes() == bytes(1 << 20)
    assert (tmp_path / "file").stat().st_blocks == 0


# -- folders


def test_a_folder_that_cannot_be_opened_does_not_stand_for_the_next(tmp_path: Path) -> None:
    make_tree(tmp_path, {b"a/b": None, b"c": None})
    with closing(Root.open(os.fsencode(tmp_path))) as root:
        root.directory(b"a/b")
        with pytest.raises(FileNotFoundError):
            root.directory(b"c/missing")
        assert os.path.samestat(os.fstat(root.directory(b"a/b")), (tmp_path / "a/b").stat())


# -- removing what is in the sidecar


@pytest.mark.parametrize("top", ["stage", "history/20240101-000000"])
def test_what_is_on_another_disk_is_not_swept_away(tmp_path: Path, top: str) -> None:
    make_tree(tmp_path / top, {b"ours/f": b"1", b"disk": None})
    with mounted(tmp_path / top / "disk"), closing(Root.open(os.fsencode(tmp_path))) as root:
        make_tree(tmp_path / top, {b"disk/d/precious": b"2"})
        sweep(root, os.fsencode(top), lambda path, name, directory: False)
        assert list(snapshot(tmp_path / top)) == [b"disk", b"disk/d", b"disk/d/precious"]
