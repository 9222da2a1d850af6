"""The order of transitions: a stop between any two of them loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from random import Random
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from p2psync.core import order
from p2psync.core.model import Digest, Entry, Kind, Resolution, Transition
from p2psync.core.order import in_order, moved, moved_folders, moves, takes_away, whole_folders
from p2psync.core.paths import ancestors, split

FILE = Entry(kind=Kind.FILE, digest=Digest(b"d" * 16), size=1)
OTHER = Entry(kind=Kind.FILE, digest=Digest(b"e" * 16), size=1)
FOLDER = Entry(kind=Kind.DIRECTORY, mode=0o755)
LINK = Entry(kind=Kind.SYMLINK, digest=Digest(b"l" * 16), target=b"t")
GONE = Entry(kind=Kind.TOMBSTONE)

PATHS = [b"/".join(names) for depth in (1, 2, 3) for names in product((b"a", b"b"), repeat=depth)]
ENTRIES = [FILE, OTHER, FOLDER, LINK, GONE]
CHANGES = [(expected, wanted) for expected in [None, *ENTRIES] for wanted in ENTRIES]


def plan_of(changes: dict[bytes, tuple[tuple[Entry | None, Entry], bool]]) -> list[Transition]:
    """Transitions in any order, some of which need a new conflict copy beside them first."""
    plan = []
    for path, (change, displaces) in changes.items():
        after = (path + b".copy",) if displaces else ()
        plan.append(Transition(path, *change, after))
        plan += [Transition(copy, None, FILE) for copy in after]
    return plan


PLANS = st.dictionaries(
    st.sampled_from(PATHS), st.tuples(st.sampled_from(CHANGES), st.booleans()), max_size=9
).map(plan_of)


@given(PLANS, st.randoms())
def test_a_move_is_of_a_file_that_goes_to_one_with_the_same_contents_that_comes(
    plan: list[Transition], random: Random
) -> None:
    random.shuffle(plan)
    steps = {step.path: step for step in plan}
    found = moves(plan)
    copies = {copy for step in plan for copy in step.after}
    assert len(set(found.values())) == len(found)
    for new, old in found.items():
        going, coming = steps[old], steps[new]
        assert going.expected and going.expected.kind is Kind.FILE and not going.wanted.alive
        assert coming.wanted.same_bytes(going.expected)
        assert coming.expected is None or not coming.expected.alive
        assert not coming.after and not going.after and new not in copies


def test_a_change_of_case_is_no_move() -> None:
    assert moves([Transition(b"Foo", FILE, GONE), Transition(b"foo", None, FILE)]) == {}


def test_of_several_files_the_one_of_the_same_name_is_moved() -> None:
    going = [Transition(path, FILE, GONE) for path in (b"a/x", b"a/y", b"a/z")]
    coming = [Transition(b"b/y", None, FILE), Transition(b"b/n", GONE, FILE)]
    assert moves([*going, *coming]) == {b"b/y": b"a/y", b"b/n": b"a/x"}


def test_one_of_the_same_name_but_for_the_case_of_its_path_keeps_another_from_being_moved() -> None:
    going = [Transition(path, FILE, GONE) for path in (b"A/x", b"a/y")]
    assert moves([*going, Transition(b"a/x", None, FILE)]) == {}
    assert moves([*going, Transition(b"a/x", None, FILE), Transition(b"b/z", None, FILE)]) == {b"b/z": b"A/x"}


def test_of_very_many_files_with_the_same_contents_each_is_looked_at_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0

    class Path(bytes):
        """That counts how often it is looked at."""

        __hash__ = bytes.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal looks
            looks += 1
            return bytes.__eq__(self, other)

    def counting_split(path: bytes) -> tuple[bytes, bytes]:
        nonlocal looks
        looks += 1
        return split(path)

    monkeypatch.setattr(order, "split", counting_split)
    count = 2000
    going = [Transition(Path(b"old/%d" % number), FILE, GONE) for number in range(count)]
    coming = [Transition(Path(b"new/%d" % (number * 3)), None, FILE) for number in range(count)]
    assert len(moves([*going, *reversed(coming)])) == count
    assert looks < 10 * count


@given(PLANS)
def test_a_whole_folder_holds_nothing_that_stays_or_comes(plan: list[Transition]) -> None:
    with_many = [
        Transition(b"a/%s/%d" % (name, number), FILE, GONE) for name in (b"a", b"b") for number in range(8)
    ]
    steps = {step.path: step for step in [*with_many, *plan]}
    for top, below in whole_folders(steps.values()).items():
        expected = steps[top].expected
        assert expected and expected.kind is Kind.DIRECTORY
        assert not any(folder in whole_folders(steps.values()) for folder in ancestors(top))
        inside = [step for path, step in steps.items() if top in (path, *ancestors(path))]
        assert all(not step.wanted.alive and not step.after for step in inside)
        assert below == [step for step in inside if step.expected and step.expected.alive]


@pytest.mark.parametrize(
    "stays",
    [
        Transition(b"o/3", FILE, OTHER),
        Transition(b"o/3", FILE, GONE, (b"copy",)),
        Transition(b"o/3", FILE, GONE, (), Resolution.KEPT),
    ],
    ids=["it lives", "a copy has to be there before", "it settles a conflict"],
)
def test_a_folder_does_not_go_as_a_whole_with_what_does_not_just_go(stays: Transition) -> None:
    gone = [step for step in folder_plan(b"o", b"n") if not step.wanted.alive]
    assert list(whole_folders(gone)) == [b"o"]
    assert whole_folders([stays if step.path == stays.path else step for step in gone]) == {}


def folder_plan(old: bytes, new: bytes) -> list[Transition]:
    """A folder of nine files, one of them deeper, that goes at `old` and comes at `new`."""
    below = {b"": FOLDER, b"/s": FOLDER, b"/s/f": FILE, b"/l": LINK}
    below |= {b"/%d" % n: Entry(kind=Kind.FILE, digest=Digest(b"%016d" % n), size=1) for n in range(8)}
    gone = [Transition(old + path, entry, GONE) for path, entry in below.items()]
    return [*gone, *(Transition(new + path, None, entry) for path, entry in below.items())]


@given(st.sampled_from([b"n", b"p/n"]), st.randoms())
def test_a_folder_that_comes_elsewhere_just_as_it_goes_is_moved(new: bytes, random: Random) -> None:
    plan = folder_plan(b"o", new)
    random.shuffle(plan)
    found = moved_folders(plan, moves(plan))
    assert list(found) == [new]
    assert {(gone.path, made.path) for gone, made in found[new]} == {
        (step.path, new + step.path[1:]) for step in plan if not step.wanted.alive
    }
    assert (found[new][0][0].path, found[new][0][1].path) == (b"o", new)


@given(PLANS, st.booleans(), st.randoms())
def test_what_moves_is_told_once(plan: list[Transition], with_folder: bool, random: Random) -> None:
    if with_folder:
        plan = [*plan, *folder_plan(b"o", b"n")]
    random.shuffle(plan)
    found = [move for together in moved(plan) for move in together]
    assert len({step.path for move in found for step in move}) == 2 * len(found)
    assert bool(found) == bool(moves(plan))
    for gone, made in found:
        assert gone in plan and made in plan and not gone.wanted.alive
        assert gone.expected and made.wanted.same_bytes(gone.expected)


DEPARTURES: dict[str, Callable[[list[Transition]], list[Transition]]] = {
    "one stays": lambda plan: [step for step in plan if step.path != b"o/3"],
    "one is new": lambda plan: [*plan, Transition(b"n/new", None, OTHER)],
    "one is missing": lambda plan: [step for step in plan if step.path != b"n/3"],
    "one is edited": lambda plan: _changed(plan, b"n/3", digest=Digest(b"e" * 16)),
    "one is touched": lambda plan: _changed(plan, b"n/3", mtime_ns=5),
    "one has other permissions": lambda plan: _changed(plan, b"n/s", mode=0o700),
    "one is there": lambda plan: [
        Transition(step.path, OTHER, step.wanted) if step.path == b"n/3" else step for step in plan
    ],
    "one is a conflict copy": lambda plan: [*plan, Transition(b"x", OTHER, FILE, (b"n/3",))],
    "one settles a conflict": lambda plan: [
        Transition(step.path, None, step.wanted, (), Resolution.KEPT) if step.path == b"n/3" else step
        for step in plan
    ],
}


def _changed(plan: list[Transition], path: bytes, **fields: object) -> list[Transition]:
    return [
        Transition(step.path, step.expected, structs.replace(step.wanted, **fields))
        if step.path == path
        else step
        for step in plan
    ]


@pytest.mark.parametrize("departure", DEPARTURES)
def test_a_folder_is_not_moved_as_a_whole_if(departure: str) -> None:
    plan = DEPARTURES[departure](folder_plan(b"o", b"n"))
    assert moved_folders(plan, moves(plan)) == {}


def positions(plan: list[Transition]) -> dict[bytes, int]:
    return {transition.path: number for number, transition in enumerate(in_order(plan))}


def test_a_very_deep_chain_of_folders_is_looked_at_in_no_time() -> None:
    """Of 3000 levels a few hundredths of a second; by level it would be half a minute."""
    gone = [b"d" + b"/d" * depth for depth in range(3000)]
    made = [b"e" + path[1:] for path in gone]
    steps = [Transition(path, FOLDER, GONE) for path in gone] + [
        Transition(path, None, FOLDER) for path in made
    ]
    steps += [Transition(gone[-1] + b"/f", FILE, GONE), Transition(made[-1] + b"/f", None, FILE)]
    begun = process_time()
    assert len(moved_folders(steps, moves(steps))[b"e"]) == 3001
    assert process_time() - begun < 3


@given(PLANS)
def test_all_transitions_are_there_once(plan: list[Transition]) -> None:
    assert sorted(t.path for t in in_order(plan)) == sorted(t.path for t in plan)


@given(PLANS)
def test_the_order_does_not_depend_on_how_they_came(plan: list[Transition]) -> None:
    assert in_order(reversed(plan)) == in_order(plan)


@given(PLANS)
def test_what_is_made_is_made_in_what_is_there(plan: list[Transition]) -> None:
    position = positions(plan)
    made = {t.path for t in plan if not takes_away(t)}
    for path in made:
        assert all(position[parent] < position[path] for parent in ancestors(path) if parent in made)


@given(PLANS)
def test_what_is_taken_away_is_empty_by_then(plan: list[Transition]) -> None:
    position = positions(plan)
    taken = {t.path for t in plan if takes_away(t)}
    for path in taken:
        assert all(position[parent] > position[path] for parent in ancestors(path) if parent in taken)


@given(PLANS)
def test_all_is_made_before_anything_is_taken_away(plan: list[Transition]) -> None:
    taken = [takes_away(t) for t in in_order(plan)]
    assert taken == sorted(taken)


@given(PLANS)
def test_a_copy_is_made_before_what_displaces_it(plan: list[Transition]) -> None:
    position = positions(plan)
    assert all(position[copy] < position[t.path] for t in plan for copy in t.after)


def test_a_deletion_and_a_leaf_in_place_of_a_folder_take_away() -> None:
    assert takes_away(Transition(b"a", FILE, GONE))
    assert takes_away(Transition(b"a", FOLDER, GONE))
    assert takes_away(Transition(b"a", FOLDER, FILE))
    assert takes_away(Transition(b"a", FOLDER, LINK))
    assert takes_away(Transition(b"a", None, GONE))


def test_all_else_does_not() -> None:
    for expected in (None, GONE, FILE, LINK):
        for wanted in (FILE, LINK, FOLDER):
            assert not takes_away(Transition(b"a", expected, wanted))
    assert not takes_away(Transition(b"a", FOLDER, FOLDER))
