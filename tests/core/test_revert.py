"""Revert: what was is put back as new versions, and what came since is not touched."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.core.model import Digest, Entry, Kind, Problem, Transition
from p2psync.core.paths import ancestors, split
from p2psync.core.revert import (
    CHANGED,
    HOLDS_MORE,
    NO_FOLDER,
    NO_WAY,
    Changed,
    Present,
    Reverted,
    revert,
)
from p2psync.core.vector import NOTHING, ReplicaId, Stamp

HERE, THERE = ReplicaId(1), ReplicaId(2)
STAMP = Stamp(HERE, 1_700_000_000_000_000)
SEEN = NOTHING.bump(Stamp(THERE, 5))


def file(letter: str, mode: int = 0o644, mtime_ns: int = 1) -> Entry:
    return Entry(
        kind=Kind.FILE,
        digest=Digest(letter.encode() * 16),
        size=1,
        mode=mode,
        mtime_ns=mtime_ns,
        version=SEEN,
        revision=3,
    )


A, B, C = map(file, "abc")
LINK = Entry(kind=Kind.SYMLINK, digest=Digest(b"l" * 16), target=b"t", version=SEEN)
FOLDER = Entry(kind=Kind.DIRECTORY, mode=0o755, version=SEEN)
PRIVATE = Entry(kind=Kind.DIRECTORY, mode=0o700, version=SEEN, mtime_ns=7)
GONE = Entry(kind=Kind.TOMBSTONE, version=SEEN, revision=4)

State = Mapping[bytes, Entry]
"""All that a manifest holds; what is not in it never was."""


def revert_all(
    changes: list[Changed], now: State, former: State | None = None, force: bool = False
) -> Reverted:
    """Revert on a replica whose manifest holds `now`."""
    children = {
        path: [child for child in now if split(child)[0] == path and now[child].alive]
        for path in now
        if now[path].kind is Kind.DIRECTORY
    }
    places = {place for change in changes for place in (change.path, *ancestors(change.path))}
    present = Present({place: now.get(place) for place in places}, children, former or {})
    return revert(changes, present, STAMP, force)


def contents(steps: list[Transition]) -> dict[bytes, tuple[object, ...]]:
    return {step.path: content(step.wanted) for step in steps}


def content(entry: Entry | None) -> tuple[object, ...]:
    """What a version holds, whoever made it."""
    if entry is None or not entry.alive:
        return ()
    return (entry.kind, entry.digest, entry.size, entry.mode, entry.target)


# -- one path


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, A),
        (GONE, A),
        (A, GONE),
        (A, B),
        (A, file("a", 0o600)),
        (A, LINK),
        (LINK, A),
        (None, FOLDER),
        (FOLDER, GONE),
        (FOLDER, PRIVATE),
        (FOLDER, A),
        (A, FOLDER),
        (LINK, FOLDER),
    ],
)
def test_what_was_done_to_a_path_is_taken_back(before: Entry | None, after: Entry, force: bool) -> None:
    (step,), left = revert_all([Changed(b"p", before, after)], {b"p": after}, force=force)
    assert left == []
    assert (step.path, step.expected, content(step.wanted)) == (b"p", after, content(before))


def test_what_comes_back_is_a_new_version_that_follows_the_present_one() -> None:
    now = file("b", mtime_ns=9)
    (step,), _ = revert_all([Changed(b"p", file("a", mtime_ns=4), now)], {b"p": now})
    assert step.wanted.version == SEEN.bump(STAMP)
    assert now.version <= step.wanted.version
    assert step.wanted.revision == now.revision + 1
    assert step.wanted.mtime_ns == 4


def test_a_deletion_that_takes_back_a_creation_is_a_new_version_too() -> None:
    (step,), _ = revert_all([Changed(b"p", None, A)], {b"p": A})
    assert (step.wanted.kind, step.wanted.version) == (Kind.TOMBSTONE, SEEN.bump(STAMP))


@pytest.mark.parametrize(
    ("before", "after", "now"),
    [
        (A, B, A),
        (A, B, file("a", mtime_ns=99)),
        (None, A, GONE),
        (A, file("a", mtime_ns=99), file("a", mtime_ns=99)),
        (None, GONE, GONE),
        (A, A, C),
    ],
    ids=["back already", "back but for its time", "gone already", "touched", "never there", "joined, edited"],
)
def test_where_there_is_nothing_to_take_back_nothing_is_done_or_said(
    before: Entry | None, after: Entry, now: Entry
) -> None:
    assert revert_all([Changed(b"p", before, after)], {b"p": now}) == ([], [])


@pytest.mark.parametrize(
    ("before", "after", "now"),
    [
        (A, B, C),
        (A, B, GONE),
        (A, B, LINK),
        (A, GONE, C),
        (None, A, C),
        (A, B, file("b", 0o600)),
        (A, B, FOLDER),
    ],
)
def test_a_path_that_was_changed_since_is_left_alone(before: Entry | None, after: Entry, now: Entry) -> None:
    assert revert_all([Changed(b"p", before, after)], {b"p": now}) == ([], [Problem(b"p", CHANGED)])


@pytest.mark.parametrize("now", [C, LINK, GONE, file("b", 0o600), FOLDER])
def test_with_force_it_comes_back_whatever_has_become_of_it(now: Entry) -> None:
    (step,), left = revert_all([Changed(b"p", A, B)], {b"p": now}, force=True)
    assert (content(step.wanted), left) == (content(A), [])


def test_with_force_also_what_a_run_only_touched_comes_back() -> None:
    (step,), _ = revert_all([Changed(b"p", A, A)], {b"p": C}, force=True)
    assert content(step.wanted) == content(A)


# -- folders


def test_a_new_folder_goes_with_all_that_came_in_it() -> None:
    changes = [
        Changed(path, None, entry) for path, entry in ((b"d", FOLDER), (b"d/e", FOLDER), (b"d/e/f", A))
    ]
    steps, left = revert_all(changes, {b"d": FOLDER, b"d/e": FOLDER, b"d/e/f": A})
    assert (contents(steps), left) == ({b"d": (), b"d/e": (), b"d/e/f": ()}, [])


@pytest.mark.parametrize("new", [b"d/new", b"d/e/new"])
def test_a_new_folder_stays_where_something_came_into_it_since(new: bytes) -> None:
    now = {b"d": FOLDER, b"d/e": FOLDER, b"d/e/f": A}
    steps, left = revert_all([Changed(path, None, entry) for path, entry in now.items()], {**now, new: B})
    stays = {problem.path for problem in left if problem.why == HOLDS_MORE}
    assert stays == set(ancestors(new))
    assert set(contents(steps)) == now.keys() - stays


def test_a_new_folder_stays_where_something_in_it_was_edited_since() -> None:
    changes = [Changed(b"d", None, FOLDER), Changed(b"d/f", None, A)]
    steps, left = revert_all(changes, {b"d": FOLDER, b"d/f": B})
    assert (steps, left) == ([], [Problem(b"d", HOLDS_MORE), Problem(b"d/f", CHANGED)])


def test_a_file_that_became_a_folder_comes_back_only_if_the_folder_holds_nothing_new() -> None:
    changes = [Changed(b"p", A, FOLDER), Changed(b"p/f", None, B)]
    now = {b"p": FOLDER, b"p/f": B}
    assert contents(revert_all(changes, now).transitions) == {b"p": content(A), b"p/f": ()}
    steps, left = revert_all(changes, {**now, b"p/new": C})
    assert (contents(steps), left) == ({b"p/f": ()}, [Problem(b"p", HOLDS_MORE)])


def test_even_with_force_a_folder_with_something_in_it_does_not_make_way_for_a_file() -> None:
    now = {b"p": FOLDER, b"p/new": C}
    assert revert_all([Changed(b"p", A, B)], now, force=True) == ([], [Problem(b"p", HOLDS_MORE)])


def test_a_folder_that_became_a_file_comes_back_with_what_was_in_it() -> None:
    changes = [Changed(b"p", FOLDER, A), Changed(b"p/f", B, GONE)]
    steps, left = revert_all(changes, {b"p": A, b"p/f": GONE})
    assert (contents(steps), left) == ({b"p": content(FOLDER), b"p/f": content(B)}, [])


# -- folders on the way


def test_folders_that_are_gone_come_back_as_they_were() -> None:
    now = {b"d": GONE, b"d/e": GONE, b"d/e/f": GONE}
    steps, left = revert_all([Changed(b"d/e/f", A, GONE)], now, {b"d": PRIVATE, b"d/e": PRIVATE})
    assert (contents(steps), left) == (
        {b"d": content(PRIVATE), b"d/e": content(PRIVATE), b"d/e/f": content(A)},
        [],
    )
    assert all(step.wanted.version == SEEN.bump(STAMP) for step in steps)
    assert steps[0].wanted.mtime_ns == PRIVATE.mtime_ns


def test_a_folder_that_nothing_is_known_of_is_made_now() -> None:
    steps, _ = revert_all([Changed(b"d/f", A, GONE)], {b"d/f": GONE})
    made = steps[0].wanted
    assert (made.kind, made.mode, made.mtime_ns) == (Kind.DIRECTORY, 0o755, STAMP.tick * 1000)


def test_nothing_comes_back_through_a_file() -> None:
    changes = [Changed(b"d/f", A, GONE)]
    assert revert_all(changes, {b"d": B, b"d/f": GONE}, force=True) == ([], [Problem(b"d/f", NO_FOLDER)])


def test_nothing_comes_back_into_a_folder_that_is_left_alone() -> None:
    changes = [Changed(b"d", FOLDER, A), Changed(b"d/e", FOLDER, GONE), Changed(b"d/e/f", B, GONE)]
    steps, left = revert_all(changes, {b"d": GONE, b"d/e": GONE, b"d/e/f": GONE})
    assert steps == []
    assert {problem.path: problem.why for problem in left} == {
        b"d": CHANGED,
        b"d/e": NO_WAY,
        b"d/e/f": NO_WAY,
    }


def test_what_cannot_come_back_leaves_no_folders_behind() -> None:
    now = {b"d": B, b"d/e": GONE, b"d/e/f": GONE}
    assert revert_all([Changed(b"d/e/f", A, GONE)], now, {b"d/e": FOLDER}).transitions == []


def test_of_a_path_that_nothing_is_known_of_nothing_is_said() -> None:
    assert revert_all([Changed(b"p", A, GONE)], {}) == ([], [])


# -- any trees

NAMES = [b"a", b"b"]
PATHS = [b"/".join(parts) for parts in ((x,) for x in NAMES)] + [x + b"/" + y for x in NAMES for y in NAMES]
PATHS += [x + b"/" + y for x in PATHS if b"/" in x for y in NAMES]
LIVING = st.sampled_from([A, B, file("a", 0o600), LINK, FOLDER, FOLDER, PRIVATE])


def tree_of(wish: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Keep of a wish what has folders above it."""
    tree: dict[bytes, Entry] = {}
    for path in sorted(wish):
        folder = split(path)[0]
        if not folder or (folder in tree and tree[folder].kind is Kind.DIRECTORY):
            tree[path] = wish[path]
    return tree


