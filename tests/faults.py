"""Two replicas to be synced while something goes wrong, and what must hold afterwards, whatever it was.

Owned here: the scenarios, with every kind of change on both sides; one run of them; its judge. Not owned:
how it goes wrong (`tests.shim`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from p2psync.core.replica import PIECE_BYTES
from tests.shim import Fault, Nursery, Ran, Side, far_command
from tests.support import (
    OLD_NS,
    Link,
    Seen,
    Tree,
    contents_of,
    do_not_wait_for_disk,
    history,
    make_tree,
    new_replica,
    snapshot,
    staged,
    sync,
)

NEW_NS = OLD_NS + 10**16
MERGED = b"merged"
"""The path of a text that both sides edited."""
Sides = dict[str, dict[bytes, Seen]]

# -- what is synced

CHANGED_BY_EACH: Tree = {
    b"replaced": b"replaced: old\n",
    b"deleted": b"deleted\n",
    b"folder/deleted/deep": b"deep\n",
    b"renamed from": b"renamed\n",
    b"file to folder": b"was a file\n",
    b"folder to file/child": b"was in a folder\n",
    b"link": Link(b"old target"),
    b"kept": b"kept: old\n",
    b"mode": b"mode\n",
    b"edited": b"".join(b"line %d\n" % number for number in range(30_000)),
    **{b"many/%d" % number: b"one of many: %d\n" % number for number in range(8)},
    **{b"moves/%d" % number: b"one that moves: %d\n" % number for number in range(8)},
}
CHANGED_BY_BOTH: Tree = {b"same": b"same\n", MERGED: b"1\n2\n3\n4\n5\n", b"disputed": b"disputed\n"}


def in_step(folder: Path) -> None:
    """Make two replicas that are in step, `near` and `far`."""
    near, far = new_replica(folder / "near", CHANGED_BY_BOTH), new_replica(folder / "far")
    for side in ("near", "far"):
        make_tree(near / side, CHANGED_BY_EACH)
    assert sync(near, far).in_step


def changed(folder: Path) -> None:
    """Make two replicas that were in step, and have since seen every kind of change on both sides."""
    in_step(folder)
    for number, (side, other) in enumerate((("near", "far"), ("far", "near"))):
        _change(folder / side / side, b"%s: new\n" % side.encode())
        make_tree(folder / other / side, {b"kept": b"kept by %s\n" % other.encode()}, NEW_NS)
        lines = [b"1\n", b"2\n", b"3\n", b"4\n", b"5\n"]
        lines[4 * number] = b"%s\n" % side.encode()
        both: Tree = {
            MERGED: b"".join(lines),
            b"disputed": b"disputed by %s\n" % side.encode(),
            b"clash" if side == "near" else b"clash/child": b"clash by %s\n" % side.encode(),
        }
        make_tree(folder / side, both, NEW_NS + number * 10**9)


def _change(root: Path, new: bytes) -> None:
    for name in ("deleted", "kept", "link", "file to folder", "folder to file", "folder", "many"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (root / "renamed from").rename(root / "renamed to")
    (root / "moves").rename(root / "moved")
    (root / "mode").chmod(0o600)
    made: Tree = {
        b"replaced": new,
        b"edited": new + CHANGED_BY_EACH[b"edited"],  # type: ignore[operator]
        b"link": Link(b"target of " + new),
        b"file to folder/child": b"in a folder, " + new,
        b"folder to file": b"a file, " + new,
        b"new/deep/er": b"deep, " + new,
        b"new/twice": b"deep, " + new,
        b"program": b"run, " + new,
        b"empty": b"",
        b"guarded/child": b"guarded, " + new,
        b"large": new * (PIECE_BYTES // len(new) + 1),
        b"\xff\xfe": b"bytes, " + new,
    }
    make_tree(root, made, NEW_NS)
    (root / "program").chmod(0o755)
    (root / "guarded").chmod(0o555)


def never_met(folder: Path) -> None:
    """Make two folders that are no replicas, with much in common."""
    for number, side in enumerate(("near", "far")):
        tree: Tree = {
            b"same": b"same\n",
            b"folder/same": b"same here too\n",
            b"disputed": b"disputed by %s\n" % side.encode(),
            b"from %s" % side.encode(): b"%s\n" % side.encode(),
            b"of %s/deep/file" % side.encode(): b"deep in %s\n" % side.encode(),
            b"clash" if side == "near" else b"clash/child": b"clash by %s\n" % side.encode(),
            b"link": Link(b"target"),
        }
        make_tree(folder / side, tree, OLD_NS + number * 10**9)


SCENARIOS: Mapping[str, Callable[[Path], None]] = {"first": never_met, "later": changed}


# -- runs


class Case(NamedTuple):
    """Two replicas to be synced, any number of times from the same start."""

    nursery: Nursery
    folder: Path
    transport: Sequence[str]
    """Options of `sync`."""
    first: bool
    """Are the two no replicas yet?"""

    @property
    def near(self) -> Path:
        return self.folder / "near"

    @property
    def far(self) -> Path:
        return self.folder / "far"

    @property
    def roots(self) -> dict[str, Path]:
        return {"near": self.near, "far": self.far}

    def begin(self, far: Path | None = None) -> None:
        """Put back what was there in the beginning; what is to be `far` may lie elsewhere, behind a link."""
        for side, root in (("near", self.near), ("far", far or self.far)):
            remove(root)
            shutil.copytree(self.folder / "start" / side, root, symlinks=True)

    def run(self, fault: Fault | None = None, *options: str) -> Ran:
        address = f"host:{self.far}" if self.transport else str(self.far)
        options = (*self.transport, *options)
        if self.transport:
            options = (*options, "--remote-command", far_command(fault or Fault()))
        sync = ["-C", "near", "sync", *options, *(["--create"] * self.first), "--", address]
        return self.nursery.run(self.folder, ["init", "near"], sync, fault=fault)

    def calls(self, side: Side, code: int | None = None) -> list[str]:
        """Return the calls that a side makes in a run in which they might fail with this code."""
        log = self.folder / "log"
        self.begin()
        self.run(Fault(side, code=code, log=str(log)))
        made = log.read_text().splitlines()
        log.unlink()
        return made

    def trees(self) -> Sides:
        return {side: snapshot(root) for side, root in self.roots.items()}


def remove(tree: Path) -> None:
    """Remove a tree in which some folders are write-protected, if it is there."""
    for folder, folders, _ in os.walk(tree):
        for name in folders:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o700)
    shutil.rmtree(tree, ignore_errors=True)


def make_case(nursery: Nursery, folder: Path, scenario: str, transport: Sequence[str]) -> Case:
    with pytest.MonkeyPatch.context() as patch:
        do_not_wait_for_disk(patch)
        SCENARIOS[scenario](folder / "start")
    return Case(nursery, folder, transport, scenario == "first")


def _left_open(now: Seen | None, after: Seen | None) -> bool:
    """Is it a write-protected folder that died between its rename and its permissions?

    Only root may rename one as it is; for others the RACE in `apply._move_directory` stays.
    """
    if os.geteuid() == 0 or now is None or after is None:
        return False
    return now.kind == after.kind == "directory" and now.mode == after.mode | 0o200


class Judge:
    """Knows what a case is before a run, and after one in which nothing goes wrong."""

    def __init__(self, case: Case) -> None:
        self._case = case
        case.begin()
        self._before = case.trees()
        ran = case.run()
        assert ran.code == 1, ran  # there are conflicts
        self._after = case.trees()
        assert self._after["near"] == self._after["far"]
        assert not self._lost()

    def check_broken(self, unread: bool = False) -> None:
        """Is every path its old or its new self, and nothing lost, on each side for itself?

        Args:
            unread: a call failed that reads. Then a text may have been set aside instead of merged.
        """
        for side, tree in self._case.trees().items():
            for path in self._before[side].keys() | self._after[side].keys() | tree.keys():
                old, new, now = (_whole(t.get(path)) for t in (self._before[side], self._after[side], tree))
                good = now in (old, new) or (unread and path.startswith(MERGED))
                assert good, f"{path!r} on the {side} side is {now}, was {old}, should be {new}"
        assert not self._lost()

    def check_mended(self, unread: bool = False) -> None:
        """Does one clean run bring about what should be?

        Args:
            unread: a call failed that reads. Then equal contents may have the time of either side, too.
        """
        ran = self._case.run()
        assert ran.code in (0, 1), ran
        for side in self._case.roots:
            unlike = {
                path: (now, after)
                for path, (now, after) in self.unlike(side).items()
                if not (unread and (_whole(now) == _whole(after) or path.startswith(MERGED)))
                and not _left_open(now, after)
            }
            assert not unlike, unlike
        trees = self._case.trees()
        assert trees["near"] == trees["far"]
        assert not self._lost()
        assert not any(map(staged, self._case.roots.values()))

    def unlike(self, side: str) -> dict[bytes, tuple[Seen | None, Seen | None]]:
        """Return what is not as it should be on a side: what it is, and what it should be."""
        now, after = self._case.trees()[side], self._after[side]
        return {
            path: (now.get(path), after.get(path))
            for path in now.keys() | after.keys()
            if now.get(path) != after.get(path)
        }

    def _lost(self) -> set[bytes]:
        """Return the contents of each side that neither its tree nor its history has."""
        lost: set[bytes] = set()
        for side, root in self._case.roots.items():
            had = {seen.data for seen in self._before[side].values() if seen.kind != "directory"}
            lost |= had - contents_of([root]) - set(history(root))
        return lost


def _whole(seen: Seen | None) -> Seen | None:
    """Leave out the time: it is set after a permission, and nobody wrote it.

    And that a folder may be written to: who is not root can move it only so.
    """
    if seen is None:
        return None
    loosened = 0o200 if seen.kind == "directory" and os.geteuid() else 0
    return seen._replace(mtime_ns=0, mode=seen.mode | loosened)
