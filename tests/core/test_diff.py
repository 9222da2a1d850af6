"""Unified diffs: what they say turns one text into the other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.core.diff import CONTEXT, Hunk, counts, hunks
from p2psync.core.merge import lines_of

LINES = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"\n"]), max_size=30)
TEXTS = st.tuples(LINES, st.sampled_from([b"", b"end"])).map(lambda parts: b"".join(parts[0]) + parts[1])
_NO_END = b"\\ No newline at end of file\n"


def patched(old: bytes, found: list[Hunk]) -> bytes:
    before, after = lines_of(old), b""
    at = 0
    for hunk in found:
        start = hunk.old_start - bool(hunk.old_lines)
        after += b"".join(before[at:start])
        new: list[bytes] = []
        old_lines = []
        for line in lines_of(b"".join(hunk.lines).replace(b"\n" + _NO_END, b"")):
            if line[:1] in b" +":
                new.append(line[1:])
            if line[:1] in b" -":
                old_lines.append(line[1:])
        assert old_lines == before[start : start + hunk.old_lines] or _NO_END in hunk.lines[-1]
        assert len(new) == hunk.new_lines
        after += b"".join(new)
        at = start + hunk.old_lines
    return after + b"".join(before[at:])


@given(TEXTS, TEXTS)
def test_a_diff_turns_one_text_into_the_other(old: bytes, new: bytes) -> None:
    found = list(hunks(old + b"\n", new + b"\n"))
    assert patched(old + b"\n", found) == new + b"\n"
    assert bool(found) == (old != new)
    gone, come = counts(old, new)
    assert len(lines_of(new)) - len(lines_of(old)) == come - gone


@pytest.mark.skipif(not shutil.which("patch"), reason="patch applies them")
@given(TEXTS, TEXTS)
def test_patch_understands_it(tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes) -> None:
    file = Path(tmp_path_factory.mktemp("patch"), "f")
    file.write_bytes(old)
    told = b"--- f\n+++ f\n" + b"".join(hunk.header + b"".join(hunk.lines) for hunk in hunks(old, new))
    if old != new:
        subprocess.run(["patch", "-s", file], input=told, check=True)
        assert (file.read_bytes() if file.exists() else b"") == new


def test_edits_that_are_far_apart_are_hunks_of_their_own() -> None:
    old = b"".join(b"%d\n" % number for number in range(40))
    near = list(hunks(old, old.replace(b"10\n", b"x\n").replace(b"%d\n" % (11 + 2 * CONTEXT), b"y\n")))
    far = list(hunks(old, old.replace(b"10\n", b"x\n").replace(b"%d\n" % (12 + 2 * CONTEXT), b"y\n")))
    assert (len(near), len(far)) == (1, 2)
    assert far[0].header == b"@@ -8,7 +8,7 @@\n"
