"""What a run is about: the rest is left out, and nothing that belongs together is torn apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.core.choose import MOST_TOO_LARGE, Filter, Mode, choose, parse_size, too_large
from p2psync.core.model import Action, Entry, Transition, action_of
from p2psync.core.paths import ancestors
from p2psync.core.reconcile import Plan
from tests.support import directory, file, tombstone


def new(path: bytes, data: bytes = b"new") -> Transition:
    return Transition(path, None, file(data))


def gone(path: bytes, before: Entry | None = None) -> Transition:
    return Transition(path, before or file(b"old"), tombstone())


def paths(steps: list[Transition]) -> list[bytes]:
    return [step.path for step in steps]


def left(wanted: Filter, *theirs: Transition, ours: tuple[Transition, ...] = ()) -> list[bytes]:
    """Return the paths that are carried out on either side."""
    plan = Plan(ours=list(ours), theirs=list(theirs))
    out = choose(plan, wanted)
    kept = paths([*plan.ours, *plan.theirs])
    assert sorted({*kept, *out}) == sorted({step.path for step in (*ours, *theirs)})
    assert not set(out) & set(kept)
    return kept


def test_without_a_filter_all_is_carried_out() -> None:
    assert left(Filter(), new(b"a"), gone(b"b")) == [b"a", b"b"]
    assert left(Filter(Mode.MIRROR), new(b"a"), gone(b"b")) == [b"a", b"b"]


def test_only_what_is_below_a_path_and_the_folders_on_the_way() -> None:
    steps = [Transition(b"d", None, directory()), new(b"d/f"), new(b"d/g"), new(b"df")]
    assert left(Filter(within=(b"d/f",)), *steps) == [b"d", b"d/f"]
    assert left(Filter(within=(b"d",)), *steps) == [b"d", b"d/f", b"d/g"]


def test_conflict_copies_come_with_what_they_are_of() -> None:
    copies = [b"%s.sync-conflict-20200913-122640-DGU3PTA" % path for path in (b"d/f", b"d/g")]
    lose = Transition(b"d/f", file(b"ours"), file(b"theirs"), (copies[0],))
    assert left(Filter(within=(b"d/f",)), lose, *map(new, copies)) == [b"d/f", copies[0]]


def test_patterns_as_in_an_ignore_file() -> None:
    steps = [new(b"a.o"), new(b"keep.o"), Transition(b"tmp", None, directory()), new(b"tmp/x"), new(b"b")]
    assert left(Filter(patterns=b"*.o\n!keep.o\n/tmp/\n"), *steps) == [b"keep.o", b"b"]


def test_large_files_are_left_out_whichever_side_has_them() -> None:
    large = b"x" * 100
    steps = [new(b"a", large), gone(b"b", file(large)), Transition(b"c", file(large), file(b"s")), new(b"d")]
    assert left(Filter(max_size=99), *steps) == [b"d"]


def test_what_is_mounted_is_left_out() -> None:
    plan = Plan(theirs=[new(b"m/f"), new(b"mf"), Transition(b"m", None, directory())])
    assert choose(plan, Filter(one_file_system=True), {b"m"}) == [b"m/f"]


def test_push_and_pull_change_one_side_only() -> None:
    join = Transition(b"j", file(b"same"), file(b"same"))
    theirs, ours = (new(b"a"), join), (new(b"b"), join._replace() if hasattr(join, "_replace") else join)
    assert left(Filter(Mode.PUSH), *theirs, ours=ours) == [b"j", b"a", b"j"]
    assert left(Filter(Mode.PULL), *theirs, ours=ours) == [b"b", b"j", b"j"]


def test_a_folder_that_is_there_is_not_changed_for_what_comes_into_it() -> None:
    mode = Transition(b"d", directory(0o755), directory(0o700))
    assert left(Filter(Mode.PUSH), new(b"d/f"), ours=(mode,)) == [b"d/f"]
    assert left(Filter(within=(b"d/f",)), new(b"d/f"), mode) == [b"d/f"]


def test_a_mirror_leaves_what_could_not_be_read() -> None:
    plan = Plan(theirs=[gone(b"d/a"), gone(b"b")])
    assert choose(plan, Filter(Mode.MIRROR), unread=[b"d"]) == [b"d/a"]
    assert paths(plan.theirs) == [b"b"]


def test_a_conflict_waits_for_a_run_that_may_change_both_sides() -> None:
    """Here the other side loses: its version has to be set aside on both."""
    copy = new(b"f.copy")
    lose = Transition(b"f", file(b"theirs"), file(b"ours"), (b"f.copy",))
    for wanted in (Filter(Mode.PUSH), Filter(max_size=3), Filter(patterns=b"*.copy")):
        assert left(wanted, lose, new(b"f.copy", b"1234"), ours=(copy,)) == []


def test_a_folder_is_not_deleted_while_something_in_it_is_left() -> None:
    steps = [gone(b"d", directory()), gone(b"d/a.o"), gone(b"d/b"), gone(b"e", directory()), gone(b"e/c")]
    assert left(Filter(patterns=b"*.o"), *steps) == [b"d/b", b"e", b"e/c"]


def test_nothing_comes_into_a_folder_that_is_to_take_the_place_of_a_file_that_stays() -> None:
    steps = [Transition(b"d", file(b"x" * 100), directory()), new(b"d/f")]
    assert left(Filter(max_size=50), *steps) == []


LEAVES = st.dictionaries(
    st.sampled_from([b"a", b"b", b"a/a", b"a/b", b"b/a", b"a/a/a"]),
    st.sampled_from([file(b"small"), file(b"large" * 9), directory()]),
)


def tree(leaves: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Make a tree of these: what holds something is a directory."""
    folders = {folder: directory() for path in leaves for folder in ancestors(path)}
    return leaves | folders


