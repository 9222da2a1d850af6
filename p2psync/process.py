"""A process at the other end of two pipes: how it is started, awaited and ended. Light to import."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable

from p2psync.errors import Unreachable

PATIENCE_SECONDS = 5.0


class Process:
    """A command that speaks on its stdin and stdout; what it says on stderr is shown."""

    def __init__(self, command: list[str] | list[str | bytes], why_ended: Callable[[int], str]) -> None:
        """Start `command`; `why_ended` says what its exit code means, if it ends before it said anything.

        Raises:
            Unreachable: there is no such command.
        """
        self._why_ended = why_ended
        self._code: int | None = None
        to_child, to_parent = os.pipe(), os.pipe()
        ends = [(os.POSIX_SPAWN_DUP2, to_child[0], 0), (os.POSIX_SPAWN_DUP2, to_parent[1], 1)]
        reset = [signal.SIGPIPE, signal.SIGXFSZ]  # Python ignores them; a child should not
        try:
            # Not `subprocess`: it takes as long to import as a connection that is kept takes to connect.
            self._pid = os.posix_spawnp(command[0], command, os.environ, file_actions=ends, setsigdef=reset)
        except OSError as error:
            for fd in (to_child[1], to_parent[0]):
                os.close(fd)
            raise Unreachable(f"cannot run {os.fsdecode(command[0])}: {error.strerror}") from error
        finally:
            os.close(to_child[0])
            os.close(to_parent[1])
        self.source, self.target = to_parent[0], to_child[1]
        """Descriptors of its stdout and stdin, for whoever speaks with it; who takes them closes them."""

    def says_anything(self, seconds: float) -> bool:
        """Does anything come from it within so many seconds, be it the end?"""
        poll = select.poll()
        poll.register(self.source, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def abandon(self) -> None:
        """End it; nobody has taken its descriptors."""
        self.end(0)
        os.close(self.source)
        os.close(self.target)

    def why_it_ended(self) -> str | None:
        """Return what is to be told of a process that ended before it said anything."""
        self._wait(PATIENCE_SECONDS)
        return None if self._code is None else self._why_ended(self._code)

    def end(self, patience: float) -> None:
        """Wait for the process; after `patience` seconds, end it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._wait(patience):
                return
            os.kill(self._pid, number)
            patience = 0.5
        self._wait(PATIENCE_SECONDS)

    def _wait(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(0.002)
        return True
