"""Watcher: what happened in one tree since it was last scanned. Owns the system's notifications.

Events only say where to look; the scan finds out what is there. So nothing depends on them: where the system
drops some, has no more watches to give, or has none for this file system, the tree is scanned by time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from p2psync.core.ignore import Ignore
from p2psync.core.paths import IGNORE_FILE, SIDECAR, join, split
from p2psync.core.settle import QUIET_SECONDS, Settled, Settling
from p2psync.scan import Part

if TYPE_CHECKING:
    from watchdog.observers.inotify_c import InotifyEvent

FULL_SECONDS = 600.0
"""Between two scans of the whole tree, for what no event told of."""
UNWATCHED_SECONDS = 10.0
"""Between two looks at folders for which the system has no watches."""


class Watcher:
    """Says when a tree has to be looked at, and where. All times are those of `time.monotonic`."""

    def __init__(
        self, settle: float = QUIET_SECONDS, poll: float = 0, full_every: float = FULL_SECONDS
    ) -> None:
        """Watch the tree that the next scan is of.

        Args:
            settle: seconds of quiet after which a change counts as over.
            poll: seconds between two scans, where there are no events; 0: use events.
            full_every: seconds between two scans of the whole tree.
        """
        self._full_every = poll or full_every
        self._full_at = time.monotonic()
        self._settling = Settling(settle)
        self._lock = threading.Lock()
        """The events come in a thread of their own."""
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._awake, False)
        os.set_blocking(self._wake, False)
        self._ignores: Mapping[bytes, Ignore] = {}
        self._exclude = b""
        self._taken = Settled({}, set())
        self._unwatched: set[bytes] = set()
        self._look_at_unwatched = 0.0
        self._unread: dict[bytes, bool] = {}
        """Where the last scan could not read something, and whether all below is to be looked at again."""
        self.warning = ""
        """What the user has to be told; empty: nothing."""
        self._events = None if poll else _events(self)
        if self._events is None and not poll:
            self._full_every = min(full_every, UNWATCHED_SECONDS)

    def close(self) -> None:
        """Stop watching."""
        if self._events:
            self._events.close()
        os.close(self._awake)
        os.close(self._wake)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when `due` may have changed."""
        return self._awake

    def due(self) -> float:
        """Return when the tree is to be looked at, if nothing happens before."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._awake, 4096):
                pass
        with self._lock:
            due = self._settling.due()
        times = [self._full_at] if due is None else [self._full_at, due]
        if self._unwatched:
            times.append(self._look_at_unwatched)
        return min(times)

    # -- what a scan asks and tells

    def part(self, exclude: bytes) -> Part:
        """Return what a scan that begins now has to look at.

        Args:
            exclude: the text of the ignore file that is not shared: if it changed, other files may show
                anywhere.
        """
        now = time.monotonic()
        with self._lock:
            self._taken = self._settling.take(now)
        if now >= self._full_at or exclude != self._exclude:
            self._full_at = now + self._full_every
            self._exclude = exclude
            self._unwatched.clear()  # there may be watches again
            if self._events:
                self._events.forget_paths()
            return Part(None, self._taken.busy, watch=self._watch)
        folders = self._unread | dict(self._taken.folders)
        if self._unwatched and now >= self._look_at_unwatched:
            self._look_at_unwatched = now + UNWATCHED_SECONDS
            folders |= dict.fromkeys(self._unwatched, True)
        return Part(folders, self._taken.busy, self._ignores, self._watch)

    def scanned(self, ignores: Mapping[bytes, Ignore], unread: Iterable[bytes]) -> None:
        """Take note of what the scan has found.

        Args:
            ignores: the rules in force in each directory.
            unread: paths that could not be read: they are looked at again with whatever comes next.
        """
        self._ignores = ignores
        self._unread = {}
        for path in unread:
            if path in ignores:  # a directory that was known before
                self._unread[path] = True
            else:
                self._unread.setdefault(split(path)[0], False)
        self._unwatched &= ignores.keys()

    def failed(self) -> None:
        """The scan was not completed: all that it had to look at is still to be looked at."""
        with self._lock:
            self._full_at = time.monotonic()

    def _watch(self, path: bytes, directory: int) -> None:
        """Watch a directory that is about to be read."""
        if self._events is None or path in self._unwatched:
            return
        try:
            self._events.watch(path, directory)
        except OSError as error:
            self._unwatched.add(path)
            self.warning = _why_unwatched(error)

    # -- what the events tell

    def happened(self, folder: bytes, name: bytes, over: bool, new_directory: bool = False) -> None:
        """Something happened to what is called `name` in `folder`.

        Args:
            folder: its path.
            name: of the file, link or directory in it.
            over: it is as it will be; if not, it is still being written to.
            new_directory: it is a directory that was made or moved here, with whatever is in it.
        """
        if name == SIDECAR:
            return
        now = time.monotonic()
        path = join(folder, name)
        with self._lock:
            if over:
                self._settling.finished(folder, path, now, deep=name == IGNORE_FILE)
            else:
                self._settling.written(folder, path, now)
            if new_directory:
                self._settling.finished(path, path, now, deep=True)
        self._wake_up()

    def lost_track(self) -> None:
        """Events were dropped: anything may have happened anywhere."""
        with self._lock:
            self._full_at = time.monotonic()
        self._wake_up()

    def _wake_up(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full of such bytes already
            os.write(self._wake, b"!")


def _why_unwatched(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return (
            "the system has no more watches to give: some folders are looked at every"
            f" {UNWATCHED_SECONDS:.0f} s instead. `sudo sysctl fs.inotify.max_user_watches=1048576` raises"
            " the limit; a line in /etc/sysctl.d keeps it"
        )
    if error.errno == errno.EMFILE:
        return (
            "the system lets this user watch no more trees: everything is looked at every"
            f" {UNWATCHED_SECONDS:.0f} s instead. `sudo sysctl fs.inotify.max_user_instances=1024` raises"
            " the limit; a line in /etc/sysctl.d keeps it"
        )
    why = error.strerror or str(error)
    return f"some folders cannot be watched ({why}) and are looked at every {UNWATCHED_SECONDS:.0f} s instead"


def _events(watcher: Watcher) -> _Inotify | _Recursive | None:
    """Return the source of events of this system; None if it gives none."""
    try:
        return _Inotify(watcher) if sys.platform == "linux" else _Recursive(watcher)
    except OSError as error:
        watcher.warning = _why_unwatched(error)
        return None


class _Inotify:
    """Watches directory by directory, through the reader of inotify(7) that watchdog's observers share.

    Its observers themselves would also watch what is ignored, and the sidecar, and say nothing when there are
    no watches left.
    """

    def __init__(self, watcher: Watcher) -> None:
        from watchdog.observers.inotify_c import InotifyConstants as In
        from watchdog.observers.inotify_c import InotifyFD, Mask

        # A directory that was moved, or that a full scan meets again, has its watch already.
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
        self._watcher = watcher
        self._paths: dict[int, bytes] = {}
        """By watch descriptor."""
        self._stale: set[int] = set()
        """Watches that the full scan under way has not met yet."""
        self._writes = In.IN_MODIFY
        self._creates = In.IN_CREATE
        self._directory = In.IN_ISDIR
        self._arrives = In.IN_CREATE | In.IN_MOVED_TO
        self._unmounted = In.IN_UNMOUNT
        self._gone = In.IN_DELETE_SELF | In.IN_MOVE_SELF | In.IN_UNMOUNT
        self._mask = Mask(
            In.IN_MODIFY
            | In.IN_ATTRIB
            | In.IN_CLOSE_WRITE
            | In.IN_MOVE
            | In.IN_CREATE
            | In.IN_DELETE
            | In.IN_DELETE_SELF
            | In.IN_MOVE_SELF
            | In.IN_ONLYDIR
        )
        self._reader = InotifyFD()
        self._reader.start()

    def close(self) -> None:
        self._reader.stop()
        self._reader.join()

    def watch(self, path: bytes, directory: int) -> None:
        """Watch the directory open as `directory`, at `path`.

        Raises:
            OSError: it cannot be watched; ENOSPC: there are no watches left.
        """
        place = b"/proc/self/fd/%d" % directory  # of the very directory, however deep it is, across no link
        known: Any = self
        descriptor = self._reader.add_callback(place, self._mask, known, id(self))  # type: ignore[arg-type]
        if descriptor < 0:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._paths[descriptor] = path
        self._stale.discard(descriptor)

    def forget_paths(self) -> None:
        """A scan of everything begins: what the last one did not meet has left the tree."""
        gone = [(descriptor, id(self)) for descriptor in self._stale if descriptor in self._paths]
        for descriptor, _ in gone:
            self._paths.pop(descriptor, None)
        self._reader.remove_callbacks(gone)  # type: ignore[arg-type]
        self._stale = set(self._paths)

    # -- called by the reader, in its thread

    def on_event(self, event: InotifyEvent) -> None:
        folder = self._paths.get(event.wd)
        if folder is None:
            return
        if not event.name:
            # Of other folders that go the one above tells, but not of a disk that is unmounted.
            if event.mask & (self._unmounted if folder else self._gone):
                self._watcher.lost_track()
            return
        directory = bool(event.mask & self._directory)
        writes = event.mask & self._writes or (event.mask & self._creates and not directory)
        arrives = directory and bool(event.mask & self._arrives)
        self._watcher.happened(folder, event.name, not writes, arrives)

    def on_watch_deleted(self, descriptor: int) -> None:
        self._paths.pop(descriptor, None)

    def on_queue_overflow(self) -> None:
        self._watcher.lost_track()


class _Recursive:
    """Watches a whole tree at once, as other systems do, through watchdog's observer."""

    def __init__(self, watcher: Watcher) -> None:
        from watchdog.observers import Observer

        self._watcher = watcher
        self._observer = Observer()
        self._root = b""
        self._observer.start()

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()

    def watch(self, path: bytes, directory: int) -> None:
        """Watch everything, when told of the root; it is open as `directory`."""
        if self._root or path:
            return
        self._root = _path_of(directory)
        handler: Any = self
        self._observer.schedule(handler, os.fsdecode(self._root), recursive=True)

    def forget_paths(self) -> None:
        """There are none."""

    def dispatch(self, event: Any) -> None:  # noqa: ANN401 - as watchdog has it
        """Called by the observer, in its thread."""
        if event.event_type in ("opened", "closed_no_write"):
            return
        for place in filter(None, (event.src_path, getattr(event, "dest_path", ""))):
            path = os.path.relpath(os.fsencode(place), self._root)
            if path == b"." or SIDECAR in path.split(b"/"):
                continue
            folder, name = split(path)
            arrived = event.is_directory and event.event_type in ("created", "moved")
            self._watcher.happened(folder, name, True, arrived)


def _path_of(directory: int) -> bytes:
    """Return the path of an open directory."""
    import fcntl

    return fcntl.fcntl(directory, getattr(fcntl, "F_GETPATH", 50), bytes(1024)).rstrip(b"\0")
