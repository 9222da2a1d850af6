"""Reconcile: what two replicas that differ should both become. Owns every decision about a conflict.

A pure function of what both sides know: the same facts, either way round and on any machine, give the
same plan. Where it lacks a fact (a common ancestor, a merged text, what is at a path) it asks in
`Plan.questions`; the caller adds the answers to the facts and reconciles anew.

For one path: equal contents are joined and never disputed; a version that has seen the other replaces it;
an edit outlives a deletion; texts are merged; else a winner keeps the path and the loser is set aside.
For the tree: what holds something living is a directory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from p2psync.core.contested import latest
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import (
    Conflict,
    Digest,
    Entry,
    Kind,
    Prefer,
    Resolution,
    Transition,
)
from p2psync.core.paths import ancestors, conflict_names, folders_of, is_conflict_copy, is_copy_of, original
from p2psync.core.vector import NOTHING, ReplicaId, Stamp, Version


class Pair(NamedTuple):
    """What the two sides have at one path; None: never heard of it."""

    ours: Entry | None
    theirs: Entry | None


class Remembered(NamedTuple):
    """The earlier versions of one path that each side remembers: what it has now follows all of them."""

    ours: Sequence[Entry] = ()
    theirs: Sequence[Entry] = ()


class Text(NamedTuple):
    """A merged text."""

    digest: Digest
    size: int


class MergeQuestion(NamedTuple):
    """Three texts, by digest, that might merge."""

    base: Digest
    ours: Digest
    theirs: Digest


class Contest(NamedTuple):
    """A conflict that was settled before, and of which the conflict copy is still there."""

    winner: Version
    lost_here: bool
    """Was the loser ours?"""
    copy: bytes
    losers: Collection[ReplicaId | None] = ()
    """Who may have the loser in an editor: its maker, and the side that had it; none: that is not known."""


@dataclass
class Facts:
    """All that reconcile may look at."""

    pairs: dict[bytes, Pair]
    bases: dict[bytes, Remembered] = field(default_factory=dict)
    """Earlier versions of contested paths."""
    texts: dict[bytes, Text | None] = field(default_factory=dict)
    """Merges tried for contested paths; None: did not merge."""
    contests: Mapping[bytes, Contest] = field(default_factory=dict)
    """Conflicts that nobody has tidied up yet."""


@dataclass
class Questions:
    """What reconcile has to know before its plan is final."""

    pairs: set[bytes] = field(default_factory=set)
    bases: set[bytes] = field(default_factory=set)
    texts: dict[bytes, MergeQuestion] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.pairs or self.bases or self.texts)


@dataclass
class Plan:
    """What each side has to do; to be carried out only once there are no questions."""

    ours: list[Transition] = field(default_factory=list)
    theirs: list[Transition] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    left: list[bytes] = field(default_factory=list)
    """Paths left for another time."""
    decided: bool = False
    """Does any entry carry the stamp? Then its tick has to be on disk before the plan leaves."""
    questions: Questions = field(default_factory=Questions)


class Verdict(NamedTuple):
    """What one path should become."""

    final: Entry
    losers: tuple[Entry, ...] = ()
    resolution: Resolution | None = None
    decided: bool = False


def reconcile(
    facts: Facts,
    stamp: Stamp,
    prefer: Prefer = Prefer.BOTH,
    mirror: bool = False,
    policy: Callable[[bytes], Prefer | None] = lambda path: None,
) -> Plan:
    """Return the plan that brings both sides to the same state.

    Args:
        facts: the paths on which the sides may differ, each with both sides' entries.
        stamp: marks the decisions; not yet used for anything else.
        prefer: what becomes of versions that cannot be merged.
        mirror: the other side becomes as ours is, whatever it has.
        policy: what is preferred for a path, where `prefer` is what it usually is.
    """
    plan = Plan()
    verdicts: dict[bytes, Verdict] = {}
    apart = _settled_apart(facts.pairs)
    for path, pair in facts.pairs.items():
        judge = _Judge(path, facts, stamp, prefer, plan.questions, policy, apart)
        verdict = judge.mirror(pair) if mirror else judge.judge(pair)
        if verdict is not None:
            verdicts[path] = verdict
    _keep_directories(verdicts, facts.pairs, stamp)
    if prefer is Prefer.SKIP:
        _skip_conflicts(verdicts, plan)
    after = _set_losers_aside(verdicts, facts.pairs, stamp, plan)
    copies = _living_copies(verdicts)
    for path in sorted(verdicts):
        verdict = verdicts[path]
        pair = facts.pairs[path]
        plan.decided |= verdict.decided
        for side, current in ((plan.ours, pair.ours), (plan.theirs, pair.theirs)):
            if current != verdict.final:
                before = after.get(path, ())
                if copies and current and not (before or current.same_bytes(verdict.final)):
                    before = copies.get((path, current.digest), ())
                side.append(Transition(path, current, verdict.final, before, verdict.resolution))
    return plan


@dataclass(slots=True)  # frozen, it takes three times as long to make, and one is made for each path
class _Judge:
    """Judges one path; a value only to keep what all its rules need within reach."""

    path: bytes
    facts: Facts
    stamp: Stamp
    prefer: Prefer
    questions: Questions
    policy: Callable[[bytes], Prefer | None]
    apart: Mapping[bytes, Sequence[bytes]]
    """Conflict copies that each side has removed without the other, by what they are of."""

    def judge(self, pair: Pair) -> Verdict | None:
        ours, theirs = pair
        if ours is None or theirs is None:
            known = ours or theirs
            return Verdict(known) if known else None
        if ours.same_content(theirs):
            return Verdict(_join(ours, theirs))
        if ours.version != theirs.version:  # equal versions of unlike contents break I1: a conflict
            if _has_seen(theirs, ours):
                return self._follow(theirs, ours, by_us=False)
            if _has_seen(ours, theirs):
                return self._follow(ours, theirs, by_us=True)
        if not (ours.revision and theirs.revision):
            return self._recognise(ours, theirs)
        return self._dispute(ours, theirs)

    def mirror(self, pair: Pair) -> Verdict | None:
        """Have theirs become ours, as a version that has seen both."""
        ours, theirs = pair
        if theirs is None or (ours is not None and theirs.version <= ours.version):
            return Verdict(ours) if ours else None
        if ours is not None and ours.same_content(theirs):
            return Verdict(replace(_join(ours, theirs), mtime_ns=ours.mtime_ns))
        if ours is None and not theirs.alive:
            return Verdict(theirs)
        final = ours if ours is not None else Entry(kind=Kind.TOMBSTONE)
        return self._decide(final, theirs, final)

    def _follow(self, newer: Entry, older: Entry, by_us: bool) -> Verdict:
        """Take a version that has seen the other.

        But who lost a conflict may not know yet that the path holds the winner now, and save over it what was
        open in an editor: the winner is set aside then, once. No editor saves over a folder. So it is if one
        side has settled the conflict for the loser, and the other meanwhile for the winner.
        """
        contest = self.facts.contests.get(self.path)
        unaware = contest is not None and self._is_unaware(contest, newer, older, by_us)
        unaware = unaware or (self.path in self.apart and self._has_taken_copy(older, newer, by_us))
        displaces = newer.alive and older.kind is not Kind.DIRECTORY and not newer.same_bytes(older)
        if unaware and displaces:
            return self._decide(newer, older, newer, (older,), Resolution.OVERTAKEN)
        return Verdict(newer)

    def _is_unaware(self, contest: Contest, newer: Entry, older: Entry, by_us: bool) -> bool:
        """Is it who lost, and has not tidied up, that wrote over the winner?"""
        if contest.winner != older.version or contest.lost_here != by_us:
            return False
        pair = self.facts.pairs.get(contest.copy, Pair(None, None))  # if it did not change, it is there
        copy = pair.ours if by_us else pair.theirs
        maker = latest(newer.version)
        is_loser = not contest.losers or (maker is not None and maker.replica in contest.losers)
        return is_loser and (copy is None or copy.alive)

    def _has_taken_copy(self, older: Entry, newer: Entry, by_us: bool) -> bool:
        """Has the newer side put back, since the older version, what was set aside in one of these copies?"""
        remembered = self._remembered()
        since = [newer, *(remembered.ours if by_us else remembered.theirs)]
        return any(
            is_copy_of(copy, self.path, entry.mtime_ns, entry.digest)
            for copy in self.apart[self.path]
            for entry in since
            if older.version <= entry.version
        )

    def _recognise(self, ours: Entry, theirs: Entry) -> Verdict:
        """Judge a version without a past, of a manifest made anew: has the other side had it before?"""
        remembered = self._remembered()
        ours_old = not ours.revision and _had_before(theirs, remembered.theirs, ours, remembered)
        theirs_old = not theirs.revision and _had_before(ours, remembered.ours, theirs, remembered)
        if ours_old != theirs_old:
            return Verdict(theirs if ours_old else ours)
        return self._dispute(ours, theirs)

    def _remembered(self) -> Remembered:
        if self.path not in self.facts.bases:
            self.questions.bases.add(self.path)
        return self.facts.bases.get(self.path, Remembered())

    def _dispute(self, ours: Entry, theirs: Entry) -> Verdict:
        if not (ours.alive and theirs.alive):
            living = ours if ours.alive else theirs
            kept = None if living.kind is Kind.DIRECTORY else Resolution.KEPT
            return self._decide(ours, theirs, living, (), kept)
        if ours.kind is not theirs.kind and Kind.DIRECTORY in (ours.kind, theirs.kind):
            directory, leaf = (ours, theirs) if ours.kind is Kind.DIRECTORY else (theirs, ours)
            return self._decide(ours, theirs, directory, (leaf,), Resolution.SET_ASIDE)
        remembered = self._remembered()
        known = [*remembered.ours, *remembered.theirs]
        ours_old, theirs_old = _is_echo(ours, theirs, known), _is_echo(theirs, ours, known)
        if ours_old != theirs_old:
            return self._decide(ours, theirs, theirs if ours_old else ours)
        return self._meet(ours, theirs, newest_base(remembered, ours, theirs))

    def _meet(self, ours: Entry, theirs: Entry, base: Entry | None) -> Verdict:
        prefer = self.prefer
        if prefer is Prefer.BOTH:
            prefer = self.policy(self.path) or prefer
        winner, loser = _rank(ours, theirs, prefer)
        mode = _merge_modes(ours, theirs, base) if base else winner.mode
        if ours.same_bytes(theirs) or (base and loser.same_bytes(base)):
            return self._decide(ours, theirs, replace(winner, mode=mode))
        if base and winner.same_bytes(base):
            return self._decide(ours, theirs, replace(loser, mode=mode))
        text = self._merged_text(ours, theirs, base)
        if text:
            mtime = max(ours.mtime_ns, theirs.mtime_ns)
            final = replace(winner, digest=text.digest, size=text.size, mode=mode, mtime_ns=mtime)
            return self._decide(ours, theirs, final, (), Resolution.MERGED)
        if prefer in (Prefer.BOTH, Prefer.SKIP):
            return self._decide(ours, theirs, winner, (loser,), Resolution.SET_ASIDE)
        return self._decide(ours, theirs, winner, (), Resolution.DISPLACED)

    def _merged_text(self, ours: Entry, theirs: Entry, base: Entry | None) -> Text | None:
        if base is None or any(
            entry.kind is not Kind.FILE or entry.size > MAX_TEXT for entry in (base, ours, theirs)
        ):
            return None
        if self.path not in self.facts.texts:
            question = MergeQuestion(base.digest, ours.digest, theirs.digest)
            self.questions.texts[self.path] = question
        return self.facts.texts.get(self.path)

    def _decide(
        self,
        ours: Entry,
        theirs: Entry,
        final: Entry,
        losers: tuple[Entry, ...] = (),
        resolution: Resolution | None = None,
    ) -> Verdict:
        return Verdict(_stamped(final, self.stamp, ours, theirs), losers, resolution, True)


def _settled_apart(pairs: Mapping[bytes, Pair]) -> dict[bytes, list[bytes]]:
    """Return, by what they are of, the conflict copies that both sides removed, each without the other."""
    found: dict[bytes, list[bytes]] = {}
    for path, (ours, theirs) in pairs.items():
        if ours is None or theirs is None or ours.alive or theirs.alive or not is_conflict_copy(path):
            continue
        if not (ours.version <= theirs.version or theirs.version <= ours.version):
            found.setdefault(original(path), []).append(path)
    return found


def _is_echo(version: Entry, other: Entry, known: Sequence[Entry]) -> bool:
    """Is a version really an earlier one of the other side's, under a mark of its own?

    A run that dies after it has put a file in place, and before it can say which version that is, leaves it
    to be found as if somebody had edited it there. It is no conflict if the other side was edited since.
    """
    return any(
        earlier.same_bytes(version)
        and earlier.version <= other.version
        and not earlier.version <= version.version
        for earlier in known
    )


def newest_base(remembered: Remembered, ours: Entry, theirs: Entry) -> Entry | None:
    """Return the newest version that both have seen, of those remembered; None if it is of another kind.

    What was there before a deletion that both have seen is no base: who wrote it again has not undone an
    edit, but made a file.
    """
    common = [
        base
        for base in (*remembered.ours, *remembered.theirs)
        if _follows(ours, remembered.ours, base) and _follows(theirs, remembered.theirs, base)
    ]
    newest = max(common, key=_weight, default=None)
    return newest if newest is not None and newest.kind is ours.kind is theirs.kind else None


def _had_before(present: Entry, before: Sequence[Entry], version: Entry, remembered: Remembered) -> bool:
    """Does a side's version follow one with the contents of `version`?"""
    return any(
        base.same_content(version) and _follows(present, before, base)
        for base in (*remembered.ours, *remembered.theirs)
    )


