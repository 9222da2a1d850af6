"""LocalReplica: a directory and its sidecar, behind the Replica protocol. Owns the lock and the commits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Collection, Container, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from p2psync import history
from p2psync.alike import Alike
from p2psync.apply import Applier
from p2psync.bases import Bases
from p2psync.chunks import ChunkLists
from p2psync.collect import Collector
from p2psync.config import history_limits
from p2psync.contents import Contents
from p2psync.core.ignore import Ignore
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import (
    Action,
    Digest,
    Entry,
    Kind,
    Problem,
    Record,
    Transition,
    action_of,
    is_folder,
)
from p2psync.core.order import moves
from p2psync.core.paths import SIDECAR, ancestors, is_within, join, split
from p2psync.core.reconcile import Contest
from p2psync.core.replica import (
    Applied,
    Ask,
    Change,
    Content,
    Found,
    Identity,
    Like,
    Mark,
    Met,
    Name,
    Piece,
    Point,
    Scanned,
    Source,
    Taken,
    Unread,
    Want,
)
from p2psync.core.retention import Collected, Limits
from p2psync.core.vector import MAX_AHEAD_SECONDS, ReplicaId, Stamp
from p2psync.database import no_room
from p2psync.disk import (
    OPEN_DIRECTORY,
    Root,
    begin_sync,
    exists,
    is_open,
    open_file,
    rename_new,
    taken_by,
)
from p2psync.errors import Damaged, Locked, NotAReplica, ReplicaError
from p2psync.foreseen import Foreseen
from p2psync.held import Held
from p2psync.history import History
from p2psync.look import Seen, seen_as
from p2psync.manifest import Manifest
from p2psync.past import Run
from p2psync.replicas import PeerRecord
from p2psync.reserve import Reserve, has_room
from p2psync.room import Room
from p2psync.root import find_root, is_sidecar
from p2psync.scan import WHOLE, Doubted, Scan, first_seen, scan
from p2psync.sender import Sender
from p2psync.stage import Stage
from p2psync.take import take

if TYPE_CHECKING:
    from p2psync.watcher import Watcher

BATCH = 1000
"""Changes in a batch, outcomes between two reports of progress."""
_SIDECAR = os.fsdecode(SIDECAR)
SAVE_SECONDS = 10.0
"""After so much work what a scan has found is committed: no more is lost if it is interrupted."""


def init(root: bytes, name: str | None = None) -> bool:
    """Make the directory `root` a replica; return False if it is one already.

    Args:
        root: the directory; made if it is missing.
        name: for people; `host:dirname` if None.

    Raises:
        ReplicaError: it cannot be written to, is no directory, or lies inside another replica.
    """
    shown = os.fsdecode(root)
    try:
        sidecar = os.path.join(root, SIDECAR)
        if is_sidecar(sidecar):
            return False
        outer = find_root(os.path.dirname(os.path.realpath(root)))
        if outer is not None:
            raise ReplicaError(
                f"{shown} lies inside the replica {os.fsdecode(outer)}: a replica holds no other"
            )
        os.makedirs(sidecar, 0o700, exist_ok=True)
    except OSError as error:
        raise ReplicaError(f"cannot make {shown} a replica: {error.strerror}") from error
    # Under another name until it is whole: a manifest that exists is one that can be opened.
    made = os.path.join(sidecar, b"manifest.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(made)
    Manifest.create(made, name or _default_name(root)).close()
    fd = os.open(sidecar, OPEN_DIRECTORY)
    try:
        rename_new(b"manifest.new", fd, b"manifest.db", fd)
    finally:
        os.close(fd)
    return True


def _default_name(root: bytes) -> str:
    import socket  # costs milliseconds, and is rarely needed

    name = f"{socket.gethostname()}:{os.fsdecode(os.path.basename(os.path.realpath(root)))}"
    return name.encode("utf-8", "replace").decode()


def _manifest_of(root: bytes) -> bytes:
    return os.path.join(root, SIDECAR, b"manifest.db")


def _open_manifest(root: bytes, sidecar: int, lock: bool) -> Manifest:
    """Open the manifest; make it anew if it was lost or damaged.

    Raises:
        Damaged: it is, and this is not the one who may mend it.
    """
    file = _manifest_of(root)
    try:
        if exists(b"manifest.db", sidecar) or not lock:
            return Manifest.open(file, locked=lock)
    except Damaged:
        if not lock:
            raise
    return Manifest.make_anew(file, _default_name(root))


@dataclass
class _Round:
    """What is done with one peer, from `prepare` until it is acknowledged."""

    foreseen: Foreseen
    transitions: Sequence[Transition] = ()
    """What is still to be applied."""
    refused: Sequence[Problem] = ()
    """What will not be."""
    moves: Mapping[bytes, bytes] = field(default_factory=dict)
    """Those of them that are moves, from where, by where to."""
    run: int = 0
    """The sequence number of what was applied."""
    is_applying: bool = False


class LocalReplica:
    """A replica on this machine."""

    def __init__(
        self, root: bytes, lock: bool = True, cleans: bool = True, watcher: Watcher | None = None
    ) -> None:
        """Open the replica at `root`.

        Args:
            root: a directory with a sidecar.
            lock: keep all other runs out until `close`; False only to look at it. Of one on a disk that is
                read-only no more can be done.
            cleans: remove history that is too old or too much, when a sync is over; and forget the earliest
                of very many versions.
            watcher: knows where something happened since the last scan: nothing else is looked at.

        Raises:
            NotAReplica: there is no such directory, or it has no sidecar.
            Locked: another run has it.
            NoRoom: its disk is full.
            ReplicaError: it cannot be opened.
        """
        shown = os.fsdecode(root)
        self._path = root
        self._close = contextlib.ExitStack()
        try:
            sidecar = self._open_sidecar(shown)
            self._is_read_only = bool(os.fstatvfs(sidecar).f_flag & os.ST_RDONLY)
            lock = lock and not self._is_read_only
            self._reserve = Reserve(sidecar)
            if lock:
                self._lock(sidecar, shown)
                self._close.callback(self._reserve.take_back)
                if not self._reserve.lend():
                    raise no_room(_manifest_of(root))
            if self._is_read_only or not (lock or has_room(sidecar)):
                self._manifest = Manifest.open(_manifest_of(root), copy=True)
                self._close.callback(self._manifest.close)
            else:
                self._manifest = _open_manifest(root, sidecar, lock)
                self._close.callback(self._manifest.close)
                if not (self._manifest.is_copy or is_open(b"manifest.db", sidecar)):
                    raise ReplicaError(f"{shown} was moved while it was opened")
            self._manifest.forgets = cleans
            self._stage = Stage(sidecar)
            self._close.callback(self._stage.close)
            self._history = History(sidecar)
            self._close.callback(self._history.close)
            self._bases = Bases(sidecar, self._manifest.texts.kept)
            self._close.callback(self._bases.close)
            self.contents = Contents(self._root, self._manifest, self._bases, self._history)
            self._lists = ChunkLists(sidecar)
            self._close.callback(self._lists.close)
            self._sender = Sender(self._manifest, self.contents, self._lists)
            self._alike = Alike(self._manifest, self.contents, self._lists)
            self._held = Held(self.contents, self._lists, self._stage.left_over.opened)
            self._close.callback(self._held.close)
            self._collector = Collector(
                self._root,
                self._manifest,
                self._history,
                self.contents,
                self._bases,
                self._lists,
                self._stage.left_over,
            )
            self._room = Room(
                root, self._root, sidecar, self._stage, self.contents, self._collector, self._reserve
            )
            if lock:
                self._settle(sidecar)
        except OSError as error:
            self._close.close()
            if error.errno == errno.ENOSPC:
                raise no_room(_manifest_of(root)) from error
            raise ReplicaError(f"cannot open the replica {shown}: {_what_is_wrong(error)}") from error
        except BaseException:
            self._close.close()
            raise
        self._sidecar = sidecar
        self._ignores: dict[bytes, Ignore] = {}
        self._any_rules = True
        self._round = _Round(Foreseen(self._manifest))
        self._scanned: dict[bytes, Entry] = {}
        """What the last scan found changed, until it is asked for once, or something else has changed it."""
        self._unread: Sequence[Unread] = []
        """Large files that the last scan left to be read later."""
        self._room_left = 0
        """Bytes of such files of the other side that are taken in."""
        self._taken_in = 0
        """Up to which sequence number the other side had taken in what is here, as it said last."""
        self._before_scan = 0
        """The sequence number of the newest change before that."""
        self._scan_seq = 0
        """The sequence number of the newest of that."""
        self._cleans = cleans
        self._watcher = watcher
        self._away: Collection[bytes] = ()
        """Folders whose disk was not mounted at the last scan: nothing may be written there."""
        self.accepted: Collection[bytes] = ()
        """Folders that are as they should be, whatever disk was or is mounted on them."""
        self.neighbour: bytes | None = None
        """The root of the other side, if that is on this machine."""

    def _open_sidecar(self, shown: str) -> int:
        """Open the root, and return a descriptor of the sidecar.

        Raises:
            NotAReplica: there is none.
            ReplicaError: it cannot be opened.
        """
        try:
            self._root = Root.open(self._path)
            self._close.callback(self._root.close)
            sidecar = os.open(SIDECAR, OPEN_DIRECTORY, dir_fd=self._root.fd)
            self._close.callback(os.close, sidecar)
            if not is_sidecar(os.path.join(self._path, SIDECAR)):
                raise FileNotFoundError
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotAReplica(f"{shown} is not a replica: `p2psync init {shown}` makes it one") from error
        except OSError as error:
            raise ReplicaError(f"cannot open the replica {shown}: {error.strerror}") from error
        return sidecar

    def _settle(self, sidecar: int) -> None:
        """Become another replica if this sidecar is a copy, or was put back from one.

        A plain move, also to another machine, or a mount leaves both inodes what they are. Where they mean
        nothing (FAT), every mount makes another replica: that costs a longer exchange.
        """
        stats = (os.fstat(self._root.fd), os.stat("manifest.db", dir_fd=sidecar))
        place = b"%d %d" % (stats[0].st_ino, stats[1].st_ino)
        known = self._manifest.place()
        marked_wrongly = self._manifest.ahead_since(int((time.time() + MAX_AHEAD_SECONDS) * 1e6))
        if place != known or marked_wrongly is not None:
            with self._manifest.transaction():
                if marked_wrongly is not None:
                    self._manifest.set_clock(0)
                    self._manifest.remint(marked_wrongly)
                elif known is not None:
                    self._manifest.remint(self._manifest.newest())
                self._manifest.settle(place)

    def _lock(self, sidecar: int, shown: str) -> None:
        """Take the lock; the system drops it when the process ends, however it ends."""
        fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=sidecar)
        self._close.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"another run of p2psync is at work on {shown}; try again when it is done") from None

    @property
    def identity(self) -> Identity:
        """Who this is."""
        return self._manifest.identity()

    def close(self) -> None:
        """Unlock, and forget what was not kept."""
        self._close.close()

    # -- what has changed

    def look(self) -> Scan:
        """Find out what changed on disk, and write nothing."""
        return scan(self._root, self._manifest, self._manifest.next_stamp(), self._exclude())

    def room_if_blank(self) -> int:
        """Return how much a replica takes in which there is nothing; see `Replica.room_if_blank`."""
        is_blank = not (self.newest() or self._exclude() or self._stage.size())
        self._room_left = self._room.free() if is_blank and os.listdir(self._root.fd) == [_SIDECAR] else 0
        return self._room_left

    def scan(self, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        """Find out what changed on disk; see `Replica.scan`."""
        if keep:
            self._must_be_writable()
        try:
            return self._scan(keep, doubt, leave_large)
        except BaseException:
            self._manifest.roll_back()
            if self._watcher:
                self._watcher.failed()
            raise

    def _must_be_writable(self) -> None:
        """Refuse what could not be remembered: a mark that is forgotten would be used twice (I2).

        Raises:
            ReplicaError: the disk is read-only.
        """
        if self._is_read_only:
            raise ReplicaError(
                f"the disk of {os.path.abspath(os.fsdecode(self._path))} is read-only, and what is done with"
                " a replica is remembered there: mount it for writing, or use a copy of it (`cp -a`). To look"
                " at it, and to compare with it (`p2psync diff`, `p2psync sync -n`), needs neither"
            )

    def _scan(self, keep: bool, doubt: bool, leave_large: bool) -> Scanned:
        self._manifest.roll_back()  # of a dry run
        self._scanned, self._before_scan = {}, self.newest()
        stamp = self._manifest.next_stamp()
        anew = self._manifest.is_anew()
        begun, is_first = False, True
        due = time.monotonic() + SAVE_SECONDS

        def note(found: Scan) -> None:
            """Write what is found; commit it from time to time: who interrupts a scan loses little."""
            nonlocal begun, is_first, due
            is_due = keep and time.monotonic() >= due
            if found.changes or (is_due and found.vouched):
                if not begun:
                    begun = True
                    self._manifest.begin()
                    self._manifest.use(stamp)
                    self._scan_seq = self._manifest.next_seq()
                changes = [_of_unknown_past(record) for record in found.changes] if anew else found.changes
                found.changes = []
                self._manifest.record_under(self._scan_seq, changes)
                self._scanned.update({record.path: record.row.entry for record in changes})
            if begun and is_due:
                begun = False
                with self._manifest.transaction(begun=True):
                    self._save(found, is_first)
                is_first = False
                due = time.monotonic() + SAVE_SECONDS

        exclude = self._exclude()
        part = self._watcher.part(exclude) if self._watcher else WHOLE
        known = Doubted(self._manifest) if doubt else self._manifest
        leave_large = leave_large and keep and not anew
        found = scan(self._root, known, stamp, exclude, note, part, leave_large, self.accepted)
        if self._watcher:
            again = [*(problem.path for problem in found.problems), *(path for path, _ in found.unread)]
            self._watcher.scanned(found.ignores, again)
        if anew:
            found.problems.append(Problem(SIDECAR, _ANEW))
        self._ignores, self._away = found.ignores, found.away
        self._any_rules = bool(found.rules)
        told: list[bytes] = []
        if not keep:
            if not begun:
                self._manifest.begin()
            told = self._note(found)
        elif begun or anew or found.touches_manifest or found.mounts != self._manifest.mounts():
            with self._manifest.transaction(begun):
                told = self._note(found)
        self._unread = found.unread
        unread = sum(size for _, size in found.unread)
        return Scanned(found.problems, told, found.rules, sorted(found.mounts), unread)

    def read_unread(self) -> Generator[list[Piece], None, None]:
        """Yield the large files that the scan left; see `Replica.read_unread`."""
        found: list[tuple[bytes, Seen]] = []
        due = time.monotonic() + SAVE_SECONDS
        try:
            for batch in self._sender.unread(self.unread(), self._root, lambda *one: found.append(one)):
                yield batch
                if found and time.monotonic() >= due:
                    self._record_unread(found)
                    found.clear()
                    due = time.monotonic() + SAVE_SECONDS
        finally:
            self._record_unread(found)

    def unread(self) -> Sequence[Unread]:
        """Return the large files that the scan left, once; see `Replica.unread`."""
        unread, self._unread = self._unread, []
        return unread

    def take_unread(self, files: Sequence[Unread]) -> Iterator[Met]:
        """Take in such files of the neighbour; see `Replica.take_unread`."""
        size = sum(size for _, size in files)
        if self.neighbour is None or size > self._room_left:
            return
        self._room_left -= size
        source = Root.open(self.neighbour)
        try:
            yield from self._stage.take_unread(files, source)
        finally:
            source.close()

    def note_unread(self, met: Sequence[Met]) -> None:
        """Record what the neighbour has found these files to be; see `Replica.note_unread`.

        Raises:
            ReplicaError: nobody on this machine can have done so.
        """
        if self.neighbour is None:
            raise ReplicaError("only a replica on the same machine tells what files are")
        self._record_unread(
            (path, seen_as(digest, mode, found, began_ns)) for path, digest, mode, found, began_ns in met
        )

    def _record_unread(self, found: Iterable[tuple[bytes, Seen]]) -> None:
        stamp = self._manifest.next_stamp()
        records = [first_seen(path, seen, stamp) for path, seen in found]
        if not records:
            return
        with self._manifest.transaction():
            self._manifest.use(stamp)
            self._scan_seq = self._manifest.next_seq()
            self._manifest.record_under(self._scan_seq, records)
        self._scanned.update({record.path: record.row.entry for record in records})

    def _save(self, found: Scan, is_first: bool) -> None:
        """Write what makes it safe to end the scan here.

        A folder of which only a part is written is compared row by row next time; and what is mounted now,
        and is not by then, must not be taken for deleted (I6).
        """
        if is_first:  # all folders are known before the first file is read
            self._manifest.forget_fingerprints(found.fingerprints)
            self._manifest.set_mounts(self._manifest.mounts() | found.mounts)
        self._manifest.vouch(found.vouched)
        found.vouched = []

    def _note(self, found: Scan) -> list[bytes]:
        """Write what else a scan found; return the paths that are no entries and were not met before."""
        self._manifest.set_scanned()
        self._manifest.set_mounts(found.mounts)
        self._manifest.vouch(found.vouched)
        self._manifest.forget_present(found.forgotten)
        self._manifest.set_fingerprints(found.fingerprints)
        return self._manifest.skip(found.special)

    def _exclude(self) -> bytes:
        """Return the text of the ignore file that is not shared."""
        try:
            with open(open_file(b"ignore", self._sidecar), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            own = os.path.join(os.fsdecode(self._path), os.fsdecode(SIDECAR), "ignore")
            raise ReplicaError(f"cannot read {own}: {error.strerror}") from error

    def _is_ignored(self, name: Name) -> bool:
        """Do the rules, as the last scan found them, leave this path out?"""
        if not self._any_rules:
            return False
        view = self._ignores.get(b"") or Ignore.top(self._exclude())
        parts = name.path.split(b"/")
        for depth, part in enumerate(parts[:-1], 1):
            if view.matches(part, True):
                return True
            view = self._ignores.get(b"/".join(parts[:depth])) or view.below(part)
        return view.matches(parts[-1], name.directory)

    def changes(self, since: int) -> Iterator[list[Change]]:
        """Yield all newer entries that are not ignored; see `Replica.changes`."""
        self._taken_in = since
        batch = []
        for change in self._take_changes(since):
            if not self._is_ignored(Name(change.path, change.entry.kind is Kind.DIRECTORY)):
                batch.append(change)
                if len(batch) == BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _take_changes(self, since: int) -> Iterator[Change]:
        """Return all newer entries; what the last scan found is given out once."""
        scanned, self._scanned = self._scanned, {}
        if scanned and since == self._before_scan and self.newest() == self._scan_seq:
            return (Change(path, entry) for path, entry in scanned.items())  # just what was found
        return self._manifest.changes(since)

    def lookup(self, names: Sequence[Name]) -> Found:
        """Return what is known of each of `names`."""
        rows = self._manifest.rows_at([name.path for name in names])
        entries = [row.entry if row else None for row in rows]
        ignored = [
            name.path
            for name, entry in zip(names, entries, strict=True)
            if self._is_ignored(name)
            or (entry and entry.kind is Kind.DIRECTORY and self._is_ignored(Name(name.path, True)))
        ]
        hidden = set(ignored)
        shown = [None if name.path in hidden else entry for name, entry in zip(names, entries, strict=True)]
        return Found(shown, ignored)

    def bases(self, paths: Sequence[bytes]) -> list[list[Entry]]:
        """Return the earlier versions of each of `paths` that are remembered."""
        return [self._manifest.bases(path) for path in paths]

    def stamp(self) -> Stamp:
        """Return a stamp never used before; nothing marked by it may leave before `use_stamp`."""
        return self._manifest.next_stamp()

    def contests(self, paths: Collection[bytes]) -> dict[bytes, Contest]:
        """Return the conflicts about these that were settled before, and whose copies are still there."""
        return self._manifest.past.contests(self.identity.replica, paths)

    def use_stamp(self, stamp: Stamp) -> None:
        """Make the tick of a stamp durable (I2)."""
        with self._manifest.transaction():
            self._manifest.use(stamp)

    # -- contents

    def texts(self, digests: Sequence[Digest]) -> list[bytes | None]:
        """Return contents of at most `MAX_TEXT` bytes, None for those not held here."""
        return [self.contents.text(digest) for digest in digests]

    def prepare(
        self, transitions: Sequence[Transition], sparse: Sequence[Content] = (), own: bool = False
    ) -> list[Content]:
        """Stage what `transitions` put into the tree; see `Replica.prepare`.

        Args:
            transitions: what is to be done.
            sparse: what the other side says of contents that come.
            own: it is wanted back from the past of this replica, and may be nowhere else.
        """
        refused = {step.path: why for step in transitions if (why := self.refusal(step))}
        if refused:
            for step in transitions:
                if above := next((path for path in step.after if path in refused), None):
                    refused.setdefault(step.path, refused[above])
            transitions = [step for step in transitions if step.path not in refused]
        possible = self._possible(moves(transitions))
        coming = [step for step in transitions if step.path not in possible]
        weighed = self._room.weigh(coming, sparse, own, self.neighbour)
        self._manifest.roll_back()
        self._room_left = 0
        problems = [Problem(path, f"left alone: {why}") for path, why in sorted(refused.items())]
        self._round = _Round(Foreseen(self._manifest, transitions), transitions, problems, possible)
        with self._staging():
            wanted = self._stage.expect(coming, *weighed)
            if not self.newest():  # nothing is known here, so nothing is held
                return wanted
            missing = []
            for start in range(0, len(wanted), BATCH):
                batch = wanted[start : start + BATCH]
                digests = [content.digest for content in batch]
                holder, kept = self._manifest.holders.any_of(digests), self._manifest.texts.kept(digests)
                missing += [
                    content
                    for content in batch
                    if not self._stage_own(content, holder.get(content.digest), content.digest in kept)
                ]
            return missing

    def refusal(self, step: Transition) -> str | None:
        """Return why a transition must not be carried out here, None if it may."""
        if action_of(step) is Action.NOTHING or not any(is_within(step.path, away) for away in self._away):
            return None
        return "its disk is not mounted here"

    def _possible(self, moves: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Return the moves that one rename can do: within a file system, from and to folders of our own."""
        device = os.fstat(self._root.fd).st_dev
        known: dict[bytes, bool] = {}

        def is_ours(folder: bytes) -> bool:
            """A folder that is not there comes with this run, into one that is."""
            met = []
            for place in (folder, *ancestors(folder), b""):
                if place in known:
                    break
                met.append(place)
                with contextlib.suppress(OSError):
                    st = os.fstat(self._root.directory(place))
                    known[place] = st.st_dev == device and os.geteuid() in (0, st.st_uid)
                    break
            known.update(dict.fromkeys(met, known.get(place, False)))
            return known[folder]

        return {new: old for new, old in moves.items() if is_ours(split(new)[0]) and is_ours(split(old)[0])}

    def _stage_own(self, content: Content, holder: bytes | None, kept: bool) -> bool:
        """Stage what is in another file of the tree, or among the bases."""

        def is_it(path: bytes, fd: int) -> bool:
            known = self.contents.is_as_known(path, fd)
            return known and self._stage.copy(content.digest, fd, self._bases.add)

        if holder is not None:
            with self.contents.opened(content.digest, is_it, holder) as fd:
                if fd is not None:
                    return True
        with self.contents.in_history(content.digest) as fd:
            if fd is not None and self._stage.copy(content.digest, fd):
                return True
        extent = self._manifest.texts.extent(content.digest) if kept else None
        text = self._bases.read(extent) if extent else None
        return text is not None and self._stage.put(content.digest, text)

    def take(self) -> Iterator[Taken]:
        """Stage what is in the tree of the neighbour; see `Replica.take`."""
        with self._staging():
            if self.neighbour is not None:
                for taken in take(self._stage, self._bases, self._sidecar, self.neighbour):
                    self._round.foreseen.write(self._stage.new_files(), self._bases)
                    yield taken
            for start in range(0, len(lacking := self._stage.lacking()), BATCH):
                yield Taken(0, 0, lacking[start : start + BATCH])

    def read(self, digests: Sequence[Digest]) -> Iterator[list[Piece]]:
        """Yield the contents with these digests, in batches of pieces; see `Replica.read`."""
        return self._sender.read(digests, remember=self.neighbour is None)

    def sparse(self, contents: Sequence[Content]) -> list[Content]:
        """Return what has holes; see `Replica.sparse`."""
        sparse = []
        for digest, size in contents:
            with self.contents.opened(digest, self.contents.is_as_known) as fd:
                if fd is not None and (taken := taken_by(fd)) < size:
                    sparse.append(Content(digest, taken))
        return sparse

    def alike(self, likes: Sequence[Like]) -> list[list[Digest]]:
        """Return what contents may be made of; see `Replica.alike`."""
        return self._alike.find(likes, self._taken_in)

    def differences(self, wants: Sequence[Want]) -> Iterator[list[Piece]]:
        """Yield contents as what differs from what is held there; see `Replica.differences`."""
        return self._sender.differences(wants)

    def sources(self, asks: Sequence[Ask]) -> list[list[Source]]:
        """Return what is held that contents may be made of; see `Replica.sources`."""
        with self._staging():
            return self._held.sources(asks)

    def put_by(self, batches: Iterable[list[Piece]], size: int) -> None:
        """Take in large files before it is known what they are; see `Replica.put_by`."""
        size = min(size, self._room_left)
        self._room_left -= size
        self._stage.put_by(batches, size)

    def stage(self, batches: Iterable[list[Piece]]) -> None:
        """Take in contents, verified; see `Replica.stage`."""
        with self._staging():
            self._stage.receive(batches, self._bases.add, self._held.span)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[None]:
        """Tell of a disk that takes no more as what it is: nothing can be synced to it now."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise no_room(_manifest_of(self._path)) from error
            raise ReplicaError(f"cannot stage what is to be written: {error.strerror}") from error

    def keep(self, digest: Digest, text: bytes) -> None:
        """Keep the base of a conflict; see `Home.keep`."""
        self._bases.add(digest, text)

    # -- what becomes of it

    def apply(self, kind: str = "sync", about: str = "") -> Iterator[Applied]:
        """Carry out the prepared transitions; see `Replica.apply`.

        Args:
            kind: of the run: sync, undo, restore or repair.
            about: what is undone or restored; of a sync, `acknowledge` tells with whom.

        The order is what makes a power cut harmless (I8): contents on disk, renames, renames on disk,
        manifest.
        """
        refused, self._round.refused = self._round.refused, ()
        for start in range(0, len(refused), BATCH):
            yield Applied(0, list(refused[start : start + BATCH]))
        foreseen, moves = self._round.foreseen, self._round.moves
        transitions, self._round.transitions = self._round.transitions, ()
        if not transitions:
            return
        now = time.time()
        self._round.is_applying = True
        run = history.begin_run(self._history, self._manifest.past.has_run, now)
        with self._staging():
            for digest, text in self._stage.unread_texts():
                self._bases.add(digest, text)
        self._stage.finish_directories()
        wait_for_disk = begin_sync(self._root.fd)
        foreseen.write(self._stage.new_files(), self._bases)
        self._manifest.holders.add()  # the disk takes longer
        wait_for_disk()
        records: list[Record] = []
        problems: list[Problem] = []
        failed: set[bytes] = set()
        touched: set[bytes] = set()
        done = told = 0
        moved = set(moves.values())
        applier = Applier(self._root, self._stage, self._history, foreseen.known, foreseen.rows, moves)
        for outcome in applier.run(transitions):
            if isinstance(outcome, Problem):
                problems.append(outcome)
                failed.add(outcome.path)
            else:
                done += 1
                touched.add(split(outcome.path)[0])
                if not foreseen.has_arrived(outcome):
                    records.append(outcome)
            if done - told + len(problems) >= BATCH:
                yield Applied(done - told, problems)
                told, problems = done, []
        self._keep_common_texts(records)
        texts = self._bases.flush()
        wait_for_disk = begin_sync(self._root.fd)
        with self._manifest.transaction(begun=foreseen.has_begun):
            seq = foreseen.correct(records)
            settled = _settled(transitions, failed)
            if settled or done > len(records) or any(map(_shows, records)):
                size = sum(_displaced(record) for record in records if record.path not in moved)
                self._manifest.past.add_run(Run(seq, run, int(now), kind, about, size), settled)
                self._round.run = seq
            gone = {path for path, row, before in records if is_folder(before) and not row.entry.alive}
            self._manifest.forget_fingerprints(gone | touched)
            self._manifest.texts.keep(texts)
            wait_for_disk()
        self._round.is_applying = False
        if kind != "sync":  # nobody will acknowledge it
            self._round.run = 0
            self._stage.clear()
        yield Applied(done - told, problems)

    def _keep_common_texts(self, records: Iterable[Record]) -> None:
        """Keep texts that both sides turned out to have: no transfer has passed them by."""
        common = {
            row.entry.digest: path
            for path, row, replaced in records
            if replaced is not None
            and row.entry.kind is Kind.FILE
            and row.entry.size <= MAX_TEXT
            and row.entry.same_bytes(replaced)
            and row.entry.version != replaced.version
        }
        for digest in common.keys() - self._manifest.texts.kept(list(common)):
            with self.contents.file(common[digest]) as fd:
                if fd is not None:
                    self._bases.add(digest, os.read(fd, MAX_TEXT))

    def give_up(self, peer: str) -> bool:
        """Forget what was planned with a peer that failed: nothing of it may get into what comes next.

        Args:
            peer: its name.

        Returns:
            Whether that stopped in the midst of being carried out: then the tree has to be scanned again.
        """
        given_up, self._round = self._round, _Round(Foreseen(self._manifest))
        self._stage.give_up()
        self._manifest.roll_back()
        self.contents.look_again()
        if given_up.run:  # it will not be acknowledged
            # A name is worth no failure.
            with contextlib.suppress(ReplicaError), self._manifest.transaction():
                self._manifest.past.name_run(given_up.run, peer)
        return given_up.is_applying

    # -- what was

    def collect(self, limits: Limits, dry_run: bool = False) -> Collected:
        """Remove the history that `limits` do not allow; see `Collector.collect`."""
        if not dry_run:
            self._must_be_writable()
        try:
            return self._collector.collect(limits, dry_run)
        except OSError as error:
            raise ReplicaError(f"cannot clean the history: {error.strerror}") from error

    @property
    def manifest(self) -> Manifest:
        """What is known of the past."""
        return self._manifest

    def rehash(self, paths: Sequence[bytes]) -> list[Digest | None]:
        """Read files anew; see `Replica.rehash`."""
        return self.contents.rehash(paths)

    def shows(self, digest: Digest, past: bool = False) -> bool:
        """Are contents in a file that is not ignored, as the last scan found the rules?

        Args:
            digest: of the contents.
            past: or in an earlier version of one, from which a merge may start.
        """

        def is_shown(path: bytes) -> bool:
            return not self._is_ignored(Name(path, False))

        holders = self._manifest.holders
        return any(map(is_shown, holders.of(digest))) or (
            past
            and any(
                is_shown(path) and self._manifest.is_base(digest, path) for path, _ in holders.before(digest)
            )
        )

    def children(self, folder: bytes) -> list[bytes]:
        """Return the paths of what lives in a folder."""
        rows = self._manifest.rows(folder)
        return [join(folder, name) for name, row in rows.items() if row.entry.alive]

    def newest(self) -> int:
        """Return the sequence number of the newest change."""
        return self._manifest.newest()

    def point(self) -> Point:
        """Return how far this replica's own changes go."""
        return self._manifest.point()

    def recalls(self, seq: int, nonce: int, tick: int = 0) -> bool:
        """Was there ever this change, and this tick? See `Replica.recalls`."""
        return self._manifest.recalls(seq, nonce) and self._manifest.has_used(tick)

    def remint(self, peer: ReplicaId, since: int) -> Identity:
        """Become another replica; see `Replica.remint`."""
        self._scanned = {}
        with self._manifest.transaction():
            self._manifest.remint(max(since, self._manifest.replicas.acknowledged_by(peer)))
        return self.identity

    def recalled(self) -> Sequence[Point]:
        """Return the changes that are recalled, the earliest first."""
        return self._manifest.recalled()

    def files(self) -> int:
        """Return how many files there are, as far as the last scan has seen."""
        return self._manifest.files()

    def mark(self, peer: ReplicaId) -> Mark | None:
        """Return how far this replica has taken in the changes of `peer`, None if never."""
        mark, tick = self._manifest.replicas.mark(peer), self._manifest.replicas.seen(peer)
        return msgspec.structs.replace(mark or Mark(0, 0, b""), tick=tick) if tick else mark

    def acknowledge(self, peer: Identity, mark: Mark) -> None:
        """Remember how far the changes of `peer` are taken in; the run is over for this side."""
        self._scanned = {}
        self._stage.clear()
        has_cut = self._lists.are_new()
        texts = self._bases.flush()
        if texts:
            self._bases.sync()
        with self._manifest.transaction():
            self._manifest.texts.forget(self._bases.take_lost())
            self._manifest.texts.keep(texts)
            self._manifest.samples.add(self._lists.samples())
            self._manifest.replicas.set_mark(peer, mark, time.time())
            if self._round.run:
                self._manifest.past.name_run(self._round.run, peer.name)
        self._round.run = 0
        with contextlib.suppress(OSError, ReplicaError):  # what cannot be done now is done another day
            if self._cleans:
                self._collector.collect_if_due(history_limits(self._path))
            if has_cut:
                self._collector.forget_chunks_if_many()

    # -- peers

    def names(self) -> dict[ReplicaId, str]:
        """Return what the replicas that are known are called, this one too."""
        known = {record.replica: record.name for record in self.peers() if record.name}
        return {**known, self.identity.replica: self.identity.name}

    def met(
        self, peer: ReplicaId, address: str, recalls: Callable[[int, int], bool] = lambda seq, nonce: False
    ) -> None:
        """Remember which replica answered at an address.

        One that recalls what was last taken in from another, which answered there before, was that one.

        Args:
            peer: who answered.
            address: where.
            recalls: see `Replica.recalls`, of the peer.
        """
        before = self._manifest.replicas.answers_at(address)
        mark = self._manifest.replicas.mark(before) if before and before != peer else None
        is_same = mark is not None and mark.seq > 0 and recalls(mark.seq, mark.nonce)
        with self._manifest.transaction():
            if before and is_same:
                self._manifest.replicas.succeed(before, peer)
            self._manifest.replicas.met(peer, address)

    def peer_at(self, address: str) -> PeerRecord | None:
        """Return what is known of the replica at an address: who answered there last, or nobody else ever."""
        known, answered = self.peers(), self.answered_at(address)
        last = [record for record in known if record.address == address]
        found = last or [record for record in known if record.replica in answered]
        return found[0] if len(found) == 1 else None

    def answered_at(self, address: str) -> set[ReplicaId]:
        """Return which replicas have ever answered at an address."""
        return self._manifest.replicas.answered_at(address)

    def forget_peers(self, address: str, others: Collection[str]) -> None:
        """Forget the replicas that answered at an address, if they did not at one of the others.

        What was deleted is not remembered for them any longer than for those that were never met.
        """
        with self._manifest.transaction():
            self._manifest.replicas.forget(address, others)

    def others(self, addresses: Iterable[str]) -> list[PeerRecord]:
        """Return who is waited for and answers at none of these addresses, the latest first.

        Mostly they sync to here, and this replica knows no address of theirs.
        """
        known = {replica for address in addresses for replica in self.answered_at(address)}
        found = [record for record in self._manifest.replicas.waited_for() if record.replica not in known]
        return sorted(found, key=lambda record: record.synced_at or 0, reverse=True)

    def forget_others(self, name: str, addresses: Iterable[str]) -> int:
        """Forget those of `others` that have this name; return how many there were."""
        gone = [record.replica for record in self.others(addresses) if record.name == name]
        with self._manifest.transaction():
            for replica in gone:
                self._manifest.replicas.forget_replica(replica)
        return len(gone)

    def peers(self) -> list[PeerRecord]:
        """Return all replicas that this one was in touch with."""
        return self._manifest.replicas.all()

    def changes_since(self, seq: int) -> Iterator[tuple[bytes, Action]]:
        """Yield the paths whose entries changed after sequence number `seq`, and what happened to them.

        Of a path that was not there before, only what it is now can be told.
        """
        for change in self._manifest.changes(seq):
            before = self._manifest.bases(change.path)[-1:]
            expected = before[0] if before else None
            yield change.path, action_of(Transition(change.path, expected, change.entry))


