"""Chunking: which parts of a large file another one holds too. Owns the sizes of chunks.

A file is cut where its own bytes say (content-defined chunking), so that what follows an insertion is cut as
it was before. Chunks are known by hashes of 8 bytes: two unlike ones with one hash are found out by the
digest of the whole, and then the file is sent whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from p2psync.core.model import Digest, Entry, Kind, Transition, makes
from p2psync.core.paths import split

WORTH_BYTES = 128 * 1024
"""Smaller files are sent whole."""
HASH_BYTES = 8
_UNIT = 16 * 1024
_MAX_UNIT = 1024 * 1024
_MOST_CHUNKS = 1 << 16
_MAX_BASES = 4


def unit_of(size: int) -> int:
    """Return the unit by which a file of so many bytes is cut: chunks have half as much again on average.

    It grows with the file, so that what has to be known of one has a limit.
    """
    unit = _UNIT
    while unit < _MAX_UNIT and size > unit * _MOST_CHUNKS:
        unit *= 2
    return unit


class Chunks(NamedTuple):
    """How a file is cut."""

    unit: int
    lengths: array[int]
    """Of each chunk, in bytes."""
    hashes: bytes
    """Of each chunk, one after the other."""


class Index:
    """Finds chunks among those that another file has."""

    def __init__(self, hashes: bytes) -> None:
        """Take the hashes of the other file's chunks."""
        self._hashes = [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
        self._first = {value: number for number, value in reversed(list(enumerate(self._hashes)))}

    def find(self, value: bytes, following: int) -> int | None:
        """Return the number of a chunk with this hash, `following` if that is one; None: there is none."""
        if following < len(self._hashes) and self._hashes[following] == value:
            return following
        return self._first.get(value)


class Part(NamedTuple):
    """A part of a file: bytes, or a run of chunks that the other side holds."""

    data: bytes
    first: int = 0
    chunks: int = 0
    size: int = 0
    """Bytes of the run."""


def parts(chunks: Iterable[tuple[memoryview, bytes]], index: Index, most: int) -> Iterator[Part]:
    """Tell a file by what the other side holds of it.

    Args:
        chunks: of the file, each with its hash.
        index: what the other side holds.
        most: bytes of data in a part.
    """
    data = bytearray()
    first = count = size = 0
    for chunk, value in chunks:
        number = index.find(value, first + count)
        if number is not None and count and number == first + count:
            count, size = count + 1, size + len(chunk)
            continue
        if count:
            yield Part(b"", first, count, size)
            first = count = size = 0
        if number is None:
            data += chunk
            while len(data) >= most:
                yield Part(bytes(memoryview(data)[:most]))
                del data[:most]
            continue
        if data:
            yield Part(bytes(data))
            data.clear()
        first, count, size = number, 1, len(chunk)
    if count:
        yield Part(b"", first, count, size)
    if data:
        yield Part(bytes(data))


def ranges(lengths: Iterable[int]) -> array[int]:
    """Return where each chunk begins, and in the end where the last one ends."""
    return array("Q", accumulate(lengths, initial=0))


def likely_bases(transitions: Iterable[Transition]) -> dict[Digest, list[Digest]]:
    """Return of each large contents that a side takes in what it may be made of: versions that the side has.

    That is what was at the same path, or else large files that go away from the same folder, or a file of the
    same name that does: what was renamed and edited.
    """
    replaced: dict[Digest, list[Digest]] = {}
    going: dict[bytes, list[Digest]] = {}
    coming: list[Transition] = []
    for step in transitions:
        before = step.expected.digest if step.expected is not None and _is_large(step.expected) else None
        if _is_large(step.wanted) and makes(step):
            bases = replaced.setdefault(step.wanted.digest, [])
            if before is not None:
                bases.append(before)
            else:
                coming.append(step)
        elif before is not None and not step.wanted.alive:
            folder, name = split(step.path)
            going.setdefault(folder + b"/", []).append(before)
            going.setdefault(name, []).append(before)
    for step in coming if going else ():
        folder, name = split(step.path)
        replaced[step.wanted.digest] += (going.get(name) or going.get(folder + b"/", []))[:_MAX_BASES]
    return {digest: list(dict.fromkeys(bases))[:_MAX_BASES] for digest, bases in replaced.items()}


def _is_large(entry: Entry) -> bool:
    return entry.kind is Kind.FILE and entry.size >= WORTH_BYTES
