"""Facts: what a replica's machine and file system can do, found out by trying. Owns what is tried."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Annotated

import msgspec

from p2psync import __version__

_NS = 1_600_000_000_123_456_789


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """What is so at one replica."""

    version: str
    """Of p2psync."""
    python: str
    system: str
    clock_ns: int
    """The time there, in ns since 1970, when this was told."""
    free: int
    """Bytes."""
    file_system: Annotated[dict[str, bool], msgspec.Meta(max_length=64)]
    """By what it can do: `case`, `permissions`, `symlinks`, `nanoseconds`, `any names`."""


def facts(sidecar: bytes) -> Facts:
    """Find out what is so where a sidecar is.

    Raises:
        OSError: nothing can be written there.
    """
    import platform

    folder = os.path.join(sidecar, b"try-%d" % os.getpid())
    os.mkdir(folder, 0o700)
    try:
        can = {what: _can(trying, folder) for what, trying in _TRIES.items()}
        disk = os.statvfs(folder)
    finally:
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
    system = f"{platform.system()} {platform.release()}"
    python = ".".join(map(str, sys.version_info[:3]))
    return Facts(__version__, python, system, time.time_ns(), disk.f_bavail * disk.f_frsize, can)


def _can(trying: Callable[[bytes], bool], folder: bytes) -> bool:
    try:
        return trying(folder)
    except OSError:
        return False


def _write(folder: bytes, name: bytes) -> bytes:
    path = os.path.join(folder, name)
    with open(path, "wb"):
        pass
    return path


def _case(folder: bytes) -> bool:
    _write(folder, b"case")
    return not os.path.exists(os.path.join(folder, b"CASE"))


def _permissions(folder: bytes) -> bool:
    path = _write(folder, b"mode")
    os.chmod(path, 0o640)
    first = os.stat(path).st_mode & 0o777
    os.chmod(path, 0o600)
    return (first, os.stat(path).st_mode & 0o777) == (0o640, 0o600)


def _symlinks(folder: bytes) -> bool:
    os.symlink(b"x", os.path.join(folder, b"link"))
    return True


def _nanoseconds(folder: bytes) -> bool:
    path = _write(folder, b"time")
    os.utime(path, ns=(_NS, _NS))
    return os.stat(path).st_mtime_ns == _NS


def _any_names(folder: bytes) -> bool:
    _write(folder, b"odd\xff:*?")
    return b"odd\xff:*?" in os.listdir(folder)


_TRIES = {
    "case": _case,
    "permissions": _permissions,
    "symlinks": _symlinks,
    "nanoseconds": _nanoseconds,
    "any names": _any_names,
}
