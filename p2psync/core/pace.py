"""How fast to send, and how hard to compress. Decides by what it is told was measured; no clock, no bytes."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple

# -- a limit of bytes a second

_RATE = re.compile(r"(\d+(?:\.\d+)?)([bkmgt]?)(?:(i?)(b))?", re.IGNORECASE)
_STEP_SECONDS = 0.05
"""So much is sent at once: short enough to be smooth, long enough to cost nothing."""
_MIN_STEP = 512


def parse_rate(text: str) -> int:
    """Return the bytes a second that a text means, as rsync's `--bwlimit` has it; 0: no limit.

    A bare number counts KiB; `b k m g t` are bytes and powers of 1024, `kb mb gb tb` of 1000.

    Raises:
        ValueError: it means nothing.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None or (match[2].lower() in ("", "b") and match[4]):
        raise ValueError(f"{text!r} is no rate: write 500 (KiB/s), 500K, 10M, 1.5g or 0")
    thousand = 1000 if match[4] and not match[3] else 1024
    rate = int(float(match[1]) * thousand ** "bkmgt".index(match[2].lower() or "k"))
    if rate >= 1 << 62:
        raise ValueError(f"{text!r} is more than any line carries")
    return rate


class Bucket:
    """A token bucket that is hardly any deeper than a step: no bursts, whatever the pauses."""

    def __init__(self, rate: int, now: float) -> None:
        """`rate` in bytes a second; `now` in seconds, as all times here."""
        self.step = max(_MIN_STEP, int(rate * _STEP_SECONDS))
        self._rate = rate
        self._free_at = now

    def wait(self, size: int, now: float) -> float:
        """Return how many seconds to wait before `size` bytes may be sent; they count as sent."""
        begin = max(self._free_at, now - _STEP_SECONDS)
        self._free_at = begin + size / self._rate
        return max(0.0, begin - now)


# -- compression


class Compress(IntEnum):
    """What was asked for; the number is what tells the other side."""

    OFF = 0
    ON = 1
    AUTO = 2


def parse_compress(text: str) -> Compress:
    """Return what `auto`, `on` or `off` means.

    Raises:
        ValueError: it is another word.
    """
    for known in Compress:
        if known.name.lower() == text:
            return known
    raise ValueError(f"compress is auto, on or off, not {text!r}")


class Effort(IntEnum):
    """How hard to compress, from not at all."""

    NONE = 0
    QUICK = 1
    NORMAL = 2
    STRONG = 3
    BEST = 4


class Spent(NamedTuple):
    """What a stretch of the stream took."""

    plain: int
    """Bytes before compression."""
    sent: int
    """Bytes after."""
    packing: float
    """Seconds."""
    writing: float
    """Seconds; more than the system needs to copy them is waiting for the line."""
    elapsed: float


STRETCH_BYTES = 4 << 20
STRETCH_SECONDS = 0.5
"""What is judged at once, whichever comes first."""

_WAITING = 0.6
"""Who spends such a part of the time writing waits for the line."""
_SLOW, _VERY_SLOW = 16e6, 3e6
"""Bytes a second. Then STRONG, which packs 60-120 MB/s, or BEST, 25-80, still keep up, and send less."""
_FASTER = 1.5
"""A line so much faster than the compressor waits for it: then it has to be quick."""
_MUCH_FASTER = 6.0
"""And one so much faster is better used plain."""
_PAUSE_STRETCHES = 16
"""How long to do without before it is tried again."""


class Pacer:
    """Chooses the effort for the next stretch by what the last one took."""

    def __init__(self) -> None:
        """Begin in the middle."""
        self.effort = Effort.NORMAL
        self._pause = 0

    def learn(self, spent: Spent) -> None:
        """Take in what a stretch with the present effort took."""
        if self.effort is Effort.NONE:
            self._pause -= 1
            if self._pause <= 0:
                self.effort = Effort.QUICK
            return
        if spent.writing >= _WAITING * spent.elapsed:
            line = spent.sent / spent.elapsed
            if line <= _SLOW:
                self.effort = Effort.BEST if line <= _VERY_SLOW else Effort.STRONG
            else:
                self.effort = Effort.NORMAL
            return
        # As a quotient: how much sooner the line would take all of it plain than it is packed.
        sooner, base = spent.packing * spent.sent, spent.writing * spent.plain
        faster = _FASTER if self.effort > Effort.QUICK else _MUCH_FASTER
        if self.effort > Effort.NORMAL or sooner > faster * base:
            self.effort = Effort(self.effort - 1)
            self._pause = _PAUSE_STRETCHES
        elif sooner < _FASTER / 2 * base:
            self.effort = Effort.NORMAL


# -- is a piece worth it?

SAMPLE_BYTES = 12 << 10
_WORTH = 0.93
"""What compresses no better might as well be sent as it is."""
_FAILURES = 2
_SKIPS = 7


class Prospect:
    """Whether to try at all, by how it went so far.

    A sample is wrong where contents are mixed, or repeat what came long before. So it is asked only after
    some pieces have failed, not for ever, and never on a slow line, where there is time to try.
    """

    def __init__(self) -> None:
        """Begin with hope."""
        self._failures = 0
        self._skips = 0

    def is_dim(self, effort: Effort) -> bool:
        """Should a sample be asked?"""
        return self._failures >= _FAILURES and self._skips < _SKIPS and effort <= Effort.NORMAL

    def is_worth_it(self, sample: int, packed: int) -> bool:
        """Decide by a sample of so many bytes and its size when compressed."""
        worth = packed < _WORTH * sample
        self._skips += not worth
        return worth

    def learn(self, plain: int, packed: int) -> None:
        """Take in what became of a piece that was tried."""
        self._failures = 0 if packed < _WORTH * plain else self._failures + 1
        self._skips = 0
