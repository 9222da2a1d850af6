"""One run of `p2psync sync`: opens the replicas, syncs with each peer in turn, gathers what came of it.

Owns locks, retries and the order of peers: what a later peer brings is carried to the earlier ones in the
same run. One peer's trouble never keeps the others from being synced.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from p2psync import ssh
from p2psync.config import Peer
from p2psync.connect import connect_local, connect_ssh, start_local
from p2psync.core.choose import EVERYTHING, Filter, Mode
from p2psync.core.guard import HALF, MaxDelete
from p2psync.core.model import Prefer
from p2psync.core.replica import Scanned
from p2psync.core.vector import ReplicaId
from p2psync.drivers import Drivers
from p2psync.errors import Exit, GuardTripped, Locked, NotAReplica, P2PSyncError, PeerError, ReplicaError
from p2psync.facts import Facts
from p2psync.local import LocalReplica, open_replica
from p2psync.peer import Address, parse_address
from p2psync.remote import RemoteReplica
from p2psync.sync import Progress, Result, Session

RETRY_SECONDS = (0.05, 0.5)
"""Between two tries for a lock, at random: two runs that got in each other's way must not meet again."""

_SEVERITY = (Exit.FAILED, Exit.USAGE, Exit.GUARD, Exit.UNREACHABLE, Exit.LOCKED, Exit.CONFLICTS, Exit.IN_STEP)


@dataclass(frozen=True)
class Options:
    """How to sync."""

    prefer: Prefer = Prefer.BOTH
    dry_run: bool = False
    create: bool = False
    """Make a peer a replica that is none yet."""
    lock_wait: float = 10.0
    """Seconds to wait for another run to finish."""
    max_delete: MaxDelete = HALF
    """How many files may be deleted from a side without a question."""
    approved: str = ""
    """The plan that may delete whatever it does."""
    wanted: Filter = EVERYTHING
    """What the run is about; a peer's own settings count where this says nothing."""
    mode: Mode | None = None
    """Which way changes go; None: as the peer's settings say."""
    accepted: Collection[bytes] = ()
    """Folders here that are as they should be, whatever disk was or is mounted on them."""
    doubt: bool = False
    """Read every file, whatever its size and times are."""
    plans: Mapping[str, str] | None = None
    """By a peer's name, the only plan that is to be carried out."""
    drivers: Drivers | None = None
    """How texts of which names are merged."""


@dataclass
class PeerRun:
    """What came of one peer."""

    peer: Peer
    results: list[Result] = field(default_factory=list)
    """Of its rounds: a second one where a later peer brought something."""
    error: P2PSyncError | None = None
    same_as: PeerRun | None = None
    """The peer that is the same replica, at another address: it was synced as that."""
    sent: int = 0
    received: int = 0
    """Bytes on the wire."""

    @property
    def exit_code(self) -> Exit:
        """What this peer alone would end the command with."""
        if self.same_as:
            return self.same_as.exit_code
        if self.error:
            return Exit(self.error.exit_code)
        if any(result.refusal for result in self.results):
            return Exit.GUARD
        conflicts = any(conflict.open for result in self.results for conflict in result.conflicts)
        in_step = self.results[-1].in_step if self.results else True
        return Exit.IN_STEP if in_step and not conflicts else Exit.CONFLICTS


def worst(runs: Sequence[PeerRun]) -> Exit:
    """Return the exit code of the whole run."""
    codes = {run.exit_code for run in runs}
    return next(code for code in _SEVERITY if code in codes or code is Exit.IN_STEP)