def _follows(present: Entry, before: Sequence[Entry], base: Entry) -> bool:
    """Does a side's version follow a base?

    One without a past may have had another version before: so a side that has or had its contents follows it.
    """
    if _has_seen(present, base):
        return True
    return not base.revision and any(base.same_content(entry) for entry in (present, *before))


def _has_seen(newer: Entry, older: Entry) -> bool:
    """Has a version seen another? The empty one, of older releases, may be of the latest edit."""
    return bool(older.version) and older.version <= newer.version


def _rank(ours: Entry, theirs: Entry, prefer: Prefer) -> tuple[Entry, Entry]:
    """Return the winner and the loser."""
    match prefer:
        case Prefer.LOCAL:
            return ours, theirs
        case Prefer.PEER:
            return theirs, ours
        case Prefer.NEWEST:
            newest_first = sorted((theirs, ours), key=_newest, reverse=True)
        case _:
            newest_first = sorted((theirs, ours), key=_weight, reverse=True)
    return newest_first[0], newest_first[1]


def _weight(entry: Entry) -> tuple[int, int, Digest, int, int, bytes]:
    """Return what decides a conflict: revision, then time, then bytes, so that it decides always."""
    return (entry.revision, entry.mtime_ns, entry.digest, entry.kind, entry.mode, entry.version.encode())


