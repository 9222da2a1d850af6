"""Which runs' history goes: by age, by size, never the latest."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2psync.core.retention import DAY_SECONDS, Kept, Limits, due, expired, in_order

NOW = 1_000 * DAY_SECONDS
DISK = 1000


def kept(days: float, size: int = 10) -> Kept:
    """What is kept from a run that many days ago."""
    return Kept(f"{days:08.3f}", NOW - days * DAY_SECONDS, size)


def gone(runs: list[Kept], limits: Limits = Limits()) -> list[Kept]:  # noqa: B008
    return expired(runs, NOW, DISK, limits)


def test_by_default_a_month_stays_and_a_tenth_of_the_disk() -> None:
    assert Limits() == (30, 10)


def test_what_is_too_old_goes_the_oldest_first() -> None:
    assert gone([kept(31), kept(0), kept(40), kept(29.9)]) == [kept(40), kept(31)]


def test_what_is_just_as_old_as_allowed_stays() -> None:
    assert gone([kept(0), kept(30)]) == []


def test_what_is_too_much_goes_the_oldest_first() -> None:
    assert gone([kept(day, 40) for day in range(4)]) == [kept(3, 40), kept(2, 40)]


def test_just_as_much_as_is_allowed_stays() -> None:
    assert gone([kept(0, 40), kept(1, 60)]) == []


def test_a_run_that_keeps_nothing_does_not_go_for_its_size() -> None:
    assert gone([kept(0, 200), kept(1, 0), kept(2, 1)]) == [kept(2, 1)]


def test_the_latest_run_stays_however_old_and_large() -> None:
    assert gone([kept(400, 5000)], Limits(0, 0)) == []
    assert gone([kept(400, 5000), kept(401, 1)], Limits(0, 0)) == [kept(401, 1)]


def test_the_latest_run_that_keeps_something_stays_too() -> None:
    assert gone([kept(1, 0), kept(2, 0), kept(3, 7), kept(4, 7)], Limits(0, 0)) == [kept(4, 7), kept(2, 0)]


def test_what_somebody_took_away_is_forgotten_but_for_the_latest_run() -> None:
    lost = [kept(day, 0)._replace(lost=True) for day in range(3)]
    assert gone([*lost, kept(2.5), kept(2.7, 0)]) == lost[:0:-1]
    assert gone([*lost, kept(2.5), kept(2.7)], Limits(0, 0)) == [kept(2.7), *lost[:0:-1]]


def test_of_runs_within_a_second_the_one_named_last_is_the_latest() -> None:
    first, second = Kept("20240101-000000", 5, 9), Kept("20240101-000000-2", 5, 9)
    assert gone([second, first], Limits(0, 0)) == [first]


def test_a_clock_that_was_ahead_makes_nothing_too_old() -> None:
    assert gone([kept(-5), kept(-4), kept(-3)]) == []


def when(run: Kept) -> tuple[float, str]:
    return run.at, run.run


def test_it_is_time_to_clean_up_when_a_day_has_passed() -> None:
    assert due(NOW + DAY_SECONDS, NOW) is None
    assert due(NOW + DAY_SECONDS + 1, NOW) == NOW + DAY_SECONDS


def test_ages_end_a_day_after_the_last_time_whatever_the_clock_says() -> None:
    assert due(NOW + 365 * DAY_SECONDS, NOW) == NOW + DAY_SECONDS
    assert due(NOW, 0) == DAY_SECONDS  # nobody knows when that was


def test_after_a_clock_that_was_ahead_it_is_time_at_once() -> None:
    assert due(NOW, NOW + 365 * DAY_SECONDS) == NOW


def test_no_run_is_older_than_one_before_it() -> None:
    behind = kept(18_000)
    runs = [kept(7), behind, kept(2), kept(-365)]
    ordered = in_order(runs)
    assert kept(7).at < ordered.pop(1).at < kept(7).at + 1
    assert ordered == [run for run in runs if run is not behind]


RUNS = st.lists(
    st.builds(kept, st.floats(-10, 100), st.integers(0, 200)), max_size=8, unique_by=lambda run: run.run
)


@given(RUNS, st.floats(0, 60), st.floats(0, 100))
def test_what_stays_is_within_the_limits_but_for_the_latest(
    runs: list[Kept], days: float, percent: float
) -> None:
    went = expired(runs, NOW, DISK, Limits(days, percent))
    stay = sorted((run for run in runs if run not in went), reverse=True, key=when)
    assert bool(stay) == bool(runs)
    latest_with_something = next((run for run in stay if run.size), None)
    for run in stay[1:]:
        if run is not latest_with_something:
            newer = [other for other in runs if when(other) >= when(run)]
            assert NOW - run.at <= days * DAY_SECONDS
            assert run.size == 0 or sum(other.size for other in newer) <= DISK * percent / 100


@given(RUNS)
def test_nothing_goes_that_is_newer_than_what_stays(runs: list[Kept]) -> None:
    with_something = sorted((run for run in runs if run.size), key=when)
    went = gone(with_something)
    assert went == with_something[: len(went)]


@given(RUNS, st.randoms())
def test_the_order_in_which_they_are_told_does_not_matter(runs: list[Kept], random: Random) -> None:
    mixed = runs[:]
    random.shuffle(mixed)
    assert gone(mixed) == gone(runs)
