"""Chunking: which parts of a large file another one holds too. Owns the sizes of chunks.

A file is cut where its own bytes say (content-defined chunking), so that what follows an insertion is cut as
it was before. Chunks are known by short hashes: two unlike ones with one hash are found out by the digest of
the whole, and then the file is sent whole.
"""

from __future__ import annotations

from array import array
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

from p2psync.core.model import Digest, Entry, Kind, Transition, makes
from p2psync.core.paths import split

_T = TypeVar("_T", bytes, int)

WORTH_BYTES = 128 * 1024
"""Smaller files are sent whole."""
HASH_BYTES = 6
_UNIT = 16 * 1024
_MAX_UNIT = 1024 * 1024
_MOST_CHUNKS = 1 << 16
MOST_BASES = 4
"""Files that contents are looked for in."""
MOST_TIMES = 4
"""A base is no larger than so many times what is made of it: all of it is read, and its chunks are told."""
MOST_HELD = 1 << 18
"""Chunks of such files that are looked at: of each some 150 bytes are kept meanwhile."""
_SAMPLE = 8
"""One of so many chunks is looked up to find files that are alike."""
_WINDOWS = 4
_WINDOW_UNITS = 32
_RUN_BYTES = 32 << 20
"""A run is told when it is as long, so that it is copied while the next one is looked for."""


def unit_of(size: int) -> int:
    """Return the unit by which a file of so many bytes is cut: chunks have half as much again on average.

    It grows with the file, so that what has to be known of one has a limit, up to 57 GiB: pyfastcdc takes no
    larger one as the least size, and whole chunks are held in memory. Disk images are as large as a power of
    two, and grow by a little: there it does not change.
    """
    unit = _UNIT
    while unit < _MAX_UNIT and size > unit * _MOST_CHUNKS * 7 // 8:
        unit *= 2
    return unit


class Chunks(NamedTuple):
    """How a file is cut."""

    lengths: array[int]
    """Of each chunk, in bytes."""
    hashes: bytes
    """Of each chunk, one after the other."""


class Place(NamedTuple):
    """Where the other side holds something."""

    source: int
    offset: int
    """In that file."""


class Index:
    """Finds chunks in files that the other side holds, by numbers: those of a file follow one another."""

    def __init__(self, sources: Sequence[Chunks]) -> None:
        """Take how these files are cut, the first ones if that is very much."""
        self._hashes = bytearray()
        self._offsets = array("Q")
        self._starts: list[int] = []
        """Of each file, the number of its first chunk."""
        self._first: dict[bytes, int] = {}
        for chunks in sources:
            self._starts.append(len(self._offsets))
            offset = 0
            for index, length in enumerate(chunks.lengths[: MOST_HELD - len(self._offsets)]):
                value = chunks.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
                self._first.setdefault(value, len(self._offsets))
                self._offsets.append(offset)
                self._hashes += value
                offset += length

    def find(self, value: bytes, following: int) -> int | None:
        """Return the number of a chunk with this hash, `following` if that is one; None: there is none."""
        is_there = self._hashes[following * HASH_BYTES : (following + 1) * HASH_BYTES] == value
        return following if is_there else self._first.get(value)

    def place(self, number: int) -> Place:
        """Return where a chunk is."""
        source = bisect(self._starts, number) - 1
        return Place(source, self._offsets[number])


class Part(NamedTuple):
    """A part of a file: bytes, or where the other side holds them."""

    data: bytes
    source: int = 0
    offset: int = 0
    size: int = 0
    """Bytes that are held there."""


def parts(chunks: Iterable[tuple[memoryview, bytes]], index: Index, most: int) -> Iterator[Part]:
    """Tell a file by what the other side holds of it.

    Args:
        chunks: of the file, each with its hash; good until the end.
        index: what the other side holds.
        most: bytes of data in a part.
    """
    data: list[memoryview] = []
    length = 0
    run, size, number = Place(0, 0), 0, -1
    for chunk, value in chunks:
        found = index.find(value, number + 1)
        place = index.place(found) if found is not None else None
        number = number + 1 if found is None else found  # what was replaced is mostly as many chunks
        if size and (place != (run.source, run.offset + size) or size >= _RUN_BYTES):
            yield Part(b"", *run, size)
            size = 0
        if place is None:
            while length + len(chunk) >= most:
                yield Part(b"".join([*data, chunk[: most - length]]))
                data, length, chunk = [], 0, chunk[most - length :]
            data.append(chunk)
            length += len(chunk)
            continue
        if length:
            yield Part(b"".join(data))
            data, length = [], 0
        run, size = (run, size + len(chunk)) if size else (place, len(chunk))
    if size:
        yield Part(b"", *run, size)
    if length:
        yield Part(b"".join(data))


