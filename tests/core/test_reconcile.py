"""What two replicas that differ become: a table of cases, then what has to hold for any two.

A tree is written as one line: `d/` is a folder, `f=b` a file with the text b, `l>t` a symlink. `:755`
sets the permissions, `@200` the time, `^3` the revision. A later letter is a later time. `~f=b` is the
conflict copy of f that holds b.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from p2psync.core.detect import observe, vanish
from p2psync.core.merge import MAX_TEXT, merge
from p2psync.core.model import Entry, Kind, Prefer, Resolution
from p2psync.core.order import in_order
from p2psync.core.paths import ancestors, conflict_names
from p2psync.core.reconcile import Contest, Facts, MergeQuestion, Pair, Plan, Remembered, Text, reconcile
from p2psync.core.vector import ReplicaId, Stamp, Version

from .model_replica import CONTENTS, digest_of

Tree = dict[bytes, Entry]

PARENT, ONE, OTHER = ReplicaId(1), ReplicaId(2), ReplicaId(3)
BEFORE, ON_ONE, ON_OTHER, DECISION = Stamp(PARENT, 1), Stamp(ONE, 2), Stamp(OTHER, 2), Stamp(ONE, 3)
NOBODY = Pair(None, None)
ROUNDS = 20
"""More than any plan here needs: bases, texts, and names for copies that are taken."""

TOKEN = re.compile(
    r"(?P<copy>~?)(?P<path>.+?)(?:(?P<folder>/)|=(?P<text>[\w,]+)|>(?P<target>\w+))"
    r"(?::(?P<mode>\d{3}))?(?:@(?P<time>\d+))?(?:\^(?P<revision>\d+))?"
)


def tree(line: str) -> Tree:
    return dict(map(_item, line.split()))


def _item(token: str) -> tuple[bytes, Entry]:
    match = TOKEN.fullmatch(token)
    assert match, token
    path, text, target = match["path"].encode(), match["text"], (match["target"] or "").encode()
    mode = int(match["mode"] or ("755" if match["folder"] else "644"), 8)
    mtime_ns = int(match["time"] or max(text or match["target"] or "\0", key=ord).encode()[0])
    revision = int(match["revision"] or 0)
    if match["folder"]:
        return path, Entry(kind=Kind.DIRECTORY, mode=mode)
    if target:
        digest = digest_of(target)
        entry = Entry(kind=Kind.SYMLINK, digest=digest, target=target, mtime_ns=mtime_ns, revision=revision)
    else:
        data = text.replace(",", "\n").encode() + b"\n"
        entry = Entry(
            kind=Kind.FILE,
            digest=digest_of(data),
            size=len(data),
            mode=mode,
            mtime_ns=mtime_ns,
            revision=revision,
        )
    return first_copy(path, entry) if match["copy"] else path, entry


def first_copy(path: bytes, loser: Entry) -> bytes:
    return next(conflict_names(path, loser.mtime_ns, loser.digest))


def scanned(known: Tree, seen: Tree, stamp: Stamp) -> Tree:
    """What a replica that knew `known` knows after a scan that saw `seen`."""
    entries = {path: observe(known.get(path), entry, stamp) for path, entry in seen.items()}
    for path, entry in seen.items():
        if entry.revision:
            entries[path] = replace(entries[path], revision=entry.revision)
    return entries | {path: vanish(entry, stamp) for path, entry in known.items() if path not in seen}


def facts_of(ours: Tree, theirs: Tree, remembered: Mapping[bytes, Entry]) -> Facts:
    pairs = {path: Pair(ours.get(path), theirs.get(path)) for path in sorted(ours.keys() | theirs.keys())}
    return Facts(pairs, {path: Remembered([entry]) for path, entry in remembered.items()})


def settle(facts: Facts, prefer: Prefer = Prefer.BOTH) -> Plan:
    """Reconcile until there are no questions; nobody has anything that is not in the facts."""
    for _ in range(ROUNDS):
        plan = reconcile(facts, DECISION, prefer)
        if not plan.questions:
            return plan
        facts.pairs.update(dict.fromkeys(plan.questions.pairs, NOBODY))
        facts.bases.update(dict.fromkeys(plan.questions.bases, Remembered()))
        for path, question in plan.questions.texts.items():
            merged = merge(*(CONTENTS[digest] for digest in question))
            facts.texts[path] = Text(digest_of(merged), len(merged)) if merged is not None else None
    raise AssertionError("it never stops asking")


def swapped(facts: Facts) -> Facts:
    pairs = {path: Pair(pair.theirs, pair.ours) for path, pair in facts.pairs.items()}
    bases = {path: Remembered(past.theirs, past.ours) for path, past in facts.bases.items()}
    return Facts(pairs, bases, facts.texts)


def side(facts: Facts, number: int) -> Tree:
    found = {path: pair[number] for path, pair in facts.pairs.items()}
    return {path: entry for path, entry in found.items() if entry is not None}


def carry_out(facts: Facts, plan: Plan) -> Facts:
    """What both know once they have carried out the plan."""
    after = []
    for number, transitions in enumerate((plan.ours, plan.theirs)):
        entries = side(facts, number)
        for transition in transitions:
            assert entries.get(transition.path) == transition.expected
            entries[transition.path] = transition.wanted
        after.append(entries)
    return facts_of(after[0], after[1], {})


def shown(entries: Tree) -> Tree:
    """What people see of a replica: neither versions, nor tombstones, nor the times of folders."""
    return {
        path: replace(entry, version=Version(), revision=0, mtime_ns=0 if entry.size == 0 else entry.mtime_ns)
        for path, entry in entries.items()
        if entry.alive
    }


class Case(NamedTuple):
    what: str
    base: str
    ours: str
    theirs: str
    expected: str
    conflicts: str = ""


DEEP = "a/ a/b/ a/b/c/ a/b/c/x=a"

CASES = [
    # One file, changed on one side
    Case("nothing changed", "f=a", "f=a", "f=a", "f=a"),
    Case("an edit travels", "f=a", "f=b", "f=a", "f=b"),
    Case("an edit travels though its time is older", "f=b", "f=a", "f=b", "f=a"),
    Case("a deletion travels", "f=a", "", "f=a", ""),
    Case("permissions travel", "f=a", "f=a:755", "f=a", "f=a:755"),
    Case("a touch travels", "f=a", "f=a@200", "f=a", "f=a@200"),
    Case("a touch back in time does not travel", "f=a", "f=a@1", "f=a", "f=a"),
    Case("a file that became a folder travels", "f=a", "f/", "f=a", "f/"),
    Case("a file that became a full folder travels", "f=a", "f/ f/x=b", "f=a", "f/ f/x=b"),
    Case("a file that became a symlink travels", "f=a", "f>b", "f=a", "f>b"),
    # One file, edited
    Case("the same edit twice is no conflict", "f=a", "f=b", "f=b", "f=b"),
    Case("the same edit at two times keeps the later", "f=a", "f=b@150", "f=b", "f=b@150"),
    Case("the same edit and other permissions", "f=a", "f=b:755", "f=b", "f=b:755"),
    Case("two edits are both kept", "f=a", "f=b", "f=c", "f=c ~f=b", "f set-aside"),
    Case("an edit beats a deletion", "f=a", "f=b", "", "f=b", "f kept"),
    Case("an edit takes over permissions", "f=a", "f=b", "f=a:755", "f=b:755"),
    Case("an older edit takes over permissions", "f=a", "f=b@1", "f=a:755", "f=b:755@1"),
    Case("a touch yields to an edit", "f=a", "f=b", "f=a@200", "f=b"),
    Case("an edit makes room for a folder", "f=a", "f=b", "f/", "f/ ~f=b", "f set-aside"),
    Case("... for a full folder", "f=a", "f=b", "f/ f/x=c", "f/ f/x=c ~f=b", "f set-aside"),
    Case("an edit against a symlink", "f=a", "f=b", "f>c", "f>c ~f=b", "f set-aside"),
    Case("an edit after a symlink", "f=a", "f=c", "f>b", "f=c ~f>b", "f set-aside"),
    # One file, deleted
    Case("deleted twice", "f=a", "", "", ""),
    Case("new permissions beat a deletion", "f=a", "", "f=a:755", "f=a:755", "f kept"),
    Case("a touch yields to a deletion", "f=a", "", "f=a@200", ""),
    Case("a folder beats a deletion", "f=a", "", "f/", "f/"),
    Case("a full folder beats a deletion", "f=a", "", "f/ f/x=b", "f/ f/x=b"),
    Case("a symlink beats a deletion", "f=a", "", "f>b", "f>b", "f kept"),
    # One file, permissions
    Case("the same permissions twice", "f=a", "f=a:755", "f=a:755", "f=a:755"),
    Case("permissions merge bit by bit", "f=a", "f=a:600", "f=a:755", "f=a:711"),
    Case("permissions merge with none left", "f=a:700", "f=a:300", "f=a:400", "f=a:000"),
    Case("a touch yields to permissions", "f=a", "f=a:755", "f=a@200", "f=a:755"),
    Case("permissions make room for a folder", "f=a", "f=a:755", "f/", "f/ ~f=a:755", "f set-aside"),
    Case("... a full one", "f=a", "f=a:755", "f/ f/x=b", "f/ f/x=b ~f=a:755", "f set-aside"),
    Case("permissions against a symlink", "f=a", "f=a:755", "f>b", "f>b ~f=a:755", "f set-aside"),
    # One file, touched
    Case("two touches keep the later", "f=a", "f=a@200", "f=a@300", "f=a@300"),
    Case("a touch yields to a folder", "f=a", "f=a@200", "f/", "f/"),
    Case("a touch yields to a full folder", "f=a", "f=a@200", "f/ f/x=b", "f/ f/x=b"),
    Case("a touch yields to a symlink", "f=a", "f=a@200", "f>b", "f>b"),
    # One file that became something else
    Case("a folder twice", "f=a", "f/", "f/", "f/"),
    Case("a folder with other permissions", "f=a", "f/:700", "f/:755", "f/:755"),
    Case("a folder and a full one", "f=a", "f/", "f/ f/x=b", "f/ f/x=b"),
    Case("two full folders", "f=a", "f/ f/x=b", "f/ f/y=c", "f/ f/x=b f/y=c"),
    Case("two with one name", "f=a", "f/ f/x=b", "f/ f/x=c", "f/ f/x=c ~f/x=b", "f/x set-aside"),
    Case("a folder against a symlink", "f=a", "f/", "f>b", "f/ ~f>b", "f set-aside"),
    Case("a full one against a symlink", "f=a", "f/ f/x=b", "f>c", "f/ f/x=b ~f>c", "f set-aside"),
    Case("the same symlink twice", "f=a", "f>b", "f>b", "f>b"),
    Case("two symlinks", "f=a", "f>b", "f>c", "f>c ~f>b", "f set-aside"),
    # Symlinks
    Case("a new target travels", "l>a", "l>b", "l>a", "l>b"),
    Case("the time of a symlink travels", "l>a", "l>a@200", "l>a", "l>a@200"),
    Case("the same new target", "l>a", "l>b", "l>b", "l>b"),
    Case("two new targets", "l>a", "l>b", "l>c", "l>c ~l>b", "l set-aside"),
    Case("a new target beats a deletion", "l>a", "l>b", "", "l>b", "l kept"),
    Case("a new target against a file", "l>a", "l>b", "l=c", "l=c ~l>b", "l set-aside"),
    Case("a new target against a folder", "l>a", "l>b", "l/", "l/ ~l>b", "l set-aside"),
    Case("a symlink that became a file travels", "l>a", "l=b", "l>a", "l=b"),
    Case("a symlink that became a folder travels", "l>a", "l/ l/x=b", "l>a", "l/ l/x=b"),
    Case("a deleted symlink that became a file", "l>a", "", "l=b", "l=b", "l kept"),
    # A folder and what is in it
    Case("a deleted folder is deleted", "d/ d/x=a", "", "d/ d/x=a", ""),
    Case("a folder deleted twice", "d/ d/x=a", "", "", ""),
    Case("an emptied folder stays", "d/ d/x=a", "d/", "d/ d/x=a", "d/"),
    Case("an emptied folder that the other deleted", "d/ d/x=a", "d/", "", ""),
    Case("the permissions of a folder travel", "d/ d/x=a", "d/:700 d/x=a", "d/ d/x=a", "d/:700 d/x=a"),
    Case("those of both merge", "d/", "d/:700", "d/:775", "d/:720"),
    Case("they keep an emptied folder", "d/ d/x=a", "", "d/:700 d/x=a", "d/:700"),
    Case("new files of both sides", "d/", "d/ d/x=a", "d/ d/y=b", "d/ d/x=a d/y=b"),
    Case("a file renamed twice is there twice", "d/ d/x=a", "d/ d/y=a", "d/ d/z=a", "d/ d/y=a d/z=a"),
    Case("an edit in a folder", "d/ d/x=a", "d/", "d/ d/x=b", "d/ d/x=b", "d/x kept"),
    Case("an edit brings its folder back", "d/ d/x=a", "", "d/ d/x=b", "d/ d/x=b", "d/x kept"),
    Case("... as it was", "d/:700 d/x=a", "", "d/:700 d/x=b", "d/:700 d/x=b", "d/x kept"),
    Case("permissions do", "d/ d/x=a", "", "d/ d/x=a:755", "d/ d/x=a:755", "d/x kept"),
    Case("a new file does", "d/ d/x=a", "", "d/ d/x=a d/y=b", "d/ d/y=b"),
    Case("a new folder does", "d/ d/x=a", "", "d/ d/x=a d/y/", "d/ d/y/"),
    Case("a touch does not", "d/ d/x=a", "", "d/ d/x=a@200", ""),
    # A folder that became something else
    Case("a folder that became a file travels", "d/ d/x=a", "d=b", "d/ d/x=a", "d=b"),
    Case("... and is a deleted one elsewhere", "d/ d/x=a", "d=b", "", "d=b", "d kept"),
    Case("... an emptied one", "d/ d/x=a", "d=b", "d/", "d=b"),
    Case("... one edited below", "d/ d/x=a", "d=b", "d/ d/x=c", "d/ d/x=c ~d=b", "d set-aside, d/x kept"),
    Case("... with a new file", "d/ d/x=a", "d=b", "d/ d/x=a d/y=c", "d/ d/y=c ~d=b", "d set-aside"),
    Case("... with new permissions", "d/ d/x=a", "d=b", "d/:700 d/x=a", "d/:700 ~d=b", "d set-aside"),
    Case("... the same file", "d/ d/x=a", "d=b", "d=b", "d=b"),
    Case("... another file", "d/ d/x=a", "d=b", "d=c", "d=c ~d=b", "d set-aside"),
    Case("... a symlink", "d/ d/x=a", "d=b", "d>c", "d>c ~d=b", "d set-aside"),
    Case("a folder that became a symlink travels", "d/ d/x=a", "d>b", "d/ d/x=a", "d>b"),
    Case("... deleted", "d/ d/x=a", "d>b", "", "d>b", "d kept"),
    Case("... edited", "d/ d/x=a", "d>b", "d/ d/x=c", "d/ d/x=c ~d>b", "d set-aside, d/x kept"),
    # Deep down
    Case("a new file brings three folders back", DEEP, "", f"{DEEP} a/b/c/y=b", "a/ a/b/ a/b/c/ a/b/c/y=b"),
    Case("only those that it needs", DEEP, "", f"{DEEP} a/y=b", "a/ a/y=b"),
    Case("two needs at two depths", DEEP, "", f"{DEEP} a/y=b a/b/y=b", "a/ a/b/ a/y=b a/b/y=b"),
    Case(
        "an edit deep below a file",
        *(DEEP, "a=c", "a/ a/b/ a/b/c/ a/b/c/x=b", "a/ a/b/ a/b/c/ a/b/c/x=b ~a=c"),
        conflicts="a set-aside, a/b/c/x kept",
    ),
    Case(
        "a new file below a file half-way",
        *(DEEP, "a/ a/b=c", f"{DEEP} a/b/c/y=b", "a/ a/b/ a/b/c/ a/b/c/y=b ~a/b=c"),
        conflicts="a/b set-aside",
    ),
    Case(
        "files at two depths",
        *(DEEP, "a=b", "a/ a/b=c", "a/ a/b=c ~a=b"),
        conflicts="a set-aside, a/b kept",
    ),
    # Texts
    Case("texts merge", "f=1,2,3,4", "f=9,2,3,4", "f=1,2,3,8", "f=9,2,3,8", "f merged"),
    Case("so do permissions", "f=1,2,3,4", "f=9,2,3,4:755", "f=1,2,3,8:600", "f=9,2,3,8:711", "f merged"),
    Case("... the later time", "f=1,2", "f=9,1,2@5^3", "f=1,2,8@70", "f=9,1,2,8@70", "f merged"),
    Case("one edit contains the other", "f=1,2,3,4", "f=9,2,3,8", "f=9,2,3,4", "f=9,2,3,8", "f merged"),
    Case(
        "texts that do not merge",
        *("f=1,2,3,4", "f=9,2,3,4", "f=8,2,3,4", "f=9,2,3,4 ~f=8,2,3,4"),
        conflicts="f set-aside",
    ),
    # The winner
    Case("more edits win", "f=a", "f=b^3", "f=c", "f=b ~f=c", "f set-aside"),
    Case("a later time wins", "f=a", "f=b@300", "f=c@299", "f=b@300 ~f=c@299", "f set-aside"),
    Case("edits count before times", "f=a", "f=b@1^3", "f=c@9^2", "f=b@1 ~f=c@9", "f set-aside"),
]

UNRELATED = [
    Case("new on one side", "", "f=a", "", "f=a"),
    Case("new and the same", "", "f=a", "f=a", "f=a"),
    Case("new, the same, at two times", "", "f=a", "f=a@200", "f=a@200"),
    Case("new, the same, with other permissions", "", "f=a:644", "f=a:600", "f=a:644"),
    Case("new and not the same", "", "f=a", "f=b", "f=b ~f=a", "f set-aside"),
    Case("new texts that are alike do not merge", "", "f=1,2", "f=1,2,3", "f=1,2,3 ~f=1,2", "f set-aside"),
    Case("a name with an extension", "", "r.txt=a", "r.txt=b", "r.txt=b ~r.txt=a", "r.txt set-aside"),
    Case("a file and a folder", "", "f=a", "f/", "f/ ~f=a", "f set-aside"),
    Case("a file and a full folder", "", "f=a", "f/ f/x=a", "f/ f/x=a ~f=a", "f set-aside"),
    Case("a file and a symlink", "", "f=a", "f>b", "f>b ~f=a", "f set-aside"),
    Case("a symlink and a folder", "", "f>a", "f/", "f/ ~f>a", "f set-aside"),
    Case("two symlinks", "", "f>a", "f>b", "f>b ~f>a", "f set-aside"),
    Case("two folders", "", "f/:700", "f/:755", "f/:755"),
    Case("two full folders", "", "f/ f/x=a f/z=a", "f/ f/y=b f/z=a", "f/ f/x=a f/y=b f/z=a"),
]

FORGOTTEN = [
    Case("two edits", "f=a", "f=b", "f=c", "f=c ~f=b", "f set-aside"),
    Case("an edit and a deletion", "f=a", "f=b", "", "f=b", "f kept"),
    Case("an edit and permissions", "f=a", "f=b", "f=a:755", "f=b ~f=a:755", "f set-aside"),
    Case("the same edit and other permissions", "f=a", "f=b:600", "f=b", "f=b"),
    Case("permissions twice", "f=a", "f=a:600", "f=a:755", "f=a:755"),
    Case("a touch and an edit", "f=a", "f=a@200", "f=b", "f=b"),
    Case("a folder and a file", "d/ d/x=a", "d=b", "d/ d/x=c", "d/ d/x=c ~d=b", "d set-aside, d/x kept"),
    Case("the permissions of a folder", "d/", "d/:700", "d/:775", "d/:775"),
    Case(
        "texts",
        *("f=1,2,3,4", "f=9,2,3,4", "f=1,2,3,8", "f=9,2,3,4 ~f=1,2,3,8"),
        conflicts="f set-aside",
    ),
]

TABLE = [
    pytest.param(case, remembered, order, id=f"{case.what}{where}-{order}")
    for cases, remembered, where in (
        (CASES, True, ""),
        (UNRELATED, True, ", no base"),
        (FORGOTTEN, False, ", base forgotten"),
    )
    for case in cases
    for order in ("one way", "the other way")
]


def history(case: Case, remembered: bool = True) -> Facts:
    base = scanned({}, tree(case.base), BEFORE)
    ours, theirs = scanned(base, tree(case.ours), ON_ONE), scanned(base, tree(case.theirs), ON_OTHER)
    return facts_of(ours, theirs, base if remembered else {})


def told(plan: Plan) -> str:
    return ", ".join(f"{c.path.decode()} {c.resolution}" for c in sorted(plan.conflicts))


@pytest.mark.parametrize(("case", "remembered", "order"), TABLE)
def test_both_sides_become(case: Case, remembered: bool, order: str) -> None:
    facts = history(case, remembered)
    if order != "one way":
        facts = swapped(facts)
    plan = settle(facts)
    after = carry_out(facts, plan)
    assert shown(side(after, 0)) == shown(tree(case.expected))
    assert side(after, 0) == side(after, 1)
    assert told(plan) == case.conflicts
    assert {c.copy for c in plan.conflicts} - {None} == tree(case.expected).keys() & copies(plan)


def copies(plan: Plan) -> set[bytes]:
    return {copy for transition in (*plan.ours, *plan.theirs) for copy in transition.after}


# -- who wins


def pair_of(ours: Entry, theirs: Entry, *bases: Entry) -> Facts:
    return Facts({b"f": Pair(ours, theirs)}, {b"f": Remembered(bases)})


def leaf(token: str, version: dict[ReplicaId, int], revision: int = 1) -> Entry:
    _, entry = _item(token)
    return replace(entry, version=Version(version), revision=revision)


def outcome(facts: Facts, prefer: Prefer = Prefer.BOTH) -> Tree:
    return shown(side(carry_out(facts, settle(facts, prefer)), 0))


def test_equal_revisions_and_times_are_settled_by_the_digest() -> None:
    one, other = leaf("f=b@7", {ONE: 2}), leaf("f=c@7", {OTHER: 2})
    winner = max(one, other, key=lambda entry: entry.digest)
    for facts in (pair_of(one, other), pair_of(other, one)):
        assert outcome(facts)[b"f"].digest == winner.digest


def test_equal_versions_with_unlike_contents_are_a_conflict() -> None:
    facts = pair_of(leaf("f=b", {ONE: 2}), leaf("f=c", {ONE: 2}))
    plan = settle(facts)
    assert told(plan) == "f set-aside"
    assert shown(side(carry_out(facts, plan), 1)) == shown(tree("f=c ~f=b"))


def test_equal_versions_with_unlike_permissions_get_a_new_version() -> None:
    facts = pair_of(leaf("f=b:600", {ONE: 2}), leaf("f=b:755", {ONE: 2}))
    plan = settle(facts)
    assert plan.decided
    assert not plan.conflicts
    assert side(carry_out(facts, plan), 0)[b"f"].version == Version({ONE: 3})


def test_a_version_that_has_seen_the_other_wins_whatever_its_revision_and_time() -> None:
    seen_both = leaf("f=a@1", {ONE: 2, OTHER: 2}, revision=1)
    for facts in (
        pair_of(seen_both, leaf("f=z@900", {OTHER: 2}, revision=9)),
        pair_of(leaf("f=z@900", {OTHER: 2}, revision=9), seen_both),
    ):
        plan = settle(facts)
        assert side(carry_out(facts, plan), 0) == side(carry_out(facts, plan), 1) == {b"f": seen_both}
        assert not plan.decided


def test_a_decision_has_seen_both_sides_and_is_the_next_revision() -> None:
    facts = pair_of(leaf("f=b", {ONE: 2}, 4), leaf("f=c", {OTHER: 2}, 7))
    plan = settle(facts)
    final = side(carry_out(facts, plan), 0)[b"f"]
    assert final.version == Version({ONE: DECISION.tick, OTHER: 2})
    assert final.revision == 8
    assert plan.decided


def test_equal_contents_are_joined_without_a_decision() -> None:
    facts = pair_of(leaf("f=b", {ONE: 2}, 4), leaf("f=b@200", {OTHER: 2}, 7))
    plan = settle(facts)
    final = side(carry_out(facts, plan), 0)[b"f"]
    assert final == leaf("f=b@200", {ONE: 2, OTHER: 2}, 7)
    assert not plan.decided


# -- what is preferred

PREFERRED = [
    ("f=b", "f=c", Prefer.NEWEST, "f=c", "f displaced"),
    ("f=b^9", "f=c", Prefer.NEWEST, "f=c", "f displaced"),
    ("f=b", "f=c", Prefer.LOCAL, "f=b", "f displaced"),
    ("f=b", "f=c", Prefer.PEER, "f=c", "f displaced"),
    ("f=c", "f=b", Prefer.PEER, "f=b", "f displaced"),
    ("f=b", "", Prefer.PEER, "f=b", "f kept"),
    ("", "f=b", Prefer.LOCAL, "f=b", "f kept"),
    ("f=b", "f/", Prefer.LOCAL, "f/ ~f=b", "f set-aside"),
    ("f=b", "f/ f/x=b", Prefer.NEWEST, "f/ f/x=b ~f=b", "f set-aside"),
    ("f=b", "f=a:755", Prefer.PEER, "f=b:755", ""),
    ("f=a", "f=b", Prefer.LOCAL, "f=b", ""),
    ("f=9,2,3,4", "f=1,2,3,8", Prefer.LOCAL, "f=9,2,3,8", "f merged"),
]


@pytest.mark.parametrize(("ours", "theirs", "prefer", "expected", "conflicts"), PREFERRED)
def test_a_preference_decides_only_what_does_not_merge(
    ours: str, theirs: str, prefer: Prefer, expected: str, conflicts: str
) -> None:
    base = "f=1,2,3,4" if "," in ours else "f=a"
    facts = history(Case("", base, ours, theirs, ""))
    plan = settle(facts, prefer)
    assert shown(side(carry_out(facts, plan), 0)) == shown(tree(expected))
    assert told(plan) == conflicts


SKIPPED = [
    ("two edits", "f=a g=a", "f=b g=b", "f=c g=a", "f", "g=b"),
    ("a file and a folder, with all below", "f=a", "f=b", "f/ f/x=c f/y/ f/y/z=c", "f f/x f/y f/y/z", ""),
    ("a file where a new file lives", "d/ d/x=a", "d=b", "d/ d/x=a d/y=c", "d d/x d/y", ""),
    ("only below, not beside", "d/ e=a", "d=b e=a", "d/ d/y=c da=c e=b", "d d/y", "da=c e=b"),
    ("a deletion is settled", "f=a", "", "f=b", "", "f=b"),
]


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "left", "settled"), [c[1:] for c in SKIPPED], ids=[c[0] for c in SKIPPED]
)
def test_skip_leaves_both_sides_of_a_conflict_as_they_are(
    base: str, ours: str, theirs: str, left: str, settled: str
) -> None:
    facts = history(Case("", base, ours, theirs, ""))
    plan = settle(facts, Prefer.SKIP)
    assert sorted(plan.left) == left.encode().split()
    for number, before in enumerate((ours, theirs)):
        after = shown(side(carry_out(facts, plan), number))
        assert {path: entry for path, entry in after.items() if path not in plan.left} == shown(tree(settled))
        assert {path: entry for path, entry in after.items() if path in plan.left} == {
            path: entry for path, entry in shown(tree(before)).items() if path in plan.left
        }
    skipped = {c.path for c in plan.conflicts if c.resolution is Resolution.SKIPPED}
    assert skipped == {path for path in plan.left if not set(ancestors(path)) & set(plan.left)}


# -- set aside


def test_what_displaces_a_loser_waits_for_its_copy() -> None:
    facts = history(Case("", "f=a", "f=b", "f=c", ""))
    plan = settle(facts)
    [copy] = copies(plan)
    assert {(t.path, t.after) for t in plan.ours} == {(b"f", (copy,)), (copy, ())}
    assert {t.path for t in plan.theirs} == {b"f", copy}


def contested(at_copy: Pair) -> tuple[Facts, bytes]:
    """Two edits, and something at the path of the loser's copy."""
    facts = history(Case("", "f=a", "f=b", "f=c", ""))
    loser = facts.pairs[b"f"].ours
    assert loser
    copy = first_copy(b"f", loser)
    facts.pairs[copy] = at_copy
    return facts, copy


