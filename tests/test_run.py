"""A run with several peers: what goes wrong with one gets into nothing else, and who is who is found out."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from p2psync import run
from p2psync.apply import Applier
from p2psync.config import Peer
from p2psync.connect import connect_local
from p2psync.core.model import Problem, Record, Transition
from p2psync.core.replica import Found, Identity, Mark, Name, Taken
from p2psync.core.vector import ReplicaId, Version
from p2psync.errors import Exit, NoRoom, P2PSyncError, PeerError
from p2psync.local import LocalReplica
from p2psync.manifest import Manifest
from p2psync.past import Past
from p2psync.peer import Address
from p2psync.progress import Silent
from p2psync.remote import RemoteReplica
from p2psync.run import Options, PeerRun
from p2psync.serve import Opener
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


def sync(here: Path, *peers: Path, wait: float = 10) -> list[PeerRun]:
    given = [Peer(peer.name, str(peer)) for peer in peers]
    return run.sync(os.fsencode(here), given, Options(lock_wait=wait), Silent(), lambda question: False)


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


def test_a_peer_for_which_the_system_has_no_process_keeps_no_other_from_being_synced(
    roots: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, one, two = roots

    def connect(root: bytes, opener: Opener, create: bool) -> RemoteReplica:
        if root == os.fsencode(one):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return connect_local(root, opener, create)

    with monkeypatch.context() as patch:
        patch.setattr(run, "connect_local", connect)
        runs = sync(here, one, two)
    assert os.strerror(errno.EAGAIN) in str(runs[0].error)
    assert_in_step(runs[1:])
    assert snapshot(two) == snapshot(here)


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


def test_what_nobody_expected_of_a_peer_is_told_by_its_type_and_keeps_no_other_from_being_synced(
    roots: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, one, two = roots
    real = RemoteReplica.lookup

    def lookup(self: RemoteReplica, names: Sequence[Name]) -> Found:
        if self.identity.name.endswith("one"):
            raise OverflowError("too large")
        return real(self, names)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteReplica, "lookup", lookup)
        runs = sync(here, one, two)
        assert str(runs[0].error) == "OverflowError: too large"
        assert_in_step(runs[1:])
        patch.setenv("P2PSYNC_DEBUG", "1")
        with pytest.raises(OverflowError):
            sync(here, one, two)
    assert_all_get_the_same(roots)


def test_a_version_that_no_manifest_can_hold_is_the_trouble_of_the_peer_that_sent_it(
    roots: list[Path],
) -> None:
    here, one, two = roots
    with opened(one) as peer:
        peer.scan(keep=True)
        with peer.manifest.transaction():
            huge = bytes(Version({ReplicaId(2**63 + 9): 5}).encode())
            peer.manifest._db.execute("UPDATE entry SET version = ? WHERE name = ?", (huge, b"edited"))
    before = snapshot(here)
    runs = sync(here, one, two)
    assert isinstance(runs[0].error, P2PSyncError)
    assert snapshot(here) == before == snapshot(two)
    assert_in_step(runs[1:])


@pytest.mark.parametrize("failing", ["name_run", "newest", "roll_back"])
def test_where_what_came_of_a_peer_cannot_be_noted_the_next_is_synced_and_all_is_told(
    roots: list[Path], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    here, one, two = roots
    place, this = Past if failing == "name_run" else Manifest, os.getpid()
    real, acknowledge = getattr(place, failing), LocalReplica.acknowledge
    is_failing = False

    def fail(self: Any, *arguments: Any) -> Any:  # noqa: ANN401
        nonlocal is_failing
        if is_failing and os.getpid() == this:
            is_failing = False
            raise NoRoom("no room at home")
        return real(self, *arguments)

    def die(self: LocalReplica, peer: Identity, mark: Mark) -> None:
        nonlocal is_failing
        if os.getpid() == this and peer.name.endswith("one"):
            is_failing = True
            raise PeerError("gone")
        acknowledge(self, peer, mark)

    with monkeypatch.context() as patch:
        patch.setattr(place, failing, fail)
        patch.setattr(LocalReplica, "acknowledge", die)
        runs = sync(here, one, two)
    assert str(runs[0].error) == "gone"
    assert_in_step(runs[1:])
    assert snapshot(two) == snapshot(here)
    assert_all_get_the_same(roots)


def test_the_next_peer_is_synced_by_the_rules_that_the_last_one_brought(roots: list[Path]) -> None:
    here, one, two = roots
    (one / ".p2pignore").write_bytes(b"*.o")
    peers = [Peer("one", str(one)), Peer("two", str(two), exclude=(".p2pignore",))]
    run.sync(os.fsencode(here), peers, Options(), Silent(), lambda question: False)
    with opened(here) as home, opened(two) as other:
        mark = home.mark(other.identity.replica)
        assert mark
        assert mark.rules == home.scan(keep=False).rules + other.scan(keep=False).rules != b""


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


# -- one replica at two addresses


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A replica, a peer, and a link to that."""
    here, there = new_replica(tmp_path / "here", {b"f": b"1"}), new_replica(tmp_path / "there")
    link = tmp_path / "link"
    link.symlink_to(there)
    return here, there, link


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses at which replicas are opened, in order."""
    opened: list[str] = []
    real = run.open_address

    def note(address: Address, *more: Any) -> RemoteReplica:  # noqa: ANN401
        opened.append(Path(str(address)).name)
        return real(address, *more)

    monkeypatch.setattr(run, "open_address", note)
    return opened


def same_as(runs: list[PeerRun]) -> list[tuple[str, str | None]]:
    return [(one.peer.name, one.same_as.peer.name if one.same_as else None) for one in runs]


def test_a_replica_at_two_addresses_is_synced_once(pair: tuple[Path, Path, Path], tries: list[str]) -> None:
    here, there, link = pair
    for address in (there, link):
        assert_in_step(sync(here, address))
    third = new_replica(here.parent / "third", {b"g": b"2"})
    tries.clear()
    for _ in range(2):
        runs = sync(here, there, link, third)
        assert same_as(runs) == [("there", None), ("link", "there"), ("third", None)]
        assert run.worst(runs) == 0
    assert tries == ["there", "link", "third"] * 2
    assert snapshot(here) == snapshot(there) == snapshot(third)


def test_two_addresses_that_were_never_met_are_recognised_at_the_second_try(
    pair: tuple[Path, Path, Path], tries: list[str]
) -> None:
    here, there, link = pair
    runs = sync(here, there, link)
    assert same_as(runs) == [("there", "link"), ("link", None)]
    assert_in_step(runs[1:])
    assert tries == ["there", "link", "link", "there"]
    assert same_as(sync(here, there, link)) == [("there", None), ("link", "there")]


def test_the_same_replica_ends_the_command_as_it_does_at_its_other_address(
    pair: tuple[Path, Path, Path],
) -> None:
    here, there, link = pair
    sync(here, there, link)
    (here / "f").write_bytes(b"2")
    (there / "f").write_bytes(b"3")
    runs = sync(here, there, link)
    assert [one.exit_code for one in runs] == [Exit.CONFLICTS, Exit.CONFLICTS]


def test_a_replica_that_another_run_has_is_not_taken_for_one_that_is_open(
    pair: tuple[Path, Path, Path],
) -> None:
    here, there, link = pair
    sync(here, there, link)
    third = new_replica(here.parent / "third")
    with opened(there):
        runs = sync(here, there, link, third, wait=0)
    assert [one.exit_code for one in runs] == [Exit.LOCKED, Exit.LOCKED, Exit.IN_STEP]


def test_a_copy_that_answers_beside_its_original_is_synced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images of one disk, which only differ by what they recall."""
    monkeypatch.setattr(LocalReplica, "_settle", lambda self, sidecar: None)
    here, there = new_replica(tmp_path / "here", {b"f": b"1"}), new_replica(tmp_path / "there")
    sync(here, there)
    copy = tmp_path / "copy"
    shutil.copytree(there, copy)
    (there / "f").write_bytes(b"of the original")
    (copy / "g").write_bytes(b"of the copy")
    for _ in range(2):
        assert same_as(sync(here, there, copy)) == [("there", None), ("copy", None)]
    assert snapshot(here) == snapshot(there) == snapshot(copy)
