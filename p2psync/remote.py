"""A replica at the far end of a connection."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import msgspec
from xxhash import xxh3_128_digest

from p2psync.calls import (
    BATCH_BYTES,
    CALL,
    END,
    ERROR,
    FAILURES,
    VALUE,
    Acknowledge,
    Alike,
    AnyAlike,
    AnyBases,
    AnyCall,
    AnyChanges,
    AnyContents,
    AnyDigests,
    AnySources,
    AnyTexts,
    AnyUnread,
    Apply,
    Bases,
    Changes,
    Close,
    Describe,
    Differences,
    Echo,
    Failure,
    Files,
    GetMark,
    GetPoint,
    GetUnread,
    Lookup,
    Newest,
    News,
    NoteUnread,
    Open,
    Prepare,
    PutBy,
    Read,
    ReadUnread,
    Recalls,
    Rehash,
    Remint,
    RoomIfBlank,
    Scan,
    Sources,
    Sparse,
    Stage,
    Take,
    TakeUnread,
    Texts,
    Wait,
    Watch,
    batches,
    check_among,
    check_length,
    check_paths,
    plain_problems,
    weight,
)
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import NO_DIGEST, Digest, Entry, Transition, needs_content
from p2psync.core.pace import Compress
from p2psync.core.replica import (
    MAX_ITEMS,
    TEXTS_AT_ONCE,
    AnyPieces,
    Applied,
    Ask,
    Change,
    Content,
    Count,
    Found,
    Identity,
    Like,
    Mark,
    Met,
    Name,
    Piece,
    Point,
    Scanned,
    Source,
    Taken,
    Unread,
    Want,
)
from p2psync.core.vector import ReplicaId
from p2psync.errors import Locked, PeerError, ProtocolError, Unreachable
from p2psync.facts import Facts
from p2psync.wire import Connection, check_entry, check_path, plain

_T = TypeVar("_T")

PATIENCE_SECONDS = 5.0
"""How long a far end may take to unlock and end, once told to."""
_BREAK_SECONDS = 0.5
"""How long until who sends notices that there is nobody any more. A connection of ssh that is kept holds the
descriptors as well, and may be stuck: then nobody ever does."""


class Process(Protocol):
    """The process behind a connection."""

    def why_it_ended(self) -> str | None:
        """Return what is to be told of a far end that ended before it said anything."""

    def end(self, patience: float) -> None:
        """Wait for the process; after `patience` seconds, end it."""


class RemoteReplica:
    """A replica served elsewhere."""

    def __init__(
        self, connection: Connection, process: Process, compress: Compress = Compress.OFF, limit: int = 0
    ) -> None:
        """Greet the far end, which opens the replica; see `Connection.open`.

        Raises:
            Unreachable: nothing answered.
            ProtocolError: it is no p2psync, or of another version.
            P2PSyncError: why it could not open the replica.
        """
        self._connection = connection
        self._process = process
        self._busy = True
        self._closed = False
        self._news: Iterator[News] | None = None
        """What it tells while it waits."""
        self._is_opening = False
        """It was told to lock again, and has not answered yet."""
        self.is_looking = False
        """It is looking at what happened there, which takes long: it answers when it has done."""
        self._prepared: set[bytes] = set()
        self._lacking: Container[Content] = ()
        try:
            connection.open(compress, limit)
            self._identify(self._answer(Identity))
            self._busy = False
        except Unreachable as error:
            reason = process.why_it_ended()
            self.close()
            raise (Unreachable(reason) if reason else error) from error
        except BaseException:
            self.close()
            raise

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent to and received from the far end so far."""
        return self._connection.sent, self._connection.received

    @property
    def broke_off(self) -> bool:
        """Did a call end in its midst? Then nothing more can be asked."""
        return self._busy

    def close(self) -> None:
        """Have the far end unlock, and wait until it has; stop one that is in the middle of something."""
        if self._closed:
            return
        self._closed = True
        if self._busy:
            self._process.end(0)  # first: a thread may still be reading what it sends
            self._connection.close(_BREAK_SECONDS)
            return
        with contextlib.suppress(PeerError):
            self._connection.send(CALL, Close())
            self._connection.flush()
        self._connection.close()
        self._process.end(PATIENCE_SECONDS)

    # -- watching: the connection stays, the lock is held only while something is synced

    def watch(self, settle: float, poll: float, full_every: float) -> None:
        """Have the far end watch its tree; see `Watcher`."""
        self._identify(self._ask(Watch(settle, poll, full_every), Identity))

    def let_go(self) -> None:
        """Have the far end unlock, and tell when something has changed there: `fileno` is readable then."""
        self._connection.send(CALL, Wait())
        self._connection.flush()
        self._news = self._answers(News)

    def fileno(self) -> int:
        """Return the descriptor on which the far end tells of something."""
        return self._connection.fileno()

    def has_changed(self) -> bool:
        """Return what the far end tells, when `fileno` is readable: has something changed there?

        Raises:
            PeerError: the connection broke.
            P2PSyncError: the far end cannot go on.
        """
        self._news = self._news or self._answers(News)
        changed = self._hear()
        if self._is_opening and not self._news:  # it has done so at last, and may be wanted later only
            with contextlib.suppress(Locked):
                self._opened()
                self.let_go()
        return changed

    def _hear(self) -> bool:
        """Take in all that it has told; return whether something has changed there."""
        changed = False
        while self._news:
            news = next(self._news, None)
            self.is_looking = news is News.LOOKING
            changed = changed or news is News.CHANGED
            if news is None:
                self._news = None
            elif not changed and not self._connection.has_input(0):  # else the end follows at once
                break
        return changed

    def take_up(self) -> bool:
        """Lock the far end again; return whether it knew already that something changed there.

        Raises:
            Locked: another run has it, and it is as if `let_go` had not been called; or `is_looking`.
            Unreachable: it does not answer: its disk hangs, say, or its machine sleeps.
            P2PSyncError: the far end cannot go on.
        """
        if not self._is_opening:
            self._connection.send(CALL, Open())
            self._connection.flush()
            self._is_opening = True
        if not self._connection.has_input(PATIENCE_SECONDS):
            self._busy = True  # there is nothing to wait for in `close`
            raise Unreachable(f"{self._connection.name} has not answered for {PATIENCE_SECONDS:.0f} s")
        changed = False
        while self._news:
            changed = self._hear()
            if self.is_looking:
                raise Locked(f"{self._connection.name} is looking at what happened there")
        self._opened()
        return changed

    def _opened(self) -> None:
        """Take in that it has locked again; raises as `take_up`."""
        self._is_opening = False
        self._identify(self._answer(Identity))

    # -- how it is there

    def facts(self) -> Facts:
        """Return what is so at the far end."""
        return self._ask(Describe(), Facts)

    def echo(self, data: bytes, size: int) -> None:
        """Send bytes there, and have `size` of them sent back."""
        if len(self._ask(Echo(data, size), bytes)) != size:
            raise ProtocolError(f"{self._connection.name} sent back something else")

    def _identify(self, identity: Identity) -> None:
        self.identity = msgspec.structs.replace(identity, name=plain(identity.name))

    # -- calls

    def _ask(self, call: AnyCall, kind: type[_T]) -> _T:
        with self._calling(call):
            return self._answer(kind)

    def _stream(self, call: AnyCall, kind: type[_T]) -> Generator[_T, None, None]:
        with self._calling(call):
            yield from self._answers(kind)

    @contextlib.contextmanager
    def _calling(self, call: AnyCall) -> Iterator[None]:
        """A call is under way: who is interrupted in it can only hang up; see `broke_off`."""
        self._busy = True
        self._connection.send(CALL, call)
        self._connection.flush()
        yield
        self._busy = False

    def _tell(self, batches: Iterable[object]) -> None:
        """Send what belongs to a call. Who hangs up before the end has said why: the answer will tell."""
        for batch in batches:
            try:
                self._connection.send(VALUE, batch)
            except Unreachable:
                return
        with contextlib.suppress(Unreachable):
            self._connection.send(END)
            self._connection.flush()

    def _answer(self, kind: type[_T]) -> _T:
        answers = list(self._answers(kind))
        if len(answers) != 1:
            raise ProtocolError(f"{self._connection.name} gave {len(answers)} answers to one question")
        return answers[0]

    def _answers(self, kind: type[_T]) -> Iterator[_T]:
        while True:
            tag, message = self._connection.receive()
            if tag == END:
                return
            if tag == ERROR:
                failure = self._connection.decode(message, Failure)
                self._busy = False
                raise FAILURES.get(failure.kind, PeerError)(plain(failure.message))
            if tag != VALUE:
                raise ProtocolError(f"{self._connection.name} sent something else where an answer was due")
            yield self._connection.decode(message, kind)

    # -- the Replica protocol

    def room_if_blank(self) -> int:
        """See `Replica.room_if_blank`."""
        return self._ask(RoomIfBlank(), Count)

    def scan(self, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        """See `Replica.scan`."""
        scanned = self._ask(Scan(keep, doubt, leave_large), Scanned)
        return msgspec.structs.replace(scanned, problems=plain_problems(scanned.problems))

    def read_unread(self) -> Generator[list[Piece], None, None]:
        """See `Replica.read_unread`."""
        return self._stream(ReadUnread(), AnyPieces)

    def unread(self) -> Sequence[Unread]:
        """See `Replica.unread`."""
        found = [unread for batch in self._stream(GetUnread(), AnyUnread) for unread in batch]
        check_paths(path for path, _ in found)
        return found

    def take_unread(self, files: Sequence[Unread]) -> Iterator[Met]:
        """See `Replica.take_unread`."""
        for batch in batches(files, lambda unread: 100 + len(unread.path)):
            asked = {path for path, _ in batch}
            for met in self._stream(TakeUnread(batch), Met):
                check_among([met.path], asked)
                yield met

    def note_unread(self, met: Sequence[Met]) -> None:
        """See `Replica.note_unread`."""
        for batch in batches(met, lambda one: 200 + len(one.path)):
            self._ask(NoteUnread(batch), type(None))

    def put_by(self, batches: Iterable[list[Piece]], size: int) -> None:
        """See `Replica.put_by`."""
        with self._calling(PutBy(size)):
            self._tell(batches)
            self._answer(type(None))

    def mark(self, peer: ReplicaId) -> Mark | None:
        """See `Replica.mark`."""
        mark = self._ask(GetMark(peer), Mark | None)  # type: ignore[arg-type]
        if mark is not None:
            check_paths(mark.pending)
        return mark

    def changes(self, since: int) -> Iterator[list[Change]]:
        """See `Replica.changes`."""
        for batch in self._stream(Changes(since), AnyChanges):
            for change in batch:
                check_path(change.path)
                check_entry(change.entry)
            yield batch

    def lookup(self, names: Sequence[Name]) -> Found:
        """See `Replica.lookup`."""
        found = Found([], [])
        for batch in batches(names, lambda name: 300 + len(name.path)):
            part = self._ask(Lookup(batch), Found)
            check_length(part.entries, batch)
            check_among(part.ignored, {name.path for name in batch})
            for entry in part.entries:
                if entry is not None:
                    check_entry(entry)
            found.entries.extend(part.entries)
            found.ignored.extend(part.ignored)
        return found

    def bases(self, paths: Sequence[bytes]) -> list[list[Entry]]:
        """See `Replica.bases`."""
        bases: list[list[Entry]] = []
        for batch in batches(paths, lambda path: 3000 + len(path)):
            part = self._ask(Bases(batch), AnyBases)
            check_length(part, batch)
            for remembered in part:
                for entry in remembered:
                    check_entry(entry)
            bases += part
        return bases

    def texts(self, digests: Sequence[Digest]) -> list[bytes | None]:
        """See `Replica.texts`."""
        texts: list[bytes | None] = []
        for batch in batches(digests, lambda _: BATCH_BYTES // TEXTS_AT_ONCE + 1):
            part = self._ask(Texts(batch), AnyTexts)
            check_length(part, batch)
            texts += [
                text
                if text is not None and len(text) <= MAX_TEXT and xxh3_128_digest(text) == digest
                else None
                for text, digest in zip(part, batch, strict=True)
            ]
        return texts

    def rehash(self, paths: Sequence[bytes]) -> list[Digest | None]:
        """See `Replica.rehash`."""
        digests: list[Digest | None] = []
        for batch in batches(paths, lambda path: 1000 + len(path)):
            part = self._ask(Rehash(batch), AnyDigests)
            check_length(part, batch)
            digests += part
        return digests

    def sparse(self, contents: Sequence[Content]) -> list[Content]:
        """See `Replica.sparse`."""
        sparse: list[Content] = []
        for batch in batches(contents, lambda _: 100):
            part = self._ask(Sparse(batch), AnyContents)
            check_among((content.digest for content in part), {content.digest for content in batch})
            sparse += part
        return sparse

    def prepare(self, transitions: Sequence[Transition], sparse: Sequence[Content] = ()) -> list[Content]:
        """See `Replica.prepare`."""
        self._prepared = {transition.path for transition in transitions}
        contents = (
            Content(step.wanted.digest, step.wanted.size) for step in transitions if needs_content(step)
        )
        asked = {content: content for content in contents}
        missing: list[Content] = []
        self._lacking = asked.keys()
        with self._calling(Prepare(list(sparse[:MAX_ITEMS]))):
            self._tell(batches(transitions, weight))
            for batch in self._answers(AnyContents):
                check_among(batch, self._lacking)
                missing += [asked[content] for content in batch]  # the answer's own would double them
        return missing

    def take(self) -> Iterator[Taken]:
        """See `Replica.take`."""
        for taken in self._stream(Take(), Taken):
            check_among(taken.lacking, self._lacking)
            yield taken

    def read(self, digests: Sequence[Digest]) -> Iterator[list[Piece]]:
        """See `Replica.read`."""
        for batch in batches(digests, lambda _: 100):
            asked = set(batch)
            for pieces in self._stream(Read(batch), AnyPieces):
                check_among((piece.digest for piece in pieces), asked)
                yield pieces

    def alike(self, likes: Sequence[Like]) -> list[list[Digest]]:
        """See `Replica.alike`."""
        alike = self._ask(Alike(list(likes)), AnyAlike)
        check_length(alike, likes)
        return alike

    def sources(self, asks: Sequence[Ask]) -> list[list[Source]]:
        """See `Replica.sources`."""
        sources = self._ask(Sources(list(asks)), AnySources)
        check_length(sources, asks)
        for found, ask in zip(sources, asks, strict=True):
            check_among((source.digest for source in found), {*ask.bases, NO_DIGEST})
        return sources

    def differences(self, wants: Sequence[Want]) -> Iterator[list[Piece]]:
        """See `Replica.differences`."""
        asked = {want.content.digest for want in wants}
        for pieces in self._stream(Differences(list(wants)), AnyPieces):
            check_among((piece.digest for piece in pieces), asked)
            yield pieces

    def stage(self, batches: Iterable[list[Piece]]) -> None:
        """See `Replica.stage`."""
        with self._calling(Stage()):
            self._tell(batches)
            self._answer(type(None))

    def apply(self) -> Iterator[Applied]:
        """See `Replica.apply`."""
        for applied in self._stream(Apply(), Applied):
            check_among((problem.path for problem in applied.problems), self._prepared)
            yield Applied(applied.done, plain_problems(applied.problems))

    def newest(self) -> int:
        """See `Replica.newest`."""
        return self._ask(Newest(), Count)

    def files(self) -> int:
        """See `Replica.files`."""
        return self._ask(Files(), Count)

    def point(self) -> Point:
        """See `Replica.point`."""
        return self._ask(GetPoint(), Point)

    def recalls(self, seq: int, nonce: int, tick: int = 0) -> bool:
        """See `Replica.recalls`."""
        return self._ask(Recalls(seq, nonce, tick), bool)

    def remint(self, peer: ReplicaId, since: int) -> Identity:
        """See `Replica.remint`."""
        self._identify(self._ask(Remint(peer, since), Identity))
        return self.identity

    def acknowledge(self, peer: Identity, mark: Mark) -> None:
        """See `Replica.acknowledge`."""
        self._ask(Acknowledge(peer, mark), type(None))
