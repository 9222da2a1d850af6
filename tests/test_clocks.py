"""Clocks that are wrong or go backwards, and files from any time: who edited last is never asked of them.

A clock that is wrong by more than a year is refused, so that one replica cannot raise the ticks of all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.shim import Fault, Nursery, Ran, Side
from tests.support import contents_of, do_not_wait_for_disk, history, new_replica, snapshot

DAY = 86400
YEAR = 365 * DAY
SECOND = 10**9
TIMES = {"1970": 0, "1969": -SECOND, "1901": -2_147_483_648 * SECOND, "2200": 7_258_118_400 * SECOND}


class Pair:
    """Two replicas, and what syncs them while clocks are wrong."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self._nursery = nursery
        self._folder = folder
        self.near, self.far = new_replica(folder / "near"), new_replica(folder / "far")

    def run(self, clock: float, side: Side, code: int | None) -> Ran:
        ran = self._nursery.run(
            self._folder, ["-C", "near", "sync", str(self.far)], fault=Fault(side, clock=clock)
        )
        assert ran.code == code or code is None, ran
        return ran

    def sync(self, clock: float = 0, side: Side = "near", code: int = 0) -> None:
        self.run(clock, side, code)
        assert snapshot(self.near) == snapshot(self.far)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with contextlib.closing(Nursery()) as nursery:
        yield nursery


@pytest.fixture
def pair(nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    do_not_wait_for_disk(monkeypatch)
    return Pair(nursery, tmp_path)


def write(path: Path, data: bytes, mtime_ns: int) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.mark.parametrize("side", ["near", "far"])
@pytest.mark.parametrize("wrong", [-360 * DAY, -DAY, DAY, 360 * DAY])
def test_edits_made_in_turn_follow_one_another_whatever_the_clocks_say(
    pair: Pair, side: Side, wrong: float
) -> None:
    for turn in range(6):
        root = (pair.near, pair.far)[turn % 2]
        write(root / "file", b"turn %d" % turn, (100 - turn) * SECOND)
        pair.sync(wrong, side)
        assert contents_of([pair.near]) == {b"turn %d" % turn}


@pytest.mark.parametrize("side", ["near", "far"])
def test_a_clock_that_jumps_between_runs_makes_no_conflict_and_loses_nothing(pair: Pair, side: Side) -> None:
    for turn, wrong in enumerate((0, 170 * DAY, -100 * DAY, DAY, -DAY, 170 * DAY, 0)):
        root = (pair.near, pair.far)[turn % 2]
        write(root / "file", b"turn %d" % turn, turn * SECOND)
        write(root / f"new {turn}", b"new %d" % turn, turn * SECOND)
        pair.sync(wrong, side)
        (pair.near, pair.far)[turn % 2].joinpath(f"new {turn}").unlink()
        pair.sync(-wrong, side)
    assert contents_of([pair.near]) == {b"turn 6"}
    kept = {*history(pair.near), *history(pair.far)}
    assert kept >= {b"new %d" % turn for turn in range(7)}


@pytest.mark.parametrize("side", ["near", "far"])
@pytest.mark.parametrize("years", [2, 50])
def test_a_clock_that_is_years_behind_is_told_of_and_does_no_harm(pair: Pair, side: Side, years: int) -> None:
    write(pair.near / "file", b"one", SECOND)
    pair.sync()
    write(pair.near / "file", b"two", 2 * SECOND)
    write(pair.far / "other", b"three", 2 * SECOND)
    before = snapshot(pair.near), snapshot(pair.far)
    assert "set the clocks right" in pair.run(-years * YEAR, side, 3).err
    assert (snapshot(pair.near), snapshot(pair.far)) == before
    pair.run(0, side, None)  # an edit may be a conflict: whose clock it was has begun anew
    pair.sync()
    assert contents_of([pair.near]) - {b"one"} == {b"two", b"three"}


@pytest.mark.parametrize("side", ["near", "far"])
def test_a_clock_that_was_years_ahead_and_is_set_right_keeps_no_sync_from_being_done(
    pair: Pair, side: Side
) -> None:
    write(pair.near / "file", b"one", SECOND)
    write(pair.far / "other", b"two", SECOND)
    pair.run(5 * YEAR, side, 3)
    pair.sync()
    assert contents_of([pair.near]) == {b"one", b"two"}


def test_there_is_a_way_out_when_all_clocks_were_years_ahead(pair: Pair) -> None:
    write(pair.near / "file", b"one", SECOND)
    pair.sync(2 * YEAR, "both")
    write(pair.near / "file", b"edited", SECOND)
    write(pair.far / "other", b"two", SECOND)
    refused = pair.run(0, "near", 3)
    assert "more than a year ahead of this clock" in refused.err
    assert "move .p2psync/manifest.db away" in refused.err
    for root in (pair.near, pair.far):
        (root / ".p2psync" / "manifest.db").rename(root.with_suffix(".old"))
    pair.run(0, "near", 1)  # it tells that they were lost, and of the edit that it knows nothing about
    pair.sync()
    assert contents_of([pair.near]) == {b"one", b"edited", b"two"}


@pytest.mark.parametrize(("earlier", "later"), list(pairwise([*TIMES, *TIMES])))
def test_an_edit_travels_whatever_the_times_of_the_files(pair: Pair, earlier: str, later: str) -> None:
    write(pair.near / "file", b"one", TIMES[earlier])
    pair.sync()
    write(pair.far / "file", b"two", TIMES[later])
    pair.sync()
    assert contents_of([pair.near]) == {b"two"}
    assert (pair.near / "file").stat().st_mtime_ns == TIMES[later]


@pytest.mark.parametrize("time", TIMES)
def test_of_edits_on_both_sides_both_stay_whatever_the_times(pair: Pair, time: str) -> None:
    write(pair.near / "file", b"near\0", TIMES[time])
    write(pair.far / "file", b"far\0", 1_600_000_000 * SECOND)
    pair.sync(code=1)
    pair.sync()
    assert contents_of([pair.near]) == {b"near\0", b"far\0"}
