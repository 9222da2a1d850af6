"""What goes in comes out, in order, however it is packed, limited and cut; and what it costs."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync import stream
from p2psync.core import pace
from p2psync.core.pace import Compress, Effort, Pacer
from p2psync.errors import ProtocolError, Unreachable
from p2psync.stream import Stream
from tests.cli_support import wait_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WORDS = [b"alpha ", b"beta ", b"gamma ", b"delta\n", b"epsilon ", b"zeta "]


def text(size: int, seed: int = 1) -> bytes:
    return b"".join(random.Random(seed).choices(WORDS, k=size // 5))[:size]


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class Clock:
    """Time that passes only where it is waited for."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@contextlib.contextmanager
def joined(compress: Compress, limit: int = 0, clock: Clock | None = None) -> Iterator[tuple[Stream, Stream]]:
    """Two ends of one line."""
    to_far, to_near = os.pipe(), os.pipe()
    clocks = (clock.now, clock.sleep) if clock else ()
    near = Stream(to_near[0], to_far[1], "far", *clocks)
    far = Stream(to_far[0], to_near[1], "near", *clocks)
    for end in (near, far):
        end.pack(compress, limit)
    try:
        yield near, far
    finally:
        near.close()
        far.close()


def carried(near: Stream, far: Stream, pieces: list[bytes]) -> list[bytes]:
    """What arrives of pieces that are sent one by one."""
    arrived: list[bytes] = []

    def read() -> None:
        arrived.extend(bytes(far.read(len(piece))) for piece in pieces)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for piece in pieces:
        near.send([piece[:3], piece[3:]])
    near.drain()
    reader.join(60)
    return arrived


PIECES = st.lists(
    st.tuples(st.sampled_from([text, noise]), st.sampled_from([1, 5, 1000, 70_000, 300_000, 2_500_000])),
    min_size=1,
    max_size=6,
)


@given(PIECES, st.sampled_from(Compress))
@settings(max_examples=30)
def test_what_is_sent_arrives(kinds: list[tuple[object, int]], compress: Compress) -> None:
    pieces = [make(size, seed) for seed, (make, size) in enumerate(kinds)]  # type: ignore[operator]
    with joined(compress) as (near, far):
        assert carried(near, far, pieces) == pieces
        assert far.received == near.sent


@pytest.mark.parametrize("compress", list(Compress))
def test_text_shrinks_and_noise_does_not_grow(compress: Compress) -> None:
    with joined(compress) as (near, far):
        carried(near, far, [text(3_000_000)])
        assert (near.sent < 1_500_000) is (compress is not Compress.OFF)
        before = near.sent
        carried(near, far, [noise(3_000_000)])
        assert near.sent - before < 3_000_500


def test_noise_among_text_is_sent_as_it_is_and_text_goes_on_to_shrink(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunks: list[tuple[stream._Kind, int]] = []
    header = stream._header

    def noted(kind: stream._Kind, length: int) -> bytes:
        chunks.append((kind, length))
        return header(kind, length)

    monkeypatch.setattr(stream, "_header", noted)
    with joined(Compress.AUTO) as (near, far):
        pieces = [text(1 << 20), noise(8 << 20), text(1 << 20, 2)]
        assert carried(near, far, pieces) == pieces
        assert far.received < 9 << 20
    assert sum(length for kind, length in chunks if kind is stream._Kind.PLAIN) > 4 << 20
    assert sum(length for kind, length in chunks if kind is not stream._Kind.PLAIN) < 4 << 20
    assert chunks[0][0] is stream._Kind.NEW
    assert chunks[-1][0] is stream._Kind.MORE


@pytest.mark.parametrize("effort", list(Effort))
def test_every_effort_can_be_read_and_changed_to_any_time(
    monkeypatch: pytest.MonkeyPatch, effort: Effort
) -> None:
    chosen = iter([Effort.NORMAL, effort, Effort.QUICK, effort])
    monkeypatch.setattr(Pacer, "learn", lambda self, spent: setattr(self, "effort", next(chosen, effort)))
    monkeypatch.setattr(pace, "STRETCH_BYTES", 1)
    pieces = [text(1 << 20, seed) for seed in range(6)]
    with joined(Compress.AUTO) as (near, far):
        assert carried(near, far, pieces) == pieces


def test_what_is_harder_to_make_is_smaller() -> None:
    data = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))[: 4 << 20]
    sizes = []
    for effort in (Effort.QUICK, Effort.NORMAL, Effort.STRONG, Effort.BEST):
        packed = zstd.compress(data, options=stream._OPTIONS[effort])
        sizes.append(len(packed))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


# -- a thread of its own


def test_a_sender_does_not_wait_for_the_line_until_much_is_under_way() -> None:
    with joined(Compress.AUTO) as (near, far):
        data = noise(2 << 20)
        near.send([data])  # far more than a pipe holds, and nobody reads
        assert bytes(far.read(len(data))) == data
        near.drain()


def test_what_waits_is_bounded() -> None:
    with joined(Compress.AUTO) as (near, far):
        count = 30

        def send() -> None:
            for seed in range(count):
                near.send([noise(1 << 20, seed)])

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        outgoing = near._outgoing
        wait_for(lambda: outgoing._queued >= stream._QUEUE_BYTES - (1 << 20), "the queue to fill")
        assert sender.is_alive()
        assert outgoing._queued <= stream._QUEUE_BYTES + (1 << 20)
        for seed in range(count):
            assert bytes(far.read(1 << 20)) == noise(1 << 20, seed)
        sender.join(60)