def _newest(entry: Entry) -> tuple[int, int, Digest, int, int, bytes]:
    return (entry.mtime_ns, entry.revision, *_weight(entry)[2:])


def _join(ours: Entry, theirs: Entry) -> Entry:
    if ours == theirs:
        return ours
    if bool(ours.revision) != bool(theirs.revision):  # one has a past: no other side has to hear of this
        version = ours.version if ours.revision else theirs.version
    else:
        version = ours.version | theirs.version
    return replace(
        ours,
        version=version,
        revision=max(ours.revision, theirs.revision),
        mtime_ns=max(ours.mtime_ns, theirs.mtime_ns),
    )


def _merge_modes(ours: Entry, theirs: Entry, base: Entry) -> int:
    """Apply to the base's permission bits what each side flipped."""
    return base.mode ^ ((ours.mode ^ base.mode) | (theirs.mode ^ base.mode))


def _stamped(final: Entry, stamp: Stamp, *seen: Entry | None) -> Entry:
    """Return `final` as a new version that has seen all of `seen`."""
    version: Version = NOTHING
    revision = 0
    for entry in (final, *seen):
        if entry is not None:
            version |= entry.version
            revision = max(revision, entry.revision)
    return replace(final, version=version.bump(stamp), revision=revision + 1)


def _keep_directories(verdicts: dict[bytes, Verdict], pairs: Mapping[bytes, Pair], stamp: Stamp) -> None:
    """Make directories of all paths that hold something living.

    Where a path holds something living, one side has a directory there now: the other has nothing below it.
    """
    needed = folders_of(path for path, verdict in verdicts.items() if verdict.final.alive)
    for path in needed & verdicts.keys():
        verdict = verdicts[path]
        if verdict.final.kind is not Kind.DIRECTORY:
            verdicts[path] = _as_directory(verdict, pairs[path], stamp)