def test_a_copy_that_is_there_already_is_made_no_second_time() -> None:
    there = leaf("f=b@5", {OTHER: 1})
    facts, copy = contested(Pair(None, there))
    plan = settle(facts)
    after = side(carry_out(facts, plan), 0)
    assert shown(after).keys() == {b"f", copy}
    assert after[copy] == there
    assert [c.copy for c in plan.conflicts] == [copy]


def test_a_copy_gets_another_name_where_the_first_is_taken() -> None:
    facts, copy = contested(Pair(leaf("f=z", {ONE: 1}), None))
    plan = settle(facts)
    after = shown(side(carry_out(facts, plan), 1))
    assert after[copy].digest == digest_of(b"z\n")
    [second] = after.keys() - {b"f", copy}
    assert after[second].digest == digest_of(b"b\n")
    assert [c.copy for c in plan.conflicts] == [second]
    assert second.startswith(copy)


def test_a_copy_gets_a_name_though_many_are_taken() -> None:
    facts, _ = contested(NOBODY)
    names = islice(conflict_names(b"f", ord("b"), digest_of(b"b\n")), 5)
    facts.pairs.update((name, Pair(leaf("f=z", {ONE: 1}), None)) for name in names)
    assert digest_of(b"b\n") in {entry.digest for entry in outcome(facts).values()}


