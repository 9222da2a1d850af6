"""What is kept of large files that did not come whole: no small part, and none instead of a larger one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.leftover import LeftOver
from tests.support import digest

LEAST = 128 * 1024
WANTED = digest(b"wanted")


@pytest.fixture
def left_over(tmp_path: Path) -> Iterator[LeftOver]:
    sidecar = os.open(tmp_path, os.O_RDONLY)
    with contextlib.closing(LeftOver(sidecar)) as left_over:
        yield left_over
    os.close(sidecar)


def keep(left_over: LeftOver, folder: Path, data: bytes) -> None:
    (folder / "part").write_bytes(data)
    fd = os.open(folder, os.O_RDONLY)
    left_over.keep(WANTED, b"part", fd)
    left_over.put_by(b"path", b"part", fd)  # what was not kept by digest, if anything
    os.close(fd)


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name[32:]: path.read_bytes() for path in (folder / "partial").glob("*")}


def test_a_small_part_is_not_worth_keeping(tmp_path: Path, left_over: LeftOver) -> None:
    keep(left_over, tmp_path, b"x" * (LEAST - 1))
    assert kept(tmp_path) == {}
    keep(left_over, tmp_path, b"x" * LEAST)
    assert kept(tmp_path) == {"": b"x" * LEAST}


@pytest.mark.parametrize("size", [LEAST, LEAST + 5])
def test_no_part_takes_the_place_of_one_that_is_as_large(
    tmp_path: Path, left_over: LeftOver, size: int
) -> None:
    for _ in range(2):  # by its contents, and by its path
        keep(left_over, tmp_path, b"1" * (LEAST + 5))
    keep(left_over, tmp_path, b"2" * size)
    assert kept(tmp_path) == {"": b"1" * (LEAST + 5), ".path": b"1" * (LEAST + 5)}


def test_a_larger_part_takes_the_place_of_a_smaller_one(tmp_path: Path, left_over: LeftOver) -> None:
    keep(left_over, tmp_path, b"1" * LEAST)
    keep(left_over, tmp_path, b"2" * (LEAST + 1))
    assert kept(tmp_path) == {"": b"2" * (LEAST + 1)}


def test_what_makes_room_takes_in_nothing_until_the_run_is_over(tmp_path: Path, left_over: LeftOver) -> None:
    keep(left_over, tmp_path, b"1" * LEAST)
    left_over.give_way()
    keep(left_over, tmp_path, b"2" * LEAST)
    assert kept(tmp_path) == {}
    left_over.tidy()
    keep(left_over, tmp_path, b"3" * LEAST)
    assert kept(tmp_path) == {"": b"3" * LEAST}


def test_what_is_no_file_is_not_kept_however_large(
    tmp_path: Path, left_over: LeftOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2psync.leftover.WORTH_BYTES", 1)
    (tmp_path / "part").symlink_to("x" * 200)
    fd = os.open(tmp_path, os.O_RDONLY)
    left_over.keep(WANTED, b"part", fd)
    os.close(fd)
    assert kept(tmp_path) == {}


def test_what_has_come_is_dropped_and_nothing_else(tmp_path: Path, left_over: LeftOver) -> None:
    for _ in range(2):
        keep(left_over, tmp_path, b"1" * LEAST)
    left_over.tidy([WANTED])
    assert list(kept(tmp_path)) == [".path"]
