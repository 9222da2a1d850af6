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
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar, assert_never

import msgspec
from xxhash import xxh3_128_digest

from p2psync import errors
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Digest, Entry, Problem, Transition
from p2psync.core.paths import printable
from p2psync.core.replica import (
    AnyDigest,
    AnyReplica,
    Applied,
    Change,
    Content,
    Count,
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
from p2psync.peer import Address, AddressError
from p2psync.wire import Connection, check_entry, check_path, plain

if TYPE_CHECKING:
    import subprocess

_T = TypeVar("_T")
Opener = Callable[[bytes, bool], Replica]
"""Opens the replica at a root, and makes it one first if told to."""

BATCH_BYTES = 1 << 20
"""About as much goes into one frame: far below the limit, far above what a round trip costs."""
MAX_ITEMS = 1 << 14
"""More cannot be in such a frame: a list of empty lists takes seventy times its bytes in memory."""
PATIENCE_SECONDS = 5.0
"""How long a far end may take to unlock and end, once told to."""

CALL, VALUE, END, ERROR = b"C", b"V", b"E", b"X"
"""Kinds of frames."""


# -- messages

_FEW = msgspec.Meta(max_length=MAX_ITEMS)
_Changes = Annotated[list[Change], _FEW]
_Contents = Annotated[list[Content], _FEW]
_Transitions = Annotated[list[Transition], _FEW]
_Bases = Annotated[list[Annotated[list[Entry], msgspec.Meta(max_length=256)]], _FEW]


class _Call(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Scan(_Call, frozen=True):
    keep: bool


class GetMark(_Call, frozen=True):
    peer: AnyReplica


class Changes(_Call, frozen=True):
    since: Count


class Lookup(_Call, frozen=True):
    names: Annotated[list[Name], _FEW]


class Bases(_Call, frozen=True):
    paths: Annotated[list[bytes], _FEW]


class Texts(_Call, frozen=True):
    digests: Annotated[list[AnyDigest], _FEW]


class Missing(_Call, frozen=True):
    wanted: _Contents


class Read(_Call, frozen=True):
    digests: Annotated[list[AnyDigest], _FEW]


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
        self._closed = False
        try:
            connection.open(compress)
            identity = self._answer(Identity)
            self.identity = msgspec.structs.replace(identity, name=plain(identity.name))
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
        if self._closed:
            return
        self._closed = True
        if self._busy:
            self._process.end(0)  # first: a thread may still be reading what it sends
            self._connection.close()
            return
        with contextlib.suppress(PeerError):
            self._connection.send(CALL, Close())
            self._connection.flush()
        self._connection.close()
        self._process.end(PATIENCE_SECONDS)

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
                raise _FAILURES.get(failure.kind, PeerError)(plain(failure.message))
            if tag != VALUE:
                raise ProtocolError(f"{self._connection.name} sent something else where an answer was due")
            yield self._connection.decode(message, kind)

    # -- the Replica protocol

    def scan(self, keep: bool) -> Scanned:
        """See `Replica.scan`."""
        scanned = self._ask(Scan(keep), Scanned)
        _check_rules(scanned.rules)
        for path in (*scanned.skipped, *(problem.path for problem in scanned.problems)):
            _check_shown(path)
        return msgspec.structs.replace(scanned, problems=_plain(scanned.problems))

    def mark(self, peer: ReplicaId) -> Mark | None:
        """See `Replica.mark`."""
        mark = self._ask(GetMark(peer), Mark | None)  # type: ignore[arg-type]
        if mark is not None:
            _check_mark(mark)
        return mark

    def changes(self, since: int) -> Iterator[list[Change]]:
        """See `Replica.changes`."""
        for batch in self._stream(Changes(since), _Changes):
            for change in batch:
                check_path(change.path)
                check_entry(change.entry)
            yield batch

    def lookup(self, names: Sequence[Name]) -> Found:
        """See `Replica.lookup`."""
        found = Found([], [])
        for batch in _batches(names, lambda name: 300 + len(name.path)):
            part = self._ask(Lookup(batch), Found)
            _check_length(part.entries, batch)
            _check_among(part.ignored, {name.path for name in batch})
            for entry in part.entries:
                if entry is not None:
                    check_entry(entry)
            found.entries.extend(part.entries)
            found.ignored.extend(part.ignored)
        return found

    def bases(self, paths: Sequence[bytes]) -> list[list[Entry]]:
        """See `Replica.bases`."""
        bases: list[list[Entry]] = []
        for batch in _batches(paths, lambda path: 3000 + len(path)):
            part = self._ask(Bases(batch), _Bases)
            _check_length(part, batch)
            for remembered in part:
                for entry in remembered:
                    check_entry(entry)
            bases += part
        return bases

    def texts(self, digests: Sequence[Digest]) -> list[bytes | None]:
        """See `Replica.texts`."""
        texts: list[bytes | None] = []
        for batch in _batches(digests, lambda _: MAX_TEXT // 4):
            part = self._ask(Texts(batch), list[bytes | None])
            _check_length(part, batch)
            texts += [
                text
                if text is not None and len(text) <= MAX_TEXT and xxh3_128_digest(text) == digest
                else None
                for text, digest in zip(part, batch, strict=True)
            ]
        return texts

    def missing(self, wanted: Sequence[Content]) -> list[Content]:
        """See `Replica.missing`."""
        missing: set[Content] = set()
        for batch in _batches(wanted, lambda _: 100):
            missing.update(self._ask(Missing(batch), _Contents))
        return [content for content in wanted if content in missing]

    def read(self, digests: Sequence[Digest]) -> Iterator[list[Piece]]:
        """See `Replica.read`."""
        for batch in _batches(digests, lambda _: 100):
            asked = set(batch)
            for pieces in self._stream(Read(batch), list[Piece]):
                _check_among((piece.digest for piece in pieces), asked)
                yield pieces

    def stage(self, batches: Iterable[list[Piece]]) -> None:
        """See `Replica.stage`."""
        with self._calling(Stage()):
            self._tell(batches)
            self._answer(type(None))

    def apply(self, transitions: Sequence[Transition]) -> Iterator[Applied]:
        """See `Replica.apply`."""
        paths = {transition.path for transition in transitions}
        with self._calling(Apply()):
            self._tell(_batches(transitions, _weight))
            for applied in self._answers(Applied):
                _check_among((problem.path for problem in applied.problems), paths)
                yield Applied(applied.done, _plain(applied.problems))

    def newest(self) -> int:
        """See `Replica.newest`."""
        return self._ask(Newest(), Count)

    def acknowledge(self, peer: Identity, mark: Mark) -> None:
        """See `Replica.acknowledge`."""
        self._ask(Acknowledge(peer, mark), type(None))


def _batches(items: Sequence[_T], weigh: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Split `items` into lists of about `BATCH_BYTES`, as `weigh` estimates the frames they make."""
    batch: list[_T] = []
    weight = 0
    for item in items:
        batch.append(item)
        weight += weigh(item)
        if weight >= BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


def _weight(item: Transition | Change) -> int:
    """Estimate the bytes of what holds one or two entries."""
    if isinstance(item, Change):
        return 100 + len(item.path) + len(item.entry.target) + 16 * len(item.entry.version)
    entries = [entry for entry in (item.expected, item.wanted) if entry is not None]
    return len(item.path) + sum(map(len, item.after)) + sum(_weight(Change(b"", entry)) for entry in entries)


def _plain(problems: Iterable[Problem]) -> list[Problem]:
    return [Problem(problem.path, plain(problem.why)) for problem in problems]


# -- what must be so, whoever says it


def _check_length(answers: Sequence[object], asked: Sequence[object]) -> None:
    if len(answers) != len(asked):
        raise ProtocolError(f"the peer gave {len(answers)} answers to {len(asked)} questions")


def _check_among(answers: Iterable[bytes], asked: set[bytes] | set[Digest]) -> None:
    if any(answer not in asked for answer in answers):
        raise ProtocolError("the peer answered what was not asked")


def _check_rules(rules: bytes) -> None:
    if len(rules) > 256:
        raise ProtocolError("the peer sent a fingerprint that is too long")


def _check_mark(mark: Mark) -> None:
    _check_rules(mark.rules)
    _check_paths(mark.pending)


def _check_paths(paths: Iterable[bytes]) -> None:
    for path in paths:
        check_path(path)


def _check_shown(path: bytes) -> None:
    """Check a path that is only shown: a reserved name is the very thing that is reported."""
    if len(path) > 1 << 16:
        raise ProtocolError("the peer sent a path that is too long")


# -- the far end


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


def _serve_alone(connection: Connection, root: bytes, opener: Opener, create: bool) -> errors.Exit:
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
    if not served.wait(PATIENCE_SECONDS / 5):
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
            return (part for batch in replica.changes(since) for part in _batches(batch, _weight))
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
            _check_mark(mark)
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
    for batch in _incoming(connection, _Transitions):
        for transition in batch:
            check_path(transition.path)
            _check_paths(transition.after)
            check_entry(transition.wanted)
            if transition.expected is not None:
                check_entry(transition.expected)
            yield transition


def serve_stdio(root: bytes, opener: Opener, create: bool) -> errors.Exit:
    """Serve on stdin and stdout, as ssh starts us; nothing else may write to stdout any more."""
    source, target = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    return _serve_alone(Connection(source, target, "the peer"), root, opener, create)


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
    connection = Connection(to_parent[0], to_child[1], plain(os.fsdecode(root)))
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
        code = _serve_alone(Connection(source, target, "the peer"), root, opener, create)
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
        ssh_command: split as a shell would; if None, `$P2PSYNC_SSH`, else `ssh`.
        remote_command: p2psync there, words for the shell there; `p2psync` if None.
        create: make it a replica if it is none.

    Raises:
        Unreachable: ssh, or p2psync there, could not be started.
        P2PSyncError: why the replica could not be opened.
    """
    import shlex
    import subprocess

    given = ssh_command or os.environ.get("P2PSYNC_SSH") or "ssh"
    try:
        command = shlex.split(given) or ["ssh"]
    except ValueError as error:
        raise AddressError(f"cannot make sense of the ssh command {given!r}: {error}") from error
    if command == ["ssh"]:
        command += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
    if not os.isatty(0):  # under cron nobody would answer: no question, then
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