@pytest.mark.parametrize("at_copy", [("l>z", None), ("d/", None), (None, "d/")])
def test_a_copy_replaces_nothing(at_copy: tuple[str | None, str | None]) -> None:
    facts, copy = contested(Pair(*(leaf(token, {ONE: 1}) if token else None for token in at_copy)))
    plan = settle(facts)
    assert copy not in copies(plan)
    assert outcome(facts)[copy].kind in (Kind.SYMLINK, Kind.DIRECTORY)
    assert digest_of(b"b\n") in {entry.digest for entry in outcome(facts).values()}


def test_a_copy_is_not_put_where_a_folder_has_to_go_first() -> None:
    gone = Entry(kind=Kind.TOMBSTONE, version=Version({ONE: 1, OTHER: 9}), revision=5)
    facts, copy = contested(Pair(leaf("d/", {ONE: 1}), gone))
    plan = settle(facts)
    assert copy not in copies(plan)
    assert outcome(facts).keys() == {b"f", *copies(plan)}
    for transitions in (plan.ours, plan.theirs):
        order = [transition.path for transition in in_order(transitions)]
        assert all(order.index(first) < order.index(b"f") for first in copies(plan) if b"f" in order)


def test_a_copy_that_was_deleted_before_is_made_again() -> None:
    gone = Entry(kind=Kind.TOMBSTONE, version=Version({OTHER: 9}), revision=5)
    facts, copy = contested(Pair(gone, None))
    after = side(carry_out(facts, settle(facts)), 0)
    assert after[copy].digest == digest_of(b"b\n")
    assert gone.version <= after[copy].version
    assert after[copy].revision == 6


