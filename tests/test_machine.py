"""The rules on real disks: replicas converge and lose nothing, whatever is done to them and where a run dies.

The machine of core/test_convergence.py on LocalReplicas. A run is killed at any call that touches the disk
or the database of one side: the call does not happen, nor does any later one of that side, and what is open
is closed as the system closes what a dead process had.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, count
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from p2psync import disk
from p2psync.core import order
from p2psync.core.model import Resolution
from p2psync.core.paths import ancestors
from p2psync.local import LocalReplica
from p2psync.sync import Result
from tests.support import (
    OLD_NS,
    Link,
    Tree,
    contents_of,
    do_not_wait_for_disk,
    history,
    make_tree,
    new_replica,
    snapshot,
    staged,
    sync,
    sync_open,
    write,
)

if TYPE_CHECKING:
    from sqlite3 import _Parameters

_P = ParamSpec("_P")
_T = TypeVar("_T")

# -- processes that die


class Killed(BaseException):
    """The process died here."""


class Fuse:
    """How many calls a side lives for."""

    def __init__(self, calls: int | None) -> None:
        """None: for ever."""
        self._calls = calls
        self.burnt = 0

    @property
    def blown(self) -> bool:
        return self._calls is not None and self.burnt > self._calls

    def burn(self) -> None:
        """One more call; who is dead makes none."""
        self.burnt += 1
        if self.blown:
            raise Killed


_burning = threading.local()


@contextlib.contextmanager
def burning(fuse: Fuse) -> Iterator[None]:
    """What this thread does in the block, the side with this fuse does."""
    outer = getattr(_burning, "fuse", None)
    _burning.fuse = fuse
    try:
        yield
    finally:
        _burning.fuse = outer


def burn() -> None:
    fuse: Fuse | None = getattr(_burning, "fuse", None)
    if fuse is not None:
        fuse.burn()


def deadly(function: Callable[_P, _T]) -> Callable[_P, _T]:
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        burn()
        return function(*args, **kwargs)

    return call


def deadly_open(function: Callable[..., int]) -> Callable[..., int]:
    def call(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            burn()
        return function(path, flags, mode, dir_fd=dir_fd)

    return call


def deadly_write(function: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    """Who dies while writing has written half of it."""

    def call(fd: int, data: bytes) -> int:
        fuse: Fuse | None = getattr(_burning, "fuse", None)
        dead = fuse is None or fuse.blown
        try:
            burn()
        except Killed:
            if not dead:
                function(fd, data[: len(data) // 2])
            raise
        return function(fd, data)

    return call


def mortal_start(function: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    """A thread belongs to the side that starts it."""

    def start(thread: threading.Thread) -> None:
        fuse: Fuse | None = getattr(_burning, "fuse", None)
        if fuse is not None:
            setattr(thread, "run", mortal_run(thread.run, fuse))  # noqa: B010
        function(thread)

    return start


def mortal_run(function: Callable[[], None], fuse: Fuse) -> Callable[[], None]:
    def run() -> None:
        with burning(fuse), contextlib.suppress(Killed):
            function()

    return run


class MortalConnection(sqlite3.Connection):
    """A database in which every commit is a place to die before."""

    def execute(self, sql: str, parameters: _Parameters = ()) -> sqlite3.Cursor:
        if sql in ("BEGIN IMMEDIATE", "COMMIT"):
            burn()
        return super().execute(sql, parameters)


class Mortal(LocalReplica):
    """A replica whose process dies at a given call."""

    def __init__(self, root: Path, fuse: Fuse) -> None:
        self.fuse = fuse
        with burning(fuse):
            super().__init__(os.fsencode(root))


def mortal(function: Callable[Concatenate[LocalReplica, _P], _T]) -> Callable[Concatenate[Mortal, _P], _T]:
    def call(self: Mortal, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with burning(self.fuse):
            return function(self, *args, **kwargs)

    return call


def mortal_stream(
    function: Callable[Concatenate[LocalReplica, _P], Iterator[_T]],
) -> Callable[Concatenate[Mortal, _P], Iterator[_T]]:
    def stream(self: Mortal, /, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_T]:
        items = function(self, *args, **kwargs)
        while True:
            with burning(self.fuse):
                item = next(items, _END)
            if isinstance(item, _End):
                return
            yield item

    return stream


class _End:
    """What follows the last item."""


_END = _End()

for _name in ("changes", "read", "apply"):
    setattr(Mortal, _name, mortal_stream(getattr(LocalReplica, _name)))
for _name in (
    *("scan", "lookup", "bases", "texts", "prepare", "stage", "stamp", "use_stamp"),
    *("newest", "mark", "acknowledge"),
):
    setattr(Mortal, _name, mortal(getattr(LocalReplica, _name)))

TOUCHING = (
    *("mkdir", "rename", "replace", "link", "unlink", "rmdir", "symlink", "utime"),
    *("chmod", "fchmod", "truncate", "ftruncate"),
)


@pytest.fixture(autouse=True, scope="module")
def deadly_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        do_not_wait_for_disk(patch)
        patch.setattr(order, "WHOLE_FOLDER", 2)  # else no folder here would go, or move, as a whole
        patch.setattr(os, "open", deadly_open(os.open))
        patch.setattr(os, "write", deadly_write(os.write))
        for name in TOUCHING:
            patch.setattr(os, name, deadly(getattr(os, name)))
        patch.setattr(disk, "_rename", deadly(disk._rename))
        patch.setattr(threading.Thread, "start", mortal_start(threading.Thread.start))
        connect = sqlite3.connect
        patch.setattr(
            sqlite3, "connect", lambda *args, **kw: connect(*args, **{**kw, "factory": MortalConnection})
        )
        yield


def sync_or_die(home: Path, peer: Path, ours: Fuse, theirs: Fuse) -> Result | None:
    """One sync in which each side lives as long as its fuse; None if one died."""
    threads = set(threading.enumerate())
    with contextlib.ExitStack() as opened:
        try:
            local = Mortal(home, ours)
            opened.callback(local.close)
            remote = Mortal(peer, theirs)
            opened.callback(remote.close)
            return sync_open(local, remote)
        except Killed:
            return None
        finally:
            # A peer is another process: it does not die with home, and ends what it was told to do.
            while others := {thread for thread in threading.enumerate() if thread.is_alive()} - threads:
                others.pop().join()


def sync_and_keep_all(home: Path, peer: Path, ours: Fuse, theirs: Fuse) -> Result | None:
    """As `sync_or_die`; whatever happens, all that was in a tree is in that tree or its history (I3)."""
    before = {root: contents_of([root]) for root in (home, peer)}
    result = sync_or_die(home, peer, ours, theirs)
    for root, contents in before.items():
        lost = contents - contents_of([root]) - set(history(root))
        assert not lost, f"lost from {root.name}: {lost}"
    return result


# -- a run that dies anywhere

BEFORE: Tree = {
    b"same": b"same\n",
    b"replaced": b"replaced: old\n",
    b"deleted": b"deleted\n",
    b"folder/deleted/deep": b"deep\n",
    b"renamed from": b"renamed\n",
    b"file to folder": b"was a file\n",
    b"folder to file/child": b"was in a folder\n",
    b"link": Link(b"old target"),
    b"merged": b"1\n2\n3\n4\n5\n",
    b"disputed": b"disputed\n",
    b"kept": b"kept: old\n",
    b"mode": b"mode\n",
}
OURS: Tree = {
    b"new/deep/er": b"new\n",
    b"new/twice": b"new\n",
    b"empty": b"",
    b"file to folder/child": b"is in a folder\n",
    b"merged": b"one\n2\n3\n4\n5\n",
    b"disputed": b"disputed: ours\n",
    b"kept": b"kept: edited\n",
    b"clash": b"clash: a file\n",
}
THEIRS: Tree = {
    b"replaced": b"replaced: new\n",
    b"folder to file": b"is a file\n",
    b"link": Link(b"new target"),
    b"merged": b"1\n2\n3\n4\nfive\n",
    b"disputed": b"disputed: theirs, which is longer\n",
    b"clash/child": b"clash: in a folder\n",
    b"\xff\xfe": b"bytes\n",
}
LIVE = {
    *(b"same\n", b"renamed\n", b"new\n", b"", b"is in a folder\n", b"kept: edited\n", b"clash: a file\n"),
    *(b"replaced: new\n", b"is a file\n", b"new target", b"clash: in a folder\n", b"bytes\n", b"mode\n"),
    *(b"disputed: ours\n", b"disputed: theirs, which is longer\n", b"one\n2\n3\n4\nfive\n"),
}


def edit(root: Path, deleted: Iterable[str], made: Tree) -> None:
    for name in deleted:
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    make_tree(root, made, OLD_NS + len(made) * 10**9)


def two_that_differ(folder: Path) -> tuple[Path, Path]:
    """Two replicas that were in step, and have since seen every kind of change."""
    home, peer = new_replica(folder / "home", BEFORE), new_replica(folder / "peer")
    assert sync(home, peer).in_step
    edit(home, ("file to folder",), OURS)
    edit(peer, ("deleted", "folder", "folder to file", "kept", "link"), THEIRS)
    (home / "renamed from").rename(home / "renamed to")
    os.chmod(peer / "mode", 0o600)
    return home, peer


@pytest.mark.parametrize("dies", ["home", "peer", "both"])
def test_a_run_killed_at_any_call_is_finished_by_the_next(tmp_path: Path, dies: str) -> None:
    for calls in count():
        home, peer = two_that_differ(tmp_path / str(calls))
        fuses = Fuse(None if dies == "peer" else calls), Fuse(None if dies == "home" else calls)
        survived = sync_and_keep_all(home, peer, *fuses) is not None
        assert sync(home, peer).in_step
        assert snapshot(home) == snapshot(peer)
        assert contents_of([home]) == LIVE
        assert staged(home) == staged(peer) == []
        if survived:
            break
    assert calls > 50


def test_the_killed_run_has_every_kind_of_change(tmp_path: Path) -> None:
    home, peer = two_that_differ(tmp_path)
    result = sync(home, peer)
    resolutions = {conflict.path: conflict.resolution for conflict in result.conflicts}
    assert resolutions == {
        b"merged": Resolution.MERGED,
        b"disputed": Resolution.SET_ASIDE,
        b"clash": Resolution.SET_ASIDE,
        b"kept": Resolution.KEPT,
    }


# -- any history

PATHS = [b"a", b"b", b"a/x", b"a/y", b"a/x/p", b"a/x/q", b"b/x", b"\xff", b"\xff/\xfe\n"]
REPLICAS = st.integers(0, 2)
TOKEN = re.compile(rb"<\d+>\n")
LIVES = st.one_of(st.none(), st.integers(0, 60))
"""Most runs die in their first calls, where most happens; about half of all runs live."""


class Machine(RuleBasedStateMachine):
    """Two or three replicas on disk, any history."""

    @initialize(replicas=st.integers(2, 3))
    def start(self, replicas: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.roots = [new_replica(self.folder / str(number)) for number in range(replicas)]
        self.tokens = count()
        self.dead: set[bytes] = set()
        self.written: set[bytes] = set()

    # -- what users do

    @rule(index=REPLICAS, path=st.sampled_from(PATHS), text=st.booleans(), racy=st.booleans())
    def write(self, index: int, path: bytes, text: bool, racy: bool) -> None:
        full = self.make_way(index, path)
        write(full, self.token() if text else self.token() + b"\0")
        self.stamp(full, racy)

    @rule(index=REPLICAS, path=st.sampled_from(PATHS), at_end=st.booleans(), in_place=st.booleans())
    def add_line(self, index: int, path: bytes, at_end: bool, in_place: bool) -> None:
        full = self.full(index, path)
        if os.path.isfile(full) and not os.path.islink(full):
            old, token = Path(os.fsdecode(full)).read_bytes(), self.token()
            target = full if in_place else full + b"~"
            write(target, old + token if at_end else token + old)
            os.rename(target, full)
            self.stamp(full)

    @rule(index=REPLICAS, path=st.sampled_from(PATHS))
    def link(self, index: int, path: bytes) -> None:
        full = self.make_way(index, path)
        os.symlink(self.token(), full)
        self.stamp(full)

    @rule(index=REPLICAS, path=st.sampled_from(PATHS))
    def make_directory(self, index: int, path: bytes) -> None:
        if not os.path.isdir(self.full(index, path)):
            os.mkdir(self.make_way(index, path))

    @rule(index=REPLICAS, data=st.data())
    def delete(self, index: int, data: st.DataObject) -> None:
        tree = snapshot(self.root(index))
        if tree:
            self.clear(index, data.draw(st.sampled_from(sorted(tree))))

    @rule(index=REPLICAS, old=st.sampled_from(PATHS), new=st.sampled_from(PATHS))
    def move(self, index: int, old: bytes, new: bytes) -> None:
        inside = (old + b"/").startswith(new + b"/") or (new + b"/").startswith(old + b"/")
        if not inside and os.path.lexists(self.full(index, old)):
            target = self.make_way(index, new)
            if os.path.lexists(self.full(index, old)):  # and was not in the way
                os.rename(self.full(index, old), target)

    @rule(index=REPLICAS, path=st.sampled_from(PATHS), mode=st.sampled_from([0o600, 0o644, 0o755]))
    def chmod(self, index: int, path: bytes, mode: int) -> None:
        full = self.full(index, path)
        if os.path.isfile(full) and not os.path.islink(full):
            os.chmod(full, mode)
        elif os.path.isdir(full):
            os.chmod(full, mode | 0o700)

    @rule(index=REPLICAS, path=st.sampled_from(PATHS))
    def touch(self, index: int, path: bytes) -> None:
        if os.path.lexists(self.full(index, path)):
            self.stamp(self.full(index, path))

    # -- what p2psync does

    @rule(pair=st.permutations([0, 1, 2]), lives=st.tuples(LIVES, LIVES))
    def sync(self, pair: list[int], lives: tuple[int | None, int | None]) -> None:
        home, peer = self.root(pair[0]), self.root(pair[1])
        if home != peer:
            sync_and_keep_all(home, peer, Fuse(lives[0]), Fuse(lives[1]))

    def teardown(self) -> None:
        if hasattr(self, "roots"):
            self.check()
            shutil.rmtree(self.folder)

    def check(self) -> None:
        for _ in range(3):
            for home, peer in combinations(self.roots, 2):
                sync_and_keep_all(home, peer, Fuse(None), Fuse(None))
        first, *others = map(snapshot, self.roots)
        assert all(other == first for other in others), "not converged"
        for home, peer in combinations(self.roots, 2):
            result = sync(home, peer)
            idle = not (result.local.transitions or result.peer.transitions or result.conflicts)
            assert idle and result.in_step, "not quiescent"
        assert not any(map(staged, self.roots)), "leftovers in the stage"
        alive = b"".join(contents_of(self.roots))
        lost = {token for token in self.written - self.dead if token not in alive}
        assert not lost, f"lost {lost}"

    # -- helpers

    def root(self, index: int) -> Path:
        return self.roots[index % len(self.roots)]

    def full(self, index: int, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.root(index)), path)

    def token(self) -> bytes:
        token = b"<%d>\n" % next(self.tokens)
        self.written.add(token)
        return token

    def stamp(self, full: bytes, racy: bool = False) -> None:
        """Give a file a time that no other has: the clock must not decide what happens here."""
        time = OLD_NS + next(self.tokens) * 10**9 + racy * 10**18
        os.utime(full, ns=(time, time), follow_symlinks=False)

    def make_way(self, index: int, path: bytes) -> bytes:
        """Make the directory for `path`, and delete what is there, as its user would."""
        for parent in reversed(list(ancestors(path))):
            full = self.full(index, parent)
            if os.path.islink(full) or not os.path.isdir(full):
                self.clear(index, parent)
                os.mkdir(full)
        self.clear(index, path)
        return self.full(index, path)

    def clear(self, index: int, path: bytes) -> None:
        """Delete a path as its user: what was in it is no loss."""
        full = self.full(index, path)
        for gone, seen in snapshot(self.root(index)).items():
            if gone == path or gone.startswith(path + b"/"):
                self.dead.update(TOKEN.findall(seen.data))
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        elif os.path.lexists(full):
            os.unlink(full)


class LongMachine(Machine):
    """The same for longer."""


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=25)
TestLongMachine = pytest.mark.slow(LongMachine.TestCase)
TestLongMachine.settings = settings(max_examples=5000, stateful_step_count=40)
