"""The pipeline of one sync: scan, exchange, reconcile, stage, apply, acknowledge.

Owns the order of the steps. Knows the Replica protocol, not where a replica is nor how it keeps what it
knows. Each step is written once and done for both sides, at the same time where they can.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from msgspec.structs import replace
from xxhash import xxh3_128_digest

from p2psync.core.choose import EVERYTHING, SPARSE_BYTES, Filter, Mode, choose
from p2psync.core.chunking import likely_bases
from p2psync.core.guard import HALF, MaxDelete, deleted, is_too_much, plan_id
from p2psync.core.merge import merge
from p2psync.core.model import (
    Conflict,
    Digest,
    Entry,
    Prefer,
    Problem,
    Transition,
    is_folder,
    needs_content,
)
from p2psync.core.paths import IGNORE_FILE, split
from p2psync.core.reconcile import Facts, MergeQuestion, Pair, Plan, Questions, Remembered, Text, reconcile
from p2psync.core.replica import (
    MAX_PATHS,
    RECALLED,
    RECALLED_STEP,
    TEXTS_AT_ONCE,
    Ask,
    Content,
    Home,
    Identity,
    Like,
    Mark,
    Met,
    More,
    Name,
    Piece,
    Point,
    Replica,
    Scanned,
    Want,
)
from p2psync.core.vector import Stamp
from p2psync.errors import GuardTripped, ReplicaError

BATCH = 5000
"""Paths or contents asked about at once: a message of well under a MiB."""

MERGES_AT_ONCE = TEXTS_AT_ONCE
"""Of each there are three texts in memory."""
PATIENCE_SECONDS = 2.0
"""How long a scan of the peer, which may take very long and can be stopped anywhere, is waited for to end."""

NOTE_SECONDS = 10.0
"""After so long it is recorded what has been taken: no more is hashed again by who interrupts it."""
LEFT_BYTES = 1 << 20
"""Names of paths left for another time that are remembered: where there are more, all is compared again."""
LARGE_AT_ONCE = 500
"""Large contents of which it is asked at once what they are like: of each some parts are read."""
LARGE_BATCH = 16
LARGE_BATCH_BYTES = 1 << 30
"""Large contents that have bases at once, but for a single one: of each both sides know all chunks."""

_T = TypeVar("_T")


class Drivers(Protocol):
    """Who knows how files of which names are merged."""

    def merge(self, path: bytes, base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
        """Return the merge of two texts, None if they do not merge."""

    def prefer(self, path: bytes) -> Prefer | None:
        """Return what becomes of versions that do not merge; None: what is usual."""


class Progress(Protocol):
    """Who wants to know how it goes."""

    def begin(self, step: str, files: int = 0, size: int = 0) -> None:
        """A step begins, of that many files and bytes (0: not known)."""

    def advance(self, files: int, size: int, path: bytes = b"") -> None:
        """That much more is done, and `path` is at hand now, if that is known."""


@dataclass
class Side:
    """One of the two replicas, and what this run has learned about it."""

    replica: Replica
    identity: Identity
    scanned: Scanned
    transitions: list[Transition] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    done: int = 0
    carried_out: bool = False


@dataclass
class Result:
    """What a round between two replicas came to."""

    local: Side
    peer: Side
    conflicts: list[Conflict]
    left: list[bytes]
    """Paths left for another time."""
    seconds: float
    refusal: str | None = None
    """Why it must not be carried out unasked."""
    transferred: int = 0
    """Bytes of contents that went from one side to the other."""
    left_out: list[bytes] = field(default_factory=list)
    """Paths that differ, and that this run was not about."""
    plan: str = ""
    """The name of what was planned; of a dry run only."""

    @property
    def in_step(self) -> bool:
        """Are the two identical now?"""
        return not (self.left or self.local.problems or self.peer.problems)

    @property
    def changed_rules(self) -> bool:
        """Did an ignore file change on either side? Then other paths may have come into view."""
        steps = (*self.local.transitions, *self.peer.transitions)
        return any(split(step.path)[1] == IGNORE_FILE for step in steps)


class Session:
    """Two open replicas. The first is at home here: it decides."""

    def __init__(
        self,
        home: Home,
        peer: Replica,
        progress: Progress,
        near: bool = False,
        drivers: Drivers | None = None,
    ) -> None:
        """Sync two replicas.

        Args:
            home: the side that decides.
            peer: the other one.
            progress: is told how it goes.
            near: are the trees of both on this machine?
            drivers: how texts of which names are merged, if not as usual.
        """
        self._home = home
        self._near = near
        self._drivers = drivers
        self._driver_problems: list[Problem] = []
        self._replicas: tuple[Replica, Replica] = (home, peer)
        self._progress = progress
        self._transferred = 0
        """Bytes of contents that went from one side to the other, in this round."""
        self._handed_over = 0.0
        """Seconds that this took before the round began."""
        if home.identity.replica == peer.identity.replica:
            # Both are open, so one is a copy of the other.
            peer.remint(home.identity.replica, _newest_common(home, peer))

    def scan(
        self, keep: bool, home_scanned: Scanned | None = None, doubt: bool = False, all_new: bool = False
    ) -> None:
        """Find out what changed on both sides.

        Where the other side is empty, the large files of one are hashed as they are read for it.

        Args:
            keep: False for a dry run: nothing is written anywhere.
            home_scanned: what is known of the home side already, from the session with another peer.
            doubt: read every file.
            all_new: all that is new on one side is wanted on the other.
        """
        self._progress.begin("scanning")
        home, peer = self._replicas
        rooms = [0, 0]
        if all_new and keep and self._home.mark(peer.identity.replica) is None:
            rooms = [one.room_if_blank() for one in self._replicas]
        if home_scanned is None:
            sides = ((home, rooms[1]), (peer, rooms[0]))
            both = _on_both(sides, lambda side: side[0].scan(keep, doubt, side[1] > 0), PATIENCE_SECONDS)
            self.home_scanned, self._peer_scanned = both
        else:
            self.home_scanned, self._peer_scanned = home_scanned, peer.scan(keep, doubt, rooms[0] > 0)
        self.home_scanned = self._hand_over(home, peer, self.home_scanned, rooms[1])
        self._peer_scanned = self._hand_over(peer, home, self._peer_scanned, rooms[0])

    def _hand_over(self, side: Replica, other: Replica, scanned: Scanned, room: int) -> Scanned:
        """Hand over the files that a scan left unread, if there is room; return what the scan found then."""
        if not scanned.unread:
            return scanned
        if scanned.unread <= room:
            started = time.monotonic()
            self._progress.begin("copying", 0, scanned.unread)
            is_all = (self._take_unread if self._near else self._send_unread)(side, other, scanned.unread)
            self._handed_over += time.monotonic() - started
            if is_all:
                return replace(scanned, unread=0)
        again = side.scan(True)
        return replace(again, skipped=[*scanned.skipped, *again.skipped])

    def _send_unread(self, side: Replica, other: Replica, size: int) -> bool:
        """Send what a scan left unread; return whether that was all as it was seen."""
        ends: set[More] = set()
        with contextlib.closing(side.read_unread()) as read:
            other.put_by(self._watched(_noting(read, ends), {}), size)
        return More.GONE not in ends

    def _take_unread(self, side: Replica, other: Replica, size: int) -> bool:
        """Have one side take what the scan of its neighbour left unread; return as `_send_unread`."""
        unread = side.unread()
        met: list[Met] = []
        count, due = 0, time.monotonic() + NOTE_SECONDS
        try:
            for one in other.take_unread(unread):
                self._transferred += one.stat.size
                self._progress.advance(1, one.stat.size, one.path)
                met.append(one)
                count += 1
                if time.monotonic() >= due:
                    side.note_unread(met)
                    met, due = [], time.monotonic() + NOTE_SECONDS
        except BaseException:
            with contextlib.suppress(Exception):  # else it is hashed once more
                side.note_unread(met)
            raise
        side.note_unread(met)
        return count == len(unread)

    def round(
        self,
        prefer: Prefer,
        carry_out: bool = True,
        limit: MaxDelete = HALF,
        approved: str = "",
        wanted: Filter = EVERYTHING,
        plan_wanted: str = "",
    ) -> Result:
        """Bring both sides to the same state.

        Args:
            prefer: what becomes of versions that cannot be merged.
            carry_out: False to plan only.
            limit: how many files may be deleted from a side.
            approved: the plan that may be carried out whatever it deletes.
            wanted: what the run is about.
            plan_wanted: the name of the only plan that is to be carried out.

        Raises:
            GuardTripped: it would delete too much, fill a disk, or not be the plan that is wanted.
            P2PSyncError: one of the sides cannot go on.
        """
        started = time.monotonic()
        if carry_out:
            self._recognise()
        else:
            self._read_marks()
        home, peer = self._sides()
        home.problems += home.scanned.problems
        peer.problems += peer.scanned.problems
        stamp = self._home.stamp()
        plan, texts, left_out = self._plan(home, peer, stamp, prefer, wanted)
        sides = (home, peer)
        result = Result(home, peer, plan.conflicts, plan.left, 0, left_out=left_out)
        if plan_wanted or not carry_out:
            result.plan = plan_id((one.identity.replica, one.transitions) for one in sides)
        if plan_wanted and plan_wanted != result.plan:
            raise GuardTripped(
                f"something has changed since the plan {plan_wanted} was made, or it was made with other"
                f" options: this one is {result.plan}. Make a plan anew"
            )
        result.refusal = self._guard(sides, limit, approved)
        if carry_out:
            if result.refusal:
                raise GuardTripped(result.refusal)
            if plan.decided:
                self._home.use_stamp(stamp)
            lacking = [_prepare(*both) for both in (sides, sides[::-1])]
            for side, other, missing in zip(sides, sides[::-1], lacking, strict=True):
                self._stage(side, other, missing, texts)
            result.transferred, self._transferred = self._transferred, 0
            self._apply(sides)
            self._acknowledge(home, peer, {*plan.left, *left_out})
        result.seconds = time.monotonic() - started + self._handed_over
        self._handed_over = 0.0
        return result

    def differing(self) -> dict[bytes, Pair]:
        """Return what both sides have, after a scan, at each path where they do not have the same."""
        self._read_marks()
        home, peer = self._sides()
        pairs = self._exchange(home, peer).pairs
        return {path: pair for path, pair in pairs.items() if _differ(pair)}

    def problems(self) -> list[Problem]:
        """Return what the scans of both sides could not read."""
        return [*self.home_scanned.problems, *self._peer_scanned.problems]

    def _sides(self) -> tuple[Side, Side]:
        scans = (self.home_scanned, self._peer_scanned)
        home, peer = (Side(r, r.identity, scanned) for r, scanned in zip(self._replicas, scans, strict=True))
        return home, peer

    # -- identity

    def _recognise(self) -> None:
        """Have a side that is a copy, or an older state, of what the other has met become another replica.

        Also of what it has only heard of: a third replica may have met what an older state has lost.
        """
        self._read_marks()
        for side, other in (self._replicas, self._replicas[::-1]):
            mark = self._marks[side.identity.replica]
            if mark and not side.recalls(mark.seq, mark.nonce, mark.tick):
                side.remint(other.identity.replica, 0)
                self._read_marks()

    def _read_marks(self) -> None:
        """Ask each side how far it has taken in the changes of the other."""
        self._marks = {
            side.identity.replica: other.mark(side.identity.replica)
            for side, other in (self._replicas, self._replicas[::-1])
        }

    def _plan(
        self, home: Side, peer: Side, stamp: Stamp, prefer: Prefer, wanted: Filter
    ) -> tuple[Plan, dict[Digest, bytes], list[bytes]]:
        """Return what is to be done, the texts that were merged, and what the run is not about."""
        self._progress.begin("comparing")
        self._driver_problems = []
        facts = self._exchange(home, peer)
        plan, texts = self._decide(facts, stamp, prefer, wanted.mode is Mode.MIRROR)
        home.problems += self._misspelt(wanted)
        unread = [problem.path for problem in home.scanned.problems]
        left_out = choose(plan, wanted, {*home.scanned.mounts, *peer.scanned.mounts}, unread)
        home.transitions, peer.transitions = plan.ours, plan.theirs
        home.problems += self._driver_problems
        return plan, texts, left_out

    def _misspelt(self, wanted: Filter) -> list[Problem]:
        """Tell of the paths that a run is about and nobody has ever heard of."""
        names = [Name(path, False) for path in wanted.within if path]
        found = [replica.lookup(names).entries for replica in self._replicas] if names else []
        why = "is not there, on either side, or is ignored"
        return [Problem(name.path, why) for name, *known in zip(names, *found, strict=True) if not any(known)]

    # -- exchange

    def _exchange(self, home: Side, peer: Side) -> Facts:
        """Gather both sides' entries for every path on which they may differ."""
        ours, ours_pending = _changes(home, peer, self._marks[home.identity.replica])
        theirs, theirs_pending = _changes(peer, home, self._marks[peer.identity.replica])
        paths = dict.fromkeys([*ours_pending, *theirs_pending, *ours, *theirs])
        ignored: set[bytes] = set()
        for side, known, others in ((home, ours, theirs), (peer, theirs, ours)):
            unknown = [path for path in paths if path not in known]
            if unknown and (side.replica.newest() or side.scanned.rules):  # else it knows nothing
                names = [Name(path, is_folder(others.get(path))) for path in unknown]
                ignored |= _look_up(side.replica, names, known)
        pairs = {path: Pair(ours.get(path), theirs.get(path)) for path in paths if path not in ignored}
        return Facts(pairs, contests=self._home.contests(pairs) if pairs else {})

    # -- reconcile

    def _decide(
        self, facts: Facts, stamp: Stamp, prefer: Prefer, mirror: bool
    ) -> tuple[Plan, dict[Digest, bytes]]:
        """Reconcile until there are no questions; return the plan and the texts that were merged."""
        texts: dict[Digest, bytes] = {}
        policy = self._drivers.prefer if self._drivers else _no_policy
        while (plan := reconcile(facts, stamp, prefer, mirror, policy)).questions:
            self._answer(plan.questions, facts, texts)
        return plan, texts

    def _answer(self, questions: Questions, facts: Facts, texts: dict[Digest, bytes]) -> None:
        if questions.pairs:
            names = [Name(path, False) for path in sorted(questions.pairs)]
            found = [replica.lookup(names).entries for replica in self._replicas]
            for name, ours, theirs in zip(names, *found, strict=True):
                facts.pairs[name.path] = Pair(ours, theirs)
        if questions.bases:
            paths = sorted(questions.bases)
            remembered = [replica.bases(paths) for replica in self._replicas]
            for path, ours_then, theirs_then in zip(paths, *remembered, strict=True):
                facts.bases[path] = Remembered(ours_then, theirs_then)
        for some in _batches(list(questions.texts.items()), MERGES_AT_ONCE):
            held = self._texts({digest for _, question in some for digest in question})
            for path, question in some:
                merged = self._merge(path, question, held)
                facts.texts[path] = None
                if merged is not None:
                    digest = Digest(xxh3_128_digest(merged))
                    texts[digest] = merged
                    facts.texts[path] = Text(digest, len(merged))

    def _texts(self, digests: Iterable[Digest]) -> dict[Digest, bytes]:
        """Return the contents of those of some texts that either side has; the peer sends what lacks here."""
        held: dict[Digest, bytes] = {}
        for replica in self._replicas:
            lacking = [digest for digest in digests if digest not in held]
            found = zip(lacking, replica.texts(lacking) if lacking else (), strict=True)
            held.update((digest, text) for digest, text in found if text is not None)
        return held

    def _merge(self, path: bytes, question: MergeQuestion, held: Mapping[Digest, bytes]) -> bytes | None:
        base, ours, theirs = (held.get(digest) for digest in question)
        if base is None or ours is None or theirs is None:
            return None
        try:
            merged = (self._drivers.merge if self._drivers else _usual_merge)(path, base, ours, theirs)
        except ReplicaError as error:
            merged = None
            self._driver_problems.append(Problem(path, str(error)))
        if merged is None:
            self._home.keep(question.base, base)
        return merged

    # -- guard

    def _guard(self, sides: Sequence[Side], limit: MaxDelete, approved: str) -> str | None:
        """Return why the plan must not be carried out unasked, None if it may."""
        for side in sides:
            gone = deleted(side.transitions)
            if not gone or not is_too_much(gone, files := side.replica.files(), limit):
                continue
            name = plan_id((one.identity.replica, one.transitions) for one in sides)
            if name != approved:
                return (
                    f"{gone} of the {files} files in {side.identity.name} would be deleted."
                    " Nothing was changed. Is a disk not mounted, or a folder moved away?"
                    f" If they are to go, say so with --approve {name} (or allow more with --max-delete)"
                )
        return None

    # -- stage

    def _stage(self, side: Side, other: Side, missing: Sequence[Content], texts: dict[Digest, bytes]) -> None:
        """Bring to `side` the contents that it lacks."""
        merged = [content.digest for content in missing if content.digest in texts]
        if merged:
            side.replica.stage([Piece(digest, texts[digest], More.LAST)] for digest in merged)
        rest = [content for content in missing if content.digest not in texts]
        if not rest:
            return
        self._progress.begin("copying", len(rest), sum(content.size for content in rest))
        rest = [*self._take(side)] if self._near else [*self._stage_differences(side, other, rest)]
        if rest:
            read = other.replica.read([content.digest for content in rest])
            side.replica.stage(self._watched(read, _paths(side)))

    def _stage_differences(self, side: Side, other: Side, missing: Sequence[Content]) -> Sequence[Content]:
        """Bring to `side` large contents of which it holds parts; return what it still lacks."""
        bases = likely_bases(side.transitions, other.transitions)
        sizes = {content.digest: content for content in missing if content.digest in bases}
        if not sizes:
            return missing
        contents, paths = list(sizes.values()), _paths(side)
        for some in _batches(contents, LARGE_AT_ONCE):
            likes = [Like(content, bases[content.digest]) for content in some]
            asks = [
                Ask(content, likely or known, known)
                for (content, likely), known in zip(likes, other.replica.alike(likes), strict=True)
            ]
            for batch in _large_batches(asks):
                found = zip(batch, side.replica.sources(batch), strict=True)
                wants = [Want(ask.content, sources) for ask, sources in found if sources]
                if wants:
                    side.replica.stage(self._watched(other.replica.differences(wants), paths))
        return list(self._take(side))

    def _take(self, side: Side) -> Iterator[Content]:
        """Have a side take what it can from the other's tree; yield what it lacks then."""
        for taken in side.replica.take():
            self._transferred += taken.size
            self._progress.advance(taken.files, taken.size, taken.path)
            yield from taken.lacking

    def _watched(
        self, batches: Iterable[list[Piece]], paths: Mapping[Digest, bytes]
    ) -> Iterator[list[Piece]]:
        for batch in batches:
            files = sum(piece.more is not More.MORE for piece in batch)
            size = sum(len(piece.data) for piece in batch)
            self._transferred += size
            path = paths.get(batch[-1].digest, b"") if batch else b""
            self._progress.advance(files, size + sum(piece.size for piece in batch), path)
            yield batch

    # -- apply

    def _apply(self, sides: Sequence[Side]) -> None:
        total = sum(len(side.transitions) for side in sides)
        if total:
            self._progress.begin("applying", total)
            _on_both(sides, self._apply_side)

    def _apply_side(self, side: Side) -> None:
        side.carried_out = True
        if not side.transitions:
            return
        for applied in side.replica.apply():
            side.done += applied.done
            side.problems += applied.problems
            self._progress.advance(applied.done + len(applied.problems), 0)

    # -- acknowledge

    def _acknowledge(self, home: Side, peer: Side, left: set[bytes]) -> None:
        """Remember on both sides, now that both have committed, what they took in of each other."""
        failed = {problem.path for side in (home, peer) for problem in side.problems}
        touched = {transition.path for side in (home, peer) for transition in side.transitions}
        pending = sorted(left | (failed & touched))
        points = {side.identity.replica: side.replica.point() for side in (home, peer)}
        in_step = not any(side.problems for side in (home, peer))
        for side, other in ((home, peer), (peer, home)):
            point = points[other.identity.replica]
            mark = Mark(
                other.identity.epoch, point.seq, _rules(side, other), pending, point.nonce, 0, in_step
            )
            if len(pending) > MAX_PATHS or sum(map(len, pending)) > LEFT_BYTES:
                mark = Mark(other.identity.epoch, 0, b"", pending[:1])
            side.replica.acknowledge(other.identity, mark)