def sync(
    root: bytes,
    peers: Sequence[Peer],
    options: Options,
    progress: Progress,
    confirm: Callable[[str], bool],
    early: ssh.Early | None = None,
) -> list[PeerRun]:
    """Sync the replica at `root` with each peer.

    Args:
        root: the local replica.
        peers: the peers, in order.
        options: how.
        progress: is told how it goes.
        confirm: asks the user a question; whether to make a replica of a folder.
        early: connections that are being made already.

    Raises:
        ReplicaError: the local replica cannot be used.
        Locked: another run has it.
    """
    deadline = time.monotonic() + options.lock_wait
    locked: list[Peer] = []
    while True:
        last_try = time.monotonic() >= deadline
        with ExitStack() as opened:
            try:
                home = LocalReplica(root)
                opened.callback(home.close)
                home.accepted = options.accepted
                # First who was locked: if that was by us, at another address, it answers now.
                links = [
                    _open(peer, home, root, options, confirm, early.take(peer) if early else None, opened)
                    for peer in sorted(peers, key=lambda peer: peer not in locked)
                ]
                links.sort(key=lambda link: peers.index(link.run.peer))
                _recognise(home, links)
                locked = [link.run.peer for link in links if isinstance(link.run.error, Locked)]
                if last_try or not locked:
                    sync_all(home, links, options, progress)
                    return [link.run for link in links]
            except Locked:
                if last_try:
                    raise
        # All locks are free again here: two runs that hold one lock each and want the other's let go of both.
        time.sleep(_some_time())


