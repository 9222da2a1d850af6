"""Texts kept as bases of merges: one append-only file of compressed blocks in the sidecar.

Many texts share a block: a file each would double the cost of a first sync. Where a text lies is an
`Extent` in the manifest. A block that was lost, or never reached the disk, is found out by its digest:
then there is no base, and a conflict is set aside instead of merged. The text is kept anew when it comes
again.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from threading import Thread

from xxhash import xxh3_128_digest

from p2psync.core.merge import MAX_TEXT, is_text
from p2psync.core.model import Digest, Extent
from p2psync.disk import OPEN_FILE, free_range

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 512 * 1024
"""Bytes of text compressed together: larger blocks compress little better, and cost more to read one of."""
LEVEL = 1
"""The fastest: bases are written for every text and read for few."""
_PAGE = 4096
"""What file systems free at least: many blocks are smaller, and only as neighbours can they be freed."""


class Bases:
    """The kept texts of one sidecar."""

    def __init__(
        self, sidecar: int, kept: Callable[[Sequence[Digest]], set[Digest]] = lambda digests: set()
    ) -> None:
        """Use the file `bases` in the directory open as `sidecar`.

        Args:
            sidecar: the directory.
            kept: tells which of some texts are kept already.
        """
        self._kept = kept
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open("bases", flags, 0o600, dir_fd=sidecar)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            self._fd = os.open("bases", OPEN_FILE, dir_fd=sidecar)
        self._waiting: dict[Digest, bytes] = {}
        self._size = 0
        self._extents: list[Extent] = []
        self._written: list[Extent] = []
        """Of the block that is being written, and good once the writer has ended."""
        self._writer: Thread | None = None
        self._lost: set[Digest] = set()
        """Kept texts that could not be read, and did not come anew since."""

    def close(self) -> None:
        """Close the file; what was not flushed is forgotten."""
        self._join()
        os.close(self._fd)

    def add(self, digest: Digest, data: bytes) -> None:
        """Keep `data` if it is a text, and the one that it is said to be: a file may change as it is read."""
        if data and digest not in self._waiting and xxh3_128_digest(data) == digest and is_text(data):
            self._waiting[digest] = data
            self._size += len(data)
            if self._size >= BLOCK:
                self._write()

    def flush(self) -> list[Extent]:
        """Write what is waiting; return where all texts are that were not told of yet."""
        self._write()
        self._join()
        return self.written()

    def sync(self) -> None:
        """Wait until what was written is on disk: nobody writes a text again that the manifest says is kept.

        Raises:
            OSError: it is not.
        """
        os.fsync(self._fd)

    def written(self) -> list[Extent]:
        """Return where texts are that have been written, and were not told of yet."""
        extents, self._extents = self._extents, []
        self._lost.difference_update(extent.digest for extent in extents)
        return extents

    def adopt(self, extents: Iterable[Extent]) -> None:
        """Tell of these too: another process has written what is there."""
        self._extents += extents

    def read(self, extent: Extent) -> bytes | None:
        """Return the text at `extent`, None if it is not there any more: then it is kept anew if it comes."""
        text = _text(self._read_block(extent), extent)
        if text is None:
            self._lost.add(extent.digest)
        return text

    def take_lost(self) -> set[Digest]:
        """Return which texts turned out to be lost, once; the manifest is to forget them."""
        lost, self._lost = self._lost, set()
        return lost

    def move(self, extents: Iterable[Extent]) -> dict[Digest, Extent]:
        """Write texts that are kept a second time, close together; return where those are that could be.

        Raises:
            OSError: what was written is not on disk.
        """
        for extent in extents:
            text = self.read(extent)
            if text is not None:
                self.add(extent.digest, text)
        moved = {extent.digest: extent for extent in self.flush()}
        if moved:
            self.sync()
        return moved

    def free_all_but(self, blocks: Iterable[tuple[int, int]]) -> None:
        """Give the space between blocks back to the disk, where that can be done.

        Also what blocks had that were never told of: a run has died.

        Args:
            blocks: offset and length of each, in the order of the file.
        """
        end = 0
        for offset, length in chain(blocks, ((os.fstat(self._fd).st_size, 0),)):
            first, last = -(-end // _PAGE) * _PAGE, offset // _PAGE * _PAGE
            if first < last:
                free_range(self._fd, first, last - first)
            end = max(end, offset + length)

    def lost(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        """Yield those of `extents`, which are in the order of the file, that cannot be read any more."""
        for _, texts in groupby(extents, lambda extent: (extent.offset, extent.length)):
            first = next(texts)
            block = self._read_block(first)
            for extent in chain((first,), texts):
                if _text(block, extent) is None:
                    yield extent

    def _read_block(self, extent: Extent) -> bytes | None:
        try:
            block = os.pread(self._fd, extent.length, extent.offset)
            return zstd.ZstdDecompressor().decompress(block, max_length=BLOCK + MAX_TEXT)
        except (OSError, ValueError, OverflowError, zstd.ZstdError):
            return None

    def _write(self) -> None:
        """Begin to write what is waiting: compressing leaves the interpreter to others meanwhile."""
        self._size = 0
        for digest in self._kept(list(self._waiting)) - self._lost:
            del self._waiting[digest]
        if self._waiting:
            self._join()
            writer = Thread(target=self._write_block, args=(self._waiting,))
            writer.start()
            self._writer, self._waiting = writer, {}

    def _write_block(self, texts: dict[Digest, bytes]) -> None:
        block = zstd.compress(b"".join(texts.values()), LEVEL)
        try:
            if os.write(self._fd, block) < len(block):
                return
        except OSError:
            return  # no room for them: a conflict will be set aside instead of merged
        offset = os.lseek(self._fd, 0, os.SEEK_CUR) - len(block)  # others may append too
        start = 0
        for digest, data in texts.items():
            self._written.append(Extent(digest, offset, len(block), start, len(data)))
            start += len(data)

    def _join(self) -> None:
        if self._writer:
            self._writer.join()
            self._writer = None
            self._extents += self._written
            self._written = []


def _text(block: bytes | None, extent: Extent) -> bytes | None:
    if block is None:
        return None
    text = block[extent.start : extent.start + extent.size]
    return text if xxh3_128_digest(text) == extent.digest else None
