"""What has to arrive: the items of a tree, read cheaply again and again, and compared."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_128, xxh3_128_digest

_SIDECAR = ".p2psync"
_READ_BYTES = 1 << 20


class Item(NamedTuple):
    """What has to arrive. The mtime of a directory or a link is not compared: not every tool sets it."""

    mode: int
    mtime_ns: int
    digest: bytes


Tree = dict[str, Item]
_Stat = tuple[int, int, int, int]


class Reader:
    """Reads one tree, and of its files only those whose inode, size, mtime or ctime changed since."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[_Stat, bytes] = {}

    def read(self) -> Tree:
        """Every file, link and directory below the root, if there is one; the sidecar folder is left out."""
        skip = len(str(self.root)) + 1
        known, self._known = self._known, {}
        if not self.root.is_dir():
            return {}
        return {entry.path[skip:]: self._item(entry, known) for entry in _walk(str(self.root))}

    def _item(self, entry: os.DirEntry[str], known: dict[_Stat, bytes]) -> Item:
        status = entry.stat(follow_symlinks=False)
        if entry.is_symlink():
            return Item(0, 0, b"link to " + os.fsencode(os.readlink(entry.path)))
        mode = stat.S_IMODE(status.st_mode)
        if entry.is_dir():
            return Item(mode, 0, b"directory")
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest = self._known[stamp] = known.get(stamp) or _digest(entry.path)
        return Item(mode, status.st_mtime_ns, digest)


def differences(wanted: Tree, found: Tree, mtime_tolerance_ns: int) -> list[str]:
    """Where two trees differ, mtimes compared with a tolerance."""
    lines = [f"missing: {name}" for name in wanted.keys() - found.keys()]
    lines += [f"unwanted: {name}" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        want, have = wanted[name], found[name]
        if want != have:
            fields = _fields(want, have, mtime_tolerance_ns)
            lines += [f"{name}: {field} {a!r} became {b!r}" for field, a, b in fields]
    return sorted(lines)


def _fields(want: Item, have: Item, tolerance: int) -> Iterator[tuple[str, object, object]]:
    if want.mode != have.mode:
        yield "mode", oct(want.mode), oct(have.mode)
    if abs(want.mtime_ns - have.mtime_ns) > tolerance:
        yield "mtime", want.mtime_ns, have.mtime_ns
    if want.digest != have.digest:
        yield "content", want.digest, have.digest


def _walk(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == _SIDECAR:
                continue
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)


def _digest(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        data = file.read(_READ_BYTES)
        if len(data) < _READ_BYTES:
            return xxh3_128_digest(data)
        hasher = xxh3_128(data)
        while data := file.read(_READ_BYTES):
            hasher.update(data)
    return hasher.digest()
