"""A run with several peers: what goes wrong with one must not get into what is done with another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2psync import run
from p2psync.apply import Applier
from p2psync.config import Peer
from p2psync.core.model import Problem, Record, Transition
from p2psync.core.replica import Taken
from p2psync.errors import PeerError
from p2psync.local import LocalReplica
from p2psync.progress import Silent
from p2psync.remote import RemoteReplica
from p2psync.run import Options, PeerRun
from tests.support import Tree, do_not_wait_for_disk, new_replica, opened, snapshot

CALLS = ("lookup", "prepare", "take", "apply", "point", "acknowledge")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """A replica and two peers, in step, of which it and the first have changed since."""
    tree: Tree = {b"gone": b"1", b"edited": b"1", b"moved": b"3" * 100, b"d/a": b"2"}
    here, *peers = (new_replica(tmp_path / name, tree) for name in ("here", "one", "two"))
    assert_in_step(sync(here, *peers))
    one = peers[0]
    (one / "gone").unlink()
    (one / "edited").write_bytes(b"2")
    (one / "moved").rename(one / "moved away")
    (one / "link").symlink_to("edited")
    (one / "e" / "f").mkdir(parents=True)
    for name in ("e/1", "e/2", "e/f/3"):
        (one / name).write_bytes(name.encode())
    (here / "new").write_bytes(b"for both")
    return [here, *peers]


def sync(here: Path, *peers: Path) -> list[PeerRun]:
    given = [Peer(peer.name, str(peer)) for peer in peers]
    return run.sync(os.fsencode(here), given, Options(), Silent(), lambda question: False)


def assert_in_step(runs: list[PeerRun]) -> None:
    assert [(one.peer.name, one.error, [result.in_step for result in one.results[-1:]]) for one in runs] == [
        (one.peer.name, None, [True]) for one in runs
    ]


def assert_all_get_the_same(roots: list[Path]) -> None:
    here, *peers = roots
    sync(here, *peers)
    assert_in_step(sync(here, *peers))
    trees = [snapshot(root) for root in roots]
    assert trees[0] == trees[1] == trees[2]
    assert trees[0].keys() >= {b"new", b"link", b"e/f/3", b"moved away"}
    assert trees[0].keys().isdisjoint({b"gone", b"moved"})


@pytest.mark.parametrize("call", CALLS)
def test_what_was_planned_with_a_peer_that_fails_is_not_carried_out_with_the_next(
    roots: list[Path], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    here, one, two = roots
    before = snapshot(here)
    real = getattr(RemoteReplica, call)

    def fail(self: RemoteReplica, *arguments: Any) -> Any:  # noqa: ANN401
        if self.identity.name.endswith("one"):
            raise PeerError("gone")
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteReplica, call, fail)
        runs = sync(here, one, two)
    assert str(runs[0].error) == "gone"
    assert_in_step(runs[1:])
    if call in CALLS[:3]:
        assert snapshot(here) == before
    assert snapshot(two) == snapshot(here)
    with opened(here) as home:
        assert not any(recorded.peer.endswith("two") for recorded in home.manifest.past.runs())
    assert_all_get_the_same(roots)


def test_a_plan_that_stops_midway_here_is_no_reason_to_tell_the_next_peer_what_is_not_so(
    roots: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, one, two = roots
    real, this = Applier.run, os.getpid()

    def stop(self: Applier, transitions: Iterable[Transition]) -> Iterator[Record | Problem]:
        if os.getpid() != this:  # it is the peer
            yield from real(self, transitions)
            return
        monkeypatch.setattr(Applier, "run", real)
        outcomes = real(self, transitions)
        for _ in range(3):
            yield next(outcomes)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Applier, "run", stop)
    runs = sync(here, one, two)
    assert "Input/output error" in str(runs[0].error)
    assert_in_step(runs[1:])
    assert snapshot(two) == snapshot(here)
    assert_all_get_the_same(roots)


def test_rows_of_files_that_are_on_their_way_are_not_told_to_the_next_peer(
    roots: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, one, two = roots
    real, this = LocalReplica.take, os.getpid()

    def take(self: LocalReplica) -> Iterator[Taken]:
        yield from real(self)
        if os.getpid() == this and self.manifest.entry(b"e/1"):  # it is foreseen
            monkeypatch.setattr(LocalReplica, "take", real)
            raise PeerError("gone")

    monkeypatch.setattr(LocalReplica, "take", take)
    runs = sync(here, one, two)
    assert str(runs[0].error) == "gone"
    assert_in_step(runs[1:])
    assert snapshot(two) == snapshot(here)
    assert_all_get_the_same(roots)
