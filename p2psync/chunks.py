"""Chunks: cuts large files, and remembers how they are cut. Owns `chunks/`, a cache by digest.

Who has sent a version knows what the other side was given, also when it is edited since: then the two need
not tell each other what they hold.
"""

from __future__ import annotations

import contextlib
import os
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_digest, xxh3_128

from p2psync.core.chunking import HASH_BYTES, Chunks
from p2psync.core.model import Digest
from p2psync.core.replica import Cuts
from p2psync.disk import OPEN_DIRECTORY, OPEN_FILE

_RULES = 1
"""Of cutting. What was cut by others is of no use: raise `wire.PROTOCOL` as well."""
KEEP_SECONDS = 30 * 24 * 3600.0
"""How long the chunks of what is in no file of the tree any more are remembered."""


class Cut(NamedTuple):
    """A chunk that was just cut."""

    data: memoryview
    """Good until the next one."""
    hash: bytes


class Cutter:
    """Cuts the contents of one file."""

    def __init__(self, fd: int, unit: int) -> None:
        """Cut what is to be read from the open file, from where it is.

        Args:
            fd: of the file.
            unit: see `core.chunking.unit_of`.
        """
        self._fd = fd
        self._unit = unit
        self._state = xxh3_128()
        self._lengths = array("I")
        self._hashes = bytearray()

    def __iter__(self) -> Iterator[Cut]:
        """Yield the chunks.

        Raises:
            OSError: the file cannot be read.
        """
        from pyfastcdc import FastCDC

        # FastCDC 2020 with the gear table of its authors. The sizes, the normalization and the seed are
        # named, so that a release with other defaults cuts as this one does.
        cutter = FastCDC(
            self._unit, min_size=self._unit, max_size=4 * self._unit, normalized_chunking=1, seed=0
        )
        with open(self._fd, "rb", buffering=0, closefd=False) as file:
            for chunk in cutter.cut_stream(file):
                data = chunk.data
                value = xxh3_64_digest(data)[:HASH_BYTES]
                self._state.update(data)
                self._lengths.append(len(data))
                self._hashes += value
                yield Cut(data, value)

    def result(self) -> tuple[Digest, Chunks]:
        """Return the digest of all that was cut, and how it was."""
        return Digest(self._state.digest()), Chunks(self._lengths, bytes(self._hashes))


def cut_all(fd: int, unit: int) -> tuple[Digest, Chunks]:
    """Cut an open file; see `Cutter`."""
    cutter = Cutter(fd, unit)
    for _ in cutter:
        pass
    return cutter.result()


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

    def close(self) -> None:
        """Close all descriptors."""
        os.close(self._fd)

    def get(self, digest: Digest, unit: int) -> Chunks | None:
        """Return how contents are cut, None if that is not known."""
        try:
            with open(os.open(digest.hex(), OPEN_FILE, dir_fd=self._fd), "rb") as file:
                stored = msgspec.msgpack.decode(file.read(), type=_Stored)
        except (OSError, msgspec.MsgspecError):
            return None
        return stored.cuts.chunks() if (stored.rules, stored.unit) == (_RULES, unit) else None

    def put(self, digest: Digest, unit: int, chunks: Chunks) -> None:
        """Remember how contents are cut; what cannot be written is found out again when it is needed."""
        stored = _Stored(_RULES, unit, Cuts.of(chunks))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            with open(os.open("new", flags, 0o600, dir_fd=self._fd), "wb") as file:
                file.write(msgspec.msgpack.encode(stored))
            os.rename("new", digest.hex(), src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def collect(self, is_held: Callable[[Digest], bool]) -> None:
        """Forget what has not been in any file of the tree for long."""
        old = time.time() - KEEP_SECONDS
        for name in os.listdir(self._fd):
            with contextlib.suppress(OSError, ValueError):
                if os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mtime < old and not is_held(
                    Digest(bytes.fromhex(Path(name).name))
                ):
                    os.unlink(name, dir_fd=self._fd)
