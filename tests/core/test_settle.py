"""When what happened in a tree can be looked at: as soon as it is finished, and never much later."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.core.settle import (
    FINISHED_SECONDS,
    LONGEST_RETRY_SECONDS,
    Settled,
    Settling,
    retry_after,
)

QUIET = 0.05


def test_nothing_is_due_before_something_happened() -> None:
    assert Settling().due() is None
    assert Settling().take(1e9) == Settled({}, set())


def test_what_is_finished_is_due_a_few_milliseconds_later() -> None:
    settling = Settling(QUIET)
    settling.finished(b"d", b"d/f", 100.0)
    assert settling.due() == 100.0 + FINISHED_SECONDS
    assert settling.take(100.0) == Settled({}, set())
    assert settling.take(100.0 + FINISHED_SECONDS) == Settled({b"d": False}, set())
    assert settling.due() is None


def test_a_save_in_several_steps_is_one() -> None:
    settling = Settling(QUIET)
    settling.written(b"", b"f~", 100.0)
    settling.finished(b"", b"f~", 100.001)
    settling.finished(b"", b"f", 100.002)
    settling.finished(b"", b"f", 100.004)
    assert settling.due() == 100.004 + FINISHED_SECONDS


def test_what_is_written_to_and_not_closed_is_due_when_it_is_quiet() -> None:
    settling = Settling(QUIET)
    settling.written(b"d", b"d/f", 100.0)
    settling.written(b"d", b"d/f", 100.03)
    assert settling.due() == 100.03 + QUIET
    assert settling.take(100.03 + QUIET) == Settled({b"d": False}, set())


def test_a_file_that_grows_and_grows_is_left_but_its_folder_is_not() -> None:
    settling = Settling(QUIET)
    settling.finished(b"d", b"d/g", 100.0)
    now = 100.0
    while (settling.due() or 0) > now:
        now += 0.01
        settling.written(b"d", b"d/f", now)
    assert now == pytest.approx(100.5, abs=0.02)
    assert settling.take(now) == Settled({b"d": False}, {b"d/f"})
    assert settling.due() == now + QUIET
    assert settling.take(now + QUIET) == Settled({b"d": False}, set())


def test_what_is_written_to_is_busy_though_its_folder_is_not_due() -> None:
    settling = Settling(QUIET)
    settling.written(b"d", b"d/f", 100.0)
    assert settling.take(100.01) == Settled({}, {b"d/f"})
    assert settling.take(100.0 + QUIET) == Settled({b"d": False}, set())


def test_folders_do_not_wait_for_one_another() -> None:
    settling = Settling(QUIET)
    settling.written(b"slow", b"slow/f", 100.0)
    settling.finished(b"quick", b"quick/f", 100.0)
    assert settling.take(100.01) == Settled({b"quick": False}, {b"slow/f"})
    assert settling.due() == 100.0 + QUIET


def test_what_is_to_be_looked_at_in_depth_stays_so() -> None:
    settling = Settling(QUIET)
    settling.finished(b"d", b"d", 100.0, deep=True)
    settling.finished(b"d", b"d/f", 100.001)
    assert settling.take(101.0) == Settled({b"d": True}, set())


EVENTS = st.lists(
    st.tuples(st.sampled_from(["finished", "written"]), st.sampled_from([b"a", b"b"]), st.floats(0, 0.2))
)


@given(EVENTS)
def test_every_event_is_followed_by_a_look_and_none_waits_too_long(
    events: list[tuple[str, bytes, float]],
) -> None:
    settling = Settling(QUIET)
    now = 0.0
    waiting: dict[bytes, float] = {}
    for what, folder, pause in events:
        now += pause
        for path in settling.take(now).folders:
            waiting.pop(path)
        getattr(settling, what)(folder, folder + b"/f", now)
        waiting.setdefault(folder, now)
        due = settling.due()
        assert due is not None
        assert due <= min(waiting.values()) + 10 * QUIET
    last = settling.take(now + QUIET)
    assert set(last.folders) == set(waiting)
    assert last.busy == set()
    assert settling.due() is None


@pytest.mark.parametrize(
    ("failures", "shortest", "longest"), [(1, 0.5, 1), (2, 1, 2), (5, 8, 16), (9, 128, 256), (10, 150, 300)]
)
def test_each_failure_doubles_the_wait_up_to_five_minutes(
    failures: int, shortest: float, longest: float
) -> None:
    assert (retry_after(failures, 0.0), retry_after(failures, 1.0)) == (shortest, longest)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_no_wait_is_longer_than_five_minutes(failures: int, chance: float) -> None:
    assert 0 < retry_after(failures, chance) <= LONGEST_RETRY_SECONDS
