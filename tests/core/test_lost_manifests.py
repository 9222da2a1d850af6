"""Replicas that lose their manifests, at random: that may cost a needless conflict copy, never an edit.

As `test_convergence`, but of one file only, in many short histories: it takes few steps in a certain order
to lose something here. Each write carries a token of its own.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable
from itertools import combinations, count

import pytest
from msgspec.structs import replace

from p2psync.core.vector import ReplicaId

from .model_replica import CONTENTS, Killed, ModelReplica, seen_file, sync

PATH = b"f"
STEPS = ("lose", "lose", "write", "add", "touch", "chmod", "delete", "sync", "sync", "sync", "killed")


class _World:
    """Some replicas with one file, and what was written to it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.numbers = count(10)
        clock = count(1)
        self.replicas = [self._replica(clock) for _ in range(chance.choice((2, 3, 3)))]
        self.living: set[bytes] = set()
        """What was written, and not deleted by whoever saw it."""

    def _replica(self, clock: count[int]) -> ModelReplica:
        return ModelReplica(self._name(), clock)

    def _name(self) -> ReplicaId:
        return ReplicaId(next(self.numbers))

    def step(self, what: str) -> None:
        one, other = self.chance.sample(self.replicas, 2)
        entry = one.tree.get(PATH)
        old = CONTENTS[entry.digest] if entry else b""
        if what == "lose":
            one.lose_manifest(self._name())
        elif what == "sync":
            sync(one, other)
        elif what == "killed":
            self._sync_and_die(one, other)
        elif what == "write":
            self.living.difference_update(old.splitlines(keepends=True))
            self._put(one, self._token())
        elif entry is None:
            pass
        elif what == "add":
            token = self._token()
            self._put(one, old + token if self.chance.random() < 0.5 else token + old)
        elif what == "touch":
            one.tree[PATH] = replace(entry, mtime_ns=self.chance.randrange(9))
        elif what == "chmod":
            one.tree[PATH] = replace(entry, mode=self.chance.choice((0o600, 0o644, 0o755)))
        elif what == "delete":
            self.living.difference_update(old.splitlines(keepends=True))
            del one.tree[PATH]

    def _token(self) -> bytes:
        token = b"<%d>\n" % next(self.numbers)
        self.living.add(token)
        return token

    def _put(self, replica: ModelReplica, data: bytes) -> None:
        replica.tree[PATH] = seen_file(data, mtime_ns=self.chance.randrange(9))

    def _sync_and_die(self, one: ModelReplica, other: ModelReplica) -> None:
        """Sync; one of the two is killed after some transitions, or both are."""
        lives: list[Iterable[int]] = [range(self.chance.randrange(3), -1, -1) for _ in range(2)]
        if self.chance.random() < 0.7:
            lives[self.chance.randrange(2)] = ()
        with contextlib.suppress(Killed):
            sync(one, other, (lives[0], lives[1]))

    def settle(self) -> None:
        for _ in range(3):
            for one, other in combinations(self.replicas, 2):
                sync(one, other)


@pytest.mark.parametrize("part", range(4))
def test_no_edit_that_was_never_synced_is_lost_with_a_manifest(part: int) -> None:
    for seed in range(part * 500, part * 500 + 500):
        world = _World(random.Random(seed))
        for _ in range(world.chance.randrange(8, 40)):
            world.step(world.chance.choice(STEPS))
        world.settle()
        first, *others = world.replicas
        assert all(other.tree == first.tree for other in others), f"history {seed} does not converge"
        for one, other in combinations(world.replicas, 2):
            plan = sync(one, other)
            assert not (plan.ours or plan.theirs or plan.conflicts), f"history {seed} does not come to rest"
        alive = b"".join(CONTENTS[entry.digest] for entry in first.tree.values())
        lost = {token for token in world.living if token not in alive}
        assert not lost, f"history {seed} has lost {lost}"


def test_who_dies_before_it_has_what_it_decided_has_not_seen_an_edit_of_a_lost_past() -> None:
    clock = count(1)
    one, other = ModelReplica(ReplicaId(1), clock), ModelReplica(ReplicaId(2), clock)
    one.tree[PATH] = seen_file(b"1\n")
    sync(one, other)
    other.lose_manifest(ReplicaId(3))
    other.tree[PATH] = seen_file(b"1\n2\n", mtime_ns=1)
    with contextlib.suppress(Killed):
        sync(one, other, ([0], ()))
    one.tree[PATH] = seen_file(b"1\n3\n", mtime_ns=2)
    sync(one, other)
    assert b"2\n" in b"".join(CONTENTS[entry.digest] for entry in one.tree.values())
