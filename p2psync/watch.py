"""Watch: syncs whenever something changes, here or on a peer. Owns the connections and when to try again.

One loop in one thread: it waits until a tree has settled, a peer says that something changed there, or a time
has come; then it opens the replica, scans what changed, syncs with whoever lacks it, and lets go of
all locks. Connections are made in threads, so that a host that does not answer keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from p2psync import run, watchfile
from p2psync.config import Peer
from p2psync.core.paths import printable
from p2psync.core.replica import Scanned
from p2psync.core.settle import QUIET_SECONDS, retry_after
from p2psync.core.vector import ReplicaId
from p2psync.errors import Locked, NotAReplica, P2PSyncError, PeerError, ReplicaError
from p2psync.local import LocalReplica
from p2psync.manager import Manager
from p2psync.remote import RemoteReplica
from p2psync.run import Link, PeerRun
from p2psync.sync import Progress
from p2psync.watcher import FULL_SECONDS, Watcher

BUSY_SECONDS = (0.005, 0.02)
"""Until the next try, at random, where another run has a lock; longer each time, up to half a second."""


@dataclass(frozen=True)
class Settings:
    """How to watch."""

    settle: float = QUIET_SECONDS
    """Seconds of quiet after which a change counts as over."""
    poll: float = 0
    """Seconds between two scans, where there are no events; 0: use events."""
    full_every: float = FULL_SECONDS
    """Seconds between two scans of the whole tree."""


# -- what is told


class Started(NamedTuple):
    """The watch has begun."""

    peers: int


class Connected(NamedTuple):
    """A peer is there."""

    peer: str


class Lost(NamedTuple):
    """A peer is not there, or cannot go on."""

    peer: str
    why: str
    retry_seconds: float


class Synced(NamedTuple):
    """A sync with a peer is over, or has failed."""

    run: PeerRun
    retry_seconds: float
    """Until it is tried again, if it failed or left something behind."""


class Warned(NamedTuple):
    """Something is not as it should be, and the watch goes on."""

    text: str


Event = Started | Connected | Lost | Synced | Warned


# -- the loop


@dataclass
class _Link:
    """A peer as long as the watch runs."""

    peer: Peer
    path: bytes | None
    """Where it is, if on this machine."""
    replica: RemoteReplica | None = None
    identity: ReplicaId | None = None
    """Who answered there."""
    changed: bool = False
    """It has told that something changed there."""
    seen: int = -1
    """The newest change here that it has got."""
    failures: int = 0
    """In a row."""
    not_before: float = 0.0
    """When to try again, by the monotonic clock."""
    connecting: bool = False
    since: int = field(default_factory=lambda: int(time.time()))
    """Since when it is online, or offline; seconds since 1970."""
    why: str = "not connected yet"
    in_step: bool = False
    left: object = None
    """What could not be synced the last time."""


class Watch:
    """A watch of one replica and its peers."""

    def __init__(
        self,
        root: bytes,
        peers: Sequence[Peer],
        options: run.Options,
        settings: Settings,
        tell: Callable[[Event], None],
        progress: Progress,
        manager: Manager,
    ) -> None:
        """Watch the replica at `root`.

        Args:
            root: of the replica.
            peers: whom to sync with.
            options: how to sync.
            settings: how to watch.
            tell: is told what happens.
            progress: is told how the syncs go.
            manager: is told that the watch is alive.
        """
        self._root = root
        self._manager = manager
        self._options = options
        self._settings = settings
        self._tell = tell
        self._progress = progress
        self._links = [_Link(peer, run.path_of(peer)) for peer in peers]
        self._newest = 0
        self._busy = 0
        """How often in a row another run had the lock."""
        self._troubles = 0
        """How often in a row the replica here could not be synced."""
        self._not_before = 0.0
        self._connected: queue.SimpleQueue[tuple[_Link, RemoteReplica | P2PSyncError]] = queue.SimpleQueue()
        self._awake, self._wake = os.pipe()
        self._state: watchfile.State | None = None

    def run(self) -> None:
        """Watch until an exception ends it: KeyboardInterrupt, say.

        Raises:
            Locked: another watch is running on this replica.
            ReplicaError: the replica cannot be used.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(watchfile.only_one(self._root))
            self._started = int(time.time())
            self._watcher = Watcher(self._settings.settle, self._settings.poll, self._settings.full_every)
            stack.callback(self._watcher.close)
            stack.callback(self._close_links)
            with contextlib.closing(LocalReplica(self._root, lock=False)) as home:
                self._known = {record.address for record in home.peers()}
            stack.callback(self._manager.stopping)
            self._tell(Started(len(self._links)))
            self._manager.ready()
            while True:
                self._connect()
                with self._manager.busy() if self._is_any_due() else contextlib.nullcontext():
                    self._sync_if_due()
                self._warn()
                self._show()
                self._wait()

    def _close_links(self) -> None:
        for link in self._links:
            if link.replica:
                link.replica.close()

    # -- waiting

    def _wait(self) -> None:
        """Wait until there may be something to do."""
        online = {link.replica.fileno(): link for link in self._links if link.replica}
        poll = select.poll()
        for fd in (self._watcher.fileno(), self._awake, *online):
            poll.register(fd, select.POLLIN)
        timeout = max(0.0, self._next_time() - time.monotonic()) * 1000
        for fd, _ in poll.poll(timeout):
            if fd in online:
                self._hear(online[fd])
            elif fd == self._awake:
                os.read(self._awake, 4096)

    def _next_time(self) -> float:
        """Return when there will be something to do, by the monotonic clock."""
        times = [max(self._watcher.due(), self._not_before), self._manager.beat()]
        for link in self._links:
            if link.replica is None and not link.connecting:
                times.append(link.not_before)
            elif self._lacks(link):
                times.append(max(link.not_before, self._not_before))
        return min(times)

    def _lacks(self, link: _Link) -> bool:
        """Is there something to be synced with a peer that has time for it?"""
        if link.replica is None or link.replica.is_looking:
            return False
        return link.changed or link.seen != self._newest

    def _hear(self, link: _Link) -> None:
        """A peer has told something, or has gone."""
        assert link.replica
        try:
            link.changed |= link.replica.has_changed()
        except (P2PSyncError, OSError) as error:
            self._lose(link, error)

    # -- connections

    def _connect(self) -> None:
        """Begin to connect to whoever is to be tried now; take over who was connected meanwhile."""
        now = time.monotonic()
        for link in self._links:
            if link.replica is None and not link.connecting and now >= link.not_before:
                link.connecting = True
                threading.Thread(target=self._reach, args=(link,), daemon=True).start()
        while not self._connected.empty():
            link, found = self._connected.get()
            link.connecting = False
            if isinstance(found, P2PSyncError):
                self._lose(link, found)
                continue
            link.replica, link.seen, link.since, link.why = found, -1, int(time.time()), ""
            self._tell(Connected(link.peer.name))

    def _reach(self, link: _Link) -> None:
        """Connect to a peer, in a thread of its own."""
        settings = self._settings
        found: RemoteReplica | P2PSyncError
        try:
            found = run.connect_when_free(
                link.peer, self._root, self._options, link.peer.address in self._known
            )
            try:
                found.watch(settings.settle, settings.poll, settings.full_every)
                found.scan(True)  # the first may take long: here it keeps nobody waiting
                found.let_go()
            except BaseException:
                found.close()
                raise
        except P2PSyncError as error:
            found = error
        except Exception as error:  # else nobody would ever try again, nor say why
            found = ReplicaError(f"{type(error).__name__}: {error}")
        self._connected.put((link, found))
        os.write(self._wake, b"!")

    def _lose(self, link: _Link, error: P2PSyncError | OSError) -> None:
        """A peer cannot be reached, or cannot go on: try again later."""
        self._hang_up(link, error)
        self._tell(Lost(link.peer.name, link.why, self._put_off(link)))

    def _hang_up(self, link: _Link, error: P2PSyncError | OSError) -> None:
        if link.replica:
            link.replica.close()
            link.replica, link.since, link.in_step = None, int(time.time()), False
        link.why = str(error)

    def _put_off(self, link: _Link) -> float:
        link.failures += 1
        seconds = retry_after(link.failures, random.random())
        link.not_before = time.monotonic() + seconds
        return seconds

    # -- syncs

    def _sync_if_due(self) -> None:
        """Scan and sync if something settled, or a peer lacks something."""
        if not self._is_any_due():
            return
        try:
            free = self._sync_home()
        except Locked:
            free = False
        except NotAReplica:
            raise  # it was moved away: whoever comes to be there is somebody else's
        except (P2PSyncError, OSError) as error:
            self._troubles += 1
            seconds = retry_after(self._troubles, random.random())
            self._not_before = time.monotonic() + seconds
            self._tell(Warned(f"{error}; trying again in {seconds:.0f} s"))
            return
        self._troubles = 0
        if free:
            self._busy = 0
        else:
            self._make_room()

    def _sync_home(self) -> bool:
        """Scan, and sync with whoever lacks something; return whether no peer was locked by another run."""
        with contextlib.closing(LocalReplica(self._root, watcher=self._watcher)) as home:
            scanned = home.scan(True)
            self._newest = home.newest()
            for _ in self._links:  # what one brings may be new to those before it
                due_links = [link for link in self._links if self._is_due(link)]
                if not due_links:
                    break
                if not self._sync(home, scanned, due_links):
                    return False
        return True

    def _is_any_due(self) -> bool:
        now = time.monotonic()
        settled = now >= self._watcher.due()
        return now >= self._not_before and (settled or any(map(self._is_due, self._links)))

    def _is_due(self, link: _Link) -> bool:
        return self._lacks(link) and time.monotonic() >= link.not_before

    def _make_room(self) -> None:
        """Another run has a lock: let go of all, and try again in a moment."""
        self._busy += 1
        low, high = BUSY_SECONDS
        self._not_before = time.monotonic() + min(0.5, random.uniform(low, high) * self._busy)

    def _sync(self, home: LocalReplica, scanned: Scanned, links: Sequence[_Link]) -> bool:
        """Sync with peers; return whether none was locked by another run."""
        free = True
        opened: list[tuple[_Link, Link]] = []
        for link in links:
            assert link.replica
            try:
                link.changed |= link.replica.take_up()
                identity = link.replica.identity.replica
                if identity != link.identity:
                    home.met(identity, link.peer.address, link.replica.recalls)
                    link.identity = identity
                    self._known.add(link.peer.address)
                opened.append(
                    (link, Link(PeerRun(link.peer), link.replica, path=link.path, identity=identity))
                )
            except Locked:
                free = False
            except (P2PSyncError, OSError) as error:
                self._lose(link, error)
        run.sync_all(home, [one for _, one in opened], self._options, self._progress, scanned)
        for link, one in opened:  # first: a peer that stays taken up is locked for everybody
            self._finish(link, one)
        self._newest = home.newest()
        return free

    def _finish(self, link: _Link, one: Link) -> None:
        """Let go of a peer that was synced, and tell what came of it."""
        error = one.run.error
        if isinstance(error, PeerError):
            self._lose(link, error)
            return
        link.seen = one.seen
        link.in_step = error is None and all(result.in_step for result in one.run.results[-1:])
        link.changed = not link.in_step  # what was left behind, or refused, is tried again
        retry = 0.0
        if link.in_step:
            link.failures, link.left = 0, None
        else:
            retry = self._put_off(link)
        left = _what_is_left(one.run)
        if link.in_step or left != link.left:  # else it was told before
            self._tell(Synced(one.run, retry))
        link.left = left
        assert link.replica
        if error and link.replica.broke_off:  # by an error here: there is nothing wrong with the peer
            self._hang_up(link, error)
            return
        try:
            link.replica.let_go()
        except (P2PSyncError, OSError) as broken:
            self._lose(link, broken)

    # -- what others see

    def _warn(self) -> None:
        if self._watcher.warning:
            self._tell(Warned(self._watcher.warning))
            self._watcher.warning = ""

    def _show(self) -> None:
        """Let `p2psync status` see how it stands."""
        peers = [
            watchfile.PeerState(
                printable(link.peer.name),
                link.replica is not None,
                link.in_step,
                link.since,
                printable(link.why),
            )
            for link in self._links
        ]
        state = watchfile.State(os.getpid(), self._started, peers)
        if state != self._state:
            offline = sum(not peer.online for peer in peers)
            self._manager.status(f"{len(peers) - offline} of {len(peers)} peers connected")
            watchfile.write(self._root, state)
            self._state = state


def _what_is_left(one: PeerRun) -> object:
    """Return what a sync could not do, to be compared with the next one's."""
    problems = [(p.path, p.why) for r in one.results for side in (r.local, r.peer) for p in side.problems]
    return str(one.error or ""), problems
