"""The history on its own: where it puts things."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.history import History

RUN = "20240101-000000"


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """The history of an empty sidecar."""
    sidecar = os.open(tmp_path, os.O_RDONLY)
    with contextlib.closing(History(sidecar)) as history:
        os.close(sidecar)
        yield history


def put_away(history: History, path: bytes, data: bytes) -> None:
    shelf, name = history.shelf(path)
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=shelf)
    os.write(fd, data)
    os.close(fd)


def runs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "history").iterdir())


def test_each_run_has_a_folder_of_its_own_with_the_paths_as_they_were(
    tmp_path: Path, history: History
) -> None:
    for run, data in (("20240101-000000", b"1"), ("20240102-000000", b"2")):
        history.begin_run(run)
        put_away(history, b"a/b/f", data)
        put_away(history, b"f", data)
    for path in ("a/b/f", "f"):
        assert [(run / path).read_bytes() for run in runs(tmp_path)] == [b"1", b"2"]


def test_a_place_in_the_history_is_never_one_that_is_taken(tmp_path: Path, history: History) -> None:
    history.begin_run(RUN)
    names = [b"f", b"f", b"f", b"n" * 255, b"n" * 255]
    for number, name in enumerate(names):
        put_away(history, name, b"%d" % number)
    (run,) = runs(tmp_path)
    assert sorted(path.read_bytes() for path in run.iterdir()) == [b"0", b"1", b"2", b"3", b"4"]


def test_a_link_to_nowhere_and_a_folder_take_a_place_too(tmp_path: Path, history: History) -> None:
    history.begin_run(RUN)
    shelf, name = history.shelf(b"l")
    os.symlink("nowhere", name, dir_fd=shelf)
    put_away(history, b"d/f", b"in a folder")
    put_away(history, b"l", b"1")
    put_away(history, b"d", b"2")
    (run,) = runs(tmp_path)
    assert sorted(path.read_bytes() for path in run.iterdir() if path.is_file()) == [b"1", b"2"]
    assert not (tmp_path / "nowhere").exists()
    assert (run / "d" / "f").read_bytes() == b"in a folder"


def test_no_way_into_the_history_leads_through_a_link(tmp_path: Path, history: History) -> None:
    history.begin_run(RUN)
    shelf, name = history.shelf(b"l")
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", name, dir_fd=shelf)
    with pytest.raises(OSError):
        history.shelf(b"l/d/f")
    assert list((tmp_path / "outside").iterdir()) == []
