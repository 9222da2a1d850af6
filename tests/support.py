"""What the tests of the disk share: trees to make, snapshots to compare, entries, syncs in one process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from xxhash import xxh3_128_digest

from p2psync.core.model import Digest, Entry, Kind, Prefer, Problem, Transition
from p2psync.core.paths import SIDECAR
from p2psync.core.replica import Home, More, Piece, Replica
from p2psync.core.vector import NOTHING, ReplicaId, Stamp, Version
from p2psync.local import LocalReplica, init
from p2psync.sync import Result, Session

if TYPE_CHECKING:
    pass

OLD_NS = 1_600_000_000_123_456_789
"""A time long past: what was modified then is not racy, and the nanoseconds show that they are kept."""

not_as_root = pytest.mark.usefixtures("like_anyone")
"""For what root, who may read and write everything, would not meet."""


class Link(NamedTuple):
    """A symlink in a tree to be made."""

    target: bytes


Tree = Mapping[bytes, bytes | Link | None]
"""What to make at which path: a file with these bytes, a symlink, or (None) a directory."""


class Seen(NamedTuple):
    """What is at a path."""

    kind: str
    mode: int
    mtime_ns: int
    """0 for directories: theirs change with every child."""
    data: bytes
    """The bytes of a file, the target of a symlink."""


def make_tree(root: Path, tree: Tree, mtime_ns: int = OLD_NS) -> None:
    """Make all of `tree` below `root`, with the directories on the way; files and links get `mtime_ns`."""
    for path, what in tree.items():
        full = os.path.join(os.fsencode(root), path)
        os.makedirs(full if what is None else os.path.dirname(full), exist_ok=True)
        if isinstance(what, Link):
            os.symlink(what.target, full)
        elif what is not None:
            write(full, what)
        if what is not None:
            os.utime(full, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def write(path: bytes, data: bytes) -> None:
    """Write a file in place."""
    with open(path, "wb") as file:
        file.write(data)


def snapshot(root: Path) -> dict[bytes, Seen]:
    """Return all that is below `root`, sidecars left out."""
    return dict(sorted(_seen_below(os.fsencode(root), b"")))


def _seen_below(folder: bytes, prefix: bytes) -> Iterator[tuple[bytes, Seen]]:
    for name in os.listdir(folder):
        full, path = os.path.join(folder, name), prefix + name
        if name == SIDECAR:
            continue
        st = os.lstat(full)
        mode = stat.S_IMODE(st.st_mode)
        if stat.S_ISDIR(st.st_mode):
            yield path, Seen("directory", mode, 0, b"")
            yield from _seen_below(full, path + b"/")
        elif stat.S_ISLNK(st.st_mode):
            yield path, Seen("symlink", 0, st.st_mtime_ns, os.readlink(full))
        elif stat.S_ISREG(st.st_mode):
            yield path, Seen("file", mode, st.st_mtime_ns, _bytes_at(full))
        else:
            yield path, Seen("special", mode, st.st_mtime_ns, b"")


def _bytes_at(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def history(root: Path) -> list[bytes]:
    """Return what is kept in the history of the replica at `root`: bytes of files, targets of links."""
    shelf = root / os.fsdecode(SIDECAR) / "history"
    return (
        [seen.data for seen in snapshot(shelf).values() if seen.kind != "directory"] if shelf.exists() else []
    )


def staged(root: Path) -> list[str]:
    """Return the names of what lies in the stage of the replica at `root`."""
    return sorted(os.listdir(root / os.fsdecode(SIDECAR) / "stage"))


@contextlib.contextmanager
def mounted(place: Path, size: str = "1m") -> Iterator[None]:
    """Mount an empty disk on a folder for as long as the block runs; skip the test where that cannot be."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "p2psync-test", str(place)]
    if (
        os.geteuid() != 0
        or sys.platform != "linux"
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount")
    disk = os.open(place, os.O_RDONLY)
    try:
        yield
    finally:
        now = os.readlink(f"/proc/self/fd/{disk}")  # the folder may have been moved, by a bug
        os.close(disk)
        subprocess.run(["umount", now], check=True)


# -- entries


def digest(data: bytes) -> Digest:
    return Digest(xxh3_128_digest(data))


def version(replica: int = 7, tick: int = 1) -> Version:
    """Return the version of a replica that is not there."""
    return NOTHING.bump(Stamp(ReplicaId(replica), tick))


def file(
    data: bytes, mode: int = 0o644, mtime_ns: int = OLD_NS, seen: Version | None = None, revision: int = 1
) -> Entry:
    return Entry(
        kind=Kind.FILE,
        version=seen or version(),
        revision=revision,
        digest=digest(data),
        size=len(data),
        mode=mode,
        mtime_ns=mtime_ns,
    )


def directory(mode: int = 0o755, mtime_ns: int = OLD_NS, seen: Version | None = None) -> Entry:
    return Entry(kind=Kind.DIRECTORY, version=seen or version(), revision=1, mode=mode, mtime_ns=mtime_ns)


def symlink(target: bytes, mtime_ns: int = OLD_NS, seen: Version | None = None) -> Entry:
    return Entry(
        kind=Kind.SYMLINK,
        version=seen or version(),
        revision=1,
        digest=digest(target),
        target=target,
        mtime_ns=mtime_ns,
    )


def tombstone(seen: Version | None = None) -> Entry:
    return Entry(kind=Kind.TOMBSTONE, version=seen or version(), revision=2)


# -- contents and transitions


def give(replica: Replica, *contents: bytes) -> None:
    """Have `replica` take in contents that it waits for."""
    replica.stage([Piece(digest(data), data, More.LAST)] for data in contents)


def carry_out(
    replica: Replica, transitions: Sequence[Transition], *contents: bytes
) -> tuple[int, list[Problem]]:
    """Have transitions carried out with these contents; return how many were, and the problems."""
    replica.prepare(transitions)
    give(replica, *contents)
    outcomes = list(replica.apply())
    return sum(o.done for o in outcomes), [problem for o in outcomes for problem in o.problems]


# -- rights


_EVERYTHING = 0b1110
"""CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER in <linux/capability.h>."""


@contextlib.contextmanager
def as_anyone() -> Iterator[None]:
    """Obey the permissions of files, also as root: this thread, and what it starts meanwhile.

    Raises:
        OSError: root cannot be kept to them here.
    """
    if os.geteuid() != 0:
        yield
        return
    header, before = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    _must(libc, "capget", header, before)
    less = type(before)(*before)
    less[0] &= ~_EVERYTHING  # of the effective ones; the permitted ones stay, to come back by
    secure = libc.prctl(27)  # PR_GET_SECUREBITS
    _must(libc, "prctl", 28, secure | 1)  # PR_SET_SECUREBITS, NOROOT: no program gets them back by being run
    try:
        _must(libc, "capset", header, less)
        yield
    finally:
        _must(libc, "capset", header, before)
        _must(libc, "prctl", 28, secure)


def _must(libc: ctypes.CDLL, call: str, *arguments: object) -> None:
    if not hasattr(libc, call) or getattr(libc, call)(*arguments):
        raise OSError(ctypes.get_errno(), call)


# -- syncs


class Quiet:
    """A Progress that nobody watches."""

    def begin(self, step: str, files: int = 0, size: int = 0) -> None:
        pass

    def advance(self, files: int, size: int, path: bytes = b"") -> None:
        pass


def new_replica(root: Path, tree: Tree | None = None) -> Path:
    """Make the folder `root` a replica that holds `tree`."""
    init(os.fsencode(root), root.name)
    make_tree(root, tree or {})
    return root


@contextlib.contextmanager
def opened(root: Path) -> Iterator[LocalReplica]:
    """Open the replica at `root` for as long as the block runs."""
    with contextlib.closing(LocalReplica(os.fsencode(root))) as replica:
        yield replica


def sync_open(home: Home, peer: Replica, prefer: Prefer = Prefer.BOTH) -> Result:
    """One run of the pipeline between two open replicas."""
    session = Session(home, peer, Quiet())
    session.scan(keep=True)
    return session.round(prefer)


def sync(home: Path, peer: Path, prefer: Prefer = Prefer.BOTH) -> Result:
    """One run of the pipeline between the replicas at two roots."""
    with opened(home) as ours, opened(peer) as theirs:
        return sync_open(ours, theirs, prefer)


def entries(replica: Replica, since: int = 0) -> dict[bytes, Entry]:
    """Return all entries of an open replica that are newer than sequence number `since`."""
    return {change.path: change.entry for batch in replica.changes(since) for change in batch}


def scanned(root: Path) -> dict[bytes, Entry]:
    """Scan the replica at `root`, which must not meet a problem; return all its entries."""
    with opened(root) as replica:
        assert replica.scan(keep=True).problems == []
        return entries(replica)


def do_not_wait_for_disk(patch: pytest.MonkeyPatch) -> None:
    """Leave out what only a power cut would tell from nothing: fsync is most of the time of a small sync."""
    patch.setattr("p2psync.apply.sync_file_system", lambda fd: None)
    patch.setattr("p2psync.disk.sync_file_system", lambda fd: None)
    patch.setattr("p2psync.database.SYNCHRONOUS", "OFF")


def contents_of(roots: Iterable[Path]) -> set[bytes]:
    """Return every content that lives in the trees at `roots`."""
    return {seen.data for root in roots for seen in snapshot(root).values() if seen.kind != "directory"}
