"""The history on its own: where it puts things."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.history import History, Shelf, began, begin_run, is_run, name_at
from tests.support import snapshot

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


# -- what is found again


def found(history: History, run: str, path: bytes) -> list[bytes]:
    """Return what the history has from a run for a path."""
    return [read(shelf) for shelf in history.places(run, path)]


def read(shelf: Shelf) -> bytes:
    fd = os.open(shelf.name, os.O_RDONLY, dir_fd=shelf.directory)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"f", b"d/e/f", b"n" * 255, b"\xff\n@ ~1"])
def test_all_that_was_put_away_for_a_path_is_found_by_run_and_path(history: History, path: bytes) -> None:
    for run, contents in (("20240101-000000", b"abc"), (RUN[:-1] + "1", b"d")):
        history.begin_run(run)
        for byte in contents:
            put_away(history, path, bytes([byte]))
    assert found(history, "20240101-000000", path) == [b"a", b"b", b"c"]
    assert found(history, "20240101-000001", path) == [b"d"]


def test_what_people_took_out_does_not_hide_the_rest(tmp_path: Path, history: History) -> None:
    history.begin_run(RUN)
    for data in (b"1", b"2"):
        put_away(history, b"f", data)
    (tmp_path / "history" / RUN / "f").unlink()
    assert found(history, RUN, b"f") == [b"2"]


@pytest.mark.parametrize("path", [b"none", b"f/below", b"d/none", b"none/f"])
def test_where_nothing_was_put_away_nothing_is_found(history: History, path: bytes) -> None:
    history.begin_run(RUN)
    put_away(history, b"f", b"1")
    put_away(history, b"d/f", b"1")
    assert found(history, RUN, path) == found(history, "20240101-000001", path) == []


def test_nothing_is_found_through_a_link(tmp_path: Path, history: History) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").write_bytes(b"1")
    (tmp_path / "history" / RUN).mkdir(parents=True)
    (tmp_path / "history" / RUN / "d").symlink_to(tmp_path / "outside")
    assert found(history, RUN, b"d/f") == []


# -- runs


def test_an_empty_sidecar_has_no_runs_and_looking_makes_none(tmp_path: Path, history: History) -> None:
    assert (history.runs(), history.has(RUN), history.size(RUN), found(history, RUN, b"f")) == (
        [],
        False,
        0,
        [],
    )
    history.remove(RUN)
    assert not (tmp_path / "history").exists()


def test_the_runs_are_the_folders_that_are_named_like_one_the_oldest_first(
    tmp_path: Path, history: History
) -> None:
    names = ["20240101-000000", "20240101-000000-2", "20231231-235959"]
    for name in [*names, "mine", "20240101", "20241301-000000", "20240101-000000-", "-20240101-000000"]:
        (tmp_path / "history" / name).mkdir(parents=True)
    assert history.runs() == sorted(names)
    assert all(map(history.has, names))


def test_the_size_of_a_run_is_that_of_all_its_files_and_counting_changes_nothing(
    tmp_path: Path, history: History
) -> None:
    history.begin_run(RUN)
    put_away(history, b"f", b"123")
    put_away(history, b"d/e/f", b"12345")
    os.symlink(b"12", tmp_path / "history" / RUN / "d" / "l")
    (tmp_path / "history" / RUN / "empty").mkdir(0o500)
    before = snapshot(tmp_path)
    assert history.size(RUN) == 10
    assert snapshot(tmp_path) == before


def test_a_run_that_is_removed_is_gone_with_all_that_is_in_it_and_no_other(
    tmp_path: Path, history: History
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"stays")
    for run in (RUN, RUN[:-1] + "1"):
        history.begin_run(run)
        put_away(history, b"d/e/f", b"1")
        put_away(history, b"f", b"1")
    os.symlink(outside, tmp_path / "history" / RUN / "l")
    (tmp_path / "history" / RUN / "d").chmod(0o500)
    history.remove(RUN)
    assert (history.runs(), outside.read_bytes()) == ([RUN[:-1] + "1"], b"stays")
    assert found(history, RUN, b"f") == []
    put_away(history, b"f", b"2")
    assert found(history, RUN[:-1] + "1", b"f") == [b"1", b"2"]


# -- names


def test_a_run_is_named_after_the_second_in_which_it_begins() -> None:
    assert name_at(0) == "19700101-000000"
    assert name_at(1_700_000_000.9) == "20231114-221320"
    assert began("20231114-221320") == began("20231114-221320-2") == 1_700_000_000


@pytest.mark.parametrize(
    "name", ["20231114-221320", "20231114-221320-2", "20231114-221320-17", "00010101-000000"]
)
def test_what_can_be_the_name_of_a_run(name: str) -> None:
    assert is_run(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "20231114", "20231114-22132", "20231114-221320-", "20231114-221320-x", "20231114_221320"),
        *("20231314-221320", "20231132-221320", "20231114-246060", "00000101-000000", "99999999-999999"),
        *("a20231114-221320", "20231114-221320\n", "\N{ARABIC-INDIC DIGIT TWO}0231114-221320"),
    ],
)
def test_what_can_be_no_name_of_a_run(name: str) -> None:
    assert not is_run(name)


def test_a_run_does_not_take_the_folder_of_one_that_nobody_remembers(
    tmp_path: Path, history: History
) -> None:
    for name in (RUN, f"{RUN}-002"):
        (tmp_path / "history" / name).mkdir(parents=True)
    assert begin_run(history, lambda name: False, began(RUN)) == f"{RUN}-003"
    assert begin_run(history, lambda name: name == f"{RUN}-003", began(RUN)) == f"{RUN}-004"
