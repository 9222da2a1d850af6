"""Hooks: commands that are run when a watch has done something. Owns their processes.

What happened goes to a command's stdin, as JSON; nothing of it, no file name above all, is ever part of a
command line. They are run one after another in a thread of their own: a slow one makes no sync wait.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Command = Sequence[str]
PATIENCE_SECONDS = 60
"""How long a hook may take: those after it are waiting."""


class Hooks:
    """The hooks of one replica."""

    def __init__(self, commands: Mapping[str, Command], root: bytes, complain: Callable[[str], None]) -> None:
        """Run commands in the folder `root`.

        Args:
            commands: by name, split into words.
            root: of the replica.
            complain: is told of a command that failed.
        """
        self._commands = commands
        self._root = root
        self._complain = complain
        self._waiting: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        if commands:
            self._thread.start()

    def run(self, name: str, about: dict[str, Any]) -> None:
        """Have the hook of that name run soon, if there is one."""
        if name in self._commands:
            self._waiting.put((name, about))

    def finish(self, seconds: float) -> None:
        """Wait so long at most until all that were to be run have ended."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join(seconds)

    def _work(self) -> None:
        import subprocess

        while (waiting := self._waiting.get()) is not None:
            name, about = waiting
            text = json.dumps({"hook": name, "root": os.fsdecode(self._root), **about}).encode()
            try:
                done = subprocess.run(
                    self._commands[name], input=text, cwd=self._root, stdout=2, timeout=PATIENCE_SECONDS
                )
                if done.returncode:
                    self._complain(f"the hook {name} ended with code {done.returncode}")
            except subprocess.TimeoutExpired:
                self._complain(f"the hook {name} was still running after {PATIENCE_SECONDS} s and was ended")
            except OSError as error:
                self._complain(f"the hook {name} cannot be run: {error.strerror}")
