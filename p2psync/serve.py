"""The far end: carries out calls on a replica until the other side hangs up."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, assert_never

import msgspec

from p2psync import errors
from p2psync.calls import (
    CALL,
    END,
    ERROR,
    VALUE,
    Acknowledge,
    AnyCall,
    AnyTransitions,
    Apply,
    Bases,
    Changes,
    Close,
    Failure,
    Files,
    GetMark,
    GetPoint,
    Lookup,
    Newest,
    Prepare,
    Read,
    Recalls,
    Rehash,
    Remint,
    Scan,
    Stage,
    Take,
    Texts,
    batches,
    check_paths,
    weight,
)
from p2psync.core.model import Transition
from p2psync.core.paths import printable
from p2psync.core.replica import Piece, Replica
from p2psync.errors import P2PSyncError, PeerError, ProtocolError, Unreachable
from p2psync.wire import Connection, check_entry, check_path, plain

_T = TypeVar("_T")
Opener = Callable[[bytes, bool], Replica]
"""Opens the replica at a root, and makes it one first if told to."""

PATIENCE_SECONDS = 1.0
"""How long a call may go on when nobody waits for its answer any more."""


def serve(connection: Connection, root: bytes, opener: Opener, create: bool) -> errors.Exit:
    """Open the replica at `root` and carry out calls on it until the other side hangs up.

    Returns:
        The exit code for the process; the other side is told why.
    """
    try:
        connection.answer()
        with contextlib.closing(opener(root, create)) as replica:
            _reply(connection, [replica.identity])
            while _serve_call(connection, replica):
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


def serve_alone(connection: Connection, root: bytes, opener: Opener, create: bool) -> errors.Exit:
    """Serve in a process that is there for nothing else."""
    served = threading.Event()
    threading.Thread(target=_end_with, args=(connection, served), daemon=True).start()
    try:
        return serve(connection, root, opener, create)
    finally:
        served.set()


def _end_with(connection: Connection, served: threading.Event) -> None:
    """End this process when the other side has hung up, also in the middle of a long call.

    Calls read nothing while they work: without this, a far end whose caller was killed would keep the lock.
    """
    connection.wait_for_hang_up()
    if not served.wait(PATIENCE_SECONDS):
        os._exit(errors.Exit.INTERRUPTED)


def _fail(connection: Connection, error: P2PSyncError) -> errors.Exit:
    with contextlib.suppress(Unreachable):
        connection.send(ERROR, Failure(type(error).__name__, printable(str(error))))
        connection.flush()
    return error.exit_code


def _reply(connection: Connection, answers: Iterable[object]) -> None:
    for answer in answers:
        connection.send(VALUE, answer)
    connection.send(END)
    connection.flush()


def _serve_call(connection: Connection, replica: Replica) -> bool:
    """Carry out one call; False if it was the last."""
    tag, message = connection.receive()
    if tag != CALL:
        raise ProtocolError("the peer sent something else where a call was due")
    call: AnyCall = connection.decode(message, AnyCall)  # type: ignore[arg-type]
    if isinstance(call, Close):
        return False
    _reply(connection, _carry_out(connection, replica, call))
    return True


def _carry_out(connection: Connection, replica: Replica, call: AnyCall) -> Iterable[object]:
    match call:
        case Scan(keep):
            return [replica.scan(keep)]
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
        case Prepare():
            return batches(replica.prepare(list(_transitions(connection))), lambda _: 100)
        case Take():
            return replica.take()
        case Read(digests):
            return replica.read(digests)
        case Stage():
            replica.stage(_incoming(connection, list[Piece]))
            return [None]
        case Apply():
            return replica.apply()
        case Newest():
            return [replica.newest()]
        case GetPoint():
            return [replica.point()]
        case Recalls(seq, nonce):
            return [replica.recalls(seq, nonce)]
        case Remint(peer, since):
            return [replica.remint(peer, since)]
        case Files():
            return [replica.files()]
        case Acknowledge(peer, mark):
            check_paths(mark.pending)
            replica.acknowledge(msgspec.structs.replace(peer, name=plain(peer.name)), mark)
            return [None]
        case Close():
            return []
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


def serve_stdio(root: bytes, opener: Opener, create: bool) -> errors.Exit:
    """Serve on stdin and stdout, as ssh starts us; nothing else may write to stdout any more."""
    source, target = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    return serve_alone(Connection(source, target, "the peer"), root, opener, create)
