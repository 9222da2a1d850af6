"""Frames between two p2psyncs: length-prefixed msgpack over a stream of bytes.

Owns the encoding, its limits, and the rules that everything from the other side has to pass: it is
hostile until it has. Does not know what the messages are for.
"""

from __future__ import annotations

import functools
import select
import struct
import time
from typing import Any, TypeVar

import msgspec
from xxhash import xxh3_128_digest

from p2psync.core import paths
from p2psync.core.model import Entry, Kind
from p2psync.core.pace import Compress
from p2psync.core.vector import MAX_AHEAD_SECONDS, Version
from p2psync.errors import PeerError, ProtocolError
from p2psync.stream import Stream

PROTOCOL = 9
"""Both sides must speak the same one."""
MAX_FRAME = 16 * 1024 * 1024

_MAGIC = b"p2psync\0"
_OPENING = struct.Struct(">8sHB")
_LIMITED = 0x80
"""An option of the opening: a limit follows."""
_LIMIT = struct.Struct(">Q")
_LENGTH = struct.Struct(">I")
_FLUSH_BYTES = 256 * 1024
_LARGE_BYTES = 64 * 1024
"""A message as large is sent as it is, and copied nowhere."""
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
        self._stream = Stream(source, target, name)
        self.name = name
        self._out = bytearray()

    @property
    def sent(self) -> int:
        """Bytes that went out."""
        return self._stream.sent

    @property
    def received(self) -> int:
        """Bytes that came in."""
        return self._stream.received

    def close(self, patience: float | None = None) -> None:
        """Close both descriptors; see `Stream.close`."""
        self._stream.close(patience)

    def wait_for_hang_up(self) -> None:
        """Return once the other side has closed its end; what it sent before stays to be read."""
        poll = select.poll()
        poll.register(self._stream.source, 0)
        poll.poll()

    def fileno(self) -> int:
        """Return what is read from: it is readable when something came, or when the other side has gone."""
        return self._stream.source

    def has_input(self, patience: float) -> bool:
        """Is there something to be received within so many seconds, be it the end?"""
        poll = select.poll()
        poll.register(self._stream.source, select.POLLIN)
        return self._stream.has_input() or bool(poll.poll(patience * 1000))

    def wait(self, other: int, until: float) -> bool:
        """Wait until there is something to be received; return whether there is.

        Args:
            other: a descriptor to wait for as well.
            until: when to return at the latest, by `time.monotonic`.
        """
        if self._stream.has_input():
            return True
        poll = select.poll()
        poll.register(self._stream.source, select.POLLIN)
        poll.register(other, select.POLLIN)
        timeout = max(0.0, until - time.monotonic()) * 1000
        return any(fd == self._stream.source for fd, _ in poll.poll(timeout))

    # -- opening

    def open(self, compress: Compress = Compress.OFF, limit: int = 0) -> None:
        """Begin as the side that calls, which decides for both.

        Args:
            compress: what is sent.
            limit: bytes a second that either side may send; 0: as many as it can.

        Raises:
            ProtocolError: the other side is no p2psync, or of another version.
            Unreachable: it has gone.
        """
        options = compress | (_LIMITED if limit else 0)
        self._stream.send([_OPENING.pack(_MAGIC, PROTOCOL, options), _LIMIT.pack(limit) if limit else b""])
        self._check_opening()
        self._stream.pack(compress, limit)

    def answer(self) -> None:
        """Begin as the side that is called; raises as `open`."""
        self._stream.send([_OPENING.pack(_MAGIC, PROTOCOL, 0)])
        options = self._check_opening()
        limit = _LIMIT.unpack(self._stream.read(_LIMIT.size))[0] if options & _LIMITED else 0
        try:
            self._stream.pack(Compress(options & ~_LIMITED), limit)
        except ValueError as error:
            raise ProtocolError(f"{self.name} wants a compression that is not known here") from error

    def _check_opening(self) -> int:
        """Return the options of the other side's opening."""
        begun = self._stream.peek(1)
        while len(begun) < _OPENING.size and _MAGIC.startswith(begun[: len(_MAGIC)]):
            begun = self._stream.peek(len(begun) + 1)
        if not begun.startswith(_MAGIC):
            line = bytes(begun[:200]).strip().split(b"\n")[0].decode("utf-8", "replace")
            raise ProtocolError(
                f"{self.name} answered with something else: {line!r}. If a start-up file of the shell there"
                " prints this, let it do so only in interactive shells"
            )
        _, protocol, options = _OPENING.unpack(self._stream.read(_OPENING.size))
        if protocol != PROTOCOL:
            older = "here" if protocol > PROTOCOL else f"on {self.name}"
            raise ProtocolError(
                f"{self.name} speaks protocol {protocol}, this p2psync {PROTOCOL}: upgrade the one {older}"
            )
        return int(options)

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
        if len(body) >= _LARGE_BYTES:
            self._send_out(body)
        else:
            self._out += body
            if len(self._out) >= _FLUSH_BYTES:
                self._send_out()

    def flush(self) -> None:
        """Send what is queued, and wait until it is gone.

        Raises:
            Unreachable: the other side has gone.
        """
        self._send_out()
        self._stream.drain()

    def _send_out(self, body: bytes = b"") -> None:
        out, self._out = self._out, bytearray()
        if out or body:
            self._stream.send([out, body])

    def receive(self) -> tuple[bytes, memoryview]:
        """Return the next frame: its kind and its undecoded message.

        Raises:
            ProtocolError: it is too long.
            Unreachable: the other side has gone.
        """
        (length,) = _LENGTH.unpack(self._stream.read(_LENGTH.size))
        if not 0 < length <= MAX_FRAME:
            raise ProtocolError(f"{self.name} sent a frame of {length} bytes")
        frame = self._stream.read(length)
        return bytes(frame[:1]), frame[1:]

    def decode(self, message: memoryview, kind: type[_T]) -> _T:
        """Return the message as a value of type `kind`.

        Raises:
            ProtocolError: it is none.
        """
        try:
            return _decoder(kind).decode(message)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            if isinstance(error.__cause__, _FarAhead):
                raise ProtocolError(f"{self.name} sent {error.__cause__}") from error
            raise ProtocolError(f"{self.name} sent what makes no sense: {plain(str(error))}") from error


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


class _FarAhead(ValueError):
    """What came was marked by a clock that is, or was, wrong."""


@functools.lru_cache(maxsize=4096)
def _version(data: bytes) -> Version:
    version = Version.decode(data)
    limit = (time.time() + MAX_AHEAD_SECONDS) * 1e6
    if any(stamp.tick > limit for stamp in version):
        raise _FarAhead(
            "a version more than a year ahead of this clock; set the clocks right. If they are right now, and"
            " were not when it was made, move .p2psync/manifest.db away on both sides: the next sync makes it"
            " anew, and takes nothing for deleted"
        )
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
