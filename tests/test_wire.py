"""Whatever arrives is a valid value, or an error in words; it never costs more than its limit."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from p2psync.calls import CALL, END, ERROR, VALUE, Apply, Prepare, Scan, Stage
from p2psync.core.model import Digest, Entry, Kind, Transition
from p2psync.core.pace import Compress
from p2psync.core.paths import MAX_PATH, is_reserved
from p2psync.core.replica import Change, Found, Identity, Mark, More, Piece
from p2psync.core.vector import NOTHING, ReplicaId, Version
from p2psync.errors import PeerError, ProtocolError, Unreachable
from p2psync.local import LocalReplica, init
from p2psync.serve import serve
from p2psync.wire import MAX_FRAME, PROTOCOL, Connection, check_entry, check_path, plain

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

YEAR = 366 * 24 * 3600 * 1_000_000
PLAIN = struct.pack(">8sHB", b"p2psync\0", PROTOCOL, 0)
COMPRESSED = struct.pack(">8sHB", b"p2psync\0", PROTOCOL, 1)
FLUSH: Final = zstd.ZstdCompressor.FLUSH_BLOCK


@contextmanager
def receiving(data: bytes) -> Iterator[Connection]:
    """A connection on which `data` arrives, and then nothing more."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        connection = Connection(os.dup(file.fileno()), os.open(os.devnull, os.O_WRONLY), "far")
        try:
            yield connection
        finally:
            connection.close()