def _as_directory(verdict: Verdict, pair: Pair, stamp: Stamp) -> Verdict:
    present = [entry for entry in pair if entry and entry.kind is Kind.DIRECTORY]
    directory = max(present, key=_weight, default=Entry(kind=Kind.DIRECTORY, mode=0o755))
    final = _stamped(directory, stamp, verdict.final, *pair)
    if not verdict.final.alive:
        return Verdict(final, decided=True)
    losers = (*verdict.losers, verdict.final)
    return Verdict(final, losers, Resolution.SET_ASIDE, decided=True)


def _skip_conflicts(verdicts: dict[bytes, Verdict], plan: Plan) -> None:
    """Leave conflicts as they are on both sides, with all that lies below them."""
    skipped = {path for path, verdict in verdicts.items() if verdict.losers}
    for path in sorted(verdicts):
        if path in skipped or not skipped.isdisjoint(ancestors(path)):
            del verdicts[path]
            plan.left.append(path)
    plan.conflicts += [Conflict(path, Resolution.SKIPPED) for path in sorted(skipped)]


def _set_losers_aside(
    verdicts: dict[bytes, Verdict], pairs: Mapping[bytes, Pair], stamp: Stamp, plan: Plan
) -> dict[bytes, tuple[bytes, ...]]:
    """Add a conflict copy for every loser; return the copies that have to exist before each path changes."""
    after: dict[bytes, tuple[bytes, ...]] = {}
    for path, verdict in sorted(verdicts.items()):
        if verdict.resolution is None:  # whoever has losers has one
            continue
        for loser in verdict.losers:
            copy = _find_copy(path, loser, verdicts, pairs, stamp, plan.questions)
            after[path] = (*after.get(path, ()), copy)
            plan.conflicts.append(Conflict(path, verdict.resolution, copy))
        if not verdict.losers:
            plan.conflicts.append(Conflict(path, verdict.resolution))
    return after