def test_who_sends_waits_where_nobody_reads() -> None:
    with joined(Compress.AUTO) as (near, far):
        count, outgoing, piece = 30, near._outgoing, noise(1 << 20)
        waiting: Any = outgoing._changed
        begun: list[int] = []

        def send() -> None:
            for number in range(count):
                begun.append(number)
                near.send([piece])

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        # The thread that writes has a piece, and no one to write it to: only who sends waits for its turn.
        wait_for(lambda: waiting._waiters or not sender.is_alive(), "the sender to wait")
        queued, sent = outgoing._queued, len(begun)
        far.read(count << 20)
        sender.join(60)
    assert queued <= 5 << 20
    assert sent < 12


@pytest.mark.parametrize("compress", list(Compress))
def test_a_reader_that_goes_is_noticed_by_who_sends_and_by_who_waits(compress: Compress) -> None:
    source, target = os.pipe()
    near = Stream(os.open(os.devnull, os.O_RDONLY), target, "nas")
    near.pack(compress, 0)
    os.close(source)
    with pytest.raises(Unreachable, match="the connection to nas broke"):
        near.send([noise(1 << 20)])
        near.drain()
    with pytest.raises(Unreachable, match="the connection to nas broke"):
        near.send([b"more"])
    near.close()


def test_all_is_gone_before_it_is_closed() -> None:
    to_far = os.pipe()
    near = Stream(os.open(os.devnull, os.O_RDONLY), to_far[1], "far")
    far = Stream(to_far[0], os.open(os.devnull, os.O_WRONLY), "near")
    for end in (near, far):
        end.pack(Compress.AUTO, 0)
    data = noise(3 << 20)
    near.send([data])
    closer = threading.Thread(target=near.close, daemon=True)
    closer.start()
    assert bytes(far.read(len(data))) == data
    closer.join(60)
    far.close()


def test_who_closes_in_a_hurry_leaves_alone_what_is_still_being_written_to() -> None:
    source, target = os.pipe()
    near = Stream(os.open(os.devnull, os.O_RDONLY), target, "far")
    near.pack(Compress.AUTO, 0)
    near.send([noise(3 << 20)])
    near.close(0.01)
    with pytest.raises(OSError):
        os.fstat(near.source)
    os.fstat(target)  # else the next file that is opened gets the number, and the rest of the bytes
    os.close(source)
    near._outgoing.stop(None)
    os.close(target)


# -- what comes

PLAIN, MORE, NEW, UNKNOWN = range(4)


@contextlib.contextmanager
def coming(data: bytes) -> Iterator[Stream]:
    """The end of a packed line on which this comes, and then no more."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        end = Stream(os.dup(file.fileno()), os.open(os.devnull, os.O_WRONLY), "nas")
        end.pack(Compress.ON, 0)
        yield end
        end.close()


def head(kind: int, length: int) -> bytes:
    return struct.pack(">I", kind << 30 | length)


@pytest.mark.parametrize("kind", [PLAIN, NEW])
@pytest.mark.parametrize("length", [0, (2 << 20) + 1, (1 << 30) - 1])
def test_a_chunk_of_an_impossible_length_is_refused_before_it_is_read(kind: int, length: int) -> None:
    with coming(head(kind, length)) as end, pytest.raises(ProtocolError, match="cannot be unpacked"):
        end.read(1)


@pytest.mark.parametrize("kind", [MORE, UNKNOWN])
def test_a_chunk_of_no_frame_is_refused(kind: int) -> None:
    with coming(head(kind, 5) + b"bytes") as end, pytest.raises(ProtocolError, match="cannot be unpacked"):
        end.read(1)


def test_a_chunk_of_an_unknown_kind_is_refused_also_within_a_frame() -> None:
    compressor = zstd.ZstdCompressor()
    packed = compressor.compress(b"text", zstd.ZstdCompressor.FLUSH_BLOCK)
    with coming(head(NEW, len(packed)) + packed + head(UNKNOWN, 5) + b"bytes") as end:
        assert bytes(end.read(4)) == b"text"
        with pytest.raises(ProtocolError, match="cannot be unpacked"):
            end.read(1)


def test_a_chunk_of_the_largest_length_is_taken() -> None:
    with coming(head(PLAIN, 2 << 20) + bytes(2 << 20)) as end:
        assert bytes(end.read(2 << 20)) == bytes(2 << 20)


def test_what_a_chunk_inflates_to_waits_until_it_is_read() -> None:
    packed = zstd.compress(bytes(64 << 20))
    assert len(packed) < 1 << 20
    with coming(head(NEW, len(packed)) + packed) as end:
        assert len(end.peek(1)) <= 256 << 10
        end.read(1 << 20)
        assert len(end.peek(1)) <= 256 << 10


# -- a limit


def test_a_limit_is_kept_to_and_used_and_nothing_comes_in_bursts() -> None:
    clock = Clock()
    times: list[tuple[float, int]] = []
    limit = 1_000_000
    with joined(Compress.OFF, limit, clock) as (near, far):
        writev = near._outgoing._writev

        def noted(views: list[memoryview]) -> None:
            times.append((clock.time, sum(map(len, views))))
            writev(views)

        near._outgoing._writev = noted  # type: ignore[method-assign]
        pieces = [noise(size, size) for size in (300_000, 10, 1_700_000)]
        assert carried(near, far, pieces) == pieces
    assert clock.time == pytest.approx(2.0, rel=0.05)
    for begin in range(20):
        within = sum(size for at, size in times if begin * 0.1 <= at < begin * 0.1 + 0.1)
        assert within <= 0.2 * limit


def test_a_limit_counts_what_is_on_the_wire() -> None:
    clock = Clock()
    with joined(Compress.ON, 100_000, clock) as (near, far):
        carried(near, far, [b"x" * 5_000_000])
    assert clock.time < 0.1
