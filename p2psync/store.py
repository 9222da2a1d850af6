"""The store: contents in the sidecar that are not in the tree. Owns `stage/` and `history/`.

`stage/` holds verified contents on their way into the tree, named by digest; what a broken run left
there is used by the next. `history/` holds what a run replaced or deleted, moved there by rename, under
the path that it had.
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from xxhash import xxh3_128

from p2psync.core.model import Digest, Entry, Kind
from p2psync.core.paths import split
from p2psync.core.replica import Content, More, Piece
from p2psync.disk import BLOCK, OPEN_FILE, Root, exists, hash_file, make_directory, sync_file_system
from p2psync.errors import ProtocolError

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Store:
    """The contents kept in one sidecar."""

    def __init__(self, sidecar: int) -> None:
        """Use the sidecar directory open as `sidecar`."""
        self._sidecar = Root(os.dup(sidecar), make=True)
        self.fd = os.dup(self._sidecar.directory(b"stage"))
        self._leftovers = set(map(os.fsencode, os.listdir(self.fd)))
        self._staged: set[Digest] = set()
        self._wanted: dict[Digest, int] = {}
        self._trouble: dict[Digest, OSError] = {}
        self._uses: Counter[Digest] = Counter()
        self._run = b""

    def close(self) -> None:
        """Close all descriptors."""
        os.close(self.fd)
        self._sidecar.close()

    # -- stage

    def has_staged(self, content: Content) -> bool:
        """Is this content staged, whole? Leftovers of an earlier run are verified first."""
        if content.digest in self._staged:
            return True
        name = _name(content.digest)
        if name not in self._leftovers:
            return False
        try:
            digest, st = hash_file(name, self.fd)
        except OSError:
            return False
        if digest != content.digest or st.st_size != content.size:
            return False
        self._staged.add(content.digest)
        return True

    def stage_copy(self, source: int, content: Content) -> bool:
        """Stage a copy of the open file `source`; False if it is not (any more) the content wanted."""

        def read() -> Iterator[bytes]:
            while data := os.read(source, BLOCK):
                yield data

        return self._write(content.digest, read())

    def stage_bytes(self, data: bytes, content: Content) -> bool:
        """Stage bytes that are at hand; False if they are not the content wanted."""
        return self._write(content.digest, iter([data]))

    def want(self, contents: Iterable[Content]) -> None:
        """Say which contents `stage` may take in: what nobody asked for is dropped."""
        self._wanted.update(contents)

    def stage(self, batches: Iterable[list[Piece]], keep: Callable[[Digest, bytes], None]) -> None:
        """Take in contents as they arrive; whole small ones are also offered to `keep`.

        What does not match its digest is dropped: whoever wanted it will miss it.

        Raises:
            ProtocolError: the pieces of a file do not follow one another.
        """
        pieces = (piece for batch in batches for piece in batch)
        for piece in pieces:
            if piece.more is More.GONE:
                continue
            data = [piece.data] if piece.more is More.LAST else _whole(piece, pieces)
            size = self._wanted.get(piece.digest)
            if size is None:
                collections.deque(data, maxlen=0)
            elif self._write(piece.digest, _capped(data, size)) and piece.more is More.LAST:
                keep(piece.digest, piece.data)

    def _write(self, digest: Digest, blocks: Iterator[bytes]) -> bool:
        name = _name(digest)
        if digest in self._staged:
            collections.deque(blocks, maxlen=0)
            return True
        if name in self._leftovers:
            self.discard(name)
        try:
            state = self._write_blocks(name, blocks)
        except OSError as error:  # no room for it: others may fit
            self._trouble[digest] = error
            collections.deque(blocks, maxlen=0)
            self.discard(name)
            return False
        if state != digest:
            self.discard(name)
            return False
        self._staged.add(digest)
        return True

    def _write_blocks(self, name: bytes, blocks: Iterable[bytes]) -> bytes:
        fd = os.open(name, _CREATE, 0o600, dir_fd=self.fd)
        try:
            state = xxh3_128()
            for block in blocks:
                state.update(block)
                _write_all(fd, block)
            return state.digest()
        finally:
            os.close(fd)

    def expect(self, entries: Iterable[Entry]) -> None:
        """Say which entries will be taken from the stage: content used twice is copied the first time."""
        self._uses.update(entry.digest for entry in entries if entry.kind is Kind.FILE)

    def flush(self) -> None:
        """Wait until all that is staged is on disk (I8)."""
        sync_file_system(self.fd)

    def take(self, entry: Entry) -> bytes:
        """Make `entry` in the stage, ready to be renamed; return its name there.

        Raises:
            FileNotFoundError: its contents have not been staged: they were not what was announced.
            OSError: why they could not be staged.
        """
        if entry.kind is Kind.DIRECTORY:
            return self._fresh(lambda name: make_directory(name, entry.mode | 0o200, self.fd))
        if entry.kind is Kind.SYMLINK:
            name = self._fresh(lambda name: os.symlink(entry.target, name, dir_fd=self.fd))
        else:
            name = self._take_file(entry.digest)
            os.chmod(name, entry.mode, dir_fd=self.fd)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=self.fd, follow_symlinks=False)
        return name

    def _take_file(self, digest: Digest) -> bytes:
        name = _name(digest)
        if digest not in self._staged:
            raise self._trouble.get(digest, FileNotFoundError())
        self._uses[digest] -= 1
        if self._uses[digest] <= 0:
            self._staged.discard(digest)
            return name
        source = os.open(name, OPEN_FILE, dir_fd=self.fd)
        try:
            return self._fresh(lambda copy: self._copy(source, copy))
        finally:
            os.close(source)

    def _copy(self, source: int, name: bytes) -> None:
        target = os.open(name, _CREATE, 0o600, dir_fd=self.fd)
        try:
            while data := os.read(source, BLOCK):
                _write_all(target, data)
        finally:
            os.close(target)

    def _fresh(self, make: Callable[[bytes], None]) -> bytes:
        """Make something under a name that is not in use."""
        name = b"new"
        self.discard(name)
        make(name)
        return name

    def discard(self, name: bytes) -> None:
        """Remove something from the stage that was taken, but not used."""
        for remove in (os.unlink, os.rmdir):
            with contextlib.suppress(OSError):
                remove(name, dir_fd=self.fd)

    def clear_stage(self) -> None:
        """Remove all that is staged: nothing is waiting for it."""
        self._staged.clear()
        self._uses.clear()
        for name in os.listdir(self.fd):
            self.discard(os.fsencode(name))

    # -- history

    def begin_run(self) -> None:
        """Let what is replaced or deleted from now on go to a folder of its own."""
        self._run = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f").encode()

    def shelf(self, path: bytes) -> tuple[int, bytes]:
        """Return a place in the history for what is at `path`: a directory, and a name free there."""
        folder, name = split(path)
        directory = self._sidecar.directory(b"/".join(filter(None, (b"history", self._run, folder))))
        free, number = name, 0
        while exists(free, directory):
            number += 1
            free = name[:240] + b"~%d" % number
        return directory, free


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _name(digest: Digest) -> bytes:
    return digest.hex().encode()


def _whole(first: Piece, pieces: Iterator[Piece]) -> Iterator[bytes]:
    """Yield all that belongs to the file that begins with `first`."""
    yield first.data
    for piece in pieces:
        if piece.digest != first.digest:
            raise ProtocolError("the peer mixed up the contents of two files")
        yield piece.data
        if piece.more is not More.MORE:
            return


def _capped(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield blocks up to `size` bytes: a peer must not fill the disk with what was announced as small."""
    for block in blocks:
        if size > 0:
            yield block[:size]
        size -= len(block)
