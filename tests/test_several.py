"""Runs with several peers of which one fails anywhere: no other suffers, and nothing is lost.

The machine of test_machine.py, its edits and its deaths, and beside them runs as the command makes them:
three replicas, calls of one that fail, or a peer that is killed. Between them people undo, restore and clean
up.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from p2psync import disk, run
from p2psync.config import Peer
from p2psync.core import order
from p2psync.core.guard import parse_max_delete
from p2psync.core.retention import Limits
from p2psync.database import Database, told
from p2psync.errors import P2PSyncError, Unreachable
from p2psync.local import LocalReplica
from p2psync.progress import Silent
from p2psync.run import Options, PeerRun
from p2psync.undo import restore, undo
from tests.support import contents_of, do_not_wait_for_disk, history, opened, snapshot, staged
from tests.test_machine import (
    PATHS,
    REPLICAS,
    TOKEN,
    TOUCHING,
    Fuse,
    Killed,
    Machine,
    burn,
    burning,
    deadly,
)

# -- sides of which something fails

READING = ("open", "read", "pread", "fstat", "stat", "scandir", "readlink", "fstatvfs")
WRITING = ("write", "copy_file_range", "fsync", "lseek")


class Faulty(Fuse):
    """Some calls of this side fail, and it has to live with that."""

    def __init__(self, calls: int, times: int, code: int) -> None:
        """After so many calls so many fail, with this error."""
        super().__init__(None)
        self._fails = range(calls + 1, calls + 1 + times)
        self._code = code

    def burn(self) -> None:
        self.burnt += 1
        if self.burnt in self._fails:
            raise OSError(self._code, os.strerror(self._code))


class FaultyDatabase(Database):
    """A database of which any statement may fail."""

    def execute(self, *args: Any) -> Any:  # noqa: ANN401
        if args[0] != "ROLLBACK":
            self._burn()
        return super().execute(*args)

    def executemany(self, *args: Any) -> Any:  # noqa: ANN401
        self._burn()
        return super().executemany(*args)

    def _burn(self) -> None:
        with told(self):
            try:
                burn()
            except OSError as error:
                raise sqlite3.OperationalError("disk I/O error") from error


class Trouble(NamedTuple):
    """What happens to a side, and in which of its steps."""

    step: str
    fuse: Fuse


NONE = Trouble("", Fuse(None))


class Side(LocalReplica):
    """A replica in trouble."""

    def __init__(self, root: Path, trouble: Trouble) -> None:
        self._trouble = trouble
        with self.at("open"):
            super().__init__(os.fsencode(root))

    def at(self, step: str) -> contextlib.AbstractContextManager[None]:
        return burning(self._trouble.fuse) if step == self._trouble.step else contextlib.nullcontext()


def troubled(step: str) -> Callable[..., Any]:
    function = getattr(LocalReplica, step)

    def stream(side: Side, items: Iterator[object]) -> Iterator[object]:
        while True:
            with side.at(step):
                item = next(items, None)
            if item is None:
                return
            yield item

    def call(side: Side, *arguments: object, **more: object) -> Any:  # noqa: ANN401
        with side.at(step):
            answer = function(side, *arguments, **more)
        return stream(side, answer) if isinstance(answer, Iterator) else answer

    return call


CALLED = (
    *("met", "recalls", "scan", "changes", "lookup", "bases", "use_stamp", "prepare"),
    *("take", "read", "stage", "apply", "point", "acknowledge", "give_up"),
)
STEPS = ("open", *CALLED)
for _step in CALLED:
    setattr(Side, _step, troubled(_step))


@contextlib.contextmanager
def ends_as_a_process() -> Iterator[None]:
    """Of what is no error of ours, and ends the block, only that nobody answers is seen from elsewhere."""
    try:
        yield
    except P2PSyncError:
        raise
    except (Exception, Killed) as error:
        raise Unreachable(f"it is gone: {error!r}") from error


class Far:
    """A peer as the home side sees it: a process that ends with whatever goes wrong in it."""

    traffic = (0, 0)

    def __init__(self, root: Path, trouble: Trouble, neighbour: bytes | None) -> None:
        self._is_gone = False
        with ends_as_a_process():
            self._side = Side(root, trouble)
        self._side.neighbour = neighbour
        self.identity = self._side.identity

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self._answer, getattr(self._side, name))

    def _answer(self, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        answer = self._told(call, *arguments)
        self.identity = self._side.identity
        return self._stream(answer) if isinstance(answer, Iterator) else answer

    def _stream(self, items: Iterator[object]) -> Iterator[object]:
        while (item := self._told(next, items, None)) is not None:
            yield item

    def _told(self, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        if self._is_gone:
            raise Unreachable("it is gone")
        try:
            with ends_as_a_process():
                return call(*arguments)
        except P2PSyncError:
            self.close()
            raise

    def close(self) -> None:
        self._is_gone = True
        self._side.close()


@pytest.fixture(autouse=True, scope="module")
def faulty_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        do_not_wait_for_disk(patch)
        patch.setattr(order, "WHOLE_FOLDER", 2)  # else no folder here would go, or move, as a whole
        for name in (*READING, *WRITING, *TOUCHING):
            patch.setattr(os, name, deadly(getattr(os, name)))
        patch.setattr(disk, "_rename", deadly(disk._rename))
        connect = sqlite3.connect
        patch.setattr(
            sqlite3, "connect", lambda *args, **kw: connect(*args, **{**kw, "factory": FaultyDatabase})
        )
        yield


# -- runs

OPTIONS = Options(max_delete=parse_max_delete("100%"), lock_wait=0)
"""Of so few files all may be deleted."""


def sync_all(
    home: Path, peers: Sequence[Path], troubles: Mapping[Path, Trouble], near: bool
) -> list[PeerRun]:
    """Sync with each peer, as the command does it.

    Args:
        home: the side that decides.
        peers: the others.
        troubles: of those that have some.
        near: do the sides know that they are on one machine?
    """

    def near_end(root: bytes) -> Side:
        return Side(home, troubles.get(home, NONE))

    def far_end(address: object, peer: Peer, *more: object) -> Far:
        root = Path(peer.address)
        return Far(root, troubles.get(root, NONE), os.fsencode(home) if near else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "LocalReplica", near_end)
        patch.setattr(run, "open_address", far_end)
        if not near:
            patch.setattr(run, "path_of", lambda peer: None)
        given = [Peer(peer.name, str(peer)) for peer in peers]
        return run.sync(os.fsencode(home), given, OPTIONS, Silent(), lambda question: False)


@contextlib.contextmanager
def keeping_all(roots: Sequence[Path]) -> Iterator[None]:
    """See that whatever is in a tree before the block is in it, or in the history there, after it (I3)."""
    before = {root: contents_of([root]) for root in roots}
    yield
    for root, contents in before.items():
        lost = contents - contents_of([root]) - set(history(root))
        assert not lost, f"lost from {root.name}: {lost}"


def assert_in_step(run: PeerRun) -> None:
    assert run.error is None
    last = run.results[-1]
    assert last.in_step, (last.left, last.local.problems, last.peer.problems)


def tokens(roots: Sequence[Path]) -> set[bytes]:
    return set(TOKEN.findall(b"\0".join(contents_of(roots))))


# -- any history

ORDERS = st.permutations([0, 1, 2])
STEP = st.sampled_from(STEPS) | st.sampled_from(("take", "stage", "apply"))  # where most happens
CALLS = st.integers(0, 60)
ERRORS = st.sampled_from([errno.EIO, errno.ENOSPC, errno.EACCES])
ONE_ERROR = st.builds(Trouble, STEP, st.builds(Faulty, CALLS, st.just(1), ERRORS))
MANY_ERRORS = st.builds(Trouble, STEP, st.builds(Faulty, CALLS, st.just(30), ERRORS))
DEATH = st.builds(Trouble, STEP, st.builds(Fuse, CALLS))


class SeveralMachine(Machine):
    """Three replicas on disk, any history."""

    @initialize(replicas=st.just(3))
    def start(self, replicas: int) -> None:
        super().start(replicas)

    @rule(indices=ORDERS, trouble=DEATH | ONE_ERROR | MANY_ERRORS, is_first=st.booleans(), near=st.booleans())
    def sync_all_of_which_one_fails(
        self, indices: list[int], trouble: Trouble, is_first: bool, near: bool
    ) -> None:
        """The other peer does not notice."""
        home, *peers = self.all_edited(indices)
        failing, other = peers if is_first else peers[::-1]
        with keeping_all(self.roots):
            runs = sync_all(home, peers, {failing: trouble}, near)
        assert_in_step(runs[peers.index(other)])
        assert snapshot(home) == snapshot(other)

    @rule(indices=ORDERS, trouble=ONE_ERROR, near=st.booleans())
    def sync_all_with_one_error_at_home(self, indices: list[int], trouble: Trouble, near: bool) -> None:
        """It gets into the run with one peer at most."""
        home, *peers = self.all_edited(indices)
        with keeping_all(self.roots), contextlib.suppress(P2PSyncError, OSError):
            runs = sync_all(home, peers, {home: trouble}, near)
            assert not all(one.error for one in runs), [one.error for one in runs]

    @rule(indices=ORDERS, trouble=MANY_ERRORS, near=st.booleans())
    def sync_all_with_many_errors_at_home(self, indices: list[int], trouble: Trouble, near: bool) -> None:
        home, *peers = self.all_edited(indices)
        with keeping_all(self.roots), contextlib.suppress(P2PSyncError, OSError):
            sync_all(home, peers, {home: trouble}, near)

    @rule(index=REPLICAS, path=st.none() | st.sampled_from(PATHS), trouble=ONE_ERROR | MANY_ERRORS)
    def take_back(self, index: int, path: bytes | None, trouble: Trouble) -> None:
        """Undo the latest run, or restore a path; what that takes away is no loss."""
        root = self.roots[index]
        before = tokens([root])
        failing = contextlib.suppress(P2PSyncError, OSError)
        with keeping_all([root]), failing, contextlib.closing(Side(root, trouble)) as replica:
            undo(replica, None) if path is None else restore(replica, path, None)
        self.dead |= before - tokens([root])

    @rule(index=REPLICAS)
    def clean_up(self, index: int) -> None:
        with opened(self.roots[index]) as replica:
            replica.collect(Limits(days=0))

    def all_edited(self, indices: list[int]) -> list[Path]:
        """Have something new everywhere; return the roots in this order."""
        folder = b"new %d" % next(self.tokens)
        for index in indices:
            for name in (b"1", b"2"):
                self.write(index, folder + b" of %d/" % index + name, text=False, racy=False)
        return [self.roots[index] for index in indices]

    def check(self) -> None:
        """Once nothing fails any more all trees are the same, and what nobody took away is in them."""
        for home in (*self.roots, *self.roots):
            peers = [root for root in self.roots if root != home]
            with keeping_all(self.roots):
                runs = sync_all(home, peers, {}, near=True)
        for one in runs:
            assert_in_step(one)
        first, *others = map(snapshot, self.roots)
        assert all(other == first for other in others), "not converged"
        assert not any(map(staged, self.roots)), "leftovers in the stage"
        lost = self.written - self.dead - tokens(self.roots)
        assert not lost, f"lost {lost}"
        for root in self.roots:
            with opened(root) as replica:
                assert replica.manifest.holders.missing() == 0
                assert replica.look().changes == []


class LongSeveralMachine(SeveralMachine):
    """The same for longer."""


TestSeveralMachine = SeveralMachine.TestCase
TestSeveralMachine.settings = settings(max_examples=12, stateful_step_count=20)
TestLongSeveralMachine = pytest.mark.slow(LongSeveralMachine.TestCase)
TestLongSeveralMachine.settings = settings(max_examples=150, stateful_step_count=30)
