"""The pipeline itself: what it does with two sides at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from p2psync.core.model import Digest
from p2psync.core.replica import Mark
from p2psync.core.vector import ReplicaId
from p2psync.errors import ReplicaError
from p2psync.local import LocalReplica
from p2psync.sync import _on_both
from tests.support import make_tree, new_replica, sync


def test_who_fails_on_one_side_waits_until_the_other_is_done() -> None:
    failing, done = threading.Event(), []

    def work(side: str) -> None:
        if side == "home":
            failing.set()
            raise ReplicaError("the disk is full")
        failing.wait()
        done.append(sum(range(1_000_000)))  # which takes longer than to fail

    with pytest.raises(ReplicaError, match="the disk is full"):
        _on_both(("home", "peer"), work)
    assert done


def test_who_fails_to_be_scanned_says_so_although_the_peer_takes_long() -> None:
    told, ended = threading.Event(), threading.Event()

    def work(side: str) -> None:
        if side == "home":
            raise ReplicaError("the disk is read-only")
        told.wait(1)
        ended.set()

    with pytest.raises(ReplicaError, match="the disk is read-only"):
        _on_both(("home", "peer"), work, 0.01)
    assert not ended.is_set()
    told.set()


def test_a_side_is_asked_once_how_far_it_has_taken_in_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark names all that is left out for good, and each question is a round trip."""
    here, there = new_replica(tmp_path / "here", {b"f": b"1"}), new_replica(tmp_path / "there")
    sync(here, there)
    real, asked = LocalReplica.mark, []

    def mark(replica: LocalReplica, peer: ReplicaId) -> Mark | None:
        asked.append(replica.identity.name)
        return real(replica, peer)

    monkeypatch.setattr(LocalReplica, "mark", mark)
    sync(here, there)
    assert sorted(asked) == ["here", "there"]


@pytest.mark.parametrize(("limit", "asked"), [(2, [6, 4]), (1, [3, 2, 3, 2])])
def test_texts_that_merge_are_asked_for_together_and_of_the_peer_only_what_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, asked: list[int]
) -> None:
    monkeypatch.setattr("p2psync.sync.MERGES_AT_ONCE", limit)
    song = {name: b"".join(b"%d%s\n" % (line, name) for line in range(9)) for name in (b"a", b"b")}
    here, there = new_replica(tmp_path / "here", song), new_replica(tmp_path / "there")
    sync(here, there)
    make_tree(here, {name: text.replace(b"1", b"here") for name, text in song.items()})
    make_tree(there, {name: text.replace(b"7", b"there") for name, text in song.items()})
    real, told = LocalReplica.texts, list[int]()

    def texts(replica: LocalReplica, digests: Sequence[Digest]) -> list[bytes | None]:
        told.append(len(digests))
        return real(replica, digests)

    monkeypatch.setattr(LocalReplica, "texts", texts)
    assert [conflict.open for conflict in sync(here, there).conflicts] == [False, False]
    assert told == asked