def _living_copies(verdicts: Mapping[bytes, Verdict]) -> dict[tuple[bytes, Digest], tuple[bytes]]:
    """Return the conflict copies that there will be, by what they are of and what is in them.

    They have to exist before that goes also where it was decided elsewhere which version wins.
    """
    return {
        (original(path), verdict.final.digest): (path,)
        for path, verdict in verdicts.items()
        if verdict.final.digest and is_conflict_copy(path)
    }


def _find_copy(
    path: bytes,
    loser: Entry,
    verdicts: dict[bytes, Verdict],
    pairs: Mapping[bytes, Pair],
    stamp: Stamp,
    questions: Questions,
) -> bytes:
    """Return the path of the conflict copy of `loser`, with a verdict that puts it there if it is not.

    A copy that was made and deleted before is made again: it has seen its tombstone, so it lives.
    """
    for copy in conflict_names(path, loser.mtime_ns, loser.digest):
        if copy not in pairs:
            questions.pairs.add(copy)
            return copy
        present = verdicts[copy].final if copy in verdicts else None
        if any(entry and entry.kind is Kind.DIRECTORY for entry in (present, *pairs[copy])):
            continue  # a directory goes last, a copy is made first
        if present is None or not present.alive:
            verdicts[copy] = Verdict(_stamped(loser, stamp, present), decided=True)
            return copy
        if present.same_bytes(loser):
            return copy
    raise AssertionError("there is no end to the names")
