"""The trees that the benchmark synchronizes: made from a seed, edited, and compared.

The content is made of words as frequent as in a language (Zipf's law), so that it compresses about
as text does, and is not repeated between files, so that nothing can be saved by finding it twice.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_128_digest

SMALLEST, LARGEST = 200, 16 * 1024
FILES_PER_FOLDER = 50
FOLDERS_PER_FOLDER = 50
_MODES = (0o644, 0o644, 0o644, 0o600, 0o755)
_OLD = (1_000_000_000, 1_600_000_000)  # mtimes between 2001 and 2020
_SIDECAR = ".p2psync"


class Item(NamedTuple):
    """What has to arrive. A directory's mtime is not compared: two-way tools leave it alone."""

    mode: int
    mtime_ns: int
    digest: bytes


Tree = dict[str, Item]


def make_tree(root: Path, files: int, seed: int) -> None:
    """Write `files` small files into `root`, which must not exist: the same for the same seed."""
    rng = random.Random(seed)
    vocabulary = _vocabulary(rng)
    for number in range(files):
        folder = root / _folder(number // FILES_PER_FOLDER)
        if number % FILES_PER_FOLDER == 0:
            folder.mkdir(parents=True)
        path = folder / f"note-{number:06d}.txt"
        size = int(SMALLEST * (LARGEST / SMALLEST) ** rng.random())
        path.write_bytes(_text(rng, vocabulary, size))
        path.chmod(rng.choice(_MODES))
        mtime_ns = rng.randrange(*_OLD) * 1_000_000_000 + rng.randrange(1_000_000_000)
        os.utime(path, ns=(mtime_ns, mtime_ns))


def edit(root: Path, names: list[str]) -> Tree:
    """Rewrite a line in the middle of each file and add one, as an editor would; the new items."""
    for name in names:
        path = root / name
        text = path.read_bytes()
        middle = len(text) // 2
        changed = b"edited: " + name.encode() + b"\n"
        path.write_bytes(text[:middle] + changed + text[middle + len(changed) :] + b"one more line\n")
    return {name: _item(root / name) for name in names}


def read_tree(root: Path) -> Tree:
    """Every file and directory below `root`, the sidecar folder left out."""
    return {str(path.relative_to(root)): _item(path) for path in _walk(root)}


def differences(wanted: Tree, found: Tree, mtime_tolerance_ns: int) -> list[str]:
    """Where two trees differ, mtimes compared with a tolerance."""
    lines = [f"missing: {name}" for name in wanted.keys() - found.keys()]
    lines += [f"unwanted: {name}" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        want, have = wanted[name], found[name]
        lines += [
            f"{name}: {field} {a!r} became {b!r}" for field, a, b in _fields(want, have, mtime_tolerance_ns)
        ]
    return sorted(lines)


def _fields(want: Item, have: Item, tolerance: int) -> Iterator[tuple[str, object, object]]:
    if want.mode != have.mode:
        yield "mode", oct(want.mode), oct(have.mode)
    if abs(want.mtime_ns - have.mtime_ns) > tolerance:
        yield "mtime", want.mtime_ns, have.mtime_ns
    if want.digest != have.digest:
        yield "content", want.digest.hex(), have.digest.hex()


def _walk(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.name == _SIDECAR:
            continue
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))


def _item(path: Path) -> Item:
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return Item(mode, 0, b"directory")
    return Item(mode, status.st_mtime_ns, xxh3_128_digest(path.read_bytes()))


def _folder(number: int) -> str:
    return f"area-{number // FOLDERS_PER_FOLDER:03d}/topic-{number:05d}"


def _vocabulary(rng: random.Random) -> list[bytes]:
    """65,536 slots for a 16-bit index; the word of rank r fills about 1/r of what the first fills."""
    slots: list[bytes] = []
    rank = 0
    while len(slots) < 65_536:
        rank += 1
        letters = rng.choices("etaoinshrdlucmfw", k=min(2 + rank.bit_length() // 2, 9))
        slots += ["".join(letters).encode() + b" "] * max(1, 6_000 // rank)
    # One word in twelve ends its line.
    return [word[:-1] + b"\n" if rng.randrange(12) == 0 else word for word in slots[:65_536]]


def _text(rng: random.Random, vocabulary: list[bytes], size: int) -> bytes:
    shortest_word = 3
    indexes = memoryview(rng.randbytes(2 * (size // shortest_word + 1))).cast("H")
    return b"".join(map(vocabulary.__getitem__, indexes))[:size]
