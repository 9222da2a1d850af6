"""Where a replica is: the folder with a sidecar. Light to import: every command begins with it."""

from __future__ import annotations

import contextlib
import os
import stat

from p2psync.core.paths import SIDECAR


def find_root(start: bytes) -> bytes | None:
    """Return the replica that holds the directory `start`, as git finds a repository; None if none does."""
    folder = os.path.realpath(start)
    while not is_sidecar(os.path.join(folder, SIDECAR)):
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent
    return folder


def is_sidecar(folder: bytes) -> bool:
    """Is it the sidecar of a replica, also of one whose manifest was lost?"""
    for name in (b"manifest.db", b"lock"):
        with contextlib.suppress(
            FileNotFoundError, NotADirectoryError
        ):  # what cannot be looked at may be there
            return stat.S_ISREG(os.lstat(os.path.join(folder, name)).st_mode)
    return False
