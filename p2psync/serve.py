"""The far end: carries out calls on a replica until the other side hangs up."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar, assert_never

import msgspec

from p2psync import errors
from p2psync.calls import (
    CALL,
    END,
    ERROR,
    VALUE,
    Acknowledge,
    Alike,
    AnyCall,
    AnyTransitions,
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
    check_paths,
    in_one,
    weight,
)
from p2psync.core.model import Transition
from p2psync.core.paths import SIDECAR, printable
from p2psync.core.replica import AnyPieces, Replica
from p2psync.errors import Locked, P2PSyncError, PeerError, ProtocolError, Unreachable
from p2psync.facts import facts
from p2psync.wire import Connection, check_entry, check_path, plain

if TYPE_CHECKING:
    from p2psync.watcher import Watcher

_T = TypeVar("_T")
PATIENCE_SECONDS = 1.0
"""How long a call may go on when nobody waits for its answer any more."""
LONG_SECONDS = 1.0
"""After so long the other side is told that this one is still looking at what happened."""
RETRY_SECONDS = (0.02, 0.1)
"""Between two tries for the lock, at random, when something changed here."""


Opener = Callable[[bytes, bool], Replica]
"""Opens the replica at a root, and makes it one first if told to."""
Watched = Callable[["Watcher"], Opener]
"""Returns what opens a replica that scans only where its watcher saw something."""


def serve(
    connection: Connection,
    root: bytes,
    opener: Opener,
    create: bool,
    watched: Watched | None = None,
    closing: threading.Event | None = None,
) -> errors.Exit:
    """Open the replica at `root` and carry out calls on it until the other side hangs up.

    Args:
        connection: to the other side.
        root: of the replica.
        opener: opens it.
        create: make it one first if it is none.
        watched: what opens it if the other side has it watched; None: it cannot be.
        closing: is set while the replica is closed.

    Returns:
        The exit code for the process; the other side is told why.
    """
    far = _Far(connection, root, opener, watched, closing or threading.Event())
    try:
        connection.answer()
        far.open(create)
        while far.serve_call():
            pass
        return errors.Exit.IN_STEP
    except Unreachable as error:  # nobody is there to be told; who half is, sees the connection end
        return error.exit_code
    except P2PSyncError as error:
        return _fail(connection, error)
    except OSError as error:
        return _fail(connection, errors.ReplicaError(f"{os.fsdecode(root)} cannot be used: {error}"))
    except Exception as error:
        return _fail(connection, PeerError(f"the far end failed: {type(error).__name__}: {error}"))
    finally:
        far.close()


class _Far:
    """The far end of one connection."""

    def __init__(
        self,
        connection: Connection,
        root: bytes,
        opener: Opener,
        watched: Watched | None,
        closing: threading.Event,
    ) -> None:
        self._connection = connection
        self._root = root
        self._opener = opener
        self._watched = watched
        self._closing = closing
        self._replica: Replica | None = None
        self._watcher: Watcher | None = None

    def open(self, create: bool = False) -> None:
        """Open the replica, and tell who it is."""
        self._replica = self._opener(self._root, create)
        _reply(self._connection, [self._replica.identity])

    def close(self) -> None:
        """Unlock, and stop watching."""
        self._let_go()
        if self._watcher:
            self._watcher.close()

    def serve_call(self) -> bool:
        """Carry out one call; False if it was the last."""
        tag, message = self._connection.receive()
        if tag != CALL:
            raise ProtocolError("the peer sent something else where a call was due")
        call: AnyCall = self._connection.decode(message, AnyCall)  # type: ignore[arg-type]
        match call:
            case Close():
                return False
            case Watch(settle, poll, full_every):
                self._watch(settle, poll, full_every)
            case Wait():
                _reply(self._connection, self._wait())
            case Describe():
                _reply(self._connection, [facts(os.path.join(self._root, SIDECAR))])
            case Echo(_, size):
                _reply(self._connection, [os.urandom(size)])
            case Open():
                self._let_go()
                try:
                    self.open()
                except Locked as error:
                    _tell(self._connection, error)
            case _:
                if self._replica is None:
                    raise ProtocolError("the peer wants something of a replica that it has let go of")
                _reply(self._connection, _carry_out(self._connection, self._replica, call))
        return True

    def _watch(self, settle: float, poll: float, full_every: float) -> None:
        from p2psync.watcher import Watcher

        if self._watched is None or self._watcher:
            raise ProtocolError("what is served here cannot be watched, or is being watched already")
        gc.enable()  # it runs for weeks
        self._watcher = Watcher(settle, poll, full_every)
        self._opener = self._watched(self._watcher)
        self._let_go()
        self.open()

    def _let_go(self) -> None:
        replica, self._replica = self._replica, None
        if replica:
            self._closing.set()
            replica.close()
            self._closing.clear()

    def _wait(self) -> Iterator[News]:
        """Unlock, and wait until something has changed here, or a call comes."""
        if self._watcher is None or self._replica is None:
            raise ProtocolError("the peer waits for changes, and has not said that they are to be watched")
        known = self._replica.newest()
        self._let_go()
        not_before = 0.0
        while True:
            due = max(self._watcher.due(), not_before)
            if self._connection.wait(self._watcher.fileno(), due):
                return
            if time.monotonic() < due:
                continue
            try:
                with self._looking() as told, contextlib.closing(self._opener(self._root, False)) as replica:
                    replica.scan(True)
                    has_changed = replica.newest() != known
            except Locked:
                not_before = time.monotonic() + _some_time()
                continue
            if has_changed:
                yield News.CHANGED
                return
            if told.is_set():
                yield News.NOTHING
                self._connection.flush()

    @contextlib.contextmanager
    def _looking(self) -> Iterator[threading.Event]:
        """Tell the other side if what is done takes long; the event says whether it was told."""
        told = threading.Event()

        def tell() -> None:
            told.set()
            with contextlib.suppress(Unreachable):
                self._connection.send(VALUE, News.LOOKING)
                self._connection.flush()

        timer = threading.Timer(LONG_SECONDS, tell)
        timer.start()
        try:
            yield told
        finally:
            timer.cancel()
            timer.join()


def serve_alone(
    connection: Connection, root: bytes, opener: Opener, create: bool, watched: Watched | None = None
) -> errors.Exit:
    """Serve in a process that is there for nothing else; see `serve`."""
    served, closing = threading.Event(), threading.Event()
    threading.Thread(target=_end_with, args=(connection, served, closing), daemon=True).start()
    try:
        return serve(connection, root, opener, create, watched, closing)
    finally:
        served.set()


def _end_with(connection: Connection, served: threading.Event, closing: threading.Event) -> None:
    """End this process when the other side has hung up, also in the middle of a long call.

    Calls read nothing while they work: without this, a far end whose caller was killed would keep the lock.
    To close may take longer, on a slow disk: a manifest that was not closed is read whole by the next run.
    """
    connection.wait_for_hang_up()
    while not served.wait(PATIENCE_SECONDS):
        if not closing.is_set():
            os._exit(errors.Exit.INTERRUPTED)


def _fail(connection: Connection, error: P2PSyncError) -> errors.Exit:
    with contextlib.suppress(Unreachable):
        _tell(connection, error)
    return error.exit_code


def _tell(connection: Connection, error: P2PSyncError) -> None:
    connection.send(ERROR, Failure(type(error).__name__, printable(str(error))))
    connection.flush()


def _reply(connection: Connection, answers: Iterable[object]) -> None:
    for answer in answers:
        connection.send(VALUE, answer)
    connection.send(END)
    connection.flush()


def _carry_out(connection: Connection, replica: Replica, call: AnyCall) -> Iterable[object]:
    match call:
        case RoomIfBlank():
            return [replica.room_if_blank()]
        case Scan(keep, doubt, leave_large):
            return [in_one(replica.scan(keep, doubt, leave_large))]
        case ReadUnread():
            return replica.read_unread()
        case GetUnread():
            return batches(replica.unread(), lambda unread: 100 + len(unread.path))
        case TakeUnread(files):
            check_paths(path for path, _ in files)
            return replica.take_unread(files)
        case NoteUnread(met):
            check_paths(one.path for one in met)
            replica.note_unread(met)
            return [None]
        case PutBy(size):
            replica.put_by(_incoming(connection, AnyPieces), size)
            return [None]
        case GetMark(peer):
            return [replica.mark(peer)]
        case Changes(since):
            return (part for batch in replica.changes(since) for part in batches(batch, weight))
        case Lookup(names):
            check_paths(name.path for name in names)
            return [replica.lookup(names)]
        case Bases(paths):
            check_paths(paths)
            return [replica.bases(paths)]
        case Texts(digests):
            return [replica.texts(digests)]
        case Rehash(paths):
            check_paths(paths)
            return [replica.rehash(paths)]
        case Sparse(contents):
            return [replica.sparse(contents)]
        case Prepare(sparse):
            return batches(replica.prepare(list(_transitions(connection)), sparse), lambda _: 100)
        case Take():
            return replica.take()
        case Read(digests):
            return replica.read(digests)
        case Alike(likes):
            return [replica.alike(likes)]
        case Sources(asks):
            return [replica.sources(asks)]
        case Differences(wants):
            return replica.differences(wants)
        case Stage():
            replica.stage(_incoming(connection, AnyPieces))
            return [None]
        case Apply():
            return replica.apply()
        case Newest():
            return [replica.newest()]
        case GetPoint():
            return [replica.point()]
        case Recalls(seq, nonce, tick):
            return [replica.recalls(seq, nonce, tick)]
        case Remint(peer, since):
            return [replica.remint(peer, since)]
        case Files():
            return [replica.files()]
        case Acknowledge(peer, mark):
            check_paths(mark.pending)
            replica.acknowledge(msgspec.structs.replace(peer, name=plain(peer.name)), mark)
            return [None]
        case Watch() | Wait() | Open() | Describe() | Echo() | Close():
            raise ProtocolError("that is no call of a replica")
        case _:
            assert_never(call)


def _incoming(connection: Connection, kind: type[_T]) -> Iterator[_T]:
    while True:
        tag, message = connection.receive()
        if tag == END:
            return
        if tag != VALUE:
            raise ProtocolError("the peer sent something else where a value was due")
        yield connection.decode(message, kind)


def _transitions(connection: Connection) -> Iterator[Transition]:
    known: set[bytes] = set()
    for batch in _incoming(connection, AnyTransitions):
        for transition in batch:
            check_path(transition.path)
            if transition.path in known:
                raise ProtocolError("the peer wants two things of one path")
            known.add(transition.path)
            if transition.after:
                check_paths(transition.after)
            check_entry(transition.wanted)
            if transition.expected is not None:
                check_entry(transition.expected)
            yield transition


def serve_stdio(root: bytes, opener: Callable[..., Replica], create: bool) -> errors.Exit:
    """Serve on stdin and stdout, as ssh starts us; nothing else may write to stdout any more.

    Args:
        root: of the replica.
        opener: opens it, and takes a `watcher`.
        create: make it one first if it is none.
    """
    source, target = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    connection = Connection(source, target, "the peer")
    return serve_alone(connection, root, opener, create, lambda watcher: partial(opener, watcher=watcher))


def _some_time() -> float:
    import random  # costs milliseconds, and is rarely needed

    return random.uniform(*RETRY_SECONDS)
