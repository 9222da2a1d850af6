"""The graph of who met whom."""

from __future__ import annotations

from p2psync.core.graph import Event, header, rows


def test_each_event_is_a_row_with_a_line_to_those_it_met() -> None:
    events = [Event(0, [2]), Event(1), Event(2, [0, 1]), Event(0, [1])]
    assert list(rows(events, 3)) == ["*-|-o", "| * |", "o-o-*", "*-o |"]


def test_lanes_are_named_from_the_left() -> None:
    assert list(header(["here", "stick", "laptop"])) == ["here", "| stick", "| | laptop"]


def test_one_lane_is_a_line() -> None:
    assert list(rows([Event(0)], 1)) == ["*"]
