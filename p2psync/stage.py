"""The stage: what waits in the sidecar to be put into the tree. Owns `stage/`.

`stage/PATH` is what will be at PATH, verified and with its permissions and times, so that one rename puts
a file into the tree, and one rename a new directory with all that is in it. What a broken run left there
is used by the next.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from types import MappingProxyType

from xxhash import xxh3_128, xxh3_128_digest

from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Digest, Entry, Kind, Stat, Transition, makes
from p2psync.core.paths import ancestors, split
from p2psync.core.replica import Content, Met, More, Piece, Unread, place_of
from p2psync.disk import (
    BLOCK,
    HOLE,
    OPEN_DIRECTORY,
    OPEN_FILE,
    Root,
    Span,
    WriteBehind,
    begin_to_write,
    copy_span,
    free_on,
    hash_file,
    open_file,
    size_below,
    stat_of,
    sweep,
    write_all,
    write_sparse,
)
from p2psync.errors import ProtocolError, ReplicaError
from p2psync.leftover import LeftOver

Blocks = Iterator[bytes | Span]
"""Contents of a file, one after the other: bytes, or where they are."""

Held = Callable[[Digest, int, int, int], Span | None]


def _hold_nothing(digest: Digest, source: int, offset: int, size: int) -> None:
    return None


_BEHIND_BYTES = 16 << 20
"""So many bytes of a large file are given to the disk at once, while more of it come."""
ENTRY_BYTES = 4096
"""What a file takes beside its contents, at most: its end in a block, its name, its row."""
_PART_BYTES = 4 << 20
"""So much of a file for which there may be no room is written at once."""
_COPIED_BYTES = 32 << 20
"""So much is copied at once by the system."""
_TOO_LARGE = (
    "there is no room for it beside all else that comes, though it may take less than its size, since it has"
    " holes, or can share blocks with another file; make room there, or leave it out (--max-size)"
)
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Stage:
    """What is staged in one sidecar."""

    def __init__(self, sidecar: int) -> None:
        """Use the folder `stage` of the sidecar directory open as `sidecar`."""
        with contextlib.suppress(FileExistsError):
            os.mkdir("stage", 0o700, dir_fd=sidecar)
        self._root = Root(os.open("stage", OPEN_DIRECTORY, dir_fd=sidecar), make=True)
        self.left_over = LeftOver(sidecar)
        self._behind = WriteBehind(self._root.fd)
        self._wanted: dict[bytes, Entry] = {}
        self._waiting: dict[Digest, list[bytes]] = {}
        """The paths that wait for contents: each until it is staged."""
        self._stats: dict[bytes, Stat] = {}
        """Of the files that are staged."""
        self._new: list[bytes] = []
        self._unread: list[bytes] = []
        """Files that were staged from parts, or by a run that broke: nobody was offered their contents."""
        self._trouble: dict[bytes, OSError] = {}
        self._unsure: Collection[bytes] = ()
        self._floor = 0
        """What has to stay free while those are written: it gets less with each other one that is staged."""

    def close(self) -> None:
        """Close all descriptors."""
        self._root.close()
        self.left_over.close()

    def expect(
        self,
        transitions: Iterable[Transition],
        tight: bool = False,
        waiting: Mapping[bytes, str] = MappingProxyType({}),
        unsure: Collection[bytes] = (),
        stays: int = 0,
    ) -> list[Content]:
        """Stage all that `transitions` put into the tree but contents of files; return those it waits for.

        Args:
            transitions: those of this run.
            tight: there is no room for what broken runs left, but for whole files that are wanted.
            waiting: paths of files for which there is no room at all, each with what is to be said of it.
            unsure: paths of files that may take more room than there is: what the others need is not theirs.
            stays: so many bytes are nobody's.
        """
        self.give_up()
        self._wanted = {step.path: step.wanted for step in transitions if makes(step)}
        self.left_over.bring_back(self._wanted, self._root.parent)
        if tight:
            self.left_over.give_way()
        sweep(self._root, b"", self._adopt)
        self.left_over.forget_digests()
        for path, entry in self._wanted.items():
            try:
                self._prepare(path, entry, waiting)
            except OSError as error:
                self._trouble[path] = error
        self._unsure = unsure
        waiting_for = (path for paths in self._waiting.values() for path in paths if path not in unsure)
        self._floor = stays + sum(self._wanted[path].size + ENTRY_BYTES for path in waiting_for)
        return self.lacking()

    def _prepare(self, path: bytes, entry: Entry, waiting: Mapping[bytes, str]) -> None:
        match entry.kind:
            case Kind.FILE:
                if path not in self._stats:
                    if path in waiting:
                        raise OSError(errno.ENOSPC, waiting[path])
                    self._waiting.setdefault(entry.digest, []).append(path)
            case Kind.DIRECTORY:
                self._root.directory(path)
            case Kind.SYMLINK:
                directory, name = self._root.parent(path)
                os.symlink(entry.target, name, dir_fd=directory)
                times = (entry.mtime_ns, entry.mtime_ns)
                try:
                    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
                except OSError:
                    os.unlink(name, dir_fd=directory)
                    raise

    # -- contents

    def receive(
        self,
        batches: Iterable[list[Piece]],
        keep: Callable[[Digest, bytes], None],
        held: Held = _hold_nothing,
    ) -> None:
        """Take in contents as they arrive.

        What nothing waits for, or does not match its digest, is dropped.

        Args:
            batches: the contents, in pieces.
            keep: is offered whole small ones.
            held: gives a part of what is held here: for which contents, which source, offset, size.

        Raises:
            ProtocolError: the pieces of a file do not follow one another.
        """
        pieces = (piece for batch in batches for piece in batch)
        for piece in pieces:
            if piece.more is More.GONE:
                continue
            if piece.more is More.MORE:
                self.fill(piece.digest, _whole(piece, pieces, held))
            elif self.put(piece.digest, piece.data):
                keep(piece.digest, piece.data)

    def put_by(self, batches: Iterable[list[Piece]], size: int) -> None:
        """Take in contents of large files before it is known what they are; see `Replica.put_by`."""
        pieces = (piece for batch in batches for piece in batch)
        for piece in pieces:
            if piece.more is not More.MORE:  # large files come in parts
                continue
            blocks = _whole(piece, pieces, _hold_nothing)
            with contextlib.suppress(OSError):  # it will be staged as all else is, or tell why not
                came = self.left_over.write(piece.digest, partial(_write_blocks, blocks=blocks, most=size))
                size -= came.size if came else 0
            collections.deque(blocks, maxlen=0)

    def take_unread(self, files: Iterable[Unread], source: Root) -> Iterator[Met]:
        """Take in large files below `source` before it is known what they are; see `Replica.take_unread`."""
        for path, size in files:
            folder, name = split(path)
            began_ns = time.time_ns()
            try:
                fd = open_file(name, source.directory(folder))
            except OSError:
                continue
            try:
                before = os.fstat(fd)
                if before.st_size != size:
                    continue
                state = xxh3_128()
                blocks = _hashed(Span(fd, 0, size), state)
                came = self.left_over.write(place_of(path), partial(_write_blocks, blocks=blocks, most=size))
                found = stat_of(os.fstat(fd))
                if came and came.digest == state.digest() and found == stat_of(before):
                    yield Met(path, came.digest, before.st_mode & 0o777, found, began_ns)
            except OSError:  # it will be staged as all else is, or tell why not
                continue
            finally:
                os.close(fd)

    def copy(
        self, digest: Digest, source: int, keep: Callable[[Digest, bytes], None] = lambda digest, data: None
    ) -> bool:
        """Stage the contents of the open file `source`; False if they cannot be read, or are not `digest`.

        Args:
            digest: of the contents.
            source: where they may be.
            keep: is offered whole small ones.
        """
        size = os.fstat(source).st_size
        if size > MAX_TEXT:
            return self.fill(digest, iter((Span(source, 0, size),)))
        try:
            data = os.read(source, size)
        except OSError:  # a disk that fails: they may be elsewhere too
            return False
        if not self.put(digest, data):
            return False
        keep(digest, data)
        return True

    def put(self, digest: Digest, data: bytes) -> bool:
        """Write contents that are in memory; see `fill`."""
        paths = self._waiting_for(digest)
        if not paths or len(data) != self._wanted[paths[0]].size or xxh3_128_digest(data) != digest:
            return False
        written = False
        for path in paths:
            try:
                directory, name = self._root.parent(path)
                found = _write_whole(name, directory, self._wanted[path], data)
            except OSError as error:  # no room for it, or no way to it: others may fit
                self._trouble[path] = error
                continue
            self._note(path, found)
            written = True
        if written:
            del self._waiting[digest]
        return written

    def fill(self, digest: Digest, blocks: Blocks) -> bool:
        """Write contents wherever they are waited for; False if they are not, or not those of `digest`."""
        whole: bytes | None = None
        trouble: OSError | None = None
        for path in self._waiting_for(digest):
            try:
                directory, name = self._root.parent(path)
                source = blocks if whole is None else self._staged(whole)
                found = _write(name, directory, self._wanted[path], self._bounded(path, source))
            except OSError as error:  # no room for it, or no way to it: others may fit
                self._trouble[path] = trouble = error
                continue
            if found is not None:
                self._note(path, found)
                whole = path
            elif trouble:  # it took what this one lacks
                self._trouble[path] = trouble
            else:
                break
        collections.deque(blocks, maxlen=0)
        if whole is not None:
            del self._waiting[digest]
            self._unread.append(whole)
        return whole is not None

    def _note(self, path: bytes, found: Stat) -> None:
        """Take note of a staged file."""
        entry = self._wanted[path]
        if found[:2] == (entry.size, entry.mtime_ns):  # the same objects: of many files that is much memory
            found = Stat(entry.size, entry.mtime_ns, *found[2:])
        self._stats[path] = found
        self._new.append(path)
        self._trouble.pop(path, None)
        if path not in self._unsure:
            self._floor -= entry.size + ENTRY_BYTES

    def _staged(self, path: bytes) -> Blocks:
        """Yield what has been staged for a path."""
        directory, name = self._root.parent(path)
        fd = open_file(name, directory)
        try:
            yield Span(fd, 0, self._wanted[path].size)
        finally:
            os.close(fd)

    # -- contents that are in the tree of another replica on this machine

    def waiting(self, unsure: bool = False) -> list[tuple[bytes, int]]:
        """Return the files that wait for contents, in the order of their paths, with their sizes in bytes.

        Args:
            unsure: those for which there may be no room, else those for which there is.
        """
        paths = (path for digest in self._waiting for path in self._waiting_for(digest))
        return sorted((path, self._wanted[path].size) for path in paths if (path in self._unsure) is unsure)

    def take(
        self, paths: Iterable[bytes], source: Root, keep: Callable[[Digest, bytes], None]
    ) -> list[Stat | int | None]:
        """Copy the files at `paths` below `source` that are what is to be at these paths here.

        Args:
            paths: those of a folder follow one another.
            source: the root of the other tree.
            keep: is offered whole small contents.

        Returns:
            What `took` has to be told of each, maybe in another process: the stat of the staged file, the
            number of the error that kept it from being written, or None if it is not what is wanted.
        """
        taken: list[Stat | int | None] = []
        folder: bytes | None = None
        there = here = -1
        for path in paths:
            try:
                parent, name = split(path)
                if parent != folder:
                    folder = None
                    there, here, folder = _reached(source, parent), self._root.directory(parent), parent
                taken.append(self._copy(path, name, there, here, keep))
            except OSError as error:  # of a disk that fails the other side will tell, if it is that one's
                taken.append(None if error.errno == errno.EIO else error.errno)
        return taken

    def _copy(
        self, path: bytes, name: bytes, there: int, here: int, keep: Callable[[Digest, bytes], None]
    ) -> Stat | None:
        entry = self._wanted[path]
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=there)
        except OSError:
            return None
        try:
            if entry.size > MAX_TEXT:
                return _write(name, here, entry, self._bounded(path, iter((Span(fd, 0, entry.size),))))
            data = os.read(fd, entry.size + 1)
        except IsADirectoryError:
            return None
        finally:
            os.close(fd)
        if len(data) != entry.size or xxh3_128_digest(data) != entry.digest:
            return None
        keep(entry.digest, data)
        return _write_whole(name, here, entry, data)

    def took(self, path: bytes, found: Stat | int | None) -> None:
        """Take note of what `take` returned for a path."""
        if isinstance(found, int):
            self._trouble[path] = OSError(found, os.strerror(found))
        elif found is not None:
            self._note(path, found)
            self._behind.wrote(found.size)

    def lacking(self) -> list[Content]:
        """Return the contents that some file still waits for."""
        return [
            Content(digest, self._wanted[paths[0]].size)
            for digest, waiting in self._waiting.items()
            if (paths := self._left(waiting))
        ]

    def _waiting_for(self, digest: Digest) -> list[bytes]:
        return self._left(self._waiting.get(digest, ()))

    def _left(self, paths: Iterable[bytes]) -> list[bytes]:
        """Return those of some files that still wait for contents."""
        left = [path for path in paths if path not in self._stats]
        return [path for path in left if not self._does_not_fit(path)] if self._unsure else left

    def _does_not_fit(self, path: bytes) -> bool:
        """Was there perhaps room for a file, and there is none? To try it again would end the same."""
        return path in self._unsure and path in self._trouble and self._trouble[path].errno == errno.ENOSPC

    def _bounded(self, path: bytes, blocks: Blocks) -> Blocks:
        """Have the blocks of a file end with an error where there is no more room for it."""
        return _while_free(self._root.fd, self._floor, blocks) if path in self._unsure else blocks

    def new_files(self) -> Iterator[tuple[bytes, Entry, Stat]]:
        """Yield the files that were staged since the last call: path, what it is, stat."""
        new, self._new = self._new, []
        return ((path, self._wanted[path], self._stats[path]) for path in new)

    def unread_texts(self) -> Iterator[tuple[Digest, bytes]]:
        """Yield small contents that were staged, and that `keep` was not offered, since the last call."""
        unread, self._unread = self._unread, []
        for path in unread:
            entry = self._wanted[path]
            if entry.size > MAX_TEXT:
                continue
            directory, name = self._root.parent(path)
            fd = open_file(name, directory)
            try:
                yield entry.digest, os.read(fd, entry.size)
            finally:
                os.close(fd)

    # -- what is ready

    def finish_directories(self) -> None:
        """Give the new directories their permissions and times, now that they are filled.

        One that cannot have them stays, and so does the one that would bring it along. What is in them and
        was not staged by this run, like a part of a file that stayed behind, goes before it comes along.

        Raises:
            ReplicaError: something that was staged is not there any more.
        """
        counts = collections.Counter(split(path)[0] for path in self._ready())
        ready: dict[bytes, set[bytes]] = {}
        for path in sorted((p for p, e in self._wanted.items() if e.kind is Kind.DIRECTORY), reverse=True):
            entry = self._wanted[path]
            try:
                fd = self._root.directory(path)
                if len(names := os.listdir(fd)) != counts[path]:
                    ready = ready or self._ready_in()
                    _tidy(fd, set(map(os.fsencode, names)), ready.get(path, set()))
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
                os.fchmod(fd, entry.mode)
            except OSError as error:
                for folder in (path, *ancestors(path)):
                    self._trouble[folder] = error

    def _ready(self) -> Iterator[bytes]:
        """Yield all paths that are staged."""
        yield from self._stats
        for path, entry in self._wanted.items():
            if entry.kind is not Kind.FILE and path not in self._trouble:
                yield path

    def _ready_in(self) -> dict[bytes, set[bytes]]:
        """Return the names that are staged in each folder."""
        ready: dict[bytes, set[bytes]] = {}
        for folder, name in map(split, self._ready()):
            ready.setdefault(folder, set()).add(name)
        return ready

    def place(self, path: bytes) -> tuple[int, bytes]:
        """Return where what is to be at `path` waits: a directory, good until the next call, and a name.

        Raises:
            FileNotFoundError: its contents have not come: they were not what was announced.
            OSError: why it could not be staged.
        """
        self.check(path)
        return self._root.parent(path)

    def check(self, path: bytes) -> Stat | None:
        """Return the stat of what is staged for `path` if it is a file; raises as `place`."""
        if self._does_not_fit(path):
            raise OSError(errno.ENOSPC, _TOO_LARGE)
        if path in self._trouble:
            raise self._trouble[path]
        found = self._stats.get(path)
        if found is None and self._wanted[path].kind is Kind.FILE:
            raise FileNotFoundError
        return found

    # -- leftovers

    def size(self) -> int:
        """Return how many bytes broken runs have left."""
        return size_below(self._root, b"") + self.left_over.size()

    def clear(self) -> None:
        """Remove all that is staged, for nothing waits for it; what is large is put by."""
        sweep(self._root, b"", self._put_by)
        self.left_over.tidy(self._wanted[path].digest for path in self._stats)
        self.give_up()

    def give_up(self) -> None:
        """Wait for nothing any more; what is staged is left, as by a run that broke."""
        self._wanted, self._waiting, self._stats, self._trouble = {}, {}, {}, {}
        self._new, self._unread = [], []
        self._unsure, self._floor = (), 0

    def _put_by(self, path: bytes, name: bytes, directory: int) -> bool:
        """Keep what there is of a large file: the next run may be one with another peer."""
        self.left_over.put_by(path, name, directory)
        return False

    def _adopt(self, path: bytes, name: bytes, directory: int) -> bool:
        """Use what a broken run left, if it is whole and still wanted; keep what there is of a large file."""
        entry = self._wanted.get(path)
        if entry is None or entry.kind is not Kind.FILE:
            return self._put_by(path, name, directory)
        try:
            digest = self.left_over.digest_of(name, directory) or hash_file(name, directory)[0]
            if digest != entry.digest:
                self.left_over.keep(entry.digest, name, directory)
                return False
            fd = open_file(name, directory)
            try:
                self._stats[path] = _dress(fd, entry)
            finally:
                os.close(fd)
        except OSError:
            return False
        self._unread.append(path)
        return True


def _tidy(directory: int, names: set[bytes], ready: set[bytes]) -> None:
    for name in names - ready:
        os.unlink(name, dir_fd=directory)
    if ready - names:
        raise ReplicaError("what was staged is not there any more; the next sync will stage it again")


def _reached(root: Root, folder: bytes) -> int:
    """Return the descriptor of a folder; -1: there is no way to it, and none to what is in it."""
    try:
        return root.directory(folder)
    except OSError:
        return -1


def _while_free(disk: int, floor: int, blocks: Blocks) -> Blocks:
    """Yield blocks, long ones in parts, and look after each whether so many bytes are still free.

    Raises:
        OSError: they are not.
    """
    for block in blocks:
        for part in _parts(block, _PART_BYTES) if isinstance(block, Span) else (block,):
            yield part
            if free_on(disk) < floor:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _update(state: xxh3_128, span: Span) -> None:
    for start in range(span.offset, span.offset + span.size, BLOCK):
        state.update(os.pread(span.fd, min(BLOCK, span.offset + span.size - start), start))


def _hashed(span: Span, state: xxh3_128) -> Blocks:
    """Yield a span in parts, and hash each at its source when it has been copied."""
    for part in _parts(span, _COPIED_BYTES):
        yield part
        _update(state, part)


def _parts(span: Span, size: int) -> Iterator[Span]:
    for done in range(0, span.size, size):
        yield Span(span.fd, span.offset + done, min(size, span.size - done))


def _create(name: bytes, directory: int, mode: int = 0o600) -> int:
    """Open a new file of the stage, in place of one that a second process wrote that died before it told."""
    try:
        return os.open(name, _CREATE, mode, dir_fd=directory)
    except FileExistsError:
        os.unlink(name, dir_fd=directory)
        return os.open(name, _CREATE, mode, dir_fd=directory)


def _write(name: bytes, directory: int, entry: Entry, blocks: Blocks) -> Stat | None:
    """Write a file of the stage; None if its contents are not what was wanted.

    Args:
        name: of the file.
        directory: good until a block is asked for: that may come from elsewhere in the stage.
        entry: what it is to be.
        blocks: its contents.

    Raises:
        OSError: it cannot be written.
    """
    directory = os.dup(directory)
    try:
        fd = _create(name, directory)
        try:
            if _write_blocks(fd, blocks, entry.size) == entry.digest:
                return _dress(fd, entry)
        except OSError:
            os.unlink(name, dir_fd=directory)
            raise
        finally:
            os.close(fd)
        os.unlink(name, dir_fd=directory)
        return None
    finally:
        os.close(directory)


def _write_blocks(fd: int, blocks: Blocks, most: int) -> Digest | None:
    """Write the contents of a file; return their digest, None if they are more than `most` bytes."""
    state, at, begun = xxh3_128(), 0, 0
    for block in blocks:
        done, at = at, at + (block.size if isinstance(block, Span) else len(block))
        if at > most:  # a peer must not fill the disk with what was announced as small
            return None
        if isinstance(block, Span):
            for part in _parts(block, _COPIED_BYTES):  # each is read again before it has gone from memory
                copy_span(part, fd)
                os.ftruncate(fd, done + part.size)  # it may end with a hole
                _update(state, Span(fd, done, part.size))
                done += part.size
        else:
            state.update(block)
            write_sparse(fd, block)
            if at - begun >= _BEHIND_BYTES:
                begin_to_write(fd, begun, at - begun)
                begun = at
    os.ftruncate(fd, at)  # it may end with a hole
    return Digest(state.digest())


def _write_whole(name: bytes, directory: int, entry: Entry, data: bytes) -> Stat:
    """Write a file of the stage whose contents are what was wanted; raises as `_write`.

    The same as `_write` with less to do, and fewer system calls: of a first sync of small files this is most.
    """
    fd = _create(name, directory, entry.mode)
    try:
        if len(data) < HOLE:
            write_all(fd, data)
        else:
            write_sparse(fd, data)
            os.ftruncate(fd, len(data))  # it may end with a hole
        return _dress(fd, entry)
    except OSError:
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(fd)


def _dress(fd: int, entry: Entry) -> Stat:
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
    st = os.fstat(fd)
    if stat.S_IMODE(st.st_mode) != entry.mode:  # as it was made, and the umask left it
        os.fchmod(fd, entry.mode)
        st = os.fstat(fd)
    return stat_of(st)


def _whole(first: Piece, pieces: Iterator[Piece], held: Held) -> Blocks:
    """Yield all that belongs to the file that begins with `first`."""
    for piece in chain((first,), pieces):
        if piece.digest != first.digest:
            raise ProtocolError("the peer mixed up the contents of two files")
        span = held(piece.digest, piece.source, piece.offset, piece.size) if piece.size else None
        yield span or piece.data
        if piece.more is not More.MORE:
            return