def recorded(messages: list[Any], opening: bytes = PLAIN) -> bytes:
    """All that a side sends to tell `messages`, each as a frame."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(opening)
        source.seek(0)
        connection = Connection(os.dup(source.fileno()), os.dup(target.fileno()), "far")
        connection.open(Compress(opening == COMPRESSED))
        for message in messages:
            connection.send(b"V", message)
        connection.flush()
        connection.close()
        target.seek(0)
        return target.read()


def received(data: bytes, kind: type = list[Change]) -> list[Any]:
    """The messages in `data`, up to its end."""
    messages: list[Any] = []
    with receiving(data) as connection:
        connection.answer()
        while True:
            try:
                _, message = connection.receive()
            except Unreachable:
                return messages
            messages.append(connection.decode(message, kind))


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 1) + b"V" + body


NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in (b".", b"..") and not is_reserved(name)
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
TICKS = st.integers(1, int(time.time() * 1e6))
VERSIONS = st.dictionaries(st.integers(0, 2**63 - 1).map(ReplicaId), TICKS, max_size=3).map(Version)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from(Kind))
    target = draw(NAMES) if kind is Kind.SYMLINK else b""
    data = target if kind is Kind.SYMLINK else draw(st.binary(max_size=3))
    return Entry(
        kind=kind,
        version=draw(VERSIONS),
        revision=draw(st.integers(0, 2**62 - 1)),
        digest=Digest(xxh3_128_digest(data) if kind in (Kind.FILE, Kind.SYMLINK) else b""),
        size=draw(st.integers(0, 2**63 - 1)) if kind is Kind.FILE else 0,
        mode=draw(st.integers(0, 0o777)),
        mtime_ns=draw(st.integers(-(2**63), 2**63 - 1)),
        target=target,
    )


CHANGES = st.lists(st.builds(Change, PATHS, entries()), max_size=4)
OPENINGS = st.sampled_from([PLAIN, COMPRESSED])
GOOD = [
    [
        Change(
            b"a/b",
            Entry(kind=Kind.FILE, version=Version({ReplicaId(7): 9}), digest=Digest(b"d" * 16), size=3),
        )
    ],
    [Change(b"a", Entry(kind=Kind.DIRECTORY, mode=0o755)), Change(b"gone", Entry(kind=Kind.TOMBSTONE))],
]


# -- good peers


@given(st.lists(CHANGES, max_size=4), OPENINGS)
def test_what_is_sent_arrives(messages: list[list[Change]], opening: bytes) -> None:
    arrived = received(recorded(messages, opening))
    assert arrived == messages
    for change in (change for message in arrived for change in message):
        check_path(change.path)
        check_entry(change.entry)


def test_what_arrives_is_of_the_right_types() -> None:
    [[change]] = received(recorded(GOOD[:1]))
    assert type(change) is Change
    assert type(change.entry.kind) is Kind
    assert type(change.entry.version) is Version


def test_small_frames_wait_for_a_flush_and_large_ones_do_not() -> None:
    with receiving(PLAIN) as connection:
        connection.open()
        opened = connection.sent
        connection.send(b"V", b"small")
        assert connection.sent == opened
        connection.send(b"V", b"x" * 300_000)
        assert connection.sent > 300_000


@pytest.mark.parametrize("opening", [PLAIN, COMPRESSED])
def test_bytes_are_counted_as_they_go_over_the_wire(opening: bytes) -> None:
    data = recorded([[Piece(Digest(b"d" * 16), b"x" * 100_000, More.LAST)]], opening)
    with receiving(data) as connection:
        connection.answer()
        connection.receive()
        assert connection.received == len(data)
        assert connection.sent == len(PLAIN)
    assert (len(data) < 1000) is (opening == COMPRESSED)


def test_a_batch_can_be_read_before_the_next_is_sent() -> None:
    there, here = os.pipe(), os.pipe()
    far, near = Connection(there[0], here[1], "near"), Connection(here[0], there[1], "far")
    os.write(here[1], COMPRESSED)
    near.open(Compress.ON)
    far.answer()
    for number in range(3):
        near.send(b"V", number)
        near.flush()
        assert far.decode(far.receive()[1], int) == number
    far.close()
    near.close()


def test_a_message_that_would_be_refused_is_not_sent() -> None:
    with receiving(PLAIN) as connection, pytest.raises(PeerError, match="too much for one message"):
        connection.open()
        connection.send(b"V", b"x" * MAX_FRAME)


def test_the_largest_message_that_is_sent_is_the_largest_that_is_taken() -> None:
    """Its length counts what follows it: the tag, then here five bytes before the text."""
    fits = b"x" * (16 * 1024 * 1024 - 1 - 5)
    data = recorded([fits])
    assert received(data, bytes) == [fits]
    with pytest.raises(PeerError, match="too much for one message"):
        recorded([fits + b"x"])


def test_a_reader_that_has_gone_is_unreachable() -> None:
    source, target = os.pipe()
    os.close(source)
    connection = Connection(os.open(os.devnull, os.O_RDONLY), target, "nas")
    with pytest.raises(Unreachable, match="the connection to nas broke"):
        connection.open()
    connection.close()


# -- the opening


@pytest.mark.parametrize("banner", [b"Welcome to NAS\nload: 3\n", b"\n\nWelcome to NAS\n", b"Welcome to NAS"])
@pytest.mark.parametrize("after", [b"", PLAIN + frame(b"\x90")])
def test_a_banner_is_shown(banner: bytes, after: bytes) -> None:
    with (
        receiving(banner + after) as connection,
        pytest.raises(ProtocolError, match="'Welcome to NAS") as error,
    ):
        connection.open()
    assert "start-up file" in str(error.value)


def test_a_banner_cannot_write_to_the_terminal() -> None:
    with receiving(b"\x1b[2J\x07hi\x9b\xff\n") as connection, pytest.raises(ProtocolError) as error:
        connection.open()
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("protocol", "where"), [(0, "on far"), (PROTOCOL + 1, "here"), (999, "here")])
def test_another_version_says_which_side_to_upgrade(protocol: int, where: str) -> None:
    opening = struct.pack(">8sHB", b"p2psync\0", protocol, 0)
    with receiving(opening) as connection, pytest.raises(ProtocolError, match=f"upgrade the one {where}"):
        connection.open()


def test_who_calls_decides_for_both_what_is_compressed_and_how_fast_it_may_go() -> None:
    there, here = os.pipe(), os.pipe()
    far, near = Connection(there[0], here[1], "near"), Connection(here[0], there[1], "far")
    os.write(here[1], PLAIN)
    near.open(Compress.AUTO, 12_345)
    far.answer()
    for end in (near, far):
        outgoing = end._stream._outgoing
        assert outgoing._packer is not None
        assert outgoing._packer._pacer is not None
        assert outgoing._bucket is not None
        assert outgoing._bucket._rate == 12_345
        end.close()


def test_a_compression_from_the_future_is_refused() -> None:
    with receiving(PLAIN[:-1] + b"\x03") as connection, pytest.raises(ProtocolError, match="not known here"):
        connection.answer()


@pytest.mark.parametrize("end", range(len(PLAIN)))
def test_an_end_within_the_opening_is_a_broken_connection(end: int) -> None:
    with receiving(PLAIN[:end]) as connection, pytest.raises(Unreachable, match="far broke"):
        connection.open()


# -- bad peers


@given(st.binary(max_size=200), OPENINGS)
@settings(max_examples=500)
def test_noise_is_an_error_in_words(noise: bytes, opening: bytes) -> None:
    data = chunk(zstd.compress(noise)) if opening == COMPRESSED and len(noise) % 2 else noise
    try:
        received(opening + data)
    except ProtocolError as error:
        assert str(error).startswith("far sent")


@pytest.mark.parametrize("opening", [PLAIN, COMPRESSED])
def test_a_session_cut_anywhere_gives_whole_messages_only(opening: bytes) -> None:
    session = recorded(GOOD, opening)
    for end in range(len(opening), len(session)):
        messages = received(session[:end])
        assert messages == GOOD[: len(messages)]


@given(st.data(), OPENINGS)
@settings(max_examples=500)
def test_a_session_with_wrong_bytes_is_valid_or_an_error_in_words(
    data: st.DataObject, opening: bytes
) -> None:
    session = bytearray(recorded(GOOD, opening))
    for _ in range(data.draw(st.integers(1, 3))):
        session[data.draw(st.integers(len(opening), len(session) - 1))] = data.draw(st.integers(0, 255))
    try:
        for change in (change for message in received(bytes(session)) for change in message):
            check_path(change.path)
            check_entry(change.entry)
    except ProtocolError as error:
        assert "sent" in str(error)
        assert str(error).isprintable()


@pytest.mark.parametrize("length", [0, 16 * 1024 * 1024 + 1, 2**31, 2**32 - 1])
def test_an_impossible_length_is_refused_before_the_frame_is_read(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"a frame of {length} bytes"):
        received(PLAIN + struct.pack(">I", length))


WRONG_TYPES = {
    "text for a list": b"\xa3abc",
    "a list that claims four billion": b"\xdd\xff\xff\xff\xff",
    "text that claims four gigabytes": b"\x91\xdb\xff\xff\xff\xff",
    "bytes after the message": b"\x90\x90",
    "ten thousand levels": b"\x91" * 10_000,
    "an unknown kind": msgspec.msgpack.encode([[b"a", [9]]]),
    "a kind that is a boolean": msgspec.msgpack.encode([[b"a", [True]]]),
    "an integer beyond 64 bits for a size": msgspec.msgpack.encode([[b"a", [1, b"", 0, b"", 1.5]]]),
    "a version that is text": msgspec.msgpack.encode([[b"a", [1, "x"]]]),
    "a version that is cut": msgspec.msgpack.encode([[b"a", [1, b"x"]]]),
    "a version that is a number": msgspec.msgpack.encode([[b"a", [1, 5]]]),
    "an extension type": b"\x91\x92\xc4\x01a\x92\x01\xc7\x01\x05a",
    "a path that is text": msgspec.msgpack.encode([["a", [1]]]),
}


@pytest.mark.parametrize("body", WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_a_message_of_another_shape_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="far sent what makes no sense"):
        received(PLAIN + frame(body))


def test_a_clock_more_than_a_year_ahead_is_refused() -> None:
    now = int(time.time() * 1e6)
    near = Entry(kind=Kind.DIRECTORY, version=Version({ReplicaId(1): now + YEAR // 2}))
    far = Entry(kind=Kind.DIRECTORY, version=Version({ReplicaId(1): now + 2 * YEAR}))
    received(recorded([[Change(b"a", near)]]))
    with pytest.raises(ProtocolError, match="more than a year ahead of this clock"):
        received(recorded([[Change(b"a", far)]]))


def test_a_text_is_shown_as_one_short_line_that_no_terminal_obeys() -> None:
    assert plain("Grüße") == "Grüße"
    assert plain("\x1b[2Ja\nb\u202e\x9b") == r"\x1b[2Ja\nb\u202e\x9b"
    assert len(plain("x" * 10_000)) < 1100


HOSTILE_PATHS = [
    b"",
    b"/etc/passwd",
    b"..",
    b"../x",
    b"a/../../x",
    b"a/./b",
    b"a//b",
    b"a/",
    b"a\0b",
    b".p2psync",
    b".p2psync/manifest.db",
    b"a/.P2PSync/x",
    b".p2psync. /x",
    ".p2ps\u200cync/x".encode(),
    b"P2PSYN~1/x",
    b"x" * 256,
    b"/".join([b"x" * 200] * (MAX_PATH // 200)),
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_path_that_leaves_the_root_is_refused(path: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"the peer sent a (path|name)") as error:
        check_path(path)
    assert str(error.value).isprintable()


FILE = Entry(kind=Kind.FILE, digest=Digest(b"d" * 16), size=3, mode=0o644)
LINK = Entry(kind=Kind.SYMLINK, digest=Digest(xxh3_128_digest(b"t")), target=b"t")
REPLACE = msgspec.structs.replace
IMPOSSIBLE = {
    "a negative size": REPLACE(FILE, size=-1),
    "a size beyond 63 bits": REPLACE(FILE, size=2**63),
    "setuid": REPLACE(FILE, mode=0o4755),
    "a negative mode": REPLACE(FILE, mode=-1),
    "a negative revision": REPLACE(FILE, revision=-1),
    "a revision that leaves no next one": REPLACE(FILE, revision=2**63 - 1),
    "a time beyond 64 bits": REPLACE(FILE, mtime_ns=2**63),
    "a short digest": REPLACE(FILE, digest=Digest(b"d")),
    "a file without a digest": REPLACE(FILE, digest=Digest(b"")),
    "a directory with a digest": REPLACE(FILE, kind=Kind.DIRECTORY, size=0),
    "a directory with a size": Entry(kind=Kind.DIRECTORY, size=1),
    "a file with a target": REPLACE(FILE, target=b"t"),
    "a symlink without a target": REPLACE(LINK, target=b""),
    "a symlink with a NUL": REPLACE(LINK, target=b"a\0b", digest=Digest(xxh3_128_digest(b"a\0b"))),
    "a symlink whose digest is another's": REPLACE(LINK, target=b"other"),
}


@pytest.mark.parametrize("entry", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_entry_that_no_scan_can_have_made_is_refused(entry: Entry) -> None:
    with pytest.raises(ProtocolError, match="an entry that cannot be"):
        check_entry(entry)


@pytest.mark.parametrize("kind", [Found, Identity, Mark, list[Piece], list[Transition], int, Mark | None])
def test_every_type_that_travels_refuses_noise(kind: type) -> None:
    for body in (b"\xc1", b"\x91\xc0", b"\xdc\xff\xff", msgspec.msgpack.encode({"a": 1})):
        with pytest.raises(ProtocolError):
            received(PLAIN + frame(body), kind)


# -- bombs


def chunk(data: bytes, kind: int = 2) -> bytes:
    return struct.pack(">I", kind << 30 | len(data)) + data


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_bomb_is_inflated_no_further_than_the_frame_that_is_read() -> None:
    compressor = zstd.ZstdCompressor()
    first = compressor.compress(frame(b"\x90"), FLUSH)
    bomb = b"".join(compressor.compress(bytes(1 << 20), FLUSH) for _ in range(256))

    def read_the_first_frame() -> None:
        with receiving(COMPRESSED + chunk(first + bomb)) as connection:
            connection.answer()
            assert bytes(connection.receive()[1]) == b"\x90"

    assert len(bomb) < 100_000
    assert peak_of(read_the_first_frame) < 4 << 20


def test_a_frame_that_is_a_bomb_costs_no_more_than_the_largest_frame() -> None:
    compressor = zstd.ZstdCompressor()
    data = compressor.compress(struct.pack(">I", MAX_FRAME), FLUSH)
    bomb = b"".join(compressor.compress(bytes(1 << 20), FLUSH) for _ in range(64))

    def read_it() -> None:
        with pytest.raises(ProtocolError):
            received(COMPRESSED + chunk(data + bomb))

    assert peak_of(read_it) < 4 * MAX_FRAME


def test_a_stream_that_wants_a_huge_window_is_refused() -> None:
    greedy = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    with pytest.raises(ProtocolError, match="cannot be decompressed"):
        received(COMPRESSED + chunk(greedy.compress(frame(b"\x90"), FLUSH)))


def test_a_compressed_stream_that_ends_early_is_refused() -> None:
    with pytest.raises(ProtocolError, match="cannot be decompressed"):
        received(COMPRESSED + chunk(zstd.compress(frame(b"\x90"))) + chunk(b"more", 1))


@pytest.mark.parametrize("word", [3 << 30 | 5, 1 << 30 | 5, 0, 2 << 30, (2 << 20) + 1])
def test_a_chunk_of_no_known_kind_or_size_or_of_no_frame_is_refused(word: int) -> None:
    with pytest.raises(ProtocolError, match="cannot be unpacked"):
        received(COMPRESSED + struct.pack(">I", word) + b"12345")


def test_the_version_of_nothing_travels() -> None:
    [[change]] = received(recorded([[Change(b"a", Entry(kind=Kind.TOMBSTONE))]]))
    assert change.entry.version == NOTHING


# -- a replica on disk behind it

TREE_FILE = Entry(kind=Kind.FILE, version=Version({ReplicaId(9): 9}), revision=1, mode=0o644, size=5)
STAGED = REPLACE(TREE_FILE, digest=Digest(xxh3_128_digest(b"pwned")))
UP = Entry(
    kind=Kind.SYMLINK,
    version=Version({ReplicaId(9): 9}),
    digest=Digest(xxh3_128_digest(b"..")),
    target=b"..",
)
FOLDER = Entry(kind=Kind.DIRECTORY, version=Version({ReplicaId(9): 9}), revision=1, mode=0o755)
GONE = Entry(kind=Kind.TOMBSTONE, version=Version({ReplicaId(9): 9}), revision=1)


def grounds(folder: Path) -> Path:
    """A replica with a link that leads out of it, and beside it what is none of a peer's business."""
    root = folder / "root"
    init(os.fsencode(root))
    (root / "a").write_bytes(b"mine")
    (root / "out").symlink_to("..")
    (folder / "canary").write_bytes(b"alive")
    return root


