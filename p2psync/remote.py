"""A replica at the far end of a connection, and the loop that serves one there.

Each call of the Replica protocol is one tagged message; its answer is a value, a stream of values, or an
error. Owns these messages, the processes that carry them (ssh, or a fork for a local folder), and the
checks that what comes back is an answer to what was asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar, assert_never

import msgspec
from xxhash import xxh3_128_digest

from p2psync import errors
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Digest, Entry, Transition
from p2psync.core.replica import (
    Applied,
    Change,
    Content,
    Found,
    Identity,
    Mark,
    Name,
    Piece,
    Replica,
    Scanned,
)
from p2psync.core.vector import ReplicaId
from p2psync.errors import P2PSyncError, PeerError, ProtocolError, Unreachable
from p2psync.peer import Address
from p2psync.wire import Connection, check_entry, check_path

if TYPE_CHECKING:
    import subprocess

_T = TypeVar("_T")
Opener = Callable[[bytes, bool], Replica]
"""Opens the replica at a root, and makes it one first if told to."""

BATCH = 1000
"""Transitions in a frame."""
PATIENCE_SECONDS = 5.0
"""How long a far end may take to unlock and end, once told to."""

CALL, VALUE, END, ERROR = b"C", b"V", b"E", b"X"
"""Kinds of frames."""


# -- messages


class _Call(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Scan(_Call, frozen=True):
    keep: bool


class GetMark(_Call, frozen=True):
    peer: ReplicaId


class Changes(_Call, frozen=True):
    since: int


class Lookup(_Call, frozen=True):
    names: list[Name]


class Bases(_Call, frozen=True):
    paths: list[bytes]


class Texts(_Call, frozen=True):
    digests: list[Digest]


class Missing(_Call, frozen=True):
    wanted: list[Content]


class Read(_Call, frozen=True):
    digests: list[Digest]


class Stage(_Call, frozen=True):
    pass


class Apply(_Call, frozen=True):
    pass


class Newest(_Call, frozen=True):
    pass


class Acknowledge(_Call, frozen=True):
    peer: Identity
    mark: Mark


class Close(_Call, frozen=True):
    pass


AnyCall = (
    Scan
    | GetMark
    | Changes
    | Lookup
    | Bases
    | Texts
    | Missing
    | Read
    | Stage
    | Apply
    | Newest
    | Acknowledge
    | Close
)


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An error, on its way to the other side."""

    kind: str
    message: str


_FAILURES = {
    kind.__name__: kind
    for kind in (
        errors.ReplicaError,
        errors.NotAReplica,
        errors.Locked,
        errors.PeerError,
        errors.ProtocolError,
    )
}


# -- the near end


