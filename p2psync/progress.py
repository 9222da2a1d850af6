"""Progress: how a command that takes long tells how far it is. Owns the line on the terminal."""

from __future__ import annotations

import json
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from p2psync.core.paths import shown
from p2psync.words import json_path, size_of

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Silent:
    """Tells nobody."""

    def begin(self, step: str, files: int = 0, size: int = 0) -> None:
        """A step begins."""

    def advance(self, files: int, size: int, path: bytes = b"") -> None:
        """Something was done."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Plain(Silent):
    """A line for each step, and now and then one that tells how far it is: for logs."""

    _EVERY_SECONDS = 10.0

    def __init__(self, as_json: bool = False) -> None:
        self._lock = threading.Lock()
        self._as_json = as_json
        self._every = 1.0 if as_json else self._EVERY_SECONDS
        self._step = ("", 0, 0)
        self._done = (0, 0)
        self._path = b""
        self._told = 0.0

    def begin(self, step: str, files: int = 0, size: int = 0) -> None:
        """A step begins."""
        with self._lock:
            self._step, self._done = (step, files, size), (0, 0)
            self._tell()

    def advance(self, files: int, size: int, path: bytes = b"") -> None:
        """Something was done."""
        with self._lock:
            self._done = (self._done[0] + files, self._done[1] + size)
            self._path = path
            if time.monotonic() - self._told >= self._every:
                self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        (step, files, size), (done, done_size) = self._step, self._done
        if self._as_json:
            told: dict[str, Any] = {
                "step": step,
                "files": done,
                "of_files": files,
                "bytes": done_size,
                "of_bytes": size,
            }
            told["path"] = json_path(self._path)
            print(json.dumps(told), file=sys.stderr, flush=True)
            return
        counted = f" {done:,}/{files:,} files" if files else ""
        counted += f", {size_of(done_size)}/{size_of(size)}" if size else ""
        print(f"p2psync: {step}{counted}", file=sys.stderr, flush=True)


def teller(how: str) -> Silent:
    """Return who tells of progress: `line`, `plain`, `json`, or nobody."""
    if how == "line":
        return Line()
    return Plain(how == "json") if how in ("plain", "json") else Silent()


class Line(Silent):
    """One line on a terminal: files, bytes, rate, time left."""

    _QUICK_SECONDS = 0.3
    """A run that is over by then shows no line, and does not pay for loading rich."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Both sides report, each from its own thread."""
        self._started = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._step = ("", 0, 0)
        self._files = 0
        self._bytes = 0
        self._path = b""

    def begin(self, step: str, files: int = 0, size: int = 0) -> None:
        """A step begins."""
        with self._lock:
            self._step = (step, files, size)
            self._files = self._bytes = 0
            self._path = b""
            self._show()

    def advance(self, files: int, size: int, path: bytes = b"") -> None:
        """Something was done."""
        with self._lock:
            self._files += files
            self._bytes += size
            self._path = path
            self._show()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def _show(self) -> None:
        if self._bar is None and time.monotonic() - self._started < self._QUICK_SECONDS:
            return
        step, files, size = self._step
        if self._bar is None:
            self._bar = _make_bar()
            self._bar.start()
        if self._task is None or self._bar.tasks[0].description != step:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(step, total=size or files or None, files="", path="")
        counted = f"{self._files:,}/{files:,} files" if files else ""
        counted += f"  {size_of(self._bytes)}/{size_of(size)}" if size else ""
        done = self._bytes if size else self._files
        self._bar.update(self._task, completed=done, files=counted, path=shown(self._path))


def _make_bar() -> Bar:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            copying = task.description == "copying"
            return Text(f"{size_of(int(task.speed))}/s" if copying and task.speed else "")

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[files]}"),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[path]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        expand=True,
        console=Console(stderr=True),
        transient=True,
    )
