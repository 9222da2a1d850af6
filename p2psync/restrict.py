"""What a key may do: `serve` with --restrict-to, --read-only or --append-only, as authorized_keys has it.

Owns what is believed of the command that ssh was asked for, the way to a root that must not lead out of a
directory, and the refusals of a replica that may only be read. Who holds the key is hostile, here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from p2psync.calls import batches
from p2psync.core.model import Action, Digest, Entry, Problem, Transition, action_of
from p2psync.core.paths import SIDECAR, is_reserved, shown
from p2psync.core.replica import (
    Applied,
    Ask,
    Change,
    Content,
    Found,
    Identity,
    Like,
    Mark,
    Met,
    More,
    Name,
    Piece,
    Point,
    Replica,
    Scanned,
    Source,
    Taken,
    Unread,
    Want,
)
from p2psync.core.vector import MAX_REPLICAS, ReplicaId
from p2psync.disk import OPEN_DIRECTORY
from p2psync.errors import Exit, Locked, NotAReplica, P2PSyncError, ReplicaError
from p2psync.local import LocalReplica, init

if TYPE_CHECKING:
    from p2psync.watcher import Watcher

MAX_COMMAND = 32 * 1024
"""A path of PATH_MAX quotes, quoted for a shell, has 20 KiB."""
MAX_NAME = 256
"""Letters of a reader's name that are remembered."""
MAX_PENDING = 1 << 16
"""Bytes of what a reader was left behind with, and a hundred for each path."""
READ_ONLY = "the peer is read-only"
NO_SUCCESSOR = "the peer is append-only, and this is no version that follows the one there"

_PROGRAM = re.compile(rb"[^\0-\x1f\x7f]+")
_ARGUMENTS = re.compile(
    rb"""(?P<create>--create )?-- (?:(?P<plain>[\w@%+=:,./-]+)|'(?P<quoted>(?:[^']|'"'"')+)')"""
)
"""What `connect.connect_ssh` sends after `serve`: its options, and a path as `shlex.quote` writes it."""


class RequestError(P2PSyncError):
    """The key was used for something else than p2psync."""

    exit_code = Exit.USAGE


class Request(NamedTuple):
    """What a p2psync elsewhere asked ssh for."""

    root: bytes
    create: bool


def request(command: bytes) -> Request:
    """Return what a command asks for: `PROGRAM serve [--create] -- ROOT`. No word of it is ever run.

    Args:
        command: what ssh was asked for, as sshd puts it into `$SSH_ORIGINAL_COMMAND`. PROGRAM is ignored:
            the key says what runs.

    Raises:
        RequestError: it is anything else.
    """
    program, _, arguments = command.partition(b" serve ")
    match = _ARGUMENTS.fullmatch(arguments)
    if len(command) > MAX_COMMAND or not _PROGRAM.fullmatch(program) or match is None:
        asked = shown(command[:200]) or "a login"
        raise RequestError(f"this key is for p2psync alone; it was used for: {asked}")
    root = match["plain"] or match["quoted"].replace(b"""'"'"'""", b"'")
    return Request(root, match["create"] is not None)