def test_two_losers_at_one_path_are_both_set_aside() -> None:
    facts = Facts(
        {
            b"f": Pair(leaf("f=b", {ONE: 2}), leaf("f=c", {OTHER: 2})),
            b"f/x": Pair(leaf("f=z", {ONE: 2}), None),
        }
    )
    plan = settle(facts)
    assert shown(side(carry_out(facts, plan), 0)) == shown(tree("f/ f/x=z ~f=b ~f=c"))
    assert {transition.after for transition in plan.theirs if transition.path == b"f"} == {
        tuple(first_copy(b"f", leaf(token, {})) for token in ("f=b", "f=c"))
    }


def test_a_conflict_about_a_copy_and_about_its_original_make_one_copy() -> None:
    facts, copy = contested(Pair(leaf("f=b", {ONE: 2}), leaf("f=y@1", {OTHER: 2})))
    after = shown(side(carry_out(facts, settle(facts)), 0))
    assert after[copy].digest == digest_of(b"b\n")
    assert sorted(CONTENTS[entry.digest] for entry in after.values()) == [b"b\n", b"c\n", b"y\n"]


# -- bases


def test_the_newest_base_that_both_have_seen_counts() -> None:
    old, new = leaf("f=1,2,3,4", {PARENT: 1}, 1), leaf("f=1,2,3,8", {PARENT: 2}, 2)
    unseen = [leaf("f=x", ticks, 9) for ticks in ({PARENT: 9}, {PARENT: 2, ONE: 2}, {PARENT: 2, OTHER: 2})]
    ours, theirs = (leaf("f=9,2,3,8", {PARENT: 2, ONE: 2}, 3), leaf("f=1,2,7,8", {PARENT: 2, OTHER: 2}, 3))
    plan = reconcile(pair_of(ours, theirs, old, new, *unseen), DECISION)
    assert plan.questions.texts == {b"f": MergeQuestion(new.digest, ours.digest, theirs.digest)}


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_what_both_have_seen_deleted_is_no_base(first: str) -> None:
    """Who makes again what was deleted has not undone an edit, though the bytes are the old ones."""
    old, gone = (
        leaf("f=a", {PARENT: 1}, 1),
        Entry(kind=Kind.TOMBSTONE, version=Version({PARENT: 2}), revision=2),
    )
    again, new = leaf("f=a", {PARENT: 2, ONE: 3}, 3), leaf("f=b", {PARENT: 2, OTHER: 3}, 3)
    ours, theirs = (again, new) if first == "ours" else (new, again)
    plan = settle(pair_of(ours, theirs, old, gone))
    assert [conflict.resolution for conflict in plan.conflicts] == [Resolution.SET_ASIDE]