class RemoteReplica:
    """A replica served elsewhere."""

    def __init__(self, connection: Connection, process: _Process, compress: bool) -> None:
        """Greet the far end; it opens the replica.

        Raises:
            Unreachable: nothing answered.
            ProtocolError: it is no p2psync, or of another version.
            P2PSyncError: why it could not open the replica.
        """
        self._connection = connection
        self._process = process
        self._busy = True
        try:
            connection.open(compress)
            self.identity = self._answer(Identity)
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

    def close(self) -> None:
        """Have the far end unlock, and wait until it has; stop one that is in the middle of something."""
        if not self._busy:
            with contextlib.suppress(PeerError):
                self._connection.send(CALL, Close())
                self._connection.flush()
        self._connection.close()
        self._process.end(0 if self._busy else PATIENCE_SECONDS)

    def _ask(self, call: AnyCall, kind: type[_T]) -> _T:
        with self._calling(call):
            return self._answer(kind)

    def _stream(self, call: AnyCall, kind: type[_T]) -> Iterator[_T]:
        with self._calling(call):
            yield from self._answers(kind)

    @contextlib.contextmanager
    def _calling(self, call: AnyCall) -> Iterator[None]:
        """A call is under way: who is interrupted in it can only hang up."""
        self._busy = True
        self._connection.send(CALL, call)
        self._connection.flush()
        try:
            yield
        except P2PSyncError as error:
            self._busy = isinstance(error, PeerError)
            raise
        self._busy = False

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
                raise _FAILURES.get(failure.kind, PeerError)(failure.message)
            yield self._connection.decode(message, kind)

    # -- the Replica protocol

    def scan(self, keep: bool) -> Scanned:
        """See `Replica.scan`."""
        scanned = self._ask(Scan(keep), Scanned)
        for path in (*scanned.skipped, *(problem.path for problem in scanned.problems if problem.path)):
            _check_shown(path)
        return scanned

    def mark(self, peer: ReplicaId) -> Mark | None:
        """See `Replica.mark`."""
        mark = self._ask(GetMark(peer), Mark | None)  # type: ignore[arg-type]
        for path in mark.pending if mark else ():
            check_path(path)
        return mark

    def changes(self, since: int) -> Iterator[list[Change]]:
        """See `Replica.changes`."""
        for batch in self._stream(Changes(since), list[Change]):
            for change in batch:
                check_path(change.path)
                check_entry(change.entry)
            yield batch

    def lookup(self, names: Sequence[Name]) -> Found:
        """See `Replica.lookup`."""
        found = self._ask(Lookup(list(names)), Found)
        _check_length(found.entries, names)
        for entry in found.entries:
            if entry is not None:
                check_entry(entry)
        return found

    def bases(self, paths: Sequence[bytes]) -> list[list[Entry]]:
        """See `Replica.bases`."""
        bases = self._ask(Bases(list(paths)), list[list[Entry]])
        _check_length(bases, paths)
        for remembered in bases:
            for entry in remembered:
                check_entry(entry)
        return bases

    def texts(self, digests: Sequence[Digest]) -> list[bytes | None]:
        """See `Replica.texts`."""
        texts = self._ask(Texts(list(digests)), list[bytes | None])
        _check_length(texts, digests)
        return [
            text if text is not None and len(text) <= MAX_TEXT and xxh3_128_digest(text) == digest else None
            for text, digest in zip(texts, digests, strict=True)
        ]

    def missing(self, wanted: Sequence[Content]) -> list[Content]:
        """See `Replica.missing`."""
        missing = set(self._ask(Missing(list(wanted)), list[Content]))
        return [content for content in wanted if content in missing]

    def read(self, digests: Sequence[Digest]) -> Iterator[list[Piece]]:
        """See `Replica.read`."""
        return self._stream(Read(list(digests)), list[Piece])

    def stage(self, batches: Iterable[list[Piece]]) -> None:
        """See `Replica.stage`."""
        with self._calling(Stage()):
            for batch in batches:
                self._connection.send(VALUE, batch)
            self._connection.send(END)
            self._connection.flush()
            self._answer(type(None))

    def apply(self, transitions: Sequence[Transition]) -> Iterator[Applied]:
        """See `Replica.apply`."""
        with self._calling(Apply()):
            for start in range(0, len(transitions), BATCH):
                self._connection.send(VALUE, transitions[start : start + BATCH])
            self._connection.send(END)
            self._connection.flush()
            for applied in self._answers(Applied):
                for problem in applied.problems:
                    check_path(problem.path)
                yield applied

    def newest(self) -> int:
        """See `Replica.newest`."""
        return self._ask(Newest(), int)

    def acknowledge(self, peer: Identity, mark: Mark) -> None:
        """See `Replica.acknowledge`."""
        self._ask(Acknowledge(peer, mark), type(None))


def _check_length(answers: Sequence[object], asked: Sequence[object]) -> None:
    if len(answers) != len(asked):
        raise ProtocolError(f"the peer gave {len(answers)} answers to {len(asked)} questions")


def _check_shown(path: bytes) -> None:
    """Check a path that is only shown: a reserved name is the very thing that is reported."""
    if len(path) > 1 << 16:
        raise ProtocolError("the peer sent a path that is too long")


# -- the far end


def serve(connection: Connection, root: bytes, opener: Opener, create: bool) -> None:
    """Open the replica at `root` and carry out calls on it until the other side hangs up."""
    connection.answer()
    try:
        with contextlib.closing(opener(root, create)) as replica:
            _reply(connection, [replica.identity])
            while _serve_call(connection, replica):
                pass
    except Unreachable:
        pass
    except P2PSyncError as error:
        _fail(connection, error)
    except Exception as error:
        _fail(connection, PeerError(f"the far end failed: {type(error).__name__}: {error}"))
        raise


def _fail(connection: Connection, error: P2PSyncError) -> None:
    with contextlib.suppress(Unreachable):
        connection.send(ERROR, Failure(type(error).__name__, str(error)))
        connection.flush()


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
            return replica.changes(since)
        case Lookup(names):
            _check_paths(name.path for name in names)
            return [replica.lookup(names)]
        case Bases(paths):
            _check_paths(paths)
            return [replica.bases(paths)]
        case Texts(digests):
            return [replica.texts(digests)]
        case Missing(wanted):
            return [replica.missing(wanted)]
        case Read(digests):
            return replica.read(digests)
        case Stage():
            replica.stage(_incoming(connection, list[Piece]))
            return [None]
        case Apply():
            return replica.apply(list(_transitions(connection)))
        case Newest():
            return [replica.newest()]
        case Acknowledge(peer, mark):
            _check_paths(mark.pending)
            replica.acknowledge(peer, mark)
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
        yield connection.decode(message, kind)


