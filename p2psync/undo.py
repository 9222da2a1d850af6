"""Undo, restore and show: what a replica was, found again. Owns how a past version is chosen.

PATH@RUN is the version that RUN found at PATH and took away.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from xxhash import xxh3_128_digest

from p2psync.core.model import Digest, Entry, Kind, Problem, Transition, needs_content
from p2psync.core.paths import folders_of, join, printable, shown
from p2psync.core.replica import More, Name, Piece
from p2psync.core.revert import Changed, Present, differs, revert
from p2psync.disk import write_all
from p2psync.errors import Exit, P2PSyncError, ReplicaError
from p2psync.local import LocalReplica
from p2psync.manifest import Manifest
from p2psync.past import Run

NOT_KEPT = "its contents are not kept here any more"
_EMPTY = Digest(xxh3_128_digest(b""))


class NotFound(P2PSyncError):
    """There is no such run or version."""


@dataclass
class Outcome:
    """What came of an undo or a restore."""

    run: str | None
    """What was taken back; None: it was no run, but a change made here."""
    transitions: list[Transition]
    problems: list[Problem]
    """Paths left alone."""
    carried_out: bool

    @property
    def exit_code(self) -> Exit:
        """What the command ends with."""
        return Exit.CONFLICTS if self.problems else Exit.IN_STEP


# -- runs


def find_run(manifest: Manifest, name: str) -> Run:
    """Return the run of that name.

    Raises:
        NotFound: there is none.
    """
    for run in manifest.past.runs():
        if run.name == name:
            return run
    raise NotFound(f"there is no run {printable(name)}; `p2psync log` shows the runs")


def latest_run(manifest: Manifest) -> Run:
    """Return the latest run with something to undo: others only changed times, or what is known.

    Raises:
        NotFound: there is none.
    """
    for run in manifest.past.runs():
        if any(map(differs, manifest.past.changed_by(run.seq))):
            return run
    raise NotFound("there is nothing to undo: no run that is remembered has changed anything here")


def undo(replica: LocalReplica, name: str | None, dry_run: bool = False) -> Outcome:
    """Put back every path that a run changed here; one that was changed since is left alone.

    Args:
        replica: open, and locked.
        name: of the run; None: the latest.
        dry_run: only tell what would be done.

    Raises:
        NotFound: there is no such run.
        ReplicaError: it cannot be carried out.
    """
    run = latest_run(replica.manifest) if name is None else find_run(replica.manifest, name)
    changes = replica.manifest.past.changed_by(run.seq)
    unread = replica.scan(not dry_run).problems
    work = _Work(replica, changes, unread, force=False, dry_run=dry_run)
    return work.carry_out(run.name, "undo", run.name)


# -- versions


def restore(replica: LocalReplica, path: bytes, name: str | None, dry_run: bool = False) -> Outcome:
    """Put back a path, and all below it, as it was before a run, whatever has become of it since.

    What came since, stays.

    Args:
        replica: open, and locked.
        path: from the root.
        name: of the run; None: the latest change there, also one made here, of which something is kept.
        dry_run: only tell what would be done.

    Raises:
        NotFound: nothing is remembered of it.
        ReplicaError: it cannot be carried out.
    """
    manifest = replica.manifest
    if name is not None:
        run = find_run(manifest, name)
        taken = list(_taken(manifest, path).get(run.seq, ()))
        if not taken:
            raise _took_nothing(path, name)
        unread = replica.scan(not dry_run).problems
    else:
        unread = replica.scan(not dry_run).problems
        seq, taken = _latest_taken(replica, path)
        name = next((run.name for run in manifest.past.runs() if run.seq == seq), None)
    about = f"{shown(path)}@{name}" if name else shown(path)
    work = _Work(replica, taken, unread, force=True, dry_run=dry_run)
    return work.carry_out(name, "restore", about)


def _taken(manifest: Manifest, path: bytes) -> dict[int, list[Changed]]:
    """Return what was taken away at a path and below it, by the sequence number under which that was."""
    taken: dict[int, list[Changed]] = {}
    pending = [path]
    for place in pending:
        pending += [join(place, child) for child in manifest.rows(place)]
        versions = manifest.past.versions(place)
        for entry, _, seq in versions:
            if seq is not None and entry.alive:
                taken.setdefault(seq, []).append(Changed(place, entry, versions[-1].entry))
    return taken


def _latest_taken(replica: LocalReplica, path: bytes) -> tuple[int, list[Changed]]:
    """Return the latest change that took away what is not there now, but kept; and all that it took."""
    for seq, changes in sorted(_taken(replica.manifest, path).items(), reverse=True):
        taken = [change for change in changes if differs(change)]
        before = (change.before for change in taken)
        files = {entry.digest: entry for entry in before if entry and entry.kind is Kind.FILE}
        if taken and (not files or any(map(replica.contents.has, files.values()))):
            return seq, taken
    raise _not_kept(path)


def past(replica: LocalReplica, path: bytes, name: str | None) -> Entry:
    """Return the version of a file that a run took away; without a run, the latest earlier one that is kept.

    Raises:
        NotFound: there is none, or it is no file.
    """
    entry = _taken_at(replica, path, name) if name is not None else _earlier(replica, path)
    if entry.kind is Kind.DIRECTORY:
        raise NotFound(f"{shown(path)} was a folder then: `p2psync restore` without --to brings it back")
    return entry


def _taken_at(replica: LocalReplica, path: bytes, name: str) -> Entry:
    run = find_run(replica.manifest, name)
    for version in replica.manifest.past.versions(path):
        if version.seq == run.seq and version.entry.alive:
            return version.entry
    raise _took_nothing(path, name)


def _earlier(replica: LocalReplica, path: bytes) -> Entry:
    versions = [version.entry for version in replica.manifest.past.versions(path)]
    present = versions.pop() if versions and replica.contents.at(path) else None
    for entry in reversed(versions):
        if entry.alive and replica.contents.has(entry) and not (present and entry.same_bytes(present)):
            return entry
    raise _not_kept(path)


def _took_nothing(path: bytes, run: str) -> NotFound:
    return NotFound(
        f"run {printable(run)} took nothing away at {shown(path)};"
        f" `{_log_of(path)}` shows what is known of it"
    )


def _not_kept(path: bytes) -> NotFound:
    return NotFound(
        f"no earlier version of {shown(path)} is kept here; `{_log_of(path)}` shows what is known of it"
    )


def _log_of(path: bytes) -> str:
    return f"p2psync log {'-- ' if path.startswith(b'-') else ''}{shown(path)}"


# -- copies


def contents(replica: LocalReplica, entry: Entry) -> Iterator[bytes]:
    """Yield the bytes of a past version; of a symlink, where it points.

    Raises:
        NotFound: they are not kept any more.
    """
    if entry.kind is Kind.SYMLINK:
        yield entry.target
        return
    with replica.contents.find(entry.digest) as blocks:
        if blocks is None:
            raise NotFound(
                "the contents of that version are not kept here any more; another replica may have them"
            )
        yield from blocks


def write_copy(replica: LocalReplica, entry: Entry, target: str) -> None:
    """Write a past version to a new file, with its permissions and time.

    Raises:
        NotFound: its contents are not kept any more.
        ReplicaError: it cannot be written, or something is there already.
    """
    data = contents(replica, entry)
    first = next(data, b"")
    try:
        if entry.kind is Kind.SYMLINK:
            os.symlink(entry.target, os.fsencode(target))
            return
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ReplicaError(f"{printable(target)} is there already: name a file that is not") from error
    except OSError as error:
        raise ReplicaError(f"cannot write {printable(target)}: {error.strerror}") from error
    try:
        write_all(fd, first)
        for block in data:
            write_all(fd, block)
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(target)
        raise ReplicaError(f"cannot write {printable(target)}: {error.strerror}") from error
    finally:
        os.close(fd)


# -- carrying out


@dataclass
class _Work:
    """What is to be reverted on a replica that was scanned just now."""

    replica: LocalReplica
    changes: Sequence[Changed]
    unread: Iterable[Problem]
    """What the scan could not read."""
    force: bool
    dry_run: bool

    def carry_out(self, run: str | None, kind: str, about: str) -> Outcome:
        paths = {change.path for change in self.changes}
        problems = [problem for problem in self.unread if problem.path in paths]
        hands_off = {problem.path for problem in problems}
        present, stamp = _present(self.replica, paths), self.replica.stamp()
        while True:
            changes = [change for change in self.changes if change.path not in hands_off]
            reverted = revert(changes, present, stamp, self.force)
            lost = self._lost(reverted.transitions)
            if not lost:
                break
            hands_off |= lost
            problems += [Problem(path, NOT_KEPT) for path in lost]
        problems += reverted.left
        carried_out = bool(reverted.transitions) and not self.dry_run
        if carried_out:
            self.replica.use_stamp(stamp)
            for applied in self.replica.apply(kind, about):
                problems += applied.problems
        problems.sort(key=lambda problem: problem.path)
        return Outcome(run, reverted.transitions, problems, carried_out)

    def _lost(self, steps: Sequence[Transition]) -> set[bytes]:
        """Stage what is to be put back; return the paths whose contents are not kept any more."""
        files = [step for step in steps if needs_content(step)]
        if self.dry_run:
            contents = {step.wanted.digest: step.wanted for step in files}
            gone = {digest for digest, entry in contents.items() if not self.replica.contents.has(entry)}
            return {step.path for step in files if step.wanted.digest in gone}
        missing = {content.digest for content in self.replica.prepare(steps, own=True) if content.size}
        self.replica.stage([[Piece(_EMPTY, b"", More.LAST)]])
        return {step.path for step in files if step.wanted.digest in missing}


def _present(replica: LocalReplica, paths: Iterable[bytes]) -> Present:
    """Return all that `revert` has to know of what is there now."""
    above = folders_of(paths)
    names = sorted(above.union(paths))
    entries = dict(zip(names, replica.lookup([Name(name, False) for name in names]).entries, strict=True))
    children: dict[bytes, list[bytes]] = {}
    former: dict[bytes, Entry] = {}
    for name, entry in entries.items():
        if entry is not None and entry.kind is Kind.DIRECTORY:
            children[name] = replica.children(name)
        elif name in above:
            for version in replica.manifest.past.versions(name):
                if version.entry.kind is Kind.DIRECTORY:
                    former[name] = version.entry
    return Present(entries, children, former)