def test_bases_are_asked_for_only_where_they_can_help() -> None:
    asked = {
        ours: reconcile(pair_of(leaf(ours, {ONE: 2}), leaf("f=c", {OTHER: 2})), DECISION).questions.bases
        for ours in ("f/", "f=c")
    }
    assert asked == {"f/": set(), "f=c": set()}
    facts = Facts({b"f": Pair(leaf("f=b", {ONE: 2}), leaf("f=c", {OTHER: 2}))})
    assert reconcile(facts, DECISION).questions.bases == {b"f"}
    facts.bases[b"f"] = Remembered()
    assert reconcile(facts, DECISION).questions.bases == set()


LARGE = replace(leaf("f=a", {PARENT: 1}), size=MAX_TEXT + 1)


@pytest.mark.parametrize(
    ("base", "ours", "theirs"),
    [
        (None, leaf("f=b", {PARENT: 1, ONE: 2}), leaf("f=c", {PARENT: 1, OTHER: 2})),
        (LARGE, leaf("f=b", {PARENT: 1, ONE: 2}), leaf("f=c", {PARENT: 1, OTHER: 2})),
        (
            leaf("f=a", {PARENT: 1}),
            replace(leaf("f=b", {PARENT: 1, ONE: 2}), size=MAX_TEXT + 1),
            leaf("f=c", {PARENT: 1, OTHER: 2}),
        ),
        (leaf("f>a", {PARENT: 1}), leaf("f>b", {PARENT: 1, ONE: 2}), leaf("f>c", {PARENT: 1, OTHER: 2})),
        (leaf("f=a", {PARENT: 2}), leaf("f=b", {PARENT: 1, ONE: 2}), leaf("f=c", {PARENT: 1, OTHER: 2})),
        (leaf("f=a", {PARENT: 1}), leaf("f=b", {PARENT: 1, ONE: 2}), leaf("f>c", {PARENT: 1, OTHER: 2})),
    ],
    ids=["no base", "a large base", "a large side", "symlinks", "a base that none has seen", "two kinds"],
)
def test_what_cannot_be_texts_is_not_merged(base: Entry | None, ours: Entry, theirs: Entry) -> None:
    facts = pair_of(ours, theirs, *([base] if base else []))
    assert not reconcile(facts, DECISION).questions.texts
    assert told(settle(facts)) == "f set-aside"


