"""Fsck: is a replica what its manifest says? Reads all of it; with `repair`, puts rotten files right.

Owns what is looked at, and where good bytes are taken from. What is damage, `core.damage` says. A check
writes nothing, here or at a peer.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice

from msgspec.structs import replace

from p2psync import history
from p2psync.apply import Applier
from p2psync.bases import Bases
from p2psync.config import Peer
from p2psync.core.damage import (
    ROT,
    Finding,
    What,
    compare,
    is_comparable,
    is_lost,
    is_unissued,
    judge_bytes,
    went_to_history,
)
from p2psync.core.ignore import Ignore
from p2psync.core.model import NO_DIGEST, Digest, Entry, Kind, Record, Row, Transition, is_folder
from p2psync.core.paths import SIDECAR, ancestors, shown, split
from p2psync.core.replica import Name, Replica
from p2psync.disk import (
    OPEN_DIRECTORY,
    Changing,
    Root,
    hash_file,
    lstat,
    stat_of,
    sync_file_system,
)
from p2psync.errors import Exit, P2PSyncError, ProtocolError, ReplicaError
from p2psync.history import History
from p2psync.local import LocalReplica
from p2psync.past import Run
from p2psync.peer import parse_address
from p2psync.run import open_address
from p2psync.scan import Scan
from p2psync.stage import Stage
from p2psync.sync import Progress
from p2psync.wire import check_entry, check_path

BATCH = 1000
"""Paths in a question to a peer."""


@dataclass
class Report:
    """What a check found, and what became of it."""

    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    """Read and compared with the manifest."""
    size: int = 0
    """Their bytes."""
    compared: int = 0
    """Files compared with a peer."""
    is_complete: bool = True
    """False: the manifest is so damaged that all else could not be checked."""
    gave_up_manifest: bool = False
    """It will be made anew."""
    repaired: dict[bytes, str] = field(default_factory=dict)
    """Where the good bytes of a path came from."""
    left: dict[bytes, str] = field(default_factory=dict)
    """Why a path could not be repaired."""
    completed: str = ""
    """What a finding tells of a table that is complete again."""
    repaired_bases: bool = False
    """Texts that are not what they should be are not taken for kept any more."""
    error: P2PSyncError | None = None
    """What ended it before its time."""

    @property
    def exit_code(self) -> Exit:
        """What the command ends with."""
        if self.error:
            return Exit(self.error.exit_code)
        return Exit.CONFLICTS if any(finding.is_damage for finding in self.findings) else Exit.IN_STEP


@dataclass(frozen=True)
class _Rotten:
    """A file whose bytes are not what its row says."""

    row: Row
    digest: Digest
    """Of the bytes that it has; none if the disk does not give them."""


def fsck(root: bytes, replica: LocalReplica, peer: Peer | None, repair: bool, progress: Progress) -> Report:
    """Check a replica; compare it with a peer; repair what is rotten.

    Args:
        root: where the replica is.
        replica: open, and locked.
        peer: to be compared with, and a source of good bytes.
        repair: put rotten files right.
        progress: is told how it goes.

    Raises:
        P2PSyncError: the peer cannot be opened. What goes wrong later is in the report.
    """
    with ExitStack() as opened:
        far = opened.enter_context(closing(_connect(peer, root))) if peer else None
        check = _Check(root, replica, progress, opened)
        report = check.report
        try:
            if check.manifest():
                check.disk()
                check.history()
                if peer and far:
                    check.peer(peer.name, far)
                if repair:
                    check.repair(far)
            elif repair:
                replica.manifest.give_up()
                report.gave_up_manifest = True
        except P2PSyncError as error:
            report.error = error
        except OSError as error:
            report.error = ReplicaError(f"cannot go on: {error.strerror}")
        report.is_complete &= report.error is None
        return report


def _connect(peer: Peer, root: bytes) -> Replica:
    return open_address(parse_address(peer.address, port=peer.port), peer, root)


class _Check:
    def __init__(self, root: bytes, replica: LocalReplica, progress: Progress, opened: ExitStack) -> None:
        self.report = Report()
        self._replica = replica
        self._progress = progress
        self._manifest = replica.manifest
        self._id, self._clock = replica.identity.replica, self._manifest.clock()
        self._root = Root.open(root)
        opened.callback(self._root.close)
        sidecar = os.open(SIDECAR, OPEN_DIRECTORY, dir_fd=self._root.fd)
        opened.callback(os.close, sidecar)
        self._stage = opened.enter_context(closing(Stage(sidecar)))
        self._history = opened.enter_context(closing(History(sidecar)))
        self._bases = opened.enter_context(closing(Bases(sidecar, self._manifest.texts.kept)))
        self._scan = Scan()
        self._now: dict[bytes, Entry] = {}
        """What changed since the last sync, as the next scan will record it."""
        self._unread: set[bytes] = set()
        self._readable_past = True
        self._rotten: dict[bytes, _Rotten] = {}
        self._bad_texts: list[Digest] = []
        self._unfindable = ""
        """What is told of a table of what is where that is incomplete."""
        self._lost: set[bytes] = set()
        """Rows that live in a folder that is none."""

    def _find(self, what: What, path: bytes, why: str = "", peer: str = "") -> None:
        self.report.findings.append(Finding(what, path, why, peer))

    # -- the manifest against itself

    def manifest(self) -> bool:
        """Check the manifest; return whether it can be used for the rest."""
        for fault in self._manifest.faults():
            self._find(What.MANIFEST, b"", fault)
        if not self.report.findings:
            readable = self._check_rows()
            self._readable_past = self._check_remembered()
            missing = 0 if self.report.findings else self._manifest.holders.missing()
            if missing:
                self._unfindable = f"{missing} files, or earlier versions, cannot be found by their contents"
                self._find(What.MANIFEST, b"", self._unfindable)
            for extent in self._bases.lost(self._manifest.texts.all()):
                self._find(What.BASE, b"", f"the text {extent.digest.hex()} is not where it was kept")
                self._bad_texts.append(extent.digest)
            if readable:
                return True
        self.report.is_complete = False
        return False

    def _check_rows(self) -> bool:
        readable = True
        for name in self._manifest.homeless():
            self._find(What.MANIFEST, name, "its row belongs to no folder")
        for path, row in self._manifest.all_rows():
            self._check_entry(path, row.entry if row else None, "its row")
            readable &= row is not None
        return readable

    def _check_remembered(self) -> bool:
        readable = True
        for path, entry in self._manifest.all_remembered():
            self._check_entry(path, entry, "an earlier version")
            readable &= entry is not None
        return readable

    def _check_entry(self, path: bytes, entry: Entry | None, whose: str) -> None:
        if entry is None:
            self._find(What.MANIFEST, path, f"{whose} cannot be decoded")
        elif not _is_sound(path, entry):
            self._find(What.MANIFEST, path, f"{whose} holds what cannot be")
        elif is_unissued(entry, self._id, self._clock):
            self._find(What.MANIFEST, path, f"{whose} has a version that this replica has not reached (I2)")

    # -- the manifest against the disk

    def disk(self) -> None:
        """Read every file that is not ignored."""
        self._scan = self._replica.look()
        self._now = {record.path: record.row.entry for record in self._scan.changes}
        self._unread = {problem.path for problem in self._scan.problems}
        for problem in self._scan.problems:
            self._find(What.UNREADABLE, problem.path, problem.why)
        for record in self._scan.changes:
            if record.replaces and record.replaces.alive:
                self._find(What.CHANGED, record.path, "" if record.row.entry.alive else "deleted")
        self._progress.begin("reading", self._manifest.files())
        folder, parent = b"", _ROOT
        for path, row in self._manifest.all_rows():
            assert row is not None
            entry = self._now.get(path, row.entry)
            if split(path)[0] != folder:
                folder = split(path)[0]
                parent = self._now.get(folder) or self._manifest.entry(folder)
                parent = _NOWHERE if folder in self._lost else parent
            if is_lost(entry, parent, self._is_visited(path, entry)):
                self._find(What.MANIFEST, path, "its row says that it is in a folder that is none")
                self._lost.add(path)
            if self._is_known_file(path, row.entry):
                self._read(path, row)
                self._progress.advance(1, row.entry.size)

    def _is_visited(self, path: bytes, entry: Entry) -> bool:
        """Does a scan look at the path? Not if it is ignored, or in a folder that is, or cannot be read."""
        folder, name = split(path)
        rules = self._rules(folder)
        return rules is not None and path not in self._unread and not rules.matches(name, is_folder(entry))

    def _rules(self, folder: bytes) -> Ignore | None:
        """Return the rules in a folder, or that would be, were it there; None: no scan looks into it."""
        rules = None
        names = []
        for place in (folder, *ancestors(folder), b""):
            if place in self._unread:
                return None
            rules = self._scan.ignores.get(place)
            if rules is not None:
                break
            names.append(split(place)[1])
        for name in reversed(names):
            if rules is None or rules.matches(name, True):
                return None
            rules = rules.below(name)
        return rules

    def _is_known_file(self, path: bytes, entry: Entry) -> bool:
        """Is it a file that nobody has written to, as far as a scan can tell?"""
        is_known = entry.kind is Kind.FILE and path not in self._now and path not in self._lost
        return is_known and self._is_visited(path, entry)

    def _read(self, path: bytes, row: Row) -> None:
        folder, name = split(path)
        try:
            directory = self._root.directory(folder)
            try:
                digest, st = hash_file(name, directory)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                digest, st = NO_DIGEST, lstat(name, directory)
        except (FileNotFoundError, Changing):
            self._find(What.CHANGED, path, "while it was checked")
            return
        except OSError as error:
            self._find(What.UNREADABLE, path, f"cannot be read: {error.strerror}")
            return
        self.report.files += 1
        self.report.size += st.st_size
        what = judge_bytes(row, digest, stat_of(st))
        if what is What.ROTTEN:
            self._rotten[path] = _Rotten(row, digest)
            self._find(what, path, ROT if digest else "the disk cannot read it any more")
        elif what is not None:
            self._find(what, path, "while it was checked")

    # -- the history

    def history(self) -> None:
        """Read what the runs that are known have taken away."""
        if not self._readable_past:
            self.report.is_complete = False
            return
        runs = self._manifest.past.runs()
        self._progress.begin("reading the history", len(runs))
        for run in reversed(runs):
            changes = list(self._manifest.past.changed_by(run.seq))
            came = {change.after.digest for change in changes if not (change.before and change.before.alive)}
            for change in changes:
                if change.before and went_to_history(change):
                    moved = not change.after.alive and change.before.digest in came
                    self._check_kept(run.name, change.path, change.before, moved)
            self._progress.advance(1, run.size)

    def _check_kept(self, run: str, path: bytes, entry: Entry, moved: bool) -> None:
        found = False
        for shelf in self._history.places(run, path):
            try:
                if hash_file(shelf.name, shelf.directory)[0] == entry.digest:
                    return
            except OSError:
                pass  # not what it was, then
            found = True
        if found:
            self._find(What.HISTORY, path, f"what run {run} took away is not kept as it was")
        elif not moved:
            self._find(What.MISSING, path, f"what run {run} took away was taken out of the history")

    # -- the peer

    def peer(self, name: str, peer: Replica) -> None:
        """Have a peer read every file that it knows in the same version, and compare."""
        for problem in peer.scan(keep=False).problems:
            self._find(What.UNREADABLE, problem.path, problem.why, name)
        ours = (
            (path, row.entry)
            for path, row in self._manifest.all_rows()
            if row is not None and self._is_known_file(path, row.entry)
        )
        self._progress.begin("comparing", self._manifest.files())
        while batch := dict(islice(ours, BATCH)):
            self._compare(name, peer, batch)

    def _compare(self, name: str, peer: Replica, ours: Mapping[bytes, Entry]) -> None:
        answer = peer.lookup([Name(path, False) for path in ours])
        ignored = set(answer.ignored)
        theirs = {
            path: entry
            for path, entry in zip(ours, answer.entries, strict=True)
            if entry is not None and is_comparable(ours[path], entry) and path not in ignored
        }
        digests = peer.rehash(list(theirs))
        for (path, entry), digest in zip(theirs.items(), digests, strict=True):
            finding = compare(path, ours[path], entry, digest, name)
            if finding:
                self.report.findings.append(finding)
            self.report.compared += 1
            self._progress.advance(1, entry.size)

    # -- repair

    def repair(self, peer: Replica | None) -> None:
        """Put right what can be."""
        if self._unfindable:
            with self._manifest.transaction():
                self._manifest.holders.make()
            self.report.completed = self._unfindable
        if self._bad_texts:
            with self._manifest.transaction():
                self._manifest.texts.forget(self._bad_texts)
            self.report.repaired_bases = True
        if self._lost:
            self._find_lost()
        if self._rotten:
            self._replace_rotten(peer)

    def _find_lost(self) -> None:
        """Heal rows that no scan may ever come to: the disk decides, or, where there is nothing, the peers.

        Nothing tells whether a file that is not there was deleted: so it is forgotten, not made a tombstone.
        """
        there = {path for path in self._lost if self._is_reached(split(path)[0])}
        nowhere = self._lost - there
        with self._manifest.transaction():
            self._manifest.forget_fingerprints({b""}.union(*map(ancestors, there)))
            self._manifest.forget_present(nowhere)
            self._manifest.replicas.ask_again(nowhere)
        self.report.repaired.update(dict.fromkeys(there, "the disk, with the next sync"))
        self.report.repaired.update(dict.fromkeys(nowhere, "what the peers have, with the next sync"))

    def _is_reached(self, folder: bytes) -> bool:
        try:
            self._root.directory(folder)
        except OSError as error:  # what cannot be read is there
            return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        return True

    def _replace_rotten(self, peer: Replica | None) -> None:
        """Put good bytes in the place of rotten ones, which go to the history; the versions stay."""
        steps = [
            Transition(path, replace(found.row.entry, digest=found.digest), found.row.entry)
            for path, found in self._rotten.items()
        ]
        sources = self._gather(steps, peer)
        staged = []
        for step in steps:
            why = self._why_not_staged(step.path)
            if why is None:
                staged.append(step)
                self.report.repaired[step.path] = sources[step.wanted.digest]
            else:
                self.report.left[step.path] = why
        if staged:
            self._put_in_place(staged)
        self._stage.clear()

    def _gather(self, steps: list[Transition], peer: Replica | None) -> dict[Digest, str]:
        """Stage good bytes for all steps; return where each were found."""
        self._stage.clear()
        wanted = [content.digest for content in self._stage.expect(steps)]
        sources: dict[Digest, str] = {}
        for digest in wanted:
            sources[digest] = next(self._stage_own(digest), "")
        lacking = [digest for digest in wanted if not sources[digest]]
        if lacking and peer:
            self._stage.receive(peer.read(lacking), lambda digest, data: None)
        return {digest: source or "the peer" for digest, source in sources.items()}

    def _stage_own(self, digest: Digest) -> Iterator[str]:
        """Stage bytes with this digest; yield where they were found, if they were."""
        contents = self._replica.contents
        with contents.in_history(digest) as fd:
            if fd is not None and self._stage.copy(digest, fd):
                yield "the history"
        extent = self._manifest.texts.extent(digest)
        text = self._bases.read(extent) if extent else None
        if text is not None and self._stage.put(digest, text):
            yield "the bases"
        for path in self._manifest.holders.of(digest):
            if path not in self._rotten:
                with contents.file(path) as fd:
                    if fd is not None and self._stage.copy(digest, fd):
                        yield shown(path)

    def _why_not_staged(self, path: bytes) -> str | None:
        try:
            self._stage.check(path)
        except FileNotFoundError:
            return "its bytes are nowhere to be found"
        except OSError as error:
            return f"cannot be written: {error.strerror}"
        return None

    def _put_in_place(self, steps: list[Transition]) -> None:
        """As any sync would: apply takes the rotten bytes for the version that is to be replaced."""
        now = int(time.time())
        rows = {
            step.path: self._rotten[step.path].row._replace(entry=step.expected)
            for step in steps
            if step.expected
        }
        name = history.begin_run(self._history, self._manifest.past.has_run, now)
        sync_file_system(self._root.fd)
        records = []
        for outcome in Applier(
            self._root, self._stage, self._history, lambda paths: [*map(rows.get, paths)]
        ).run(steps):
            if isinstance(outcome, Record):
                records.append(outcome)
            else:
                self.report.left[outcome.path] = outcome.why
                del self.report.repaired[outcome.path]
        sync_file_system(self._root.fd)
        if records:
            about = shown(records[0].path) if len(records) == 1 else f"{len(records)} files"
            size = sum(record.row.entry.size for record in records)
            with self._manifest.transaction():
                self._manifest.add_repair(records, Run(0, name, now, "repair", about, size))


_ROOT: Entry | None = Entry(kind=Kind.DIRECTORY)
_NOWHERE = Entry(kind=Kind.TOMBSTONE)


def _is_sound(path: bytes, entry: Entry) -> bool:
    """Could a scan have made it?"""
    try:
        check_path(path)
        check_entry(entry)
    except (ProtocolError, TypeError):  # SQLite keeps anything in any column
        return False
    return True
