"""Diff: how two texts differ, in the unified format that people and `patch` read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from p2psync.core.merge import Edit, edits, lines_of

CONTEXT = 3
_NO_END = b"\\ No newline at end of file\n"


class Hunk(NamedTuple):
    """Edits that are near one another, with what is around them."""

    old_start: int
    """Of its first line, from 1 on; the line before it, if it has none."""
    old_lines: int
    new_start: int
    new_lines: int
    lines: list[bytes]
    """Each with its mark: a space, `-` or `+`."""

    @property
    def header(self) -> bytes:
        """The line that begins it."""
        old, new = _range(self.old_start, self.old_lines), _range(self.new_start, self.new_lines)
        return b"@@ -%s +%s @@\n" % (old, new)


def hunks(old: bytes, new: bytes) -> Iterator[Hunk]:
    """Yield what turns one text into another; nothing if they are the same."""
    before, after = lines_of(old), lines_of(new)
    group: list[Edit] = []
    moved = 0
    """By how many lines what follows has moved."""
    for edit in edits(before, after, 0):
        if group and edit.start - group[-1].end > 2 * CONTEXT:
            yield _hunk(before, group, moved)
            moved += _growth(group)
            group = []
        group.append(edit)
    if group:
        yield _hunk(before, group, moved)


def counts(old: bytes, new: bytes) -> tuple[int, int]:
    """Return how many lines are gone, and how many are new."""
    found = edits(lines_of(old), lines_of(new), 0)
    return sum(edit.end - edit.start for edit in found), sum(len(edit.lines) for edit in found)


def _growth(group: list[Edit]) -> int:
    return sum(len(edit.lines) - (edit.end - edit.start) for edit in group)


def _hunk(before: list[bytes], group: list[Edit], moved: int) -> Hunk:
    start = max(0, group[0].start - CONTEXT)
    end = min(len(before), group[-1].end + CONTEXT)
    lines: list[bytes] = []
    at = start
    for edit in group:
        lines += _marked(b" ", before[at : edit.start])
        lines += _marked(b"-", before[edit.start : edit.end])
        lines += _marked(b"+", edit.lines)
        at = edit.end
    lines += _marked(b" ", before[at:end])
    old_lines, new_lines = end - start, end - start + _growth(group)
    return Hunk(start + bool(old_lines), old_lines, start + moved + bool(new_lines), new_lines, lines)


def _marked(mark: bytes, lines: list[bytes]) -> Iterator[bytes]:
    for line in lines:
        yield mark + line if line.endswith(b"\n") else mark + line + b"\n" + _NO_END


def _range(start: int, lines: int) -> bytes:
    return b"%d" % start if lines == 1 else b"%d,%d" % (start, lines)
