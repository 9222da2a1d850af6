"""Drivers: how texts of which names are merged, and what becomes of those that cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping

from p2psync.core.ignore import hits
from p2psync.core.merge import MAX_TEXT, merge, union
from p2psync.core.model import Prefer
from p2psync.errors import ReplicaError

SECONDS = 60.0
"""A command may take so long for one file."""
MAX_MERGED = 2 * MAX_TEXT
"""What a command prints beyond that, in bytes, is no merge: two texts, one after the other, are no longer."""


class Drivers:
    """The rules of one replica, the first pattern that hits a path counts."""

    def __init__(self, merges: Mapping[str, str], conflicts: Mapping[str, str]) -> None:
        """Take the tables `[merge]` and `[conflicts]`."""
        self._merges = [(os.fsencode(pattern), how) for pattern, how in merges.items()]
        self._conflicts = [(os.fsencode(pattern), how) for pattern, how in conflicts.items()]

    def merge(self, path: bytes, base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
        """Return the merge of two texts, None if they do not merge; see `core.merge.merge`.

        Raises:
            ReplicaError: a command cannot be run.
        """
        match self._first(self._merges, path):
            case None | "text":
                return merge(base, ours, theirs)
            case "union":
                return union(base, ours, theirs)
            case "binary":
                return None
            case command:
                return _run(command, path, base, ours, theirs)

    def prefer(self, path: bytes) -> Prefer | None:
        """Return what becomes of versions that do not merge; None: nothing is said of them."""
        how = self._first(self._conflicts, path)
        return Prefer(how) if how else None

    @staticmethod
    def _first(rules: list[tuple[bytes, str]], path: bytes) -> str | None:
        return next((how for pattern, how in rules if hits(pattern, path)), None)


def _run(command: str, path: bytes, base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    """Have a command merge: it is given three files, and prints the merge; if it fails, there is none."""
    import shlex
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory(prefix="p2psync-merge-") as folder:
        files = []
        ending = os.path.splitext(os.fsdecode(path))[1]
        for name, text in (("base", base), ("ours", ours), ("theirs", theirs)):
            files.append(os.path.join(folder, f"{name}{ending}"))
            with open(files[-1], "wb") as file:
                file.write(text)
        try:
            words = [*shlex.split(command), *files]
        except ValueError as error:
            raise ReplicaError(f"the merge driver {command!r} cannot be split into words: {error}") from error
        environment = {**os.environ, "P2PSYNC_PATH": os.fsdecode(path)}
        try:
            done = subprocess.run(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return None
        except OSError as error:
            raise ReplicaError(f"cannot run the merge driver {words[0]}: {error.strerror}") from error
    if done.returncode or (not done.stdout and (ours or theirs)):  # who prints nothing has not merged
        return None
    return done.stdout if len(done.stdout) <= MAX_MERGED else None
