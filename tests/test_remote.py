"""A replica served elsewhere does what it would do here, and nothing that is worse for us.

Run as a program, this module is a far end with a `Fake` behind it: what ssh starts in these tests.
"""

from __future__ import annotations

import errno
import gc
import math
import os
import select
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect
from xxhash import xxh3_128_digest

from p2psync.calls import (
    CALL,
    END,
    VALUE,
    Acknowledge,
    AnyAlike,
    AnyBases,
    AnyCall,
    AnyChanges,
    AnyContents,
    AnyDigests,
    AnySources,
    AnyTexts,
    AnyTransitions,
    Apply,
    Bases,
    Changes,
    GetMark,
    Lookup,
    Newest,
    Open,
    Prepare,
    Read,
    Rehash,
    Scan,
    Stage,
    Texts,
    Watch,
)
from p2psync.config import Peer
from p2psync.connect import connect_local, connect_ssh
from p2psync.core.model import Digest, Entry, Kind, Problem, Stat, Transition
from p2psync.core.pace import Compress
from p2psync.core.replica import (
    AnyPieces,
    Applied,
    Ask,
    Change,
    Content,
    Cuts,
    Found,
    Identity,
    Like,
    Mark,
    Met,
    More,
    Name,
    Piece,
    Point,
    Scanned,
    Source,
    Taken,
    Unread,
    Want,
)
from p2psync.core.vector import ReplicaId, Version
from p2psync.errors import (
    Locked,
    NotAReplica,
    P2PSyncError,
    PeerError,
    ProtocolError,
    ReplicaError,
    Unreachable,
)
from p2psync.facts import Facts
from p2psync.peer import Address, AddressError, parse_address
from p2psync.remote import RemoteReplica
from p2psync.serve import Opener, Watched, serve, serve_stdio
from p2psync.wire import MAX_FRAME, PROTOCOL, Connection
from tests.cli_support import wait_for
from tests.sshd import Sshd

REPOSITORY = Path(__file__).parents[1]
REMOTE = f"env PYTHONPATH={shlex.quote(str(REPOSITORY))} {shlex.quote(sys.executable)} -m tests.test_remote"


def digest(data: bytes) -> Digest:
    return Digest(xxh3_128_digest(data))


def file(data: bytes) -> Entry:
    return Entry(kind=Kind.FILE, version=Version({ReplicaId(7): 9}), digest=digest(data), size=len(data))


TREE = {b"a": file(b"one"), b"d": Entry(kind=Kind.DIRECTORY, mode=0o755), b"d/b": file(b"two")}
HELD = {digest(data): data for data in (b"one", b"two", b"x" * 3_000_000)}
SCANNED = Scanned([Problem(b"d/.p2psync", "reserved")], [b"fifo"], b"r" * 16)
REPLACE = msgspec.structs.replace
MARK = Mark(3, 44, b"rules", [b"left/behind"])
CONTENT = Content(digest(b"two"), 3)


