"""The pipeline itself: what it does with two sides at a time."""

from __future__ import annotations

import threading

import pytest

from p2psync.errors import ReplicaError
from p2psync.sync import _on_both


def test_who_fails_on_one_side_waits_until_the_other_is_done() -> None:
    failing, done = threading.Event(), []

    def work(side: str) -> None:
        if side == "home":
            failing.set()
            raise ReplicaError("the disk is full")
        failing.wait()
        done.append(sum(range(1_000_000)))  # which takes longer than to fail

    with pytest.raises(ReplicaError, match="the disk is full"):
        _on_both(("home", "peer"), work)
    assert done