TREES = st.dictionaries(st.sampled_from(PATHS), LIVING).map(tree_of)


def after(tree: State, then: State) -> dict[bytes, Entry]:
    """The manifest of `then`, which knew `tree`."""
    return {**dict.fromkeys(tree, GONE), **then}


def changed(before: State, now: State) -> list[Changed]:
    return [
        Changed(path, before.get(path), now[path])
        for path in sorted(now)
        if content(before.get(path)) != content(now[path])
    ]


def carried_out(state: State, steps: list[Transition]) -> dict[bytes, Entry]:
    return {**state, **{step.path: step.wanted for step in steps}}


def living(state: State) -> dict[bytes, tuple[object, ...]]:
    return {path: content(entry) for path, entry in state.items() if entry.alive}


@given(TREES, TREES)
def test_a_run_that_is_undone_leaves_what_was_and_undone_again_what_it_had_done(
    first: dict[bytes, Entry], second: dict[bytes, Entry]
) -> None:
    done = after(first, second)
    undone_steps, left = revert_all(changed(first, done), done)
    undone = carried_out(done, undone_steps)
    assert (left, living(undone)) == ([], living(first))
    redone_steps, left = revert_all(changed(done, undone), undone)
    assert (left, living(carried_out(undone, redone_steps))) == ([], living(second))


@given(TREES, TREES, TREES, st.booleans())
def test_whatever_came_since_what_results_is_a_tree_and_what_is_left_alone_is_untouched(
    first: dict[bytes, Entry], second: dict[bytes, Entry], third: dict[bytes, Entry], force: bool
) -> None:
    done = after(first, second)
    now = after(done, third)
    steps, left = revert_all(changed(first, done), now, force=force)
    result = carried_out(now, steps)
    assert living(tree_of({path: entry for path, entry in result.items() if entry.alive})) == living(result)
    assert {step.path for step in steps}.isdisjoint(problem.path for problem in left)
    assert all(step.expected == now.get(step.path) for step in steps)
    if not force:
        since = {path for path, entry in now.items() if content(entry) != content(done.get(path))}
        touched = {step.path for step in steps if now[step.path].alive}
        assert touched.isdisjoint(since)