def sampled(hashes: bytes) -> list[bytes]:
    """Return some of the hashes of chunks: of like chunks the same, wherever they are.

    So two files are found to be alike by few of their chunks (Lillibridge et al., Sparse Indexing, 2009).
    """
    starts = range(0, len(hashes), HASH_BYTES)
    return [hashes[start : start + HASH_BYTES] for start in starts if hashes[start] % _SAMPLE == 0]


def windows(size: int) -> list[tuple[int, int]]:
    """Return which parts of a file tell what it may be like: offset and bytes, in order, apart."""
    length = _WINDOW_UNITS * unit_of(size)
    if size <= _WINDOWS * length:
        return [(0, size)]
    return [(number * (size - length) // (_WINDOWS - 1), length) for number in range(_WINDOWS)]


def likely_bases(
    transitions: Iterable[Transition], others: Iterable[Transition] = ()
) -> dict[Digest, list[Digest]]:
    """Return of each large contents that a side takes in what it may be made of: versions that the side has.

    That is what was at the same path, or else large files that go away from the same folder, or a file of the
    same name that does: what was renamed and edited. A conflict copy may be made of what wins over it.

    Args:
        transitions: of the side.
        others: those of the other side, which loses what this one takes in as conflict copies.
    """
    winners = {copy: step.wanted for step in others if _is_large(step.wanted) for copy in step.after}
    replaced: dict[Digest, list[Entry]] = {}
    sizes: dict[Digest, int] = {}
    going: dict[bytes, list[Entry]] = {}
    coming: list[Transition] = []
    for step in transitions:
        before = step.expected if step.expected is not None and _is_large(step.expected) else None
        if _is_large(step.wanted) and makes(step):
            sizes[step.wanted.digest] = step.wanted.size
            bases = replaced.setdefault(step.wanted.digest, [])
            if before is not None:
                bases.append(before)
            elif step.path in winners:
                bases.append(winners[step.path])
            else:
                coming.append(step)
        elif before is not None and not step.wanted.alive:
            folder, name = split(step.path)
            going.setdefault(folder + b"/", []).append(before)
            going.setdefault(name, []).append(before)
    for step in coming if going else ():
        folder, name = split(step.path)
        replaced[step.wanted.digest] += (going.get(name) or going.get(folder + b"/", []))[:MOST_BASES]
    return {
        digest: list(dict.fromkeys(base.digest for base in bases if base.size <= MOST_TIMES * sizes[digest]))[
            :MOST_BASES
        ]
        for digest, bases in replaced.items()
    }


def likeliest(new: Mapping[bytes, int], others: Mapping[bytes, int]) -> list[bytes]:
    """Return the paths of other large files in the order in which new ones may be made of them.

    By turns comes what has the likest name, wherever it is, and what is as large, first in the same folders:
    many files have the same size, and many have other names than what was saved from them.

    Args:
        new: the files that are to be made, one at least: path, and size in bytes.
        others: those that they may be made of.
    """
    folders = {split(path)[0] for path in new}
    names = sorted(split(path)[1] for path in new)
    sizes = sorted(new.values())

    def by_name(path: bytes) -> tuple[int, bool]:
        folder, name = split(path)
        return -max(_shared(name, one) for one in _next_to(names, name)), folder not in folders

    def by_size(path: bytes) -> tuple[bool, int]:
        distance = min(abs(others[path] - size) for size in _next_to(sizes, others[path]))
        return split(path)[0] not in folders, distance

    turns = zip(sorted(others, key=by_name), sorted(others, key=by_size), strict=True)
    return list(dict.fromkeys(chain.from_iterable(turns)))


def _shared(one: bytes, other: bytes) -> int:
    """Return how many bytes two names begin with that are the same."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _next_to(ordered: Sequence[_T], one: _T) -> Sequence[_T]:
    """Return what is before and after something in order: what is most like it is among them."""
    at = bisect(ordered, one)
    return ordered[max(at - 1, 0) : at + 1]


def _is_large(entry: Entry) -> bool:
    return entry.kind is Kind.FILE and entry.size >= WORTH_BYTES