class Fake:
    """A replica in memory; it knows what it is told, and tells it in its own answers."""

    def __init__(self, root: bytes = b"/r", create: bool = False) -> None:
        self.identity = Identity(ReplicaId(2**63 - 1), f"{root!r} {create}", 2**63 - 1)
        self.marks: dict[ReplicaId, Mark] = {}
        self.held = dict(HELD)
        self.tree = dict(TREE)
        self.prepared: Sequence[Transition] = ()

    def scan(self, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        return SCANNED if keep else REPLACE(SCANNED, problems=[])

    def room_if_blank(self) -> int:
        return 1 << 40

    def read_unread(self) -> Generator[list[Piece], None, None]:
        for digest, data in self.held.items():
            yield [Piece(digest, data, More.LAST)]

    def unread(self) -> Sequence[Unread]:
        return [Unread(path, entry.size) for path, entry in self.tree.items()]

    def take_unread(self, files: Sequence[Unread]) -> Iterator[Met]:
        for path, size in files:
            yield Met(path, self.tree[path].digest, 0o644, Stat(size, 1, 2, 3), 4)

    def note_unread(self, met: Sequence[Met]) -> None:
        self.tree.update({one.path: REPLACE(TREE[b"a"], digest=one.digest) for one in met})

    def put_by(self, batches: Iterable[list[Piece]], size: int) -> None:
        self.stage([piece for piece in batch if len(piece.data) < size] for batch in batches)

    def mark(self, peer: ReplicaId) -> Mark | None:
        return self.marks.get(peer)

    def changes(self, since: int) -> Iterator[list[Change]]:
        for path, entry in islice(self.tree.items(), since, None):
            yield [Change(path, entry)]

    def lookup(self, names: Sequence[Name]) -> Found:
        entries = [self.tree.get(name.path) for name in names]
        return Found(entries, [name.path for name in names if name.directory])

    def bases(self, paths: Sequence[bytes]) -> list[list[Entry]]:
        return [[self.tree[path]] * 2 if path in self.tree else [] for path in paths]

    def texts(self, digests: Sequence[Digest]) -> list[bytes | None]:
        return [self.held.get(digest) for digest in digests]

    def rehash(self, paths: Sequence[bytes]) -> list[Digest | None]:
        return [self.tree[path].digest if path in self.tree else None for path in paths]

    def sparse(self, contents: Sequence[Content]) -> list[Content]:
        return [Content(digest, size // 2) for digest, size in contents if digest in self.held]

    def prepare(self, transitions: Sequence[Transition], sparse: Sequence[Content] = ()) -> list[Content]:
        self.prepared = transitions
        wanted = (step.wanted for step in transitions)
        return [Content(entry.digest, entry.size) for entry in wanted if entry.digest not in self.held]

    def take(self) -> Iterator[Taken]:
        yield Taken(1, 3)
        yield Taken(0, 0, self.prepare(self.prepared))

    def read(self, digests: Sequence[Digest]) -> Iterator[list[Piece]]:
        for wanted in digests:
            data = self.held.get(wanted)
            yield [Piece(wanted, data or b"", More.GONE if data is None else More.LAST)]

    def alike(self, likes: Sequence[Like]) -> list[list[Digest]]:
        return [like.bases for like in likes]

    def sources(self, asks: Sequence[Ask]) -> list[list[Source]]:
        return [[Source(base, Cuts(b"1234", b"123456")) for base in ask.bases] for ask in asks]

    def differences(self, wants: Sequence[Want]) -> Iterator[list[Piece]]:
        for content, sources in wants:
            for source in sources:
                data = source.cuts.hashes if source.cuts else b""
                yield [Piece(content.digest, data, More.MORE, 1, 2, 3)]
            yield from self.read([content.digest])

    def stage(self, batches: Iterable[list[Piece]]) -> None:
        for piece in (piece for batch in batches for piece in batch):
            self.held[piece.digest] = piece.data

    def apply(self) -> Iterator[Applied]:
        for transition in self.prepared:
            held = transition.wanted.digest in self.held
            if held:
                self.tree[transition.path] = transition.wanted
            yield Applied(int(held), [] if held else [Problem(transition.path, "no contents")])

    def newest(self) -> int:
        return len(self.tree)

    def files(self) -> int:
        return len(self.tree)

    def point(self) -> Point:
        return Point(len(self.tree), 7)

    def recalls(self, seq: int, nonce: int, tick: int = 0) -> bool:
        return (seq, nonce) == (len(self.tree), 7)

    def remint(self, peer: ReplicaId, since: int) -> Identity:
        self.identity = REPLACE(self.identity, replica=peer)
        return self.identity

    def acknowledge(self, peer: Identity, mark: Mark) -> None:
        self.marks[peer.replica] = mark

    def close(self) -> None:
        pass


@pytest.fixture
def connect() -> Iterator[Callable[..., RemoteReplica]]:
    """Connects to a `Fake` in another process, or to one of which some methods are replaced."""
    opened: list[RemoteReplica] = []

    def connect(opener: Opener = Fake, **patches: object) -> RemoteReplica:
        patched = type("Patched", (Fake,), dict(patches)) if patches else opener
        opened.append(connect_local(b"/r", patched, False))
        return opened[-1]

    yield connect
    for replica in opened:
        replica.close()
    for replica in opened:
        with pytest.raises(ChildProcessError):  # not even a zombie is left
            os.waitpid(replica._process._pid, os.WNOHANG)  # type: ignore[attr-defined]


Connect = Callable[..., RemoteReplica]


# -- the Replica protocol

STEPS = [
    Transition(b"a", file(b"one"), file(b"two"), (b"d/b",)),
    Transition(b"n", None, file(b"none")),
]
CALLS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda side: side.identity,
    "scan": lambda side: side.scan(True),
    "scan for a dry run": lambda side: side.scan(False),
    "mark": lambda side: side.mark(ReplicaId(5)),
    "changes": lambda side: list(side.changes(0)),
    "changes since": lambda side: list(side.changes(2)),
    "lookup": lambda side: side.lookup([Name(b"a", False), Name(b"none", True)]),
    "bases": lambda side: side.bases([b"a", b"none"]),
    "texts": lambda side: side.texts([digest(b"one"), digest(b"none")]),
    "rehash": lambda side: side.rehash([b"a", b"none"]),
    "sparse": lambda side: side.sparse([Content(one, 3) for one in (*HELD, digest(b"none"))]),
    "prepare": lambda side: side.prepare(STEPS),
    "take": lambda side: (side.prepare(STEPS), list(side.take())),
    "read": lambda side: list(side.read([*HELD, digest(b"none")])),
    "alike": lambda side: side.alike([Like(CONTENT, [digest(b"one")])]),
    "sources": lambda side: side.sources([Ask(CONTENT, [digest(b"one")], [])]),
    "differences": lambda side: list(side.differences([Want(CONTENT, [Source(digest(b"one"), None)])])),
    "newest": lambda side: side.newest(),
    "files": lambda side: side.files(),
    "point": lambda side: side.point(),
    "recalls": lambda side: [side.recalls(len(TREE), nonce) for nonce in (7, 8)],
    "remint": lambda side: (side.remint(ReplicaId(6), 0), side.identity),
    "acknowledge": lambda side: (side.acknowledge(side.identity, MARK), side.mark(side.identity.replica)),
    "stage": lambda side: (
        side.stage([Piece(digest(b"new"), b"new", More.LAST)] for _ in range(3)),
        side.texts([digest(b"new")]),
    ),
    "apply": lambda side: (
        side.prepare(STEPS),
        list(side.apply()),
        side.lookup([Name(b"a", False), Name(b"n", False)]),
    ),
    "nothing": lambda side: (
        side.lookup([]),
        side.bases([]),
        side.texts([]),
        side.prepare([]),
        list(side.read([])),
        side.stage([]),
        list(side.apply()),
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_does_there_what_it_does_here(connect: Connect, call: Callable[[Any], Any]) -> None:
    assert call(connect()) == call(Fake())


def test_many_calls_follow_one_another(connect: Connect) -> None:
    remote, here = connect(), Fake()
    for call in CALLS.values():
        assert call(remote) == call(here)


def test_a_stream_arrives_while_it_is_made(connect: Connect) -> None:
    def changes(self: Fake, since: int) -> Iterator[list[Change]]:
        for number in count():
            yield [Change(b"%d" % number, TREE[b"a"])] * 1000

    batches = islice(connect(changes=changes).changes(0), 3)
    assert [batch[0].path for batch in batches] == [b"0", b"1", b"2"]


def test_contents_are_taken_in_while_they_are_sent(connect: Connect) -> None:
    def stage(self: Fake, batches: Iterable[list[Piece]]) -> None:
        taken = list(islice(batches, 3))
        raise ReplicaError(f"the disk is full after {len(taken)}")

    endless = ([Piece(digest(b"one"), bytes(100_000), More.MORE)] for _ in count())
    with pytest.raises(ReplicaError, match="the disk is full after 3"):
        connect(stage=stage).stage(endless)


def test_trees_whose_paths_fill_many_frames_travel(connect: Connect) -> None:
    deep = b"/".join([b"n" * 250] * 250)
    names = [Name(b"%d/%s" % (number, deep), False) for number in range(MAX_FRAME // len(deep) + 10)]
    transitions = [Transition(name.path, None, TREE[b"a"], (name.path,)) for name in names]

    def changes(self: Fake, since: int) -> Iterator[list[Change]]:
        yield [Change(name.path, TREE[b"a"]) for name in names]

    remote = connect(changes=changes)
    assert remote.lookup(names).entries == [None] * len(names)
    assert [change.path for batch in remote.changes(0) for change in batch] == [name.path for name in names]
    remote.prepare(transitions)
    assert sum(applied.done for applied in remote.apply()) == len(names)
    assert remote.bases([names[0].path]) == [[TREE[b"a"]] * 2]


def test_of_very_many_problems_the_first_are_told_and_the_others_counted(connect: Connect) -> None:
    many = [Problem(b"%d" % number + b"n" * 100, "unreadable") for number in range(200_000)]

    def scan(self: Fake, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        return Scanned(many, [problem.path for problem in many], b"")

    scanned = connect(scan=scan).scan(True)
    assert scanned.problems[:-1] == many[: len(scanned.problems) - 1]
    assert len(scanned.problems) > 5000
    assert scanned.problems[-1].why == (
        f"unreadable; {len(many) - len(scanned.problems)} more paths there have problems"
    )


def test_more_contents_than_fit_a_frame_are_asked_for(connect: Connect) -> None:
    transitions = [Transition(b"%d" % number, None, file(b"%d" % number)) for number in range(30_000)]
    digests = [transition.wanted.digest for transition in transitions]
    remote = connect()
    assert [content.digest for content in remote.prepare(transitions)] == digests
    gone = [piece.digest for batch in remote.read(digests) for piece in batch if piece.more is More.GONE]
    assert gone == digests


def test_traffic_is_counted_on_both_ways(connect: Connect) -> None:
    remote = connect()
    list(remote.read([digest(b"x" * 3_000_000)]))
    sent, received = remote.traffic
    assert sent < 1000
    assert 3_000_000 < received < 3_010_000


# -- errors and ends

FAILURES = [ReplicaError, NotAReplica, Locked, PeerError, ProtocolError]


@pytest.mark.parametrize("kind", FAILURES)
def test_an_error_there_is_the_same_error_here(connect: Connect, kind: type[P2PSyncError]) -> None:
    def scan(self: Fake, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        raise kind("what to do next")

    def opener(root: bytes, create: bool) -> Fake:
        raise kind("what to do next")

    for fail in (lambda: connect(scan=scan).scan(True), lambda: connect(opener)):
        with pytest.raises(kind, match="what to do next") as raised:
            fail()
        assert type(raised.value) is kind


def test_an_error_after_half_a_stream_is_raised_after_that_half(connect: Connect) -> None:
    def changes(self: Fake, since: int) -> Iterator[list[Change]]:
        yield [Change(b"a", TREE[b"a"])]
        raise ReplicaError("the manifest is broken")

    batches = connect(changes=changes).changes(0)
    assert next(batches) == [Change(b"a", TREE[b"a"])]
    with pytest.raises(ReplicaError, match="the manifest is broken"):
        next(batches)


def test_after_an_error_here_in_the_midst_of_a_call_nothing_more_can_be_asked(connect: Connect) -> None:
    def failing() -> Iterator[list[Piece]]:
        yield [Piece(digest(b"new"), b"new", More.LAST)]
        raise ReplicaError("the disk here is full")

    sending, receiving = connect(), connect()
    with pytest.raises(ReplicaError):
        sending.stage(failing())
    next(receiving.read([digest(b"x" * 3_000_000), digest(b"one")]))
    assert sending.broke_off and receiving.broke_off


def test_after_an_error_there_it_has_said_all_that_it_had_to_say(connect: Connect) -> None:
    def newest(self: Fake) -> int:
        raise Locked("another run is at work")

    remote = connect(newest=newest)
    with pytest.raises(Locked):
        remote.newest()
    assert not remote.broke_off


def test_a_full_disk_there_is_told_in_words(connect: Connect) -> None:
    def stage(self: Fake, batches: Iterable[list[Piece]]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ReplicaError, match=r"/r cannot be used: .*No space left on device"):
        connect(stage=stage).stage([])


def test_a_bug_there_is_an_error_and_no_traceback(
    connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    def newest(self: Fake) -> int:
        raise KeyError("bug")

    with pytest.raises(PeerError, match="the far end failed: KeyError"):
        connect(newest=newest).newest()
    assert capfd.readouterr().err == ""


def test_an_error_from_there_cannot_write_to_the_terminal(connect: Connect) -> None:
    def scan(self: Fake, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        if keep:
            raise ReplicaError("\x1b]0;pwned\x07" + "x" * 100_000)
        return REPLACE(SCANNED, problems=[Problem(b"a", "\x1b[2J")])

    assert connect(scan=scan).scan(False).problems == [Problem(b"a", r"\x1b[2J")]
    with pytest.raises(ReplicaError) as raised:
        connect(scan=scan).scan(True)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 2000


def test_a_far_end_that_is_killed_is_unreachable(connect: Connect) -> None:
    def scan(self: Fake, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(Unreachable, match="the connection to /r broke"):
        connect(scan=scan).scan(True)


def test_an_interrupted_call_ends_though_nothing_tells_that_the_line_is_dead() -> None:
    """A connection that ssh keeps holds the descriptors too: if it hangs, they outlive its client."""
    hangs = threading.Event()

    class Hanging(Fake):
        def stage(self, batches: Iterable[list[Piece]]) -> None:
            hangs.wait()

    class Kept:
        def why_it_ended(self) -> None:
            raise AssertionError

        def end(self, patience: float) -> None:
            pass

    def pieces() -> Iterator[list[Piece]]:
        for _ in range(3):
            yield [Piece(digest(b"new"), os.urandom(1 << 20), More.MORE)]
        raise KeyboardInterrupt

    to_far, to_near = os.pipe(), os.pipe()
    far = Connection(to_far[0], to_near[1], "near")
    serving = threading.Thread(target=serve, args=(far, b"/r", Hanging, False), daemon=True)
    serving.start()
    remote = RemoteReplica(Connection(to_near[0], to_far[1], "far"), Kept(), Compress.AUTO)
    with pytest.raises(KeyboardInterrupt):
        remote.stage(pieces())
    remote.close()
    hangs.set()


def test_after_an_error_every_call_fails_and_close_does_not(connect: Connect) -> None:
    def newest(self: Fake) -> int:
        raise ReplicaError("gone")

    remote = connect(newest=newest)
    for expected in (ReplicaError, Unreachable, Unreachable):
        with pytest.raises(expected):
            remote.newest()
    remote.close()
    remote.close()


def test_close_returns_when_the_far_end_has_unlocked(connect: Connect, tmp_path: Path) -> None:
    remote = connect(close=lambda self: (tmp_path / "unlocked").touch())
    remote.newest()
    remote.close()
    assert (tmp_path / "unlocked").exists()


def test_a_far_end_unlocks_when_the_near_end_hangs_up(connect: Connect, tmp_path: Path) -> None:
    remote = connect(close=lambda self: (tmp_path / "unlocked").touch())
    remote._connection.close()
    os.waitpid(remote._process._pid, 0)  # type: ignore[attr-defined]
    assert (tmp_path / "unlocked").exists()
    remote._closed = True


def test_a_far_end_that_is_closing_is_not_ended_before_it_has(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def newest(self: Fake) -> int:
        raise ReplicaError("the end")

    def close(self: Fake) -> None:
        (tmp_path / "closing").touch()
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(0.2)  # the one that would end the process
        (tmp_path / "unlocked").touch()

    monkeypatch.setattr("p2psync.serve.PATIENCE_SECONDS", 0.01)
    remote = connect(close=close, newest=newest)
    with pytest.raises(ReplicaError, match="the end"):
        remote.newest()
    wait_for((tmp_path / "closing").exists, "the far end to close")
    remote._connection.close()
    os.waitpid(remote._process._pid, 0)  # type: ignore[attr-defined]
    assert (tmp_path / "unlocked").exists()
    remote._closed = True


def test_a_far_end_in_a_long_call_ends_when_its_caller_has_died(connect: Connect) -> None:
    def scan(self: Fake, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        while True:
            signal.pause()

    remote = connect(scan=scan)
    remote._connection.send(CALL, Scan(True))
    remote._connection.flush()
    remote._connection.close()
    os.waitpid(remote._process._pid, 0)  # type: ignore[attr-defined]
    remote._closed = True


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupt_ends_both_processes_within_a_second(connect: Connect, stubborn: bool) -> None:
    def scan(self: Fake, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        if stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    remote = connect(scan=scan)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            remote.scan(True)
    finally:
        signal.signal(signal.SIGALRM, before)
    started = time.monotonic()
    remote.close()
    assert time.monotonic() - started < 1


def test_the_far_process_does_not_hold_our_files_open(connect: Connect) -> None:
    def newest(self: Fake) -> int:
        return len(os.listdir("/dev/fd"))

    before = connect(newest=newest).newest()
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    assert connect(newest=newest).newest() <= before
    for fd in held:
        os.close(fd)


# -- a hostile far end

PIECE = Piece(digest(b"one"), b"one", More.LAST)
BAD_FILE = Entry(kind=Kind.FILE, digest=digest(b"x"), size=-1)
LIES: dict[str, tuple[str, Any]] = {
    "a path outside": ("changes", [[Change(b"../x", TREE[b"a"])]]),
    "an entry that cannot be": ("changes", [[Change(b"a", BAD_FILE)]]),
    "a setuid entry": ("lookup", Found([REPLACE(TREE[b"a"], mode=0o4755), None], [])),
    "too few answers": ("lookup", Found([], [])),
    "too many answers": ("lookup", Found([None] * 3, [])),
    "a path nobody asked about": ("lookup", Found([None, None], [b"other"])),
    "too few bases": ("bases", []),
    "bases without end": ("bases", [[]] * 1_000_000),
    "a base that cannot be": ("bases", [[BAD_FILE], []]),
    "a base list without end": ("bases", [[TREE[b"a"]] * 10_000, []]),
    "too few texts": ("texts", []),
    "contents that nothing takes": ("prepare", [Content(digest(b"other"), 5)]),
    "contents of another size": ("prepare", [Content(digest(b"none"), 5)]),
    "contents that nobody lacks": ("take", [Taken(0, 0, [Content(digest(b"other"), 5)])]),
    "contents nobody asked for": ("read", [[PIECE._replace(digest=digest(b"x"))]]),
    "differences of other contents": ("differences", [[PIECE._replace(digest=digest(b"x"))]]),
    "a source that was not asked about": ("sources", [[Source(digest(b"x"), None)]]),
    "a piece that is none": ("read", [[(b"x", b"y", 9)]]),
    "a problem with another path": ("apply", [Applied(0, [Problem(b"z", "")])]),
    "less than nothing done": ("apply", [Applied(-1, [])]),
    "a negative sequence number": ("newest", -1),
    "a huge sequence number": ("newest", 2**64 - 1),
    "text for a number": ("newest", "1"),
    "a problem that is none": ("scan", REPLACE(SCANNED, problems=[Problem(b"a", b"no text")])),  # type: ignore[arg-type]
    "rules without end": ("scan", REPLACE(SCANNED, rules=b"x" * 10_000)),
    "a skipped path without end": ("scan", REPLACE(SCANNED, skipped=[b"x" * 100_000])),
    "a mark with a path outside": ("mark", Mark(1, 1, b"", [b"/etc"])),
    "a mark beyond all numbers": ("mark", Mark(1, 2**63, b"", [])),
}


@pytest.mark.parametrize(("method", "lie"), LIES.values(), ids=LIES)
def test_a_far_end_that_lies_is_found_out(connect: Connect, method: str, lie: object) -> None:
    remote = connect(**{method: lambda self, *_: lie})
    with pytest.raises(ProtocolError):
        CALLS[method](remote)


@pytest.mark.parametrize(
    "identity",
    [Identity(ReplicaId(2**63), "n", 1), Identity(ReplicaId(-1), "n", 1), Identity(ReplicaId(1), "n", 2**63)],
)
def test_an_identity_that_no_manifest_can_hold_is_refused(connect: Connect, identity: Identity) -> None:
    with pytest.raises(ProtocolError, match=r"Expected `int` [<>]="):
        connect(identity=property(lambda self: identity, lambda self, _: None))


def test_a_text_that_is_another_is_no_text(connect: Connect) -> None:
    assert (
        connect(texts=lambda self, _: [b"other", b"x" * 2_000_000]).texts([digest(b"one")] * 2) == [None] * 2
    )


def test_an_answer_to_a_question_not_asked_is_refused(connect: Connect) -> None:
    with pytest.raises(ProtocolError):
        connect(newest=lambda self: [1, 2]).newest()


# -- what either may send


def most(kind: inspect.Type) -> float:
    """Return how many objects a message of this type can have to be made of it."""
    match kind:
        case inspect.ListType() | inspect.VarTupleType():
            return most(kind.item_type) * (math.inf if kind.max_length is None else kind.max_length)
        case inspect.DictType():
            return 2 * (math.inf if kind.max_length is None else kind.max_length)
        case inspect.StructType() | inspect.NamedTupleType():
            return 1 + sum(most(field.type) for field in kind.fields)
        case inspect.UnionType():
            return max(map(most, kind.types))
        case inspect.Metadata():
            return most(kind.type)
        case _:
            return 1


ANYTHING = (AnyCall, AnyTransitions, AnyPieces, Identity, Scanned, Mark, Point, Found, Taken, Applied, Facts)
LISTS = (AnyChanges, AnyBases, AnyTexts, AnyDigests, AnyContents, AnyAlike, AnySources)


@pytest.mark.parametrize("kind", [*ANYTHING, *LISTS])
def test_no_message_is_made_of_more_objects_than_take_some_mebibytes(kind: object) -> None:
    assert most(inspect.type_info(kind)) < 1 << 21


# -- a hostile near end


class Frames(list[tuple[bytes, object]]):
    """Frames that are no single call."""


def session(*calls: object) -> bytes:
    """What a near end sends: its opening, its calls, and for a call that takes more, that."""
    with tempfile.TemporaryFile() as file:
        connection = Connection(os.open(os.devnull, os.O_RDONLY), os.dup(file.fileno()), "far")
        connection._stream.send([b"p2psync\0\0" + bytes([PROTOCOL, 0])])
        for call in calls:
            frames = call if isinstance(call, Frames) else [(CALL, call)]
            for tag, message in frames:
                connection.send(tag, message)
        connection.flush()
        connection.close()
        file.seek(0)
        return file.read()


def answers_to(
    data: bytes, replica: Fake | None = None, watched: Watched | None = None, opener: Opener | None = None
) -> list[tuple[bytes, bytes]]:
    """The frames that a far end sends to one that sends `data`."""
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answered:
        asked.write(data)
        asked.seek(0)
        connection = Connection(os.dup(asked.fileno()), os.dup(answered.fileno()), "near")
        try:
            serve(connection, b"/r", opener or (lambda root, create: replica or Fake()), False, watched)
        finally:
            connection.close()
        answered.seek(0)
        connection = Connection(os.dup(answered.fileno()), os.open(os.devnull, os.O_WRONLY), "far")
        connection.open()
        frames = []
        try:
            while True:
                tag, body = connection.receive()
                frames.append((tag, bytes(body)))
        except Unreachable:
            return frames
        finally:
            connection.close()


def failures(answers: list[tuple[bytes, bytes]]) -> set[str]:
    return {msgspec.msgpack.decode(body)[0] for tag, body in answers if tag not in (VALUE, END)}


class Untouched(Fake):
    """A replica that must not hear of any of this."""

    def __getattribute__(self, name: str) -> object:
        if name in ("stage", "prepare"):  # these see the call, but nothing of what it brings
            return list
        assert name.startswith("__") or name in ("identity", "close", "marks", "held", "tree"), name
        return super().__getattribute__(name)


STAGE, PREPARE = (CALL, Stage()), (CALL, Prepare())
ATTACKS: dict[str, Any] = {
    "a negative sequence number": Changes(-1),
    "a huge sequence number": Changes(2**63),
    "a replica that no manifest can hold": GetMark(ReplicaId(2**63)),
    "a short digest": Read([Digest(b"x")]),
    "a digest that is a path": Texts([Digest(b"../../etc/passwd")[:15]]),  # type: ignore[list-item]
    "questions without end": Bases([b"a"] * 20_000),
    "a mark of nobody": Acknowledge(Identity(ReplicaId(-1), "n", 1), MARK),
    "a call that there is not": ["Format", "/"],
    "a call with a name for the terminal": ["\x1b[2J\x07"],
    "no call": None,
    "text": "Scan",
    "a value where a call is due": Frames([(VALUE, Newest())]),
    "pieces that are none": Frames([STAGE, (VALUE, [1])]),
    "a call among pieces": Frames([STAGE, (CALL, Newest())]),
    "a transition to what cannot be": Frames([PREPARE, (VALUE, [Transition(b"x", None, BAD_FILE)])]),
    "a transition from what cannot be": Frames([PREPARE, (VALUE, [Transition(b"x", BAD_FILE, TREE[b"a"])])]),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_near_end_that_asks_for_what_it_must_not_is_told_so(attack: object) -> None:
    *_, (tag, body) = answers_to(session(attack), Untouched())
    failure = msgspec.msgpack.decode(body)
    assert (tag, failure[0]) == (b"X", "ProtocolError")
    assert failure[1].isprintable()


def of_path(path: bytes) -> list[object]:
    """Return each call that says something of a path."""
    entry = TREE[b"a"]
    steps = (Transition(path, None, entry), Transition(b"a", None, entry, (path,)))
    return [
        Lookup([Name(path, False)]),
        Bases([path]),
        Rehash([path]),
        Acknowledge(Identity(ReplicaId(1), "n", 1), Mark(1, 1, b"", [path])),
        *(Frames([PREPARE, (VALUE, [step]), (END, None)]) for step in steps),
    ]


@pytest.mark.parametrize("path", [b"../x", b"/x", b"a/../../x", b".p2psync/manifest.db", b"d/.P2Psync/x"])
def test_no_call_is_about_a_path_outside_or_in_a_sidecar(path: bytes) -> None:
    for call in of_path(path):
        assert failures(answers_to(session(call), Untouched())) == {"ProtocolError"}, call


def test_a_far_end_that_is_told_to_lock_twice_does_not_lock_itself_out() -> None:
    opened: list[Fake] = []

    class Lockable(Fake):
        def close(self) -> None:
            opened.remove(self)

    def opener(root: bytes, create: bool) -> Fake:
        if opened:
            raise Locked("another run is at work")
        opened.append(Lockable())
        return opened[-1]

    assert not failures(answers_to(session(Open(), Open()), opener=opener))


def test_the_far_end_of_a_watch_frees_memory_for_it_runs_for_weeks() -> None:
    data, enabled = session(Watch(0.1, 0, 3600)), []

    def watched(watcher: object) -> Callable[[bytes, bool], Fake]:
        enabled.append(gc.isenabled())
        return lambda root, create: Fake()

    gc.disable()  # as the command does
    try:
        answers_to(data, watched=watched)
    finally:
        gc.enable()
    assert enabled == [True]


@pytest.mark.parametrize("changes", [False, True])
def test_a_far_end_that_looks_for_long_at_what_happened_says_so_and_opens_when_it_has(
    changes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2psync.serve.LONG_SECONDS", 0.01)
    has_begun, may_end = threading.Event(), threading.Event()

    class Slow(Fake):
        def scan(self, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
            has_begun.set()
            may_end.wait(10)
            if changes:
                TREE_THERE[b"new"] = TREE[b"a"]
            return super().scan(keep)

        def newest(self) -> int:
            return len(TREE_THERE)

    TREE_THERE = dict(TREE)  # noqa: N806
    to_far, to_near = os.pipe(), os.pipe()
    far = Connection(to_far[0], to_near[1], "near")
    served = (far, b"/r", lambda root, create: Slow(), False, lambda watcher: lambda root, create: Slow())
    thread = threading.Thread(target=serve, args=served)
    thread.start()
    near = RemoteReplica(Connection(to_near[0], to_far[1], "far"), Gone())
    near.watch(0, 0.01, 60)
    near.let_go()
    has_begun.wait(10)
    with pytest.raises(Locked, match="far is looking at what happened there"):
        near.take_up()
    assert near.is_looking
    may_end.set()
    has_changed = False
    while near.is_looking:
        select.select([near], [], [], 10)
        has_changed |= near.has_changed()
    assert has_changed == changes
    near.take_up()
    assert near.newest() == len(TREE) + changes
    near.close()
    thread.join()
    far.close()


class Gone:
    """A process that needs no end."""

    def why_it_ended(self) -> str | None:
        return None

    def end(self, patience: float) -> None:
        pass


def test_a_near_end_that_hangs_up_anywhere_does_no_harm() -> None:
    data = session(
        Scan(True),
        Frames([PREPARE, (VALUE, [Transition(b"a", None, TREE[b"a"])]), (END, None)]),
        Apply(),
        Newest(),
    )
    opened = len(session())
    for end in range(opened, len(data)):
        assert not failures(answers_to(data[:end]))


def test_transitions_count_only_when_all_have_come() -> None:
    data = session(Frames([PREPARE, (VALUE, [Transition(b"new", None, TREE[b"a"])])]))
    replica = Fake()
    answers_to(data, replica)
    assert not replica.prepared


GOOD_SESSION = session(
    Scan(True),
    GetMark(ReplicaId(5)),
    Changes(0),
    Lookup([Name(b"a", False)]),
    Bases([b"a"]),
    Texts([digest(b"one")]),
    Read([digest(b"one")]),
    Frames([PREPARE, (VALUE, [Transition(b"a", None, TREE[b"a"])]), (END, None)]),
    Frames([STAGE, (VALUE, [PIECE]), (END, None)]),
    Apply(),
    Acknowledge(Identity(ReplicaId(1), "n", 1), MARK),
    Newest(),
)


@given(st.data())
@settings(max_examples=500)
def test_a_session_with_wrong_bytes_ends_in_an_answer_or_an_error_in_words(data: st.DataObject) -> None:
    bad = bytearray(GOOD_SESSION)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(len(session()), len(bad) - 1))] = data.draw(st.integers(0, 255))
    assert failures(answers_to(bytes(bad))) <= {"ProtocolError"}


# -- ssh

HOST = Address(b"docs", "nas", "me")


@pytest.fixture
def ssh(tmp_path: Path) -> Callable[[str], str]:
    """Makes an ssh that notes its arguments and then runs a script; `$far` is what it was to run there."""

    def make(script: str) -> str:
        program = tmp_path / "ssh it"
        note = shlex.quote(str(tmp_path / "argv"))
        program.write_text(
            f'#!/bin/sh\nprintf "%s\\0" "$@" > {note}\nfor far; do :; done\ncd {tmp_path}\n{script}\n'
        )
        program.chmod(0o755)
        return shlex.quote(str(program))

    return make


Ssh = Callable[[str], str]


def arguments(tmp_path: Path) -> list[str]:
    return (tmp_path / "argv").read_bytes().decode().split("\0")[:-1]


def reach(
    address: Address, command: str | None, create: bool = False, far: str | None = REMOTE
) -> RemoteReplica:
    return connect_ssh(address, Peer("far", "", command, None, far), create)


def test_a_replica_is_served_over_ssh_compressed(ssh: Ssh) -> None:
    remote = reach(HOST, ssh('exec sh -c "$far"'), create=True)
    assert remote.identity.name == "b'docs' True"
    assert list(remote.read([digest(b"x" * 3_000_000)])) == list(Fake().read([digest(b"x" * 3_000_000)]))
    assert remote.traffic[1] < 10_000
    remote.close()


def test_ssh_gets_options_then_two_dashes_then_the_host_then_one_command(ssh: Ssh, tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        reach(Address(b"a b", "nas", "me", 2222), ssh("exit 255") + " -4 -o 'A=b c'", far=None)
    given = [argument for argument in arguments(tmp_path) if argument != "BatchMode=yes"]
    assert [*given[:3], *given[-5:]] == [
        *["-4", "-o", "A=b c"],
        *["-p", "2222", "--", "me@nas", "p2psync serve -- 'a b'"],
    ]


HOSTILE_ROOTS = [
    b"$(touch PWNED)",
    b"`touch PWNED`",
    b"; touch PWNED",
    b"x' 'y",
    b'"$HOME"',
    b"--create",
    b"-rf",
    b"a\nb",
    b"\xff\xfe",
    b"*",
    b"a\\b",
    b"!x",
]


@pytest.mark.parametrize("root", HOSTILE_ROOTS)
def test_a_path_arrives_as_one_word_and_nothing_else_happens(ssh: Ssh, tmp_path: Path, root: bytes) -> None:
    check = "import os, sys; os.write(2, repr(sys.argv[1:]).encode()); sys.exit(7)"
    far = f"{shlex.quote(sys.executable)} -c {shlex.quote(check)}"
    told = tmp_path / "told"
    with pytest.raises(Unreachable, match="ended with code 7"):
        reach(Address(root, "nas"), ssh(f'exec sh -c "$far" 2> {told.name}'), far=far)
    assert told.read_text() == repr(["serve", "--", os.fsdecode(root)])
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 255", "ssh could not connect to me@nas"),
        ("exit 127", "p2psync was not found on me@nas: install it there, or say where .* --remote-command"),
        ("exit 126", "was not found on me@nas"),
        ("exit 0", "p2psync on me@nas ended with code 0"),
        (rf"printf 'p2psync\0\0\{PROTOCOL:o}\0'", "p2psync on me@nas ended with code 0"),
        ("kill -9 $$", "p2psync on me@nas ended with code -9"),
        ("sh -c 'no-such-p2psync serve' 2>/dev/null", "was not found"),
    ],
)
def test_a_far_end_that_says_nothing_is_unreachable_and_the_reason_is_told(
    ssh: Ssh, script: str, message: str
) -> None:
    with pytest.raises(Unreachable, match=message):
        reach(HOST, ssh(script), far=None)


def test_a_banner_of_the_shell_there_is_shown(ssh: Ssh) -> None:
    with pytest.raises(ProtocolError, match="me@nas answered with something else: 'Welcome to NAS'"):
        reach(HOST, ssh('echo Welcome to NAS; exec sh -c "$far"'))


def test_another_version_there_says_which_to_upgrade(ssh: Ssh) -> None:
    with pytest.raises(ProtocolError, match=r"me@nas speaks protocol 99.*upgrade the one here"):
        reach(HOST, ssh(r"printf 'p2psync\0\0\143\0'; cat >/dev/null"))


def test_what_ssh_says_is_shown(ssh: Ssh, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unreachable):
        reach(HOST, ssh("echo 'Host key verification failed.' >&2; exit 255"))
    assert capfd.readouterr().err == "Host key verification failed.\n"


def test_a_connection_that_ends_in_the_middle_is_said_to_be_broken(ssh: Ssh) -> None:
    remote = reach(HOST, ssh('exec sh -c "exec $far"'))
    os.kill(remote._process._pid, signal.SIGKILL)  # type: ignore[attr-defined]
    with pytest.raises(Unreachable, match="the connection to me@nas broke"):
        remote.newest()
    remote.close()


def test_no_ssh_here_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="cannot run /no/ssh: No such file"):
        reach(HOST, "/no/ssh")


def test_an_ssh_command_that_no_shell_understands_is_a_usage_error() -> None:
    with pytest.raises(AddressError, match="No closing quotation"):
        reach(HOST, "ssh -o 'x")


def test_the_environment_may_name_the_ssh(ssh: Ssh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PSYNC_SSH", ssh("exit 255") + " -v")
    with pytest.raises(Unreachable):
        reach(HOST, None, far=None)
    assert arguments(tmp_path)[0] == "-v"


def test_plain_ssh_is_kept_alive(ssh: Ssh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh("exit 255")
    (tmp_path / "ssh it").rename(tmp_path / "ssh")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("P2PSYNC_SSH", raising=False)
    with pytest.raises(Unreachable):
        reach(HOST, None, far=None)
    assert arguments(tmp_path)[:4] == ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]


def test_an_ssh_with_options_of_its_own_is_kept_alive_too(ssh: Ssh, tmp_path: Path) -> None:
    ssh("exit 255")
    program = (tmp_path / "ssh it").rename(tmp_path / "ssh")
    for option, added in (("-v", True), ("-o ServerAliveInterval=99", False)):
        with pytest.raises(Unreachable):
            reach(HOST, f"{program} {option}", far=None)
        assert ("ServerAliveInterval=15" in arguments(tmp_path)) == added


@pytest.mark.parametrize("terminal", [False, True])
def test_ssh_may_ask_only_where_someone_can_answer(ssh: Ssh, tmp_path: Path, terminal: bool) -> None:
    stdin, other = os.dup(0), os.openpty()
    os.dup2(other[1] if terminal else os.open(os.devnull, os.O_RDONLY), 0)
    try:
        with pytest.raises(Unreachable):
            reach(HOST, ssh("exit 255"))
    finally:
        os.dup2(stdin, 0)
        for fd in (stdin, *other):
            os.close(fd)
    assert ("BatchMode=yes" in arguments(tmp_path)) is not terminal


def test_a_real_sshd_carries_any_path_literally(sshd: Sshd) -> None:
    address = parse_address(f"ssh://{sshd.host}/~/$(touch PWNED) 'x%ff")
    remote = reach(address, sshd.ssh_command)
    try:
        assert remote.identity.name == f"{address.path!r} False"
        assert list(remote.changes(0)) == list(Fake().changes(0))
    finally:
        remote.close()
    assert not (Path.home() / "PWNED").exists()


if __name__ == "__main__":
    sys.exit(serve_stdio(os.fsencode(sys.argv[-1]), Fake, "--create" in sys.argv))