def test_texts_of_the_largest_size_are_merged() -> None:
    sides = [
        replace(leaf(f"f={text}", {PARENT: 1, who: 2}), size=MAX_TEXT)
        for text, who in (("b", ONE), ("c", OTHER))
    ]
    facts = pair_of(sides[0], sides[1], leaf("f=a", {PARENT: 1}))
    assert reconcile(facts, DECISION).questions.texts


def test_the_path_of_a_copy_is_asked_about() -> None:
    facts = history(Case("", "f=a", "f=b", "f=c", ""))
    facts.texts[b"f"] = None
    plan = reconcile(facts, DECISION)
    assert plan.questions.pairs == {c.copy for c in plan.conflicts}
    assert len(plan.questions.pairs) == 1


# -- any two replicas

PATHS = [b"a", b"a/x", b"a/x/p", b"a/y"]
DISPUTED = b"b"
COMMON = Version({PARENT: 1})
VERSIONS = [COMMON, *(COMMON | Version(ticks) for ticks in ({ONE: 2}, {OTHER: 2}, {ONE: 1, OTHER: 3}))]
TOKENS = ("f=1,2,3", "f=9,2,3", "f=1,2,8", "f=1,7,3", "f=5,5", "f=1,2,8:755", "f>1", "f>2")
LEAVES = [_item(token)[1] for token in TOKENS]
GONE = Entry(kind=Kind.TOMBSTONE)
DIRECTORIES = [Entry(kind=Kind.DIRECTORY, mode=mode) for mode in (0o700, 0o755)]


def versions_of(entries: list[Entry], versions: list[Version] = VERSIONS) -> list[Entry]:
    return [
        replace(entry, version=version, revision=revision, mtime_ns=mtime_ns if entry.alive else 0)
        for entry in entries
        for version in versions
        for revision in (1, 2)
        for mtime_ns in (0, 1)
    ]


NEVER: list[Entry | None] = [None]
HOMELESS = st.sampled_from(NEVER + versions_of([GONE]))
FOLDER = st.sampled_from(NEVER + versions_of([GONE, *DIRECTORIES * 3, *LEAVES]))
LEAF = st.sampled_from(NEVER + versions_of([GONE, *LEAVES, DIRECTORIES[0]]))
BASES = st.sampled_from([[], *([entry] for entry in versions_of(LEAVES, [COMMON]))])


@st.composite
def trees(draw: st.DrawFn, editor: ReplicaId) -> Tree:
    """What one side may know: nothing lives but in folders that live. `DISPUTED` both have edited."""
    entries: Tree = {}
    for path in PATHS:
        parents = [entries.get(parent, GONE) for parent in ancestors(path)]
        homeless = any(parent.kind is not Kind.DIRECTORY for parent in parents)
        entry = draw(HOMELESS if homeless else FOLDER if path in (b"a", b"a/x") else LEAF)
        if entry is not None:
            entries[path] = entry
    edited = COMMON | Version({editor: 2})
    return entries | {DISPUTED: draw(st.sampled_from(versions_of(LEAVES, [edited])))}


@st.composite
def worlds(draw: st.DrawFn) -> Facts:
    """All that two sides may know, whether or not the rules could have brought them there."""
    facts = facts_of(draw(trees(ONE)), draw(trees(OTHER)), {})
    for _ in range(ROUNDS):
        questions = reconcile(facts, DECISION).questions
        for path in sorted(questions.bases):
            facts.bases[path] = Remembered(draw(BASES), draw(BASES))
        for path, question in questions.texts.items():
            merged = b"".join(sorted(question[1:])) if draw(st.booleans()) else None
            facts.texts[path] = None if merged is None else Text(digest_of(merged), len(merged))
        for copy in sorted(questions.pairs):
            facts.pairs[copy] = Pair(draw(LEAF), draw(LEAF)) if draw(st.booleans()) else NOBODY
    return facts


ANY_WORLD = given(facts=worlds(), prefer=st.sampled_from([Prefer.BOTH, Prefer.NEWEST, Prefer.SKIP]))
THOROUGH = settings(max_examples=250)


@ANY_WORLD
@THOROUGH
def test_either_way_round_the_plan_is_the_same(facts: Facts, prefer: Prefer) -> None:
    plan, mirrored = settle(facts, prefer), settle(swapped(facts), prefer)
    assert (plan.ours, plan.theirs) == (mirrored.theirs, mirrored.ours)
    assert (plan.conflicts, sorted(plan.left)) == (mirrored.conflicts, sorted(mirrored.left))
    assert plan.decided == mirrored.decided


@given(facts=worlds(), prefer=st.sampled_from(Prefer), data=st.data())
@THOROUGH
def test_the_order_of_the_facts_does_not_matter(facts: Facts, prefer: Prefer, data: st.DataObject) -> None:
    plan = settle(facts, prefer)
    order = data.draw(st.permutations(list(facts.pairs)))
    shuffled = Facts({path: facts.pairs[path] for path in order}, facts.bases, facts.texts)
    assert settle(shuffled, prefer) == plan


