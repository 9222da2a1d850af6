"""What a running watch leaves for others to see. Owns `watch.lock` and `watch.json` in the sidecar."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from p2psync.core.paths import SIDECAR
from p2psync.errors import Locked

_LOOK_SECONDS = 0.5
"""Whoever looks whether a watch is running has the lock for a moment."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class PeerState(NamedTuple):
    """How it stands with one peer of a running watch."""

    name: str
    online: bool
    in_step: bool
    since: int
    """Seconds since 1970."""
    why: str = ""
    """Why it is offline."""


class State(msgspec.Struct):
    """A running watch."""

    pid: int
    started: int
    """Seconds since 1970."""
    peers: list[PeerState]


@contextlib.contextmanager
def only_one(root: bytes) -> Iterator[None]:
    """Keep every other watch of the replica at `root` out while the block runs.

    Raises:
        Locked: there is one already.
        OSError: the sidecar cannot be written to.
    """
    fd = os.open(_file(root, b"watch.lock"), _FLAGS, 0o600)
    try:
        _lock(fd, root)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(_file(root, b"watch.json"))
        os.close(fd)


def _lock(fd: int, root: bytes) -> None:
    deadline = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Locked(f"another watch is running on {os.fsdecode(root)}") from None
        time.sleep(0.02)


def write(root: bytes, state: State) -> None:
    """Let others see the state; a disk that is full keeps them from it, no more."""
    file = _file(root, b"watch.json")
    with contextlib.suppress(OSError):
        with open(file + b".new", "wb") as target:
            target.write(msgspec.json.encode(state))
        os.replace(file + b".new", file)


def read(root: bytes) -> State | None:
    """Return the state of the watch that is running on the replica at `root`; None if none is."""
    if not _is_running(root):
        return None
    try:
        with open(_file(root, b"watch.json"), "rb") as source:
            return msgspec.json.decode(source.read(), type=State)
    except (OSError, msgspec.MsgspecError):
        return None


def _is_running(root: bytes) -> bool:
    try:
        fd = os.open(_file(root, b"watch.lock"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _file(root: bytes, name: bytes) -> bytes:
    return os.path.join(root, SIDECAR, name)
