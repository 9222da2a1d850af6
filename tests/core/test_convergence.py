"""The rules of the design as a random model: they converge, lose nothing and are symmetric.

Replicas in memory, edits, deletions, type changes, syncs in any order, a good part of them killed
part-way. Every write carries a unique token, so that a lost one can be named.
"""

from __future__ import annotations

import contextlib
from itertools import combinations, count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from p2psync.core.model import Entry, Kind
from p2psync.core.paths import ancestors
from p2psync.core.vector import ReplicaId

from .model_replica import CONTENTS, SEEN_DIRECTORY, Killed, ModelReplica, seen_file, sync

PATHS = [b"a", b"b", b"a/x", b"a/y", b"a/x/p", b"a/x/q", b"b/x"]
REPLICAS = st.integers(0, 2)


class Convergence(RuleBasedStateMachine):
    """Two or three replicas, any history."""

    @initialize(replicas=st.integers(2, 3))
    def start(self, replicas: int) -> None:
        clock = count(1)
        self.replicas = [ModelReplica(ReplicaId(10 + n), clock) for n in range(replicas)]
        self.tokens = count()
        self.dead: set[bytes] = set()
        self.written: set[bytes] = set()

    def replica(self, index: int) -> ModelReplica:
        return self.replicas[index % len(self.replicas)]

    @rule(index=REPLICAS, path=st.sampled_from(PATHS), mode=st.sampled_from([0o644, 0o755]))
    def write(self, index: int, path: bytes, mode: int) -> None:
        tree = self.replica(index).tree
        self._clear(tree, path)
        self._make_parents(tree, path)
        token = self._token()
        tree[path] = seen_file(token, mode, mtime_ns=len(token))

    @rule(index=REPLICAS, path=st.sampled_from(PATHS), at_end=st.booleans())
    def add_line(self, index: int, path: bytes, at_end: bool) -> None:
        tree = self.replica(index).tree
        entry = tree.get(path)
        if entry is not None and entry.kind is Kind.FILE:
            old, token = CONTENTS[entry.digest], self._token()
            tree[path] = seen_file(old + token if at_end else token + old, entry.mode)

    @rule(index=REPLICAS, path=st.sampled_from(PATHS))
    def make_directory(self, index: int, path: bytes) -> None:
        tree = self.replica(index).tree
        self._make_parents(tree, path)
        if tree.get(path, SEEN_DIRECTORY).kind is not Kind.DIRECTORY:
            self._clear(tree, path)
        tree[path] = SEEN_DIRECTORY

    @rule(index=REPLICAS, data=st.data())
    def delete(self, index: int, data: st.DataObject) -> None:
        tree = self.replica(index).tree
        if tree:
            self._clear(tree, data.draw(st.sampled_from(sorted(tree))))

    @rule(index=REPLICAS, path=st.sampled_from(PATHS), mode=st.sampled_from([0o600, 0o644, 0o755]))
    def chmod(self, index: int, path: bytes, mode: int) -> None:
        tree = self.replica(index).tree
        if path in tree:
            entry = tree[path]
            tree[path] = Entry(
                kind=entry.kind, digest=entry.digest, size=entry.size, mode=mode, mtime_ns=entry.mtime_ns
            )

    @rule(pair=st.permutations([0, 1, 2]), lives=st.tuples(st.integers(0, 6), st.integers(0, 6)))
    def sync(self, pair: list[int], lives: tuple[int, int]) -> None:
        """A run in which each side survives that many transitions."""
        ours, theirs = self.replica(pair[0]), self.replica(pair[1])
        if ours is not theirs:
            with contextlib.suppress(Killed):
                sync(ours, theirs, (range(lives[0], -1, -1), range(lives[1], -1, -1)))

    def teardown(self) -> None:
        if not hasattr(self, "replicas"):
            return
        for _ in range(3):
            for ours, theirs in combinations(self.replicas, 2):
                sync(ours, theirs)
        first, *others = self.replicas
        assert all(other.tree == first.tree for other in others), "not converged"
        for ours, theirs in combinations(self.replicas, 2):
            plan = sync(ours, theirs)
            assert not plan.ours and not plan.theirs and not plan.conflicts, "not quiescent"
        alive = b"".join(CONTENTS[entry.digest] for entry in first.tree.values())
        lost = {token for token in self.written - self.dead if token not in alive}
        assert not lost, f"lost {lost}"

    def _token(self) -> bytes:
        token = b"<%d>\n" % next(self.tokens)
        self.written.add(token)
        return token

    def _clear(self, tree: dict[bytes, Entry], path: bytes) -> None:
        """Delete a path as its user: what was in it is no loss."""
        for gone in [p for p in tree if p == path or p.startswith(path + b"/")]:
            self.dead.update(CONTENTS[tree.pop(gone).digest].splitlines(keepends=True))

    def _make_parents(self, tree: dict[bytes, Entry], path: bytes) -> None:
        for parent in reversed(list(ancestors(path))):
            if tree.get(parent, SEEN_DIRECTORY).kind is not Kind.DIRECTORY:
                self._clear(tree, parent)
            tree[parent] = SEEN_DIRECTORY


TestConvergence = Convergence.TestCase
TestConvergence.settings = settings(max_examples=400, stateful_step_count=30)
