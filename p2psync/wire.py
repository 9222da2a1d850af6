"""Frames between two p2psyncs: length-prefixed msgpack over two descriptors, compressed where it pays.

Owns the encoding, its limits, and the rules that everything from the other side has to pass: it is
hostile until it has. Does not know what the messages are for.
"""

from __future__ import annotations

import functools
import os
import select
import struct
import sys
import time
from typing import Any, TypeVar

import msgspec
from xxhash import xxh3_128_digest

from p2psync.core import paths
from p2psync.core.model import Entry, Kind
from p2psync.core.vector import MAX_AHEAD_SECONDS, Version
from p2psync.errors import PeerError, ProtocolError, Unreachable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PROTOCOL = 2
"""Both sides must speak the same one."""
MAX_FRAME = 16 * 1024 * 1024

_MAGIC = b"p2psync\0"
_OPENING = struct.Struct(">8sHB")
_LENGTH = struct.Struct(">I")
_FLUSH_BYTES = 256 * 1024
_READ_BYTES = 256 * 1024
_LEVEL = 3
"""Measured on text and programs: 145 MiB/s, 4 to 5 times smaller. Level 1 is twice as fast and a tenth to a
third larger, which pays only on lines faster than about 50 MiB/s."""
_WINDOW_LOG = 23
"""8 MiB of memory for what the other side compressed; level 3 asks for 2 MiB, zstd would grant 128."""
_TEXT = 1000
"""Characters of a message that are shown at most."""
_INT = 1 << 63
_REVISIONS = 1 << 62
"""Leaves room for a next one."""

_T = TypeVar("_T")


