"""Conflicts: which are open on a replica, and how a person settles them. Owns what each way of settling does.

What is open is in the manifest: the copies that a sync here set aside, and those that other replicas set
aside, known by the digest of their contents that their names carry.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from xxhash import xxh3_128_digest

from p2psync.core.contested import makers
from p2psync.core.detect import vanish
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Digest, Entry, Kind, Problem, Transition, needs_content
from p2psync.core.paths import is_copy_of, join, original, shown, split
from p2psync.core.replica import More, Name, Piece
from p2psync.core.revert import again
from p2psync.core.vector import ReplicaId
from p2psync.errors import Exit, P2PSyncError
from p2psync.local import LocalReplica


class NoConflict(P2PSyncError):
    """There is no such conflict."""

    exit_code = Exit.USAGE


class Keep(StrEnum):
    """What becomes of the two versions of a conflict."""

    OURS = "ours"
    """The one that this replica had; where it had neither, what has the path now."""
    THEIRS = "theirs"
    BOTH = "both"
    """The copy gets a name of its own."""
    MERGED = "merged"
    """What is at the path now, edited since: the copy goes."""


@dataclass(frozen=True)
class Open:
    """A conflict that nobody has settled yet."""

    path: bytes
    copy: bytes
    """Where the loser was set aside."""
    winner: Entry | None
    """What is at the path; None: nothing."""
    loser: Entry
    winner_by: ReplicaId | None
    loser_by: ReplicaId | None
    lost_here: bool
    settled_at: int | None
    """Seconds since 1970 of the sync that set it aside; None: that was on another replica."""
    is_edited: bool
    """Was the path edited since?"""


def open_conflicts(replica: LocalReplica) -> list[Open]:
    """Return the conflicts whose copies are still there, in the order of their paths."""
    manifest = replica.manifest
    recorded = {copy: (path, at) for path, copy, at in manifest.past.set_aside()}
    found = []
    for copy in sorted({*recorded, *manifest.named(b".sync-conflict-")}):
        loser = manifest.entry(copy)
        if loser is None or not loser.alive or loser.kind is Kind.DIRECTORY:
            continue
        path, at = recorded.get(copy, (original(copy), None))
        if copy not in recorded and not any(
            version.entry.alive and is_copy_of(copy, path, version.entry.mtime_ns, version.entry.digest)
            for version in manifest.past.versions(copy)
        ):
            continue
        found.append(_open(replica, path, copy, loser, at))
    return sorted(found, key=lambda conflict: (conflict.path, conflict.copy))


def _open(replica: LocalReplica, path: bytes, copy: bytes, loser: Entry, at: int | None) -> Open:
    first = next(v.entry for v in replica.manifest.past.versions(copy) if v.entry.alive)
    versions: list[Entry | None] = [version.entry for version in replica.manifest.past.versions(path)]
    *earlier, present = versions or [None]
    winner = present if present is not None and present.alive else None
    # What kept the path has the decision in its version; what was edited there since has it too, and more.
    was = [entry for entry in (*earlier, present) if entry is not None]
    decided = next((entry for entry in was if first.version <= entry.version), present)
    before = [entry for entry in earlier if entry is not None and not first.version <= entry.version]
    who = makers(decided, first, before) if decided is not None else None
    return Open(
        path,
        copy,
        winner,
        loser,
        who.winner if who else None,
        who.loser if who else None,
        bool(who and who.lost_here),
        at,
        bool(winner and decided and not (winner.same_bytes(decided) and replica.contents.at(path))),
    )


def named(conflicts: Sequence[Open], paths: Iterable[bytes]) -> list[Open]:
    """Return the conflicts that are about these paths, or in these folders.

    Raises:
        NoConflict: there is none about one of them.
    """
    chosen: dict[bytes, Open] = {}
    for path in paths:
        about = [
            one
            for one in conflicts
            if path in (one.path, one.copy) or one.path.startswith(path + b"/") or not path
        ]
        if not about:
            raise NoConflict(f"there is no open conflict about {shown(path)}; `p2psync conflicts` lists them")
        chosen.update({one.copy: one for one in about})
    return list(chosen.values())


def keep_copy(conflict: Open, copy: bool) -> Keep:
    """Return how the copy is kept, or else what has the path."""
    return Keep.OURS if copy == conflict.lost_here else Keep.THEIRS


def newest_is_copy(conflict: Open) -> bool:
    """Is the version that was set aside the later one?"""
    return conflict.winner is None or conflict.loser.mtime_ns > conflict.winner.mtime_ns


def one_copy_each(choices: Sequence[tuple[Open, Keep]]) -> list[tuple[Open, Keep]]:
    """Of several copies of one file that are to be kept, keep the latest only."""
    latest: dict[bytes, Open] = {}
    for one, keep in choices:
        if keep is keep_copy(one, True):
            known = latest.get(one.path)
            if known is None or one.loser.mtime_ns > known.loser.mtime_ns:
                latest[one.path] = one
    return [
        (one, keep_copy(one, False) if keep is keep_copy(one, True) and latest[one.path] is not one else keep)
        for one, keep in choices
    ]


# -- settling


@dataclass
class Settled:
    """What came of settling conflicts."""

    conflicts: list[tuple[Open, str]]
    """With what was kept, in words."""
    problems: list[Problem]

    @property
    def exit_code(self) -> Exit:
        """What the command ends with."""
        return Exit.CONFLICTS if self.problems else Exit.IN_STEP


def settle(
    replica: LocalReplica,
    choices: Sequence[tuple[Open, Keep]],
    merged: bytes | None = None,
    dry_run: bool = False,
) -> Settled:
    """Settle conflicts as chosen; it is a run, which can be undone.

    Args:
        replica: open, locked, and scanned.
        choices: what to keep of each.
        merged: the text that the path of the only one of them gets, if it was merged elsewhere.
        dry_run: only tell.

    What cannot be settled is left alone, and keeps nothing else from being settled.

    Raises:
        ReplicaError: it cannot be carried out.
    """
    inner = {conflict.path: conflict.copy for conflict, _ in choices}
    kept = Counter(conflict.path for conflict, keep in choices if _keeps_copy(conflict, keep))
    stamp = replica.stamp()
    steps: list[Transition] = []
    told: dict[bytes, tuple[Open, str]] = {}
    taken: set[bytes] = set()
    problems: list[Problem] = []
    for conflict, keep in choices:
        path, copy = conflict.path, conflict.copy
        now, loser = replica.lookup([Name(path, False), Name(copy, False)]).entries
        if loser is None or not loser.alive:
            continue
        if copy in inner:
            why = f"its version {shown(copy)} has one set aside itself: settle {shown(inner[copy])} first"
            problems.append(Problem(path, why))
            continue
        if kept[path] > 1 and _keeps_copy(conflict, keep):
            problems.append(Problem(copy, f"is one of several versions of {shown(path)}: {_ONE_BY_ONE}"))
            continue
        if merged is None and keep is Keep.MERGED and not conflict.is_edited:
            problems.append(Problem(path, _NOT_EDITED))
            continue
        if now is not None and _keeps_copy(conflict, keep) and replica.children(path):
            problems.append(Problem(path, _IS_FOLDER))
            continue
        wanted: Entry | None = None
        if merged is not None:
            like = now if now is not None and now.alive else loser
            wanted, how = _merged(like, merged, stamp.tick), "the merged text"
        elif keep is Keep.BOTH:
            path = _free(replica, path, taken)
            (now,) = replica.lookup([Name(path, False)]).entries
            wanted, how = loser, f"both; the other as {shown(path)}"
        else:
            wanted, how = (loser if _keeps_copy(conflict, keep) else None), keep.value
        if wanted is not None:
            steps.append(Transition(path, now, again(wanted, now or _NEVER_WAS, stamp)))
        steps.append(Transition(copy, loser, vanish(loser, stamp), (path,) if wanted is not None else ()))
        told[copy] = (conflict, how)
    if dry_run:
        return Settled(list(told.values()), problems)
    while steps:
        lacking = {content.digest for content in replica.prepare(steps, own=True)}
        short = {step.path for step in steps if needs_content(step) and step.wanted.digest in lacking}
        if merged is not None or not short:
            break
        gone = {step.path for step in steps if not short.isdisjoint(step.after)}
        problems += [Problem(told.pop(copy)[0].path, _LACKING) for copy in sorted(gone)]
        steps = [step for step in steps if step.path not in short | gone]
    failed: set[bytes] = set()
    if steps:
        replica.use_stamp(stamp)
        if merged is not None:
            replica.stage([[Piece(Digest(xxh3_128_digest(merged)), merged, More.LAST)]])
        about = shown(choices[0][0].path) if len(choices) == 1 else f"{len(choices)} conflicts"
        for applied in replica.apply("resolve", about):
            problems += applied.problems
            failed.update(problem.path for problem in applied.problems)
    return Settled([one for one in told.values() if failed.isdisjoint((one[0].path, one[0].copy))], problems)


_ONE_BY_ONE = "settle them one by one, by their copies, or with --prefer newest"
_NOT_EDITED = (
    "was not edited since the conflict: merge it there, or with --tool, or say --keep ours or theirs"
)
_IS_FOLDER = "is a folder now, with files in it: move these away first, or say --keep both"
_LACKING = "a version that is to be kept was changed meanwhile; look at it and try again"


def _keeps_copy(conflict: Open, keep: Keep) -> bool:
    """Does the version that lost come to be at the path?"""
    return keep in (Keep.OURS, Keep.THEIRS) and (keep is Keep.OURS) == conflict.lost_here


_NEVER_WAS = Entry(kind=Kind.TOMBSTONE)


def _merged(like: Entry, data: bytes, tick: int) -> Entry:
    return Entry(
        kind=Kind.FILE,
        digest=Digest(xxh3_128_digest(data)),
        size=len(data),
        mode=like.mode or 0o644,
        mtime_ns=tick * 1000,
    )


def _free(replica: LocalReplica, path: bytes, taken: set[bytes]) -> bytes:
    """Return a name for a second version of a file: `report-2.txt`."""
    folder, name = split(path)
    stem, extension = os.path.splitext(name)
    number = 2
    while True:
        place = join(folder, b"%s-%d%s" % (stem, number, extension))
        present = replica.lookup([Name(place, False)]).entries[0]
        if place not in taken and (present is None or not present.alive):
            taken.add(place)
            return place
        number += 1


def base_of(replica: LocalReplica, conflict: Open) -> bytes | None:
    """Return the text that both versions were made from, None if it is not kept here."""
    entries = [version.entry for version in reversed(replica.manifest.past.versions(conflict.path))]
    common = [
        entry.digest
        for entry in entries
        if entry.kind is Kind.FILE
        and entry.size <= MAX_TEXT
        and entry.version <= conflict.loser.version
        and not entry.same_bytes(conflict.loser)
        and not (conflict.winner and entry.same_bytes(conflict.winner))
    ]
    # An edit in between may look as if both had seen it, but is not kept: what both had, is.
    kept = replica.manifest.texts.kept(common)
    digest = next((digest for digest in common if digest in kept), next(iter(common), None))
    return replica.contents.text(digest) if digest is not None else None
