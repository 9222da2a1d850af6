"""Words that all of the output shares: sizes, times, tables, paths in JSON, and complaints."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from p2psync.core.model import Action, Problem
from p2psync.core.paths import printable, shown

ACTION_WORDS = {
    Action.CREATE: "new",
    Action.UPDATE: "changed",
    Action.DELETE: "deleted",
    Action.REPLACE: "replaced",
    Action.MODE: "permissions",
    Action.TOUCH: "touched",
}
MANY_ALIKE = 10
"""More problems for the same reason than these are counted, not told one by one: a disk that is full has
one for each file."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_of(count: int) -> str:
    """Return a number of bytes as people say it."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def ago(seconds: float) -> str:
    """Return how long ago something was."""
    for limit, divisor, unit in ((90, 1, "second"), (5400, 60, "minute"), (129600, 3600, "hour")):
        if seconds < limit:
            return plural(max(0, round(seconds / divisor)), unit) + " ago"
    return plural(round(seconds / 86400), "day") + " ago"


def plural(count: int, word: str) -> str:
    """Return so many of something."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def when(mtime_ns: int) -> str:
    """Return a time of a file by the reader's clock, to the second."""
    try:
        return datetime.fromtimestamp(mtime_ns // 10**9, UTC).astimezone().isoformat(" ", "seconds")[:19]
    except (OverflowError, ValueError, OSError):
        return "at no time"


def columns(rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """Return rows as aligned lines; the column `right` is aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if number == right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def complain(message: str, kind: str = "error") -> None:
    """Say on stderr what is wrong, and what to do."""
    print(f"p2psync: {kind}: {printable(message)}", file=sys.stderr)


def problem_lines(problems: Iterable[Problem], everything: bool = False, colon: str = "") -> Iterator[str]:
    """Yield what there is to say of problems: of many of a kind the first ones, then how many more there are.

    Args:
        problems: each with a path, and why it was left alone.
        everything: leave none out.
        colon: what comes between both.
    """
    met: Counter[str] = Counter()
    for problem in problems:
        met[problem.why] += 1
        if everything or met[problem.why] <= MANY_ALIKE:
            yield f"{shown(problem.path)}{colon} {problem.why}"
    for why, count in met.items() if not everything else ():
        if count > MANY_ALIKE:
            yield f"{plural(count - MANY_ALIKE, 'more path')}{colon} {why}"


def json_path(path: bytes) -> str:
    """Return a path as a JSON string; bytes that are no UTF-8 become lone surrogates, as in os.fsdecode."""
    return path.decode("utf-8", "surrogateescape")