@dataclass(frozen=True)
class Key:
    """What the holder of a key may do."""

    within: bytes | None = None
    """Only open replicas at or below this directory; None: any."""
    read_only: bool = False
    append_only: bool = False
    """Nothing that was ever there is lost: what is replaced or deleted goes to the history, as always,
    and a sync through this key does not clean it; see `AppendOnly`."""

    def open(self, root: bytes, create: bool, watcher: Watcher | None = None) -> Replica:
        """Open a replica as far as the key allows; with `create`, make it one first if it is none.

        With `within`, the root becomes the working directory of this process.

        Args:
            root: of the replica.
            create: make it one.
            watcher: knows where something happened since the last scan.

        Raises:
            ReplicaError: the key does not allow it, or it cannot be opened.
            Locked: another run has it.
        """
        text, place = os.fsdecode(root), root
        make = create and not self.read_only
        try:
            if self.within is not None:
                _enter(self.within, root, make)
                place = b"."
            if make:
                if os.path.islink(os.path.join(place, SIDECAR)):  # it would be made where that leads
                    raise ReplicaError(f"the sidecar of {text} is a link")
                init(place)
            kind = AppendOnly if self.append_only else LocalReplica
            replica = kind(place, cleans=not (self.read_only or self.append_only), watcher=watcher)
        except NotAReplica as error:
            if create and self.read_only:
                raise ReplicaError(f"{text} is not a replica, and {READ_ONLY}: it stays none") from error
            raise NotAReplica(f"{text} is not a replica") from error
        except Locked as error:
            raise Locked(f"another run of p2psync is at work on {text}; try again when it is done") from error
        return ReadOnly(replica) if self.read_only else replica


# -- the way to a root


def _enter(within: bytes, root: bytes, create: bool) -> None:
    """Make `root` the working directory, if it is at or below `within`.

    Every step is taken from an open directory and across no link (I7), so that what is renamed meanwhile
    cannot lead outside. LocalReplica wants a path: "." is the one that stays with an open directory, on
    every system.

    Args:
        within: the directory; the way to it may have links.
        root: absolute, or relative to `within`.
        create: make directories that are missing.

    Raises:
        NotAReplica: there is no such directory.
        ReplicaError: the way leads elsewhere.
    """
    try:
        fd = os.open(within, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ReplicaError(f"what the key is restricted to cannot be opened: {error.strerror}") from error
    try:
        for name in _names_below(fd, root):
            above, fd = fd, _step(name, fd, create)
            os.close(above)
        os.fchdir(fd)
    except FileNotFoundError as error:
        raise NotAReplica("there is no such directory") from error
    except OSError as error:
        raise ReplicaError(f"{os.fsdecode(root)} cannot be opened: {error.strerror}") from error
    finally:
        os.close(fd)


def _step(name: bytes, fd: int, create: bool) -> int:
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=fd)
    return os.open(name, OPEN_DIRECTORY, dir_fd=fd)


def _names_below(fd: int, root: bytes) -> list[bytes]:
    """Return the names that lead from the open directory to `root`.

    Raises:
        ReplicaError: it is not at or below the directory, or in a sidecar.
    """
    names = [name for name in root.split(b"/") if name not in (b"", b".")]
    if b".." not in names:
        start = _depth_of(fd, names) if root.startswith(b"/") else 0
        if start is not None and not any(map(is_reserved, names[start:])):
            return names[start:]
    raise ReplicaError(f"{os.fsdecode(root)} is not in the directory that this key is restricted to")


def _depth_of(fd: int, names: Sequence[bytes]) -> int | None:
    """Return how many of `names` lead from `/` to the open directory.

    Whatever is at these names later: only the open directory is used.
    """
    wanted = os.fstat(fd)
    for depth in range(len(names) + 1):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(b"/" + b"/".join(names[:depth])), wanted):
                return depth
    return None


# -- a replica that only takes in


class AppendOnly(LocalReplica):
    """A replica of which nothing is lost, and nothing forgotten.

    Each version follows the one that it replaces: any other would only be sent to be taken for one that is
    known.
    """

    def refusal(self, step: Transition) -> str | None:
        """Return why a transition must not be carried out; see `LocalReplica.refusal`."""
        return super().refusal(step) or (None if _follows(step) else NO_SUCCESSOR)


def _follows(step: Transition) -> bool:
    """Does what is wanted follow what is there, or is it the same?

    A version of as many replicas as one may have has forgotten some, and what a manifest that was made anew
    has found has a past that is not known: nobody can tell then.
    """
    before, wanted = step.expected, step.wanted
    if before is None or not before.revision or len(wanted.version) == MAX_REPLICAS:
        return True
    return before.version <= wanted.version and (
        before.version != wanted.version or before.same_content(wanted)
    )