def open_when_free(root: bytes, wait: float) -> LocalReplica:
    """Open the replica at `root`, waiting for another run to finish.

    Args:
        root: of the replica.
        wait: seconds at most.

    Raises:
        ReplicaError: it cannot be opened.
        Locked: another run still has it.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            return LocalReplica(root)
        except Locked:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_some_time())


@dataclass
class Link:
    """A peer while the run lasts."""

    run: PeerRun
    replica: RemoteReplica | None = None
    session: Session | None = None
    path: bytes | None = None
    """Where it is, if on this machine."""
    identity: ReplicaId | None = None
    """Who answered at the address."""
    seen: int = 0
    """The newest change here that the peer has got."""


def _inside(path: str) -> bytes:
    """Return a path of the settings as one from the root; the root itself is empty."""
    return os.fsencode(os.path.normpath(path.strip("/") or ".")).removeprefix(b".")


def wanted_of(options: Options, peer: Peer) -> Filter:
    """Return what a run is about with a peer: as was asked for, else as is configured for it."""
    asked = options.wanted
    return replace(
        asked,
        mode=options.mode or Mode(peer.mode),
        within=asked.within or tuple(map(_inside, peer.paths)),
        patterns="".join(f"{pattern}\n" for pattern in peer.exclude).encode() + asked.patterns,
    )


def _open(
    peer: Peer,
    home: LocalReplica,
    root: bytes,
    options: Options,
    confirm: Callable[[str], bool],
    dialled: ssh.Dialled | None,
    opened: ExitStack,
) -> Link:
    link = Link(PeerRun(peer))
    met = {record.address: record.replica for record in home.peers()}
    try:
        link.replica = _connect(peer, root, options, peer.address in met, confirm, dialled)
        opened.callback(link.replica.close)
        link.path = path_of(peer)
        link.identity = link.replica.identity.replica
        if not options.dry_run and met.get(peer.address) != link.replica.identity.replica:
            home.met(link.replica.identity.replica, peer.address, link.replica.recalls)
    except (P2PSyncError, OSError) as error:
        link.run.error = _told(error)
    return link


def _recognise(home: LocalReplica, links: Sequence[Link]) -> None:
    """Find those that are locked because they are open already, by another address.

    One that answers although a replica of that id is open is a copy of it, and synced as such.
    """
    opened = {link.identity: link.run for link in links if link.identity is not None}
    for link in links:
        if isinstance(link.run.error, Locked):
            known = opened.keys() & home.answered_at(link.run.peer.address)
            if known:
                link.run.error, link.run.same_as = None, opened[known.pop()]


def _told(error: Exception) -> P2PSyncError:
    """Return what went wrong with a peer, as it is told; what nobody expected is raised if that is wanted."""
    if isinstance(error, P2PSyncError):
        return error
    if isinstance(error, OSError):
        return ReplicaError(str(error))
    if "P2PSYNC_DEBUG" in os.environ:
        raise error
    return ReplicaError(f"{type(error).__name__}: {error}")


def _connect(
    peer: Peer,
    root: bytes,
    options: Options,
    known: bool,
    confirm: Callable[[str], bool],
    dialled: ssh.Dialled | None,
) -> RemoteReplica:
    """Open the replica at a peer's address; make it one if that is wanted.

    Raises:
        P2PSyncError: it cannot be opened, for one reason or the other.
    """
    address = parse_address(peer.address, port=peer.port)
    create = options.create and not known and not options.dry_run
    try:
        return open_address(address, peer, root, create, dialled)
    except NotAReplica as error:
        if known:
            raise _gone(address) from error
        if options.dry_run or not confirm(f"{address} is not a replica yet. Make it one?"):
            raise NotAReplica(f"{address} is not a replica: --create makes it one") from error
    return open_address(address, peer, root, True)


def connect_when_free(peer: Peer, root: bytes, options: Options, known: bool) -> RemoteReplica:
    """Open the replica at a peer's address from any thread, waiting for another run to finish.

    Args:
        peer: whom to connect to.
        root: of the local replica.
        options: how long to wait for locks.
        known: has it been synced with before?

    Raises:
        P2PSyncError: it cannot be opened, for one reason or the other.
    """
    address = parse_address(peer.address, port=peer.port)
    deadline = time.monotonic() + options.lock_wait
    while True:
        try:
            if address.host is not None:
                return open_address(address, peer, root)
            path = os.path.abspath(address.path)
            _check_apart(path, root, address)
            return start_local(path, os.path.abspath(root))
        except Locked:
            if time.monotonic() >= deadline:
                raise
        except NotAReplica as error:
            if known:
                raise _gone(address) from error
            raise NotAReplica(f"{address} is not a replica: `p2psync sync --create` makes it one") from error
        time.sleep(_some_time())


def _gone(address: Address) -> GuardTripped:
    return GuardTripped(
        f"{address} has been a replica and is none now: is the disk mounted?"
        " Nothing was touched. If it is to begin anew, run `p2psync init` there"
    )


def path_of(peer: Peer) -> bytes | None:
    """Return where a peer is on this machine; None: it is on another."""
    address = parse_address(peer.address)
    return os.path.abspath(address.path) if address.host is None else None


def open_address(
    address: Address, peer: Peer, root: bytes, create: bool = False, dialled: ssh.Dialled | None = None
) -> RemoteReplica:
    """Open the replica at an address; with `create`, make it one first if it is none.

    Args:
        address: where.
        peer: how to connect.
        root: of the replica here.
        create: make it a replica.
        dialled: an ssh that is connecting there already.

    Raises:
        P2PSyncError: it cannot be opened, for one reason or the other.
    """
    if address.host is None:
        path = os.path.abspath(address.path)
        _check_apart(path, root, address)
        return connect_local(path, functools.partial(open_replica, neighbour=os.path.abspath(root)), create)
    return connect_ssh(address, peer, create, dialled)


_TRIPS = 5
_BLOCK = 4 << 20
_MEASURED_SECONDS = 0.5


def test_peer(peer: Peer, root: bytes) -> tuple[str, float, float, float, float, Facts]:
    """Connect to a peer and find out how it is there.

    Returns:
        What the replica there is called, the round trip in seconds, bytes a second there and back, by how
        many seconds the clock there is ahead, and what else is so there.

    Raises:
        P2PSyncError: it cannot be opened.
    """
    far = open_address(parse_address(peer.address, port=peer.port), peer, root)
    try:
        trips = [_timed(lambda: far.echo(b"", 0)) for _ in range(_TRIPS)]
        up = _rate(lambda: far.echo(os.urandom(_BLOCK), 0))
        down = _rate(lambda: far.echo(b"", _BLOCK))
        began = time.time_ns()
        facts = far.facts()
        middle = (began + time.time_ns()) / 2
        return far.identity.name, min(trips), up, down, (facts.clock_ns - middle) / 1e9, facts
    finally:
        far.close()


def _timed(action: Callable[[], None]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def _rate(send: Callable[[], None]) -> float:
    """Return how many bytes a second go through, measured for a moment."""
    spent, count = 0.0, 0
    while spent < _MEASURED_SECONDS:
        spent += _timed(send)
        count += 1
    return count * _BLOCK / spent


def _check_apart(path: bytes, root: bytes, address: Address) -> None:
    if _overlap(path, root):
        raise PeerError(f"{address} and {os.fsdecode(root)} are one inside the other, or the same")


def _overlap(one: bytes, other: bytes) -> bool:
    one, other = (os.path.join(os.path.realpath(path), b"") for path in (one, other))
    return one.startswith(other) or other.startswith(one)


def sync_all(
    home: LocalReplica,
    links: Sequence[Link],
    options: Options,
    progress: Progress,
    home_scanned: Scanned | None = None,
) -> None:
    """Sync with each peer in turn, and again with those before one that brought something.

    Args:
        home: the local replica, open.
        links: to the peers, open too.
        options: how.
        progress: is told how it goes.
        home_scanned: what is known of the home side already, if it was just scanned.
    """
    for link in links:
        home_scanned = _round(home, home_scanned, link, options, progress)
    for link in links[:-1] if options.plans is None else ():
        if _lacks_something(home, link):
            _round(home, home_scanned, link, options, progress)


def _round(
    home: LocalReplica, home_scanned: Scanned | None, link: Link, options: Options, progress: Progress
) -> Scanned | None:
    """Sync with one peer; return what is known of the home side's files by now."""
    if link.run.error or link.replica is None:
        return home_scanned
    home.neighbour = link.path
    try:
        if link.session is None:
            near = link.path is not None
            link.session = Session(home, link.replica, progress, near, options.drivers)
            all_new = options.plans is None and wanted_of(options, link.run.peer) == EVERYTHING
            link.session.scan(not options.dry_run, home_scanned, options.doubt, all_new)
        home_scanned = link.session.home_scanned
        plan = (options.plans or {}).get(link.run.peer.name, "")
        if options.plans is not None and not plan:
            raise GuardTripped(f"the plan is not about {link.run.peer.name}")
        limits = (options.max_delete, options.approved or plan, wanted_of(options, link.run.peer))
        result = link.session.round(options.prefer, not options.dry_run, *limits, plan)
        link.run.results.append(result)
        if result.changed_rules and not options.dry_run and options.plans is None:
            link.session.scan(True)
            home_scanned = link.session.home_scanned
            link.run.results.append(link.session.round(options.prefer, True, *limits))
    except Exception as error:  # whatever it is: the other peers have nothing to do with it
        link.run.error = _told(error)
        if not options.dry_run and _gave_up_midway(home, link.replica.identity.name):
            home_scanned = None
    try:
        identity = link.replica.identity.replica
        if not options.dry_run and identity != link.identity:  # it has become another
            home.met(identity, link.run.peer.address)
        link.seen = home.newest()
    except Exception as error:  # what was synced, was
        link.run.error = link.run.error or _told(error)
    link.run.sent, link.run.received = link.replica.traffic
    return home_scanned


def _lacks_something(home: LocalReplica, link: Link) -> bool:
    """Has the peer not got the newest change here?"""
    try:
        return link.seen < home.newest()
    except ReplicaError:  # what was synced is told, and the next run looks again
        return False


def _gave_up_midway(home: LocalReplica, peer: str) -> bool:
    """Have the home side forget what was planned with a peer; return whether it has to be scanned again."""
    try:
        return home.give_up(peer)
    except ReplicaError:  # the next round will tell
        return True


def _some_time() -> float:
    import random  # costs milliseconds, and is rarely needed

    return random.uniform(*RETRY_SECONDS)