def _noting(batches: Iterable[list[Piece]], met: set[More]) -> Iterator[list[Piece]]:
    """Pass pieces on, and note how they end."""
    for batch in batches:
        met.update(piece.more for piece in batch)
        yield batch


def _usual_merge(path: bytes, base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    return merge(base, ours, theirs)


def _no_policy(path: bytes) -> None:
    return None


def _paths(side: Side) -> dict[Digest, bytes]:
    """Return where contents go, by digest: the first of the paths."""
    return {step.wanted.digest: step.path for step in reversed(side.transitions)}


def _differ(pair: Pair) -> bool:
    ours, theirs = (entry if entry is not None and entry.alive else None for entry in pair)
    return ours is not theirs and (ours is None or theirs is None or not ours.same_content(theirs))


def _prepare(side: Side, other: Side) -> list[Content]:
    """Tell a side what is to be done; return the contents that it lacks."""
    if not side.transitions:
        return []
    coming = (step.wanted for step in side.transitions if needs_content(step))
    large = [Content(entry.digest, entry.size) for entry in coming if entry.size >= SPARSE_BYTES]
    return side.replica.prepare(side.transitions, other.replica.sparse(large) if large else ())


def _newest_common(home: Home, copy: Replica) -> int:
    """Return the newest change that two states of one replica both recall, as its sequence number."""
    recalled = home.recalled()
    common = _common(copy, [point for point in recalled if point.seq % RECALLED_STEP == 0])
    known = max(
        common, copy.newest() - RECALLED
    )  # what the copy does not recall before that it would not doubt
    return (
        _common(copy, [point for point in recalled if known < point.seq < common + RECALLED_STEP]) or common
    )


def _common(copy: Replica, points: Sequence[Point]) -> int:
    """Return the last of some changes that a copy recalls; 0: none."""
    count = bisect.bisect_left(points, True, key=lambda point: not copy.recalls(point.seq, point.nonce))
    return points[count - 1].seq if count else 0


def _rules(side: Side, other: Side) -> bytes:
    return side.scanned.rules + other.scanned.rules


def _changes(side: Side, other: Side, mark: Mark | None) -> tuple[dict[bytes, Entry], list[bytes]]:
    """Return what changed on `side` since the other took in its changes, and what was left behind then."""
    known = mark is not None and mark.epoch == side.identity.epoch and mark.rules == _rules(other, side)
    since = mark.seq if mark is not None and known else 0
    changes = {change.path: change.entry for batch in side.replica.changes(since) for change in batch}
    return changes, list(mark.pending) if mark else []


def _look_up(replica: Replica, names: Sequence[Name], known: dict[bytes, Entry]) -> set[bytes]:
    """Add to `known` what the replica knows of the other paths; return those that it ignores."""
    ignored: set[bytes] = set()
    for batch in _batches(names):
        found = replica.lookup(batch)
        ignored.update(found.ignored)
        known.update(
            {name.path: entry for name, entry in zip(batch, found.entries, strict=True) if entry is not None}
        )
    return ignored


def _batches(items: Sequence[_T], size: int = BATCH) -> Iterator[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _large_batches(asks: Sequence[Ask]) -> Iterator[list[Ask]]:
    """Split questions: of contents that have bases, few are asked about at once."""
    batch = [ask for ask in asks if not ask.bases]
    if batch:
        yield batch
    batch, size = [], 0
    for ask in asks:
        if not ask.bases:
            continue
        if batch and (len(batch) == LARGE_BATCH or size + ask.content.size > LARGE_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(ask)
        size += ask.content.size
    if batch:
        yield batch


_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


def _on_both(
    items: Sequence[_Item], work: Callable[[_Item], _Answer], patience: float | None = None
) -> list[_Answer]:
    """Do the same for the home side and, meanwhile, for the peer; the first error of either is raised.

    Args:
        items: the two.
        work: what is done.
        patience: how many seconds the peer has to end where home fails; None: all that it takes.
    """
    home, peer = items
    answers: list[_Answer] = []
    errors: list[BaseException] = []

    def do_peer() -> None:
        try:
            answers.append(work(peer))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=do_peer, daemon=True)
    thread.start()
    try:
        mine = work(home)
    except Exception:
        thread.join(patience)  # who catches the error closes both sides
        raise
    thread.join()
    if errors:
        raise errors[0]
    return [mine, *answers]
