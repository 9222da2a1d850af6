"""Bytes between two p2psyncs, in order: compressed where it pays, no faster than allowed.

Owns the descriptors, the packing and its limits; knows nothing of frames. What is large is packed and
written by a thread of its own, so that reading, compressing and sending overlap (zstd and the system
calls let other threads run).

A packed stream is a sequence of chunks: four bytes with a kind (two bits) and a length, then so many bytes,
either as they are or of a zstd frame; each kind but the first may follow any other.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum

from p2psync.core import pace
from p2psync.core.pace import Bucket, Compress, Effort, Pacer, Prospect, Spent
from p2psync.errors import ProtocolError, Unreachable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Buffer = bytes | bytearray | memoryview

_PIECE_BYTES = 1 << 20
"""Is packed and written at once."""
_QUEUE_BYTES = 4 << 20
"""Waits for the thread at most; then whoever sends waits too."""
_ASIDE_BYTES = 64 << 10
"""So much is left to the thread; less is written at once."""
_READ_BYTES = 256 << 10
_CHUNK = struct.Struct(">I")
_KIND_SHIFT = 30
_MAX_CHUNK = 2 << 20
_WINDOW_LOG = 23
"""8 MiB of memory for what the other side compressed; we use up to 4, zstd itself would grant 128."""


class _Kind(IntEnum):
    PLAIN = 0
    MORE = 1
    """Of the zstd frame that there is."""
    NEW = 2
    """The beginning of a zstd frame."""


_P = zstd.CompressionParameter
_WIDE: dict[int, int] = {_P.window_log: 22}
_OPTIONS: dict[Effort, dict[int, int]] = {
    Effort.QUICK: {_P.compression_level: 1},
    # On texts and programs between levels 1 and 3 in size, on logs smaller than both, and in time nearer
    # to level 1: matches are looked for with one table as there, but a larger one, in 4 MiB, not 512 KiB.
    Effort.NORMAL: {
        **_WIDE,
        _P.compression_level: 1,
        _P.strategy: zstd.Strategy.fast,
        _P.hash_log: 16,
        _P.chain_log: 16,
        _P.min_match: 7,
    },
    Effort.STRONG: {**_WIDE, _P.compression_level: 6},
    Effort.BEST: {**_WIDE, _P.compression_level: 9},
}


class Stream:
    """A pair of descriptors."""

    def __init__(
        self,
        source: int,
        target: int,
        name: str,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Take over the descriptors to read from and to write to; `name` is the other side, for people."""
        self._incoming = _Incoming(source, name)
        self._outgoing = _Outgoing(target, name, now, sleep)
        self.source = source

    @property
    def sent(self) -> int:
        """Bytes that went out."""
        return self._outgoing.sent

    @property
    def received(self) -> int:
        """Bytes that came in."""
        return self._incoming.received

    def pack(self, compress: Compress, limit: int) -> None:
        """Have what follows packed, both ways; send no more than `limit` bytes a second, unless it is 0."""
        if compress:
            self._incoming.unpack()
        self._outgoing.pack(compress, limit)

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send bytes, which nobody changes any more; may return before they are gone.

        Raises:
            Unreachable: the other side has gone.
        """
        self._outgoing.send(buffers)

    def drain(self) -> None:
        """Wait until all is with the system; raises as `send`."""
        self._outgoing.drain()

    def peek(self, length: int) -> bytearray:
        """Return what has come, at least `length` bytes; they stay to be read.

        Raises:
            Unreachable: the other side has gone.
            ProtocolError: what comes cannot be unpacked.
        """
        return self._incoming.peek(length)

    def read(self, length: int) -> memoryview:
        """Return the next bytes; raises as `peek`."""
        return self._incoming.read(length)

    def has_input(self) -> bool:
        """Has something come that was not read yet?"""
        return self._incoming.has_input()

    def close(self, patience: float | None = None) -> None:
        """Close both descriptors, once all is with the system.

        Args:
            patience: how long that may take, in seconds; None: as long as it takes. What is still being
                written to then stays open.
        """
        is_still_written_to = not self._outgoing.stop(patience)
        for fd in {self.source, self._outgoing.target}:
            if not (is_still_written_to and fd == self._outgoing.target):
                os.close(fd)


class _Incoming:
    def __init__(self, source: int, name: str) -> None:
        self.received = 0
        self._source = source
        self._name = name
        self._packed = False
        self._raw = bytearray()
        """What came and belongs to no chunk yet."""
        self._left = 0
        """Bytes of this chunk that are still to come."""
        self._plain = False
        self._decompressor: zstd.ZstdDecompressor | None = None
        self._in = bytearray()

    def unpack(self) -> None:
        self._packed = True
        self._raw, self._in = self._in, bytearray()

    def has_input(self) -> bool:
        if not self._in and self._decompressor is not None and not self._decompressor.needs_input:
            self._in += self._decompress(b"", _READ_BYTES)  # it may have told so with nothing left in it
        return bool(self._in or self._raw)

    def peek(self, length: int) -> bytearray:
        while len(self._in) < length:
            self._in += self._more(_READ_BYTES)
        return self._in

    def read(self, length: int) -> memoryview:
        if length <= _ASIDE_BYTES or len(self._in) >= length:
            self.peek(length)
            taken = memoryview(bytes(memoryview(self._in)[:length]))
            del self._in[:length]
            return taken
        # Straight to where it belongs: what is large is not copied on its way.
        whole = memoryview(bytearray(length))
        at = len(self._in)
        whole[:at] = self._in
        self._in = bytearray()
        while at < length:
            at += self._into(whole[at:])
        return whole

    def _into(self, place: memoryview) -> int:
        if not self._packed:
            return self._received(self._readv(place))
        if self._left and self._plain and not self._raw:
            count = self._received(self._readv(place[: self._left]))
            self._left -= count
            return count
        data = self._more(len(place))
        place[: len(data)] = data
        return len(data)

    def _more(self, limit: int) -> Buffer:
        """Return some more bytes, `limit` at most: a small chunk must not become a large one in memory."""
        if not self._packed:
            return self._receive(limit)
        if self._decompressor is not None and not self._decompressor.needs_input:
            return self._decompress(b"", limit)
        if not self._left:
            self._begin_chunk()
        if not self._raw:
            self._raw += self._receive(_READ_BYTES)
        size = min(self._left, len(self._raw), limit)
        data = bytes(memoryview(self._raw)[:size])
        del self._raw[:size]
        self._left -= size
        return data if self._plain else self._decompress(data, limit)

    def _begin_chunk(self) -> None:
        while len(self._raw) < _CHUNK.size:
            self._raw += self._receive(_READ_BYTES)
        (word,) = _CHUNK.unpack_from(self._raw)
        del self._raw[: _CHUNK.size]
        kind, self._left = word >> _KIND_SHIFT, word & ((1 << _KIND_SHIFT) - 1)
        self._plain = kind == _Kind.PLAIN
        if kind == _Kind.NEW:
            self._decompressor = zstd.ZstdDecompressor(
                options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
            )
        known = self._plain or (kind <= _Kind.NEW and self._decompressor is not None)
        if not known or not 0 < self._left <= _MAX_CHUNK:
            raise ProtocolError(f"{self._name} sent what cannot be unpacked: a chunk {word:#x}")

    def _decompress(self, data: bytes, limit: int) -> bytes:
        assert self._decompressor is not None
        try:
            return self._decompressor.decompress(data, limit)
        except (zstd.ZstdError, EOFError) as error:
            raise ProtocolError(f"{self._name} sent what cannot be decompressed: {error}") from error

    def _receive(self, limit: int) -> bytes:
        try:
            data = os.read(self._source, limit)
        except OSError as error:
            raise _broken(self._name, error) from error
        self._received(len(data))
        return data

    def _readv(self, place: memoryview) -> int:
        try:
            return os.readv(self._source, [place])
        except OSError as error:
            raise _broken(self._name, error) from error

    def _received(self, count: int) -> int:
        if not count:
            raise Unreachable(f"the connection to {self._name} broke")
        self.received += count
        return count


class _Outgoing:
    def __init__(
        self, target: int, name: str, now: Callable[[], float], sleep: Callable[[float], object]
    ) -> None:
        self.target = target
        self.sent = 0
        self._name = name
        self._now = now
        self._sleep = sleep
        self._packer: _Packer | None = None
        self._bucket: Bucket | None = None
        self._changed = threading.Condition()
        # These belong to whoever holds `_changed`.
        self._queue: deque[Buffer] = deque()
        self._queued = 0
        self._busy = False
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._stopped = False

    def pack(self, compress: Compress, limit: int) -> None:
        if compress:
            self._packer = _Packer(compress, self._now)
        if limit:
            self._bucket = Bucket(limit, self._now())

    def send(self, buffers: Sequence[Buffer]) -> None:
        size = sum(map(len, buffers))
        with self._changed:
            self._check()
            aside = self._queued or self._busy or size >= _ASIDE_BYTES
            if aside and (self._packer or self._bucket):
                self._changed.wait_for(lambda: self._queued < _QUEUE_BYTES or self._error)
                self._check()
                self._queue += buffers
                self._queued += size
                self._start()
                self._changed.notify_all()
                return
        self._write_all(buffers)

    def drain(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error or not (self._queued or self._busy))
            self._check()

    def stop(self, patience: float | None) -> bool:
        """Let the thread end, once it has sent what it has; False if it is still at that after `patience`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _check(self) -> None:
        if self._error:
            raise self._error

    def _start(self) -> None:
        if self._thread is None:
            # A daemon: an interrupted run must not wait for a line that lets nothing through.
            self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if not self._queue:
                    return
                buffers = list(self._queue)
                self._queue.clear()
                self._queued = 0
                self._busy = True
                self._changed.notify_all()
            try:
                self._write_all(buffers)
            except Exception as error:  # whatever it is: who sends must not wait for ever
                with self._changed:
                    self._error = error
                    self._queue.clear()
                    self._queued = 0
                    self._busy = False
                    self._changed.notify_all()
                return

    def _write_all(self, buffers: Sequence[Buffer]) -> None:
        for piece in _pieces(buffers):
            if self._packer is None:
                self._write(piece)
                continue
            packed = self._packer.pack(piece)
            before = self._now()
            self._write(packed)
            self._packer.learn(sum(map(len, piece)), sum(map(len, packed)), self._now() - before)

    def _write(self, buffers: list[Buffer]) -> None:
        views = [memoryview(buffer) for buffer in buffers]
        if self._bucket is None:
            self._writev(views)
            return
        for view in views:
            for at in range(0, len(view), self._bucket.step):
                step = view[at : at + self._bucket.step]
                if (seconds := self._bucket.wait(len(step), self._now())) > 0:
                    self._sleep(seconds)
                self._writev([step])

    def _writev(self, views: list[memoryview]) -> None:
        try:
            while views:
                count = os.writev(self.target, views)
                self.sent += count
                while views and count >= len(views[0]):
                    count -= len(views.pop(0))
                if count:
                    views[0] = views[0][count:]
        except OSError as error:
            raise _broken(self._name, error) from error