def _what_is_wrong(error: OSError) -> str:
    """Return why a sidecar could not be used, by the name of what is in it."""
    if not isinstance(error.filename, bytes | str):
        return error.strerror or str(error)
    name = os.fsdecode(os.path.join(SIDECAR, os.path.basename(os.fsencode(error.filename))))
    if isinstance(error, NotADirectoryError):
        return f"{name} is no folder; remove it, and it is made anew"
    return f"{name}: {error.strerror}"


_ANEW = (
    "had lost its manifest, or that was damaged; it has been made anew: what a peer has, or once had, is"
    " recognised, and what was deleted there goes here too; what differs is kept beside it; what is only"
    " missing here is not taken for deleted, and comes back"
)


def _of_unknown_past(record: Record) -> Record:
    """What was found when nothing was known: nobody can tell which versions it follows."""
    entry = msgspec.structs.replace(record.row.entry, revision=0)
    return record._replace(row=record.row._replace(entry=entry))


def _shows(record: Record) -> bool:
    """Did anything change for the users of the tree?"""
    return action_of(Transition(record.path, record.replaces, record.row.entry)) is not Action.NOTHING


def open_replica(
    root: bytes, create: bool, neighbour: bytes | None = None, watcher: Watcher | None = None
) -> LocalReplica:
    """Open a replica for a peer; with `create`, make it one first if it is none.

    Args:
        root: of the replica.
        create: make it one.
        neighbour: the root of the other side, if that is on this machine.
        watcher: knows where something happened since the last scan.

    Raises:
        ReplicaError: it cannot be opened.
        Locked: another run has it.
    """
    if create:
        init(root)
    replica = LocalReplica(root, watcher=watcher)
    replica.neighbour = neighbour
    return replica


def _settled(transitions: Iterable[Transition], failed: Container[bytes]) -> list[tuple[bytes, str, bytes]]:
    """Return the conflicts that were settled: path, resolution and copy."""
    return [
        (step.path, str(step.resolution), step.after[0] if step.after else b"")
        for step in transitions
        if step.resolution and step.path not in failed
    ]


def _displaced(record: Record) -> int:
    """Return how many bytes went to the history."""
    old, new = record.replaces, record.row.entry
    return old.size if old is not None and not old.same_bytes(new) else 0