TREES = LEAVES.map(tree)


def steps(before: dict[bytes, Entry], after: dict[bytes, Entry]) -> list[Transition]:
    return [
        Transition(path, before.get(path), after.get(path) or tombstone())
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


FILTERS = st.builds(
    Filter,
    st.sampled_from(Mode),
    st.sampled_from([(), (b"a",), (b"a/b", b"b")]),
    st.sampled_from([b"", b"a\n", b"b\n!a/b\n"]),
    st.sampled_from([None, 10]),
)


@given(TREES, TREES, TREES, FILTERS)
def test_whatever_is_left_out_what_is_carried_out_can_be(
    here: dict[bytes, Entry], there: dict[bytes, Entry], final: dict[bytes, Entry], wanted: Filter
) -> None:
    plan = Plan(ours=steps(here, final), theirs=steps(there, final))
    everything = {step.path for step in (*plan.ours, *plan.theirs)}
    out = set(choose(plan, wanted))
    kept = {step.path for step in (*plan.ours, *plan.theirs)}
    assert kept | out == everything and not kept & out
    changed = {
        side: [s for s in steps if action_of(s) is not Action.NOTHING]
        for side, steps in (("ours", plan.ours), ("theirs", plan.theirs))
    }
    assert not (wanted.mode is Mode.PUSH and changed["ours"])
    assert not (wanted.mode is Mode.PULL and changed["theirs"])
    for before, carried_out in ((here, plan.ours), (there, plan.theirs)):
        after = {**before, **{step.path: step.wanted for step in carried_out}}
        there_is = {path: entry for path, entry in after.items() if entry.alive}
        assert tree(there_is) == there_is


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("500", 500), ("1k", 1024), ("10M", 10 << 20), ("1.5G", 3 << 29), ("2 MiB", 2 << 20)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1.2.3", "one", "１"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give a size"):
        parse_size(text)


# -- what waits for room


@pytest.mark.parametrize(
    ("room", "waiting"),
    [(60, set()), (59, {b"c"}), (30, {b"c"}), (29, {b"c", b"b"}), (0, {b"c", b"b", b"a"}), (-1, None)],
)
def test_the_largest_wait_until_the_rest_fits(room: int, waiting: set[bytes] | None) -> None:
    assert too_large({b"a": 10, b"b": 20, b"c": 30}, room) == waiting


def test_a_tree_that_does_not_fit_is_not_synced_in_part() -> None:
    sizes = {b"%d" % number: 1 for number in range(MOST_TOO_LARGE + 5)}
    assert len(too_large(sizes, 5) or ()) == MOST_TOO_LARGE
    assert too_large(sizes, 4) is None