def _transitions(connection: Connection) -> Iterator[Transition]:
    for batch in _incoming(connection, list[Transition]):
        for transition in batch:
            check_path(transition.path)
            _check_paths(transition.after)
            check_entry(transition.wanted)
            yield transition


def _check_paths(paths: Iterable[bytes]) -> None:
    for path in paths:
        check_path(path)


def serve_stdio(root: bytes, opener: Opener, create: bool) -> None:
    """Serve on stdin and stdout, as ssh starts us; nothing else may write to stdout any more."""
    source, target = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    serve(Connection(source, target, "the peer"), root, opener, create)


# -- processes


class _Process:
    """The process behind a connection."""

    def why_it_ended(self) -> str | None:
        """Return what is to be told of a far end that ended before it said anything."""
        return None

    def end(self, patience: float) -> None:
        """Wait for the process; after `patience` seconds, end it."""


class _Fork(_Process):
    def __init__(self, pid: int) -> None:
        self._pid = pid

    def end(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        for number in (signal.SIGTERM, signal.SIGKILL):
            while not os.waitpid(self._pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.002)
            else:
                return
            os.kill(self._pid, number)
            deadline = time.monotonic() + 0.5
        os.waitpid(self._pid, 0)


def connect_local(root: bytes, opener: Opener, create: bool) -> RemoteReplica:
    """Open a replica on this machine, in a process of its own: two sides, two processors.

    Raises:
        P2PSyncError: why it could not be opened.
    """
    to_child, to_parent = os.pipe(), os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_far_end(to_child[0], to_parent[1], root, opener, create)
    os.close(to_child[0])
    os.close(to_parent[1])
    connection = Connection(to_parent[0], to_child[1], os.fsdecode(root))
    return RemoteReplica(connection, _Fork(pid), compress=False)


def _be_far_end(source: int, target: int, root: bytes, opener: Opener, create: bool) -> NoReturn:
    """Serve in a forked child; never returns into the parent's code."""
    code = errors.Exit.FAILED
    try:
        # Only what we use stays open: the parent's locks must end with the parent.
        for fd in map(int, os.listdir("/dev/fd")):
            if fd > 2 and fd not in (source, target):
                with contextlib.suppress(OSError):
                    os.close(fd)
        serve(Connection(source, target, "the peer"), root, opener, create)
        code = errors.Exit.IN_STEP
    except KeyboardInterrupt:
        code = errors.Exit.INTERRUPTED
    finally:
        os._exit(code)


class _Ssh(_Process):
    def __init__(self, process: subprocess.Popen[bytes], address: Address, command: str) -> None:
        self._process = process
        self._address = address
        self._command = command

    def why_it_ended(self) -> str | None:
        import subprocess

        host = self._address.login
        try:
            code = self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        match code:
            case 255:
                return f"ssh could not connect to {host}; what it said is above"
            case 126 | 127:
                return f"{self._command} was not found on {host}: install it there or give --remote-command"
            case _:
                return f"p2psync on {host} ended with code {code}, before it said anything"

    def end(self, patience: float) -> None:
        import subprocess

        for stop in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(patience)
                return
            except subprocess.TimeoutExpired:
                stop()
                patience = 0.5
        self._process.wait()


def connect_ssh(
    address: Address, *, ssh_command: str | None, remote_command: str | None, create: bool
) -> RemoteReplica:
    """Open a replica on another machine, through the system's ssh.

    Args:
        address: where; its host is not None.
        ssh_command: split as a shell would; `ssh` if None.
        remote_command: p2psync there, words for the shell there; `p2psync` if None.
        create: make it a replica if it is none.

    Raises:
        Unreachable: ssh, or p2psync there, could not be started.
        P2PSyncError: why the replica could not be opened.
    """
    import shlex
    import subprocess

    command = shlex.split(ssh_command or "ssh")
    if command == ["ssh"]:
        command += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
    if not sys.stdin.isatty():
        command += ["-o", "BatchMode=yes"]
    if address.port:
        command += ["-p", str(address.port)]
    far = remote_command or "p2psync"
    serve_there = f"{far} serve{' --create' if create else ''} -- {shlex.quote(os.fsdecode(address.path))}"
    try:
        process = subprocess.Popen(
            [*command, "--", address.login, serve_there], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    except OSError as error:
        raise Unreachable(f"cannot run {command[0]}: {error.strerror}") from error
    assert process.stdin and process.stdout
    source, target = os.dup(process.stdout.fileno()), os.dup(process.stdin.fileno())
    process.stdin.close()
    process.stdout.close()
    connection = Connection(source, target, address.login)
    return RemoteReplica(connection, _Ssh(process, address, far.split()[-1]), compress=True)
