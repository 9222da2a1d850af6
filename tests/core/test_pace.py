"""How fast to send, and how hard to compress."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.core.pace import (
    STRETCH_BYTES,
    Bucket,
    Compress,
    Effort,
    Pacer,
    Prospect,
    Spent,
    parse_compress,
    parse_rate,
)

RATES = {
    "0": 0,
    "500": 500 << 10,
    "500K": 500 << 10,
    "500k": 500 << 10,
    "10M": 10 << 20,
    "10MiB": 10 << 20,
    "10MB": 10_000_000,
    "1.5m": 3 << 19,
    "2g": 2 << 30,
    "1kb": 1000,
    "800b": 800,
}


@pytest.mark.parametrize(("text", "rate"), RATES.items())
def test_a_rate_is_read_as_rsync_reads_it(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1", "10X", "1e9", "M", "10 M", "nan", "1bb", "9" * 30 + "t"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no rate|more than any line"):
        parse_rate(text)


def test_compress_is_auto_on_or_off() -> None:
    assert [parse_compress(word) for word in ("off", "on", "auto")] == list(Compress)
    with pytest.raises(ValueError, match="auto, on or off"):
        parse_compress("zlib")


# -- the bucket


@given(
    st.integers(1, 1 << 40),
    st.lists(st.tuples(st.integers(1, 1 << 30), st.floats(0, 100)), min_size=1, max_size=50),
)
def test_in_any_while_no_more_goes_out_than_the_rate_allows(
    rate: int, asked: list[tuple[int, float]]
) -> None:
    now = 0.0
    bucket = Bucket(rate, now)
    sent: list[tuple[float, int]] = []
    for size, pause in asked:
        now += pause
        now += bucket.wait(size, now)
        sent.append((now, size))
    for first in range(len(sent)):
        total = 0
        for at, size in sent[first:]:
            # What went out before `at`; a step's worth of time may have been saved up before.
            assert total <= rate * (at - sent[first][0] + 0.0501) * 1.000001
            total += size


def test_a_steady_sender_gets_all_of_the_rate() -> None:
    now, bucket = 0.0, Bucket(1_000_000, 0.0)
    for _ in range(100):
        now += bucket.wait(50_000, now)
    assert now == pytest.approx(100 * 0.05, rel=0.03)


def test_a_step_is_a_twentieth_of_a_second() -> None:
    assert Bucket(1 << 20, 0).step == pytest.approx((1 << 20) / 20, rel=0.01)
    assert Bucket(1, 0).step == 512


# -- the effort


def line(rate: float, packing_rate: float, ratio: float = 0.4) -> Spent:
    """What a stretch takes; the line carries `rate` bytes a second, the compressor takes `packing_rate`."""
    plain, sent = STRETCH_BYTES, int(STRETCH_BYTES * ratio)
    packing, writing = plain / packing_rate, sent / rate
    return Spent(plain, sent, packing, writing, packing + writing)


@pytest.mark.parametrize(
    ("rate", "packing_rate", "effort"),
    [
        (1e6, 150e6, Effort.BEST),  # DSL
        (11e6, 150e6, Effort.STRONG),  # 100 Mbit/s
        (110e6, 150e6, Effort.NORMAL),  # 1 Gbit/s
        (400e6, 150e6, Effort.QUICK),  # this machine
        (200e6, 150e6, Effort.NORMAL),  # it hardly waits
        (3000e6, 100e6, Effort.QUICK),  # what hardly any compressor keeps up with
    ],
)
def test_the_effort_follows_the_line(rate: float, packing_rate: float, effort: Effort) -> None:
    pacer = Pacer()
    assert pacer.effort is Effort.NORMAL
    pacer.learn(line(rate, packing_rate))
    assert pacer.effort is effort


def test_a_line_that_gets_faster_is_noticed() -> None:
    pacer = Pacer()
    efforts = []
    for rate, packing_rate in ((1e6, 150e6), (400e6, 30e6), (400e6, 70e6), (200e6, 150e6)):
        pacer.learn(line(rate, packing_rate))
        efforts.append(pacer.effort)
    assert efforts == [Effort.BEST, Effort.STRONG, Effort.NORMAL, Effort.NORMAL]


def test_what_is_quick_stays_until_the_line_is_the_slower() -> None:
    pacer = Pacer()
    efforts = []
    for rate, packing_rate in ((400e6, 150e6), (200e6, 200e6), (140e6, 200e6)):
        pacer.learn(line(rate, packing_rate))
        efforts.append(pacer.effort)
    assert efforts == [Effort.QUICK, Effort.QUICK, Effort.NORMAL]


def test_where_even_the_quickest_is_too_slow_it_is_done_without_for_a_while() -> None:
    pacer = Pacer()
    efforts = []
    for _ in range(20):
        pacer.learn(line(6000e6, 100e6))
        efforts.append(pacer.effort)
    assert efforts[:3] == [Effort.QUICK, Effort.NONE, Effort.NONE]
    assert Effort.QUICK in efforts[3:]


def failed(times: int) -> Prospect:
    prospect = Prospect()
    for _ in range(times):
        prospect.learn(1000, 1001)
    return prospect


def test_a_sample_counts_only_after_some_pieces_have_failed() -> None:
    assert [failed(times).is_dim(Effort.NORMAL) for times in range(4)] == [False, False, True, True]


def test_a_sample_that_hardly_shrinks_is_not_worth_it() -> None:
    assert failed(2).is_worth_it(12_288, 6_000)
    assert not failed(2).is_worth_it(12_288, 12_000)
    assert not failed(2).is_worth_it(12_288, 12_300)


def test_a_piece_that_shrinks_brings_hope_back() -> None:
    prospect = failed(5)
    prospect.learn(1000, 500)
    assert not prospect.is_dim(Effort.NORMAL)


def test_samples_are_not_believed_for_ever() -> None:
    prospect, asked = failed(2), 0
    while prospect.is_dim(Effort.NORMAL):
        assert not prospect.is_worth_it(1000, 1000)
        asked += 1
    assert 3 < asked < 20
    prospect.learn(1000, 1000)
    assert prospect.is_dim(Effort.NORMAL)


def test_on_a_slow_line_there_is_time_to_try_everything() -> None:
    assert not failed(9).is_dim(Effort.STRONG)