def _broken(name: str, error: OSError) -> Unreachable:
    return Unreachable(f"the connection to {name} broke: {error.strerror}")


def _pieces(buffers: Sequence[Buffer]) -> list[list[Buffer]]:
    """Join and split buffers into pieces of about equal size, without copying."""
    pieces: list[list[Buffer]] = [[]]
    room = _PIECE_BYTES
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            if not room:
                pieces.append([])
                room = _PIECE_BYTES
            pieces[-1].append(view[:room])
            view, room = view[room:], max(0, room - len(view))
    return [piece for piece in pieces if piece]


class _Packer:
    """Makes chunks of pieces."""

    def __init__(self, compress: Compress, now: Callable[[], float]) -> None:
        self._now = now
        self._pacer = Pacer() if compress is Compress.AUTO else None
        self._prospect = Prospect()
        self._effort = Effort.NONE
        self._compressor: zstd.ZstdCompressor | None = None
        self._packing = self._writing = 0.0
        self._plain = self._sent = 0
        self._since = now()

    def pack(self, piece: list[Buffer]) -> list[Buffer]:
        """Return the bytes to send."""
        effort = self._pacer.effort if self._pacer else Effort.NORMAL
        began = self._now()
        size = sum(map(len, piece))
        if effort is Effort.NONE or (self._pacer and not self._is_worth_it(piece, effort)):
            return [_header(_Kind.PLAIN, size), *piece]
        kind = _Kind.MORE
        if effort is not self._effort:
            kind, self._effort = _Kind.NEW, effort
            self._compressor = zstd.ZstdCompressor(options=_OPTIONS[effort])
        assert self._compressor is not None
        packed = [self._compressor.compress(buffer) for buffer in piece[:-1]]
        packed.append(self._compressor.compress(piece[-1], zstd.ZstdCompressor.FLUSH_BLOCK))
        self._packing += self._now() - began
        length = sum(map(len, packed))
        self._prospect.learn(size, length)
        return [_header(kind, length), *packed]

    def _is_worth_it(self, piece: list[Buffer], effort: Effort) -> bool:
        if not self._prospect.is_dim(effort):
            return True
        third = pace.SAMPLE_BYTES // 3
        view = memoryview(max(piece, key=len))
        places = (len(view) // 8, len(view) // 2, len(view) * 7 // 8)
        sample = b"".join(view[at : at + third] for at in places)
        return self._prospect.is_worth_it(len(sample), len(zstd.compress(sample, 1)))

    def learn(self, plain: int, sent: int, writing: float) -> None:
        """Take in what became of a piece."""
        if self._pacer is None:
            return
        self._plain += plain
        self._sent += sent
        self._writing += writing
        elapsed = self._now() - self._since
        if self._plain >= pace.STRETCH_BYTES or elapsed >= pace.STRETCH_SECONDS:
            if self._plain >= pace.STRETCH_BYTES // 16:  # less says more of the pauses than of the line
                self._pacer.learn(Spent(self._plain, self._sent, self._packing, self._writing, elapsed))
            self._packing = self._writing = 0.0
            self._plain = self._sent = 0
            self._since = self._now()


def _header(kind: _Kind, length: int) -> bytes:
    return _CHUNK.pack(kind << _KIND_SHIFT | length)
