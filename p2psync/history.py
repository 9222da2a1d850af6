"""The history: what runs replaced or deleted. Owns `history/`.

It is moved there by rename, into a folder of the run, under the path that it had.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from p2psync.core.paths import split
from p2psync.disk import Root, exists


class History:
    """The history in one sidecar."""

    def __init__(self, sidecar: int) -> None:
        """Use the sidecar directory open as `sidecar`."""
        self._sidecar = Root(os.dup(sidecar), make=True)
        self._run = b""

    def close(self) -> None:
        """Close all descriptors."""
        self._sidecar.close()

    def begin_run(self) -> None:
        """Let what is replaced or deleted from now on go to a folder of its own."""
        self._run = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f").encode()

    def shelf(self, path: bytes) -> tuple[int, bytes]:
        """Return a place in the history for what is at `path`: a directory, and a name free there."""
        folder, name = split(path)
        directory = self._sidecar.directory(b"/".join(filter(None, (b"history", self._run, folder))))
        free, number = name, 0
        while exists(free, directory):
            number += 1
            free = name[:240] + b"~%d" % number
        return directory, free