def outside(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """All there is beside the replica, and in the sidecar what no call may reach."""
    found = {}
    for path in (*root.parent.iterdir(), root / ".p2psync" / "ignore", root / ".p2psync" / "config.toml"):
        if path != root and path.exists():
            st = path.lstat()
            found[str(path)] = (st.st_mode, st.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found


def attack(*transitions: Transition) -> bytes:
    """What a near end sends to stage `pwned` and to have transitions carried out."""
    frames: list[tuple[bytes, object]] = [
        (CALL, Scan(True)),
        *((CALL, Prepare()), (VALUE, list(transitions)), (END, None)),
        *((CALL, Stage()), (VALUE, [Piece(STAGED.digest, b"pwned", More.LAST)]), (END, None)),
        (CALL, Apply()),
    ]
    with tempfile.TemporaryFile() as target:
        connection = Connection(os.open(os.devnull, os.O_RDONLY), os.dup(target.fileno()), "far")
        for tag, message in frames:
            connection.send(tag, message)
        connection.flush()
        connection.close()
        target.seek(0)
        return PLAIN + target.read()


def answers(root: Path, data: bytes) -> list[tuple[bytes, Any]]:
    """What a far end with the replica at `root` answers to one who sends `data` and hangs up."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(data)
        source.seek(0)
        connection = Connection(os.dup(source.fileno()), os.dup(target.fileno()), "near")
        serve(connection, os.fsencode(root), lambda path, _: LocalReplica(path), False)
        connection.close()
        target.seek(0)
        with receiving(target.read()) as received_from:
            received_from.open()
            found = []
            with contextlib.suppress(Unreachable):
                while True:
                    tag, message = received_from.receive()
                    found.append((tag, msgspec.msgpack.decode(message)))
            return found


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("p2psync.disk.sync_file_system", lambda fd: None)
        yield


ESCAPES = {
    "a file through a link": [Transition(b"out/pwned", None, STAGED)],
    "a folder through a link": [Transition(b"out/pwned", None, FOLDER)],
    "a link through a link": [Transition(b"out/pwned", None, UP)],
    "over a file behind a link": [Transition(b"out/canary", None, STAGED)],
    "a deletion behind a link": [Transition(b"out/canary", STAGED, GONE)],
    "through a link of its own": [Transition(b"l", None, UP), Transition(b"l/pwned", None, STAGED)],
    "through a link below a folder of its own": [
        Transition(b"d", None, FOLDER),
        Transition(b"d/l", None, REPLACE(UP, target=b"../..", digest=Digest(xxh3_128_digest(b"../..")))),
        Transition(b"d/l/pwned", None, STAGED),
    ],
}


@pytest.mark.parametrize("transitions", ESCAPES.values(), ids=ESCAPES)
def test_no_transition_reaches_what_is_outside_of_the_root(
    tmp_path: Path, transitions: list[Transition]
) -> None:
    root = grounds(tmp_path)
    before = outside(root)
    told = answers(root, attack(*transitions))
    assert outside(root) == before
    assert {tag for tag, _ in told} == {VALUE, END}
    [problems] = [message[1] for tag, message in told[-2:] if tag == VALUE]
    assert problems or (root / "d" / "pwned").is_file()


def test_two_things_wanted_of_one_path_are_refused(tmp_path: Path) -> None:
    root = grounds(tmp_path)
    steps = [
        Transition(b"d", None, FOLDER),
        Transition(b"d", FOLDER, UP),
        Transition(b"d/pwned", None, STAGED),
    ]
    before = outside(root)
    told = answers(root, attack(*steps))
    assert (ERROR, outside(root)) == (told[-1][0], before)
    assert not (root / "d").exists()


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_one_hostile_path_spoils_all_that_came_with_it(tmp_path: Path, path: bytes) -> None:
    root = grounds(tmp_path)
    before = outside(root)
    told = answers(root, attack(Transition(b"b", None, STAGED), Transition(path, None, STAGED)))
    assert told[-1][0] == ERROR
    assert told[-1][1][0] == "ProtocolError"
    assert outside(root) == before
    assert not (root / "b").exists()


def test_a_session_that_breaks_off_anywhere_has_changed_nothing(tmp_path: Path) -> None:
    root = grounds(tmp_path)
    before = outside(root)
    data = attack(Transition(b"b", None, STAGED))
    for end in range(len(PLAIN), len(data)):
        assert ERROR not in {tag for tag, _ in answers(root, data[:end])}
        assert not (root / "b").exists(), end
    answers(root, data)
    assert (root / "b").read_bytes() == b"pwned"
    assert outside(root) == before


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grounds(tmp_path_factory.mktemp("attacked"))


BYTES = st.sampled_from(b"\0./\x90\xff") | st.integers(0, 255)


@given(st.lists(st.tuples(st.integers(len(PLAIN)), BYTES), min_size=1, max_size=3))
@settings(max_examples=200)
def test_whatever_the_bytes_nothing_outside_of_the_root_is_touched(
    attacked: Path, wrong: list[tuple[int, int]]
) -> None:
    before = outside(attacked)
    paths = [b"b", b"out/x", b"l/x", b"d/e"]
    session = bytearray(
        attack(Transition(b"l", None, UP), *(Transition(path, None, STAGED) for path in paths))
    )
    for place, byte in wrong:
        session[place % (len(session) - len(PLAIN)) + len(PLAIN)] = byte
    told = answers(attacked, bytes(session))
    assert outside(attacked) == before
    assert {message[0] for tag, message in told if tag == ERROR} <= {"ProtocolError"}
