"""Chunks: cuts large files, and remembers how they are cut. Owns `chunks/`, a cache by digest.

Who has sent a version knows what the other side was given, also when it is edited since: then the two need
not tell each other what they hold.
"""

from __future__ import annotations

import collections
import contextlib
import os
from array import array
from collections.abc import Callable, Iterator
from itertools import chain

import msgspec
from xxhash import xxh3_64_digest, xxh3_128

from p2psync.core.chunking import HASH_BYTES, Chunks, sampled, unit_of, windows
from p2psync.core.model import NO_DIGEST, Digest
from p2psync.core.replica import Cuts
from p2psync.disk import OPEN_DIRECTORY, OPEN_FILE, blocks_of

_RULES = 2
"""Of cutting. What was cut by others is of no use: raise `wire.PROTOCOL` as well."""


class Cutter:
    """Cuts contents as they come."""

    def __init__(self, unit: int) -> None:
        """Cut by a unit; see `core.chunking.unit_of`."""
        from pyfastcdc import FastCDC

        # FastCDC 2020 with the gear table of its authors. The sizes, the normalization and the seed are
        # named, so that a release with other defaults cuts as this one does.
        self._cutter = FastCDC(unit, min_size=unit, max_size=4 * unit, normalized_chunking=1, seed=0)
        self._state = xxh3_128()
        self._lengths = array("I")
        self._hashes = bytearray()
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[memoryview, bytes]]:
        """Take in what follows; yield the chunks that are whole by now, each with its hash."""
        self._state.update(data)
        self._rest += data
        last = None
        for chunk in self._cutter.cut_buf(self._rest):
            if last is not None:
                yield self._cut(last)
            last = chunk.data
        self._rest = bytes(last or b"")  # it may go on

    def end(self) -> Iterator[tuple[memoryview, bytes]]:
        """Yield the last chunk: nothing follows."""
        if self._rest:
            yield self._cut(memoryview(self._rest))

    def _cut(self, data: memoryview) -> tuple[memoryview, bytes]:
        value = xxh3_64_digest(data)[:HASH_BYTES]
        self._lengths.append(len(data))
        self._hashes += value
        return data, value

    def result(self) -> tuple[Digest, Chunks]:
        """Return the digest of all that was cut, and how it was."""
        return Digest(self._state.digest()), Chunks(self._lengths, bytes(self._hashes))


def cut_file(fd: int, cutter: Cutter) -> Iterator[tuple[memoryview, bytes]]:
    """Cut what is to be read from an open file.

    Raises:
        OSError: it cannot be read.
    """
    for block in blocks_of(fd):
        yield from cutter.feed(block)
    yield from cutter.end()


def hashes_of_some(fd: int, size: int) -> bytes:
    """Return the hashes of chunks here and there in an open file; those at the ends of a part may be none.

    Raises:
        OSError: it cannot be read.
    """
    found = bytearray()
    for offset, length in windows(size):
        cutter = Cutter(unit_of(size))
        data = os.pread(fd, length, offset)
        found += b"".join(value for _, value in chain(cutter.feed(data), cutter.end()))
    return bytes(found)


SAMPLED = b""
"""The hash of no chunk: tells that contents were sampled, whatever that came to."""


def samples_of(digest: Digest, hashes: bytes) -> Iterator[tuple[bytes, Digest]]:
    """Yield what is remembered of some chunks of contents, or of all: hash and digest."""
    yield SAMPLED, digest
    yield from ((value, digest) for value in sampled(hashes))


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    rules: int
    unit: int
    cuts: Cuts


class ChunkLists:
    """How known contents are cut."""

    def __init__(self, sidecar: int) -> None:
        """Use the folder `chunks` of the sidecar directory open as `sidecar`."""
        with contextlib.suppress(FileExistsError):
            os.mkdir("chunks", 0o700, dir_fd=sidecar)
        self._fd = os.open("chunks", OPEN_DIRECTORY, dir_fd=sidecar)
        self._new: list[Digest] = []

    def close(self) -> None:
        """Close all descriptors."""
        os.close(self._fd)

    def get(self, digest: Digest, unit: int) -> Chunks | None:
        """Return how contents are cut, None if that is not known."""
        stored = self._stored(digest)
        return stored.cuts.chunks() if stored and (stored.rules, stored.unit) == (_RULES, unit) else None

    def _stored(self, digest: Digest) -> _Stored | None:
        try:
            with open(os.open(digest.hex(), OPEN_FILE, dir_fd=self._fd), "rb") as file:
                return msgspec.msgpack.decode(file.read(), type=_Stored)
        except (OSError, msgspec.MsgspecError):
            return None

    def of(self, digest: Digest, unit: int, fd: int) -> Chunks | None:
        """Return how an open file is cut; None: it cannot be read, or does not hold the contents `digest`.

        Args:
            digest: of its contents; `NO_DIGEST`: whatever they are.
            unit: to cut it by.
            fd: the file.
        """
        if (known := self.get(digest, unit)) is not None:
            return known
        cutter = Cutter(unit)
        try:
            collections.deque(cut_file(fd, cutter), maxlen=0)
        except OSError:  # a disk that fails: something else will do
            return None
        return cutter.result()[1] if digest == NO_DIGEST else self.learn(digest, unit, cutter)

    def learn(self, digest: Digest, unit: int, cutter: Cutter) -> Chunks | None:
        """Remember how what was fed to `cutter` is cut; None: these were not the contents `digest`."""
        found, chunks = cutter.result()
        if found != digest:
            return None
        self.put(digest, unit, chunks)
        return chunks

    def put(self, digest: Digest, unit: int, chunks: Chunks) -> None:
        """Remember how contents are cut; what cannot be written is found out again when it is needed."""
        stored = _Stored(_RULES, unit, Cuts.of(chunks))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            with open(os.open("new", flags, 0o600, dir_fd=self._fd), "wb") as file:
                file.write(msgspec.msgpack.encode(stored))
            os.rename("new", digest.hex(), src_dir_fd=self._fd, dst_dir_fd=self._fd)
            self._new.append(digest)

    def are_new(self) -> bool:
        """Was any list written since `samples` was called last?"""
        return bool(self._new)

    def samples(self) -> Iterator[tuple[bytes, Digest]]:
        """Yield some chunks of what is known since the last call, by which it can be found: hash, digest."""
        new, self._new = self._new, []
        for digest in new:
            stored = self._stored(digest)
            yield from samples_of(digest, stored.cuts.hashes if stored else b"")

    def count(self) -> int:
        """Return how many lists there are."""
        return len(os.listdir(self._fd))

    def collect(self, is_needed: Callable[[Digest], bool]) -> None:
        """Forget how contents are cut of which nothing will be made any more."""
        for name in os.listdir(self._fd):
            with contextlib.suppress(OSError, ValueError):
                if not is_needed(Digest(bytes.fromhex(name))):
                    os.unlink(name, dir_fd=self._fd)