@given(facts=worlds(), prefer=st.sampled_from(Prefer))
@THOROUGH
def test_afterwards_there_is_nothing_left_to_do(facts: Facts, prefer: Prefer) -> None:
    plan = settle(facts, prefer)
    after = carry_out(facts, plan)
    again = settle(after, prefer)
    assert not again.ours
    assert not again.theirs
    assert not again.decided
    assert sorted(again.left) == sorted(plan.left)


@given(facts=worlds(), prefer=st.sampled_from(Prefer))
@THOROUGH
def test_both_sides_are_equal_but_for_what_is_left(facts: Facts, prefer: Prefer) -> None:
    plan = settle(facts, prefer)
    after = carry_out(facts, plan)
    assert all(pair.ours == pair.theirs for path, pair in after.pairs.items() if path not in plan.left)
    assert not plan.left or prefer is Prefer.SKIP


@given(facts=worlds(), prefer=st.sampled_from(Prefer))
@THOROUGH
def test_what_lives_lives_in_folders(facts: Facts, prefer: Prefer) -> None:
    plan = settle(facts, prefer)
    for number in (0, 1):
        after = side(carry_out(facts, plan), number)
        for path in after:
            if after[path].alive and path not in plan.left:
                assert all(after[parent].kind is Kind.DIRECTORY for parent in ancestors(path)), path


@given(facts=worlds())
@settings(max_examples=500)
def test_no_version_that_loses_a_conflict_is_lost(facts: Facts) -> None:
    plan = settle(facts)
    after = side(carry_out(facts, plan), 0)
    merged = {c.path for c in plan.conflicts if c.resolution is Resolution.MERGED}
    for path, pair in facts.pairs.items():
        for entry, other in (pair, pair[::-1]):
            if entry is None or entry.kind not in (Kind.FILE, Kind.SYMLINK):
                continue
            superseded = other is not None and entry.version <= other.version != entry.version
            unedited = any(
                entry.same_bytes(base) and other and base.version <= other.version
                for base in itertools.chain(*facts.bases.get(path, ()))
            )
            assert (
                superseded
                or unedited
                or path in merged
                or any(entry.same_bytes(kept) for kept in after.values())
            ), path


@given(facts=worlds(), prefer=st.sampled_from(Prefer))
@THOROUGH
def test_a_new_state_is_a_new_version_that_has_seen_all_before(facts: Facts, prefer: Prefer) -> None:
    plan = settle(facts, prefer)
    transitions = [*plan.ours, *plan.theirs]
    for transition in transitions:
        wanted = transition.wanted
        for known in filter(None, facts.pairs[transition.path]):
            assert known.version <= wanted.version
            assert known.version != wanted.version or known.same_content(wanted)
    assert plan.decided == any(DECISION in t.wanted.version for t in transitions)


# -- conflicts that nobody has tidied up

COPY = first_copy(b"f", leaf("f=a", {OTHER: 1}))


@pytest.mark.parametrize("ours_is_newer", [True, False])
@pytest.mark.parametrize("lost_here", [True, False])
def test_only_who_lost_is_taken_to_save_over_the_winner_unaware(ours_is_newer: bool, lost_here: bool) -> None:
    winner, newer = leaf("f=b", {ONE: 1, OTHER: 1}), leaf("f=c", {ONE: 1, OTHER: 2})
    ours, theirs = (newer, winner) if ours_is_newer else (winner, newer)
    facts = pair_of(ours, theirs)
    facts.contests = {b"f": Contest(winner.version, lost_here, COPY)}
    final = outcome(facts)
    assert len(final) == (2 if ours_is_newer == lost_here else 1)
    assert final[b"f"].same_bytes(newer)
    plan = settle(facts)
    told = {(conflict.path, conflict.resolution) for conflict in plan.conflicts}
    steps = {(step.path, step.resolution) for step in plan.ours + plan.theirs if step.resolution}
    assert told == steps <= {(b"f", Resolution.OVERTAKEN)}
    assert all(conflict.open for conflict in plan.conflicts)


@pytest.mark.parametrize("lost_here", [True, False])
@pytest.mark.parametrize("losers", [{ONE}, {PARENT, None}, ()], ids=["the maker", "others", "not known"])
def test_who_was_no_party_to_a_conflict_has_seen_the_winner(
    lost_here: bool, losers: Collection[ReplicaId | None]
) -> None:
    winner, newer = leaf("f=b", {ONE: 1, OTHER: 1}), leaf("f=c", {ONE: 3, OTHER: 2})
    facts = pair_of(newer, winner) if lost_here else pair_of(winner, newer)
    facts.contests = {b"f": Contest(winner.version, lost_here, COPY, losers)}
    assert len(outcome(facts)) == (1 if PARENT in losers else 2)


@pytest.mark.parametrize("lost_here", [True, False])
@pytest.mark.parametrize("by_newer", [True, False])
def test_who_removed_the_conflict_copy_has_seen_the_winner_though_the_other_has_it_still(
    lost_here: bool, by_newer: bool
) -> None:
    winner, newer = leaf("f=b", {ONE: 1, OTHER: 1}), leaf("f=c", {ONE: 3, OTHER: 1})
    gone = Entry(kind=Kind.TOMBSTONE, version=Version({OTHER: 1, ONE: 2}))
    copy = leaf("f=a", {OTHER: 1})
    facts = Facts({b"f": Pair(newer, winner), COPY: Pair(gone, copy) if by_newer else Pair(copy, gone)})
    facts = facts if lost_here else swapped(facts)
    facts.contests = {b"f": Contest(winner.version, lost_here, COPY)}
    assert len(outcome(facts)) == (1 if by_newer else 2)


@pytest.mark.parametrize("turn", [lambda facts: facts, swapped], ids=["ours", "theirs"])
@pytest.mark.parametrize("final", ["f=b", "", "f/"])
def test_what_a_decision_made_elsewhere_displaces_goes_after_its_conflict_copy_is_there(
    turn: Callable[[Facts], Facts], final: str
) -> None:
    lost, seen = leaf("f=a", {OTHER: 1}), {OTHER: 1, ONE: 1}
    won = leaf(final, seen) if final else Entry(kind=Kind.TOMBSTONE, version=Version(seen))
    plan = settle(turn(Facts({b"f": Pair(lost, won), COPY: Pair(None, leaf("f=a", seen))})))
    after = {step.path: step.after for step in (*plan.ours, *plan.theirs)}
    assert after == {b"f": (COPY,), COPY: ()}


@pytest.mark.parametrize("lost_here", [True, False])
def test_a_folder_that_won_and_is_replaced_is_not_set_aside_as_an_empty_one(lost_here: bool) -> None:
    winner, newer = leaf("f/", {ONE: 1, OTHER: 1}), leaf("f=c", {ONE: 1, OTHER: 2})
    facts = pair_of(newer, winner) if lost_here else pair_of(winner, newer)
    facts.contests = {b"f": Contest(winner.version, lost_here, COPY)}
    assert outcome(facts).keys() == {b"f"}
    assert settle(facts).conflicts == []


