"""Paths as replicas exchange them: bytes, relative, `/`-joined, normal. Owns their rules and names."""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, count, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2psync.core.model import Digest

SIDECAR = b".p2psync"
IGNORE_FILE = b".p2pignore"

MAX_NAME = 255
"""NAME_MAX of every file system in use."""
MAX_PATH = 64 * 1024
"""Sixteen times PATH_MAX: trees deeper than PATH_MAX are real, longer paths than this are an attack."""

_PLAIN_NAME = rb"(?![pP]2[pP])[0-9A-Za-z_][ -.0-~]{0,254}"
_PLAIN = re.compile(rb"%s(?:/%s){0,100}" % (_PLAIN_NAME, _PLAIN_NAME))
"""Paths that are allowed without a closer look: printable ASCII, no name like the sidecar's."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONFLICT_MARK = re.compile(rb"\.sync-conflict-\d{8}-\d{6}-[A-Z2-7]{7,26}(?:-\d+)?")
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def join(directory: bytes, name: bytes) -> bytes:
    """Return the path of `name` in `directory` (empty for the root)."""
    return directory + b"/" + name if directory else name


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return the directory (empty for the root) and the name of `path`."""
    directory, _, name = path.rpartition(b"/")
    return directory, name


def ancestors(path: bytes) -> Iterator[bytes]:
    """Yield the directories that hold `path`, nearest first, without the root."""
    end = path.rfind(b"/")
    while end > 0:
        yield path[:end]
        end = path.rfind(b"/", 0, end)


def folders_of(paths: Iterable[bytes]) -> set[bytes]:
    """Return all directories that hold any of `paths`, without the root."""
    found: set[bytes] = set()
    for path in paths:
        for folder in ancestors(path):
            if folder in found:
                break
            found.add(folder)
    return found


def is_within(path: bytes, folder: bytes) -> bool:
    """Is `path` that folder, or below it?"""
    return not folder or path == folder or path.startswith(folder + b"/")


def shown(path: bytes) -> str:
    """Return a path as one line of printable text; what is not printable is escaped."""
    text = path.decode("utf-8", "surrogateescape")
    return printable(text.replace("\\", "\\\\") if not text.isprintable() else text)


def printable(text: str) -> str:
    """Return a text with nothing in it that a terminal obeys (CVE-2019-6109)."""
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def is_reserved(name: bytes) -> bool:
    """Would some file system take `name` for the sidecar?

    Case is folded by most desktop systems, HFS+ drops ignorable code points, NTFS drops trailing dots and
    spaces and knows 8.3 names: each was a way into `.git` once (CVE-2014-9390, CVE-2019-1352).
    """
    if name.isascii():
        plain = name.lower().rstrip(b". \r")
        return plain == SIDECAR or (plain.startswith(b"p2psyn~") and plain[7:].isdigit())
    folded = unicodedata.normalize("NFKC", name.decode("utf-8", "replace")).casefold()
    visible = "".join(char for char in folded if unicodedata.category(char) != "Cf")
    return visible.rstrip(". \r").encode("utf-8", "replace") == SIDECAR


def check(path: bytes) -> None:
    """Refuse a path that does not stay below the root, or that reaches a sidecar (I7).

    Raises:
        ValueError: says what is wrong with it.
    """
    if _PLAIN.fullmatch(path):  # as most are
        return
    if not path or len(path) > MAX_PATH or b"\0" in path:
        raise ValueError("a path that is empty, too long or holds a NUL byte")
    for name in path.split(b"/"):
        if name in (b"", b".", b".."):
            raise ValueError("a path that is not normal")
        if len(name) > MAX_NAME:
            raise ValueError("a name longer than 255 bytes")
        if is_reserved(name):
            raise ValueError("a path that reaches into a sidecar")


def conflict_names(path: bytes, mtime_ns: int, digest: Digest) -> Iterator[bytes]:
    """Yield names for a conflict copy, made of the losing version alone, the usual one first.

    Two replicas that decide the same conflict make the same copy. The later names carry all of the
    digest, then a number, for the case that the first is taken by other contents. There is no end to them.
    """
    directory, name = split(path)
    stem, dot, extension = _CONFLICT_MARK.sub(b"", name).rpartition(b".")
    if not stem.strip(b"."):
        stem, dot, extension = stem + dot + extension, b"", b""
    full = _base32(digest)
    for ending in chain((full[:7], full), (f"{full}-{number}" for number in count(2))):
        mark = f".sync-conflict-{_utc(mtime_ns)}-{ending}".encode()
        tail = mark + dot + extension
        if len(tail) > MAX_NAME - 1:
            tail = mark
        yield join(directory, _shorten(stem, MAX_NAME - len(tail)) + tail)


def is_conflict_copy(path: bytes) -> bool:
    """Was `path` named by `conflict_names`?"""
    return b".sync-conflict-" in path and _CONFLICT_MARK.search(split(path)[1]) is not None


def is_copy_of(copy: bytes, path: bytes, mtime_ns: int, digest: Digest) -> bool:
    """Is `copy` one of the two usual names of a conflict copy of that version of `path`?"""
    return copy in islice(conflict_names(path, mtime_ns, digest), 2)


def original(copy: bytes) -> bytes:
    """Return the path that a conflict copy was named for, as far as its name tells."""
    directory, name = split(copy)
    return join(directory, _CONFLICT_MARK.sub(b"", name))


def _shorten(name: bytes, length: int) -> bytes:
    """Cut `name` to at most `length` bytes, not inside a UTF-8 sequence."""
    if len(name) <= length:
        return name
    for end in range(length, max(length - 4, -1), -1):
        if name[end] & 0xC0 != 0x80:
            return name[:end]
    return name[:length]


def _utc(mtime_ns: int) -> str:
    seconds = min(max(mtime_ns // 10**9, -62_135_596_800), 253_402_300_799)  # years 1 to 9999
    time = _EPOCH + timedelta(seconds=seconds)
    return f"{time.year:04}{time:%m%d-%H%M%S}"


def _base32(digest: bytes) -> str:
    return base64.b32encode(digest).decode().rstrip("=")