# -- a replica that may only be read


class ReadOnly:
    """A replica whose tree is not changed. A scan writes what it finds to the manifest, as always.

    What there would be to change is told as problems, so that the other side still gets all that it wants.
    Transitions that only join versions count as done, and are not: who may only read must not decide what
    this replica has seen. Nothing is read that is ignored, or was deleted, but for what merges start from.
    """

    def __init__(self, replica: LocalReplica) -> None:
        """Take over `replica`."""
        self._replica = replica
        self._is_scanned = False
        self._transitions: Sequence[Transition] = ()

    @property
    def identity(self) -> Identity:
        """See `Replica.identity`."""
        return self._replica.identity

    def room_if_blank(self) -> int:
        """Take nothing."""
        return 0

    def scan(self, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        """See `Replica.scan`."""
        scanned = self._replica.scan(keep, doubt, leave_large)
        self._is_scanned = True
        return scanned

    def read_unread(self) -> Generator[list[Piece], None, None]:
        """See `Replica.read_unread`: what is ignored was not left."""
        return self._replica.read_unread()

    def put_by(self, batches: Iterable[list[Piece]], size: int) -> None:
        """Refuse, as `stage` does; raises as that."""
        raise ReplicaError(READ_ONLY)

    def unread(self) -> Sequence[Unread]:
        """Return nothing: there is no neighbour."""
        return []

    def take_unread(self, files: Sequence[Unread]) -> Iterator[Met]:
        """Refuse, as `stage` does; raises as that."""
        raise ReplicaError(READ_ONLY)

    def note_unread(self, met: Sequence[Met]) -> None:
        """Refuse, as `stage` does; raises as that."""
        raise ReplicaError(READ_ONLY)

    def _shown(self) -> LocalReplica:
        """Return the replica once the ignore rules are known: before a scan nothing would be ignored."""
        if not self._is_scanned:
            self.scan(keep=True)
        return self._replica

    def _ignored(self, paths: Sequence[bytes]) -> set[bytes]:
        return set(self._shown().lookup([Name(path, False) for path in paths]).ignored)

    def mark(self, peer: ReplicaId) -> Mark | None:
        """See `Replica.mark`, and `acknowledge`."""
        mark, other = self._replica.mark(_reader(peer)), self._replica.mark(peer)
        return msgspec.structs.replace(mark or Mark(0, 0, b""), tick=other.tick) if other else mark

    def changes(self, since: int) -> Iterator[list[Change]]:
        """See `Replica.changes`."""
        return self._shown().changes(since)

    def lookup(self, names: Sequence[Name]) -> Found:
        """See `Replica.lookup`."""
        return self._shown().lookup(names)

    def bases(self, paths: Sequence[bytes]) -> list[list[Entry]]:
        """See `Replica.bases`."""
        ignored = self._ignored(paths)
        bases = self._replica.bases(paths)
        return [[] if path in ignored else known for path, known in zip(paths, bases, strict=True)]

    def texts(self, digests: Sequence[Digest]) -> list[bytes | None]:
        """See `Replica.texts`."""
        shows = functools.partial(self._shown().shows, past=True)
        return [self._replica.texts([digest])[0] if shows(digest) else None for digest in digests]

    def rehash(self, paths: Sequence[bytes]) -> list[Digest | None]:
        """See `Replica.rehash`."""
        ignored = self._ignored(paths)
        return [None if path in ignored else self._replica.rehash([path])[0] for path in paths]

    def sparse(self, contents: Sequence[Content]) -> list[Content]:
        """See `Replica.sparse`."""
        shows = self._shown().shows
        return self._replica.sparse([content for content in contents if shows(content.digest)])

    def prepare(self, transitions: Sequence[Transition], sparse: Sequence[Content] = ()) -> list[Content]:
        """Take note of what is to be refused."""
        self._transitions = transitions
        return []

    def take(self) -> Iterator[Taken]:
        """Take nothing: `prepare` lacked nothing."""
        return iter(())

    def read(self, digests: Sequence[Digest]) -> Iterator[list[Piece]]:
        """See `Replica.read`."""
        for is_shown, some in itertools.groupby(digests, self._shown().shows):
            if is_shown:
                yield from self._replica.read(list(some))
            else:
                for digest in some:
                    yield [_gone(digest)]

    def alike(self, likes: Sequence[Like]) -> list[list[Digest]]:
        """See `Replica.alike`."""
        shown = [self._shown().shows(like.content.digest) for like in likes]
        found = iter(self._replica.alike(list(itertools.compress(likes, shown))))
        return [next(found) if is_shown else [] for is_shown in shown]

    def sources(self, asks: Sequence[Ask]) -> list[list[Source]]:
        """Hold nothing: `prepare` lacked nothing."""
        return [[] for _ in asks]

    def differences(self, wants: Sequence[Want]) -> Iterator[list[Piece]]:
        """See `Replica.differences`."""
        shows = self._shown().shows
        for is_shown, some in itertools.groupby(wants, lambda want: shows(want.content.digest)):
            if is_shown:
                yield from self._replica.differences(list(some))
            else:
                for want in some:
                    yield [_gone(want.content.digest)]

    def stage(self, batches: Iterable[list[Piece]]) -> None:
        """Refuse: `prepare` lacked nothing.

        Raises:
            ReplicaError: always.
        """
        raise ReplicaError(READ_ONLY)

    def apply(self) -> Iterator[Applied]:
        """Tell of a problem with each path that would change."""
        transitions, self._transitions = self._transitions, ()
        problems = [
            Problem(t.path, f"left alone: {READ_ONLY}")
            for t in transitions
            if action_of(t) is not Action.NOTHING
        ]
        if transitions:
            yield Applied(len(transitions) - len(problems), [])
        for batch in batches(problems, lambda problem: 100 + len(problem.path)):
            yield Applied(0, batch)

    def newest(self) -> int:
        """See `Replica.newest`."""
        return self._replica.newest()

    def files(self) -> int:
        """See `Replica.files`."""
        return self._replica.files()

    def point(self) -> Point:
        """See `Replica.point`."""
        return self._replica.point()

    def recalls(self, seq: int, nonce: int, tick: int = 0) -> bool:
        """See `Replica.recalls`."""
        return self._replica.recalls(seq, nonce, tick)

    def remint(self, peer: ReplicaId, since: int) -> Identity:
        """Refuse: who this is, is no business of readers.

        Raises:
            ReplicaError: always.
        """
        raise ReplicaError(
            f"{READ_ONLY}, and has to become another replica, since it is a copy or was restored:"
            " sync it once through another key"
        )

    def acknowledge(self, peer: Identity, mark: Mark) -> None:
        """See `Replica.acknowledge`. Readers have marks of their own.

        Nobody proves who they are: a mark for a replica that is synced through another key would hide its
        changes from this one. Nor is this a place to store things: where a reader was left behind with more
        than a few paths, all is compared with it next time.
        """
        reader = msgspec.structs.replace(peer, replica=_reader(peer.replica), name=peer.name[:MAX_NAME])
        if sum(100 + len(path) for path in mark.pending) > MAX_PENDING:
            mark = Mark(mark.epoch, 0, b"", mark.pending[:1])
        self._replica.acknowledge(reader, mark)

    def close(self) -> None:
        """See `Replica.close`."""
        self._replica.close()


def _gone(digest: Digest) -> Piece:
    return Piece(digest, b"", More.GONE)


def _reader(peer: ReplicaId) -> ReplicaId:
    """Return the number of a replica as a reader: negative, which no replica's is."""
    return ReplicaId(~peer)