def test_a_winner_that_was_edited_since_is_no_winner_any_more() -> None:
    facts = pair_of(leaf("f=c", {ONE: 2, OTHER: 1}), leaf("f=b", {ONE: 1, OTHER: 1}))
    facts.contests = {b"f": Contest(Version({ONE: 1}), True, COPY)}
    assert len(outcome(facts)) == 1


@pytest.mark.parametrize("by_us", [True, False])
@pytest.mark.parametrize(
    ("newer", "left"), [("", ""), ("f=b:755", "f=b:755")], ids=["deletion", "permissions"]
)
def test_who_lost_sets_nothing_aside_unless_he_saves_other_contents(
    newer: str, left: str, by_us: bool
) -> None:
    winner = leaf("f=b", {ONE: 1, OTHER: 1})
    seen = {ONE: 1, OTHER: 2}
    change = leaf(newer, seen) if newer else Entry(kind=Kind.TOMBSTONE, version=Version(seen))
    facts = pair_of(change, winner) if by_us else pair_of(winner, change)
    facts.contests = {b"f": Contest(winner.version, by_us, COPY)}
    assert outcome(facts) == shown(tree(left))


# -- a manifest made anew


UNKNOWN = pytest.mark.parametrize("found", [{OTHER: 5}, {}], ids=["marked", "empty"])
"""The version of what has no past, of this release and of older ones."""
EITHER_WAY = pytest.mark.parametrize("turn", [lambda facts: facts, swapped], ids=["here", "there"])


def both(
    ours: Entry, theirs: Entry, before: Sequence[Entry] = (), theirs_before: Sequence[Entry] = ()
) -> Facts:
    return Facts({b"f": Pair(ours, theirs)}, {b"f": Remembered(before, theirs_before)})


@UNKNOWN
@EITHER_WAY
@pytest.mark.parametrize(
    ("base", "is_conflict"),
    [
        (leaf("f=a", {PARENT: 1}), False),
        (leaf("f=z", {PARENT: 1}), True),
        (leaf("f=a", {PARENT: 1, OTHER: 1}), True),
        (leaf("f=a", {PARENT: 7}, 0), False),
    ],
    ids=["had before", "other contents", "of another past", "had before, of no known past either"],
)
def test_without_a_past_only_what_the_known_version_has_seen_is_an_old_version(
    base: Entry, is_conflict: bool, found: dict[ReplicaId, int], turn: Callable[[Facts], Facts]
) -> None:
    unknown, known = leaf("f=a", found, 0), leaf("f=b", {PARENT: 1, ONE: 2})
    assert told(settle(turn(both(unknown, known, (), [base])))) == ("f set-aside" if is_conflict else "")


@UNKNOWN
@EITHER_WAY
def test_what_only_the_side_without_a_past_remembers_is_no_old_version_of_the_other(
    found: dict[ReplicaId, int], turn: Callable[[Facts], Facts]
) -> None:
    unknown, known = leaf("f=a", found, 0), leaf("f=b", {PARENT: 1, ONE: 2})
    assert told(settle(turn(both(unknown, known, [unknown])))) == "f set-aside"


@UNKNOWN
@EITHER_WAY
def test_an_edit_whose_past_was_lost_is_no_base_for_who_never_had_it(
    found: dict[ReplicaId, int], turn: Callable[[Facts], Facts]
) -> None:
    edit, decided = leaf("f=b", found, 0), leaf("f=b", {**found, ONE: 7})
    old = leaf("f=a", {PARENT: 1})
    assert outcome(turn(both(decided, old, [edit]))) == shown(tree("f=b ~f=a"))


@UNKNOWN
@EITHER_WAY
@pytest.mark.parametrize("now", ["f=1,2,3,4", "f=1,2,3,8"])
def test_contents_that_both_have_or_had_are_a_base_though_one_has_lost_its_past(
    now: str, found: dict[ReplicaId, int], turn: Callable[[Facts], Facts]
) -> None:
    base, edited = leaf("f=1,2,3,4", found, 0), leaf("f=9,2,3,4@99", {**found, ONE: 7})
    there = leaf("f=1,2,3,4", {PARENT: 1})
    before = [] if now == "f=1,2,3,4" else [there]
    other = there if not before else leaf(now, {PARENT: 2})
    (final,) = outcome(turn(both(edited, other, [base], before))).values()
    assert CONTENTS[final.digest] == b"9\n2\n3\n" + now[-1:].encode() + b"\n"


@UNKNOWN
def test_what_has_no_past_takes_on_that_of_the_same_contents(found: dict[ReplicaId, int]) -> None:
    unknown, known = leaf("f=a", found, 0), leaf("f=a", {PARENT: 1}, 4)
    plan = settle(both(unknown, known))
    assert ([step.wanted for step in plan.ours], plan.theirs) == ([known], [])


# -- a mirror


@pytest.mark.parametrize(("ours", "theirs"), [("f=b@5", "f=b@200"), ("f=b@200", "f=b@5")])
def test_a_mirror_has_our_times_whichever_is_later(ours: str, theirs: str) -> None:
    plan = reconcile(pair_of(leaf(ours, {ONE: 2}), leaf(theirs, {OTHER: 2})), DECISION, mirror=True)
    assert [step.wanted for step in plan.theirs] == [leaf(ours, {ONE: 2, OTHER: 2})]
    assert {step.wanted.mtime_ns for step in plan.ours} == {leaf(ours, {}).mtime_ns}


# -- what a run that died has left

EARLIER, LATER, ELSEWHERE = (_item(token)[1] for token in ("f=1,2,3", "f=9,2,3", "f=1,2,8"))
MARKED = [COMMON | Version({ONE: tick}) for tick in (2, 3)]
FOUND = replace(EARLIER, version=COMMON | Version({OTHER: 2}), revision=9)
"""One side's earlier contents, found on the other under a mark of its own."""


@pytest.mark.parametrize("turn", [lambda facts: facts, swapped], ids=["ours", "theirs"])
def test_an_earlier_version_that_the_other_side_took_for_an_edit_is_no_conflict(
    turn: Callable[[Facts], Facts],
) -> None:
    past = [replace(ELSEWHERE, version=COMMON), replace(EARLIER, version=MARKED[0])]
    present = replace(LATER, version=MARKED[1], revision=3)
    plan = settle(turn(Facts({b"f": Pair(present, FOUND)}, {b"f": Remembered(past)})))
    assert plan.conflicts == []
    assert plan.decided
    for (step,) in (plan.ours, plan.theirs):
        assert step.wanted.same_content(present)
        assert present.version <= step.wanted.version
        assert FOUND.version <= step.wanted.version


def test_contents_that_only_the_same_side_had_before_are_an_edit() -> None:
    past = [replace(EARLIER, version=COMMON | Version({OTHER: 1}))]
    plan = settle(Facts({b"f": Pair(replace(LATER, version=MARKED[1]), FOUND)}, {b"f": Remembered((), past)}))
    assert [conflict.path for conflict in plan.conflicts] == [b"f"]