class Connection:
    """Typed frames over a pair of descriptors."""

    def __init__(self, source: int, target: int, name: str) -> None:
        """Take over the descriptors to read from and to write to; `name` is the other side, for people."""
        self._source = source
        self._target = target
        self.name = name
        self.sent = 0
        self.received = 0
        self._out = bytearray()
        self._in = bytearray()
        self._compressor: zstd.ZstdCompressor | None = None
        self._decompressor: zstd.ZstdDecompressor | None = None

    def close(self) -> None:
        """Close both descriptors."""
        for fd in {self._source, self._target}:
            os.close(fd)

    def wait_for_hang_up(self) -> None:
        """Return once the other side has closed its end; what it sent before stays to be read."""
        poll = select.poll()
        poll.register(self._source, 0)
        poll.poll()

    def fileno(self) -> int:
        """Return what is read from: it is readable when something came, or when the other side has gone."""
        return self._source

    def has_input(self, patience: float) -> bool:
        """Is there something to be received within so many seconds, be it the end?"""
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        return bool(self._in) or bool(poll.poll(patience * 1000))

    def wait(self, other: int, until: float) -> bool:
        """Wait until there is something to be received; return whether there is.

        Args:
            other: a descriptor to wait for as well.
            until: when to return at the latest, by `time.monotonic`.
        """
        if self._in:
            return True
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        poll.register(other, select.POLLIN)
        timeout = max(0.0, until - time.monotonic()) * 1000
        return any(fd == self._source for fd, _ in poll.poll(timeout))

    # -- opening

    def open(self, compress: bool) -> None:
        """Begin as the side that calls; decides on compression.

        Raises:
            ProtocolError: the other side is no p2psync, or of another version.
            Unreachable: it has gone.
        """
        self._write(_OPENING.pack(_MAGIC, PROTOCOL, compress))
        self._check_opening()
        self._start_compression(compress)

    def answer(self) -> None:
        """Begin as the side that is called; raises as `open`."""
        self._write(_OPENING.pack(_MAGIC, PROTOCOL, 0))
        self._start_compression(self._check_opening())

    def _check_opening(self) -> bool:
        self._fill(1)
        while len(self._in) < _OPENING.size and _MAGIC.startswith(self._in[: len(_MAGIC)]):
            self._fill(len(self._in) + 1)
        if not self._in.startswith(_MAGIC):
            line = bytes(self._in[:200]).strip().split(b"\n")[0].decode("utf-8", "replace")
            raise ProtocolError(
                f"{self.name} answered with something else: {line!r}. If a start-up file of the shell there"
                " prints this, let it do so only in interactive shells"
            )
        _, protocol, compress = _OPENING.unpack(self._take(_OPENING.size))
        if protocol != PROTOCOL:
            older = "here" if protocol > PROTOCOL else f"on {self.name}"
            raise ProtocolError(
                f"{self.name} speaks protocol {protocol}, this p2psync {PROTOCOL}: upgrade the one {older}"
            )
        return bool(compress)

    def _start_compression(self, compress: bool) -> None:
        if compress:
            self._compressor = zstd.ZstdCompressor(_LEVEL)
            limits: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
            self._decompressor = zstd.ZstdDecompressor(options=limits)
            early, self._in = bytes(self._in), bytearray()
            if early:
                self._unpack(early)

    # -- frames

    def send(self, kind: bytes, message: object = None) -> None:
        """Queue a frame; `flush` or a full buffer sends it.

        Raises:
            PeerError: it is longer than the other side takes.
            Unreachable: the other side has gone.
        """
        body = _encoder.encode(message)
        if len(body) >= MAX_FRAME:
            raise PeerError(f"{len(body) >> 20} MiB for {self.name} are too much for one message")
        self._out += _LENGTH.pack(len(body) + 1) + kind
        self._out += body
        if len(self._out) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what is queued.

        Raises:
            Unreachable: the other side has gone.
        """
        if self._out:
            data: bytes | bytearray = self._out
            if self._compressor:
                data = self._compressor.compress(data, zstd.ZstdCompressor.FLUSH_BLOCK)
            self._out = bytearray()
            self._write(data)

    def receive(self) -> tuple[bytes, memoryview]:
        """Return the next frame: its kind and its undecoded message.

        Raises:
            ProtocolError: it is too long.
            Unreachable: the other side has gone.
        """
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size))
        if not 0 < length <= MAX_FRAME:
            raise ProtocolError(f"{self.name} sent a frame of {length} bytes")
        frame = memoryview(self._take(length))
        return bytes(frame[:1]), frame[1:]

    def decode(self, message: memoryview, kind: type[_T]) -> _T:
        """Return the message as a value of type `kind`.

        Raises:
            ProtocolError: it is none.
        """
        try:
            return _decoder(kind).decode(message)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ProtocolError(f"{self.name} sent what makes no sense: {plain(str(error))}") from error

    # -- bytes

    def _write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        self.sent += len(view)
        try:
            while view:
                view = view[os.write(self._target, view) :]
        except OSError as error:
            raise Unreachable(f"the connection to {self.name} broke: {error.strerror}") from error

    def _take(self, length: int) -> bytes:
        self._fill(length)
        taken = bytes(self._in[:length])
        del self._in[:length]
        return taken

    def _fill(self, length: int) -> None:
        """Read until at least `length` bytes are there to be taken."""
        while len(self._in) < length:
            if self._decompressor is None:
                self._in += self._read()
            else:
                self._unpack(self._read() if self._decompressor.needs_input else b"")

    def _unpack(self, data: bytes) -> None:
        """Decompress, a bounded step at a time: a small frame must not become a large one in memory."""
        assert self._decompressor is not None
        try:
            self._in += self._decompressor.decompress(data, _READ_BYTES)
        except (zstd.ZstdError, EOFError) as error:
            raise ProtocolError(f"{self.name} sent what cannot be decompressed: {error}") from error

    def _read(self) -> bytes:
        try:
            data = os.read(self._source, _READ_BYTES)
        except OSError as error:
            raise Unreachable(f"the connection to {self.name} broke: {error.strerror}") from error
        if not data:
            raise Unreachable(f"the connection to {self.name} broke")
        self.received += len(data)
        return data


# -- what comes from the other side


def plain(text: str) -> str:
    """Return a text from the other side as it may be shown: one line, with nothing that a terminal obeys."""
    return paths.printable(text if len(text) <= _TEXT else text[:_TEXT] + "...")


def check_path(path: bytes) -> None:
    """Refuse a path that leaves the root or reaches a sidecar (I7).

    Raises:
        ProtocolError: it does.
    """
    try:
        paths.check(path)
    except ValueError as error:
        raise ProtocolError(f"the peer sent {error}: {path[:200]!r}") from error


def check_entry(entry: Entry) -> None:
    """Refuse an entry that no scan can have made.

    Raises:
        ProtocolError: it is one.
    """
    kind = entry.kind
    sound = (
        len(entry.digest) == (16 if kind is _FILE or kind is _SYMLINK else 0)
        and 0 <= entry.size < _INT
        and (entry.size == 0 or kind is _FILE)
        and 0 <= entry.mode <= 0o777
        and 0 <= entry.revision < _REVISIONS
        and -_INT <= entry.mtime_ns < _INT
        and (_is_link(entry) if kind is _SYMLINK else not entry.target)
    )
    if not sound:
        raise ProtocolError(f"the peer sent an entry that cannot be: {entry!r:.300}")


_FILE, _SYMLINK = Kind.FILE, Kind.SYMLINK
"""Bound here: to look them up takes longer than to compare, and every entry is checked."""


def _is_link(entry: Entry) -> bool:
    target = entry.target
    return (
        0 < len(target) <= paths.MAX_PATH and b"\0" not in target and entry.digest == xxh3_128_digest(target)
    )


@functools.lru_cache(maxsize=4096)
def _version(data: bytes) -> Version:
    version = Version.decode(data)
    limit = (time.time() + MAX_AHEAD_SECONDS) * 1e6
    if any(stamp.tick > limit for stamp in version):
        raise ValueError("a version more than a year ahead of this clock; set the clocks right")
    return version


def _decode_hook(kind: type, value: object) -> Version:
    if kind is Version and isinstance(value, bytes):
        return _version(value)
    raise ValueError(f"a {kind.__name__} that is none")


def _encode_hook(value: object) -> bytes:
    if isinstance(value, Version):
        return value.encode()
    raise NotImplementedError(f"{type(value).__name__} does not travel")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_hook)


_decoders: dict[object, msgspec.msgpack.Decoder[Any]] = {}


def _decoder(kind: type[_T]) -> msgspec.msgpack.Decoder[_T]:
    if kind not in _decoders:
        _decoders[kind] = msgspec.msgpack.Decoder(kind, dec_hook=_decode_hook)
    return _decoders[kind]
