"""The three-way merge: cases by name, laws, then random edits on which git must agree."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.core import merge as module
from p2psync.core.merge import MAX_TEXT, is_text, merge

Texts = tuple[bytes, bytes, bytes]
"""Base, ours, theirs."""

ABC = b"a\nb\nc\nd\ne\n"

# name: (base, ours, theirs, merged); None is a conflict
CASES: dict[str, tuple[bytes, bytes, bytes, bytes | None]] = {
    "nothing changed": (ABC, ABC, ABC, ABC),
    "edits of lines apart": (ABC, b"A\nb\nc\nd\ne\n", b"a\nb\nC\nd\ne\n", b"A\nb\nC\nd\ne\n"),
    "edits of the same line": (ABC, b"a\nb\nX\nd\ne\n", b"a\nb\nY\nd\ne\n", None),
    "edits of adjacent lines": (ABC, b"a\nB\nc\nd\ne\n", b"a\nb\nC\nd\ne\n", None),
    "edits of overlapping lines": (ABC, b"a\nB\nC\nd\ne\n", b"a\nb\nX\nY\ne\n", None),
    "an edit inside another": (ABC, b"A\nB\nC\nD\nE\n", b"a\nb\nX\nd\ne\n", None),
    "the same edit": (ABC, b"a\nX\nY\nd\ne\n", b"a\nX\nY\nd\ne\n", b"a\nX\nY\nd\ne\n"),
    "the same edit, and others apart": (
        ABC,
        b"A\nb\nX\nd\ne\n",
        b"a\nb\nX\nd\nE\n",
        b"A\nb\nX\nd\nE\n",
    ),
    "the same edit, longer on one side": (ABC, b"a\nX\nc\nd\ne\n", b"a\nX\nC\nd\ne\n", None),
    "a deletion and an edit apart": (ABC, b"a\nc\nd\ne\n", b"a\nb\nc\nd\nE\n", b"a\nc\nd\nE\n"),
    "a deletion of the line edited": (ABC, b"a\nc\nd\ne\n", b"a\nB\nc\nd\ne\n", None),
    "a deletion of the next line": (ABC, b"a\nc\nd\ne\n", b"a\nb\nC\nd\ne\n", None),
    "deletions apart": (ABC, b"b\nc\nd\ne\n", b"a\nb\nc\nd\n", b"b\nc\nd\n"),
    "deletions of adjacent lines": (ABC, b"a\nc\nd\ne\n", b"a\nb\nd\ne\n", None),
    "the same deletion": (ABC, b"a\ne\n", b"a\ne\n", b"a\ne\n"),
    "a deletion inside another": (ABC, b"a\ne\n", b"a\nb\nd\ne\n", None),
    "all deleted on one side": (ABC, b"", ABC, b""),
    "all deleted on both sides": (ABC, b"", b"", b""),
    "all deleted, and an edit": (ABC, b"", b"a\nB\nc\nd\ne\n", None),
    "insertions at both ends": (ABC, b"0\n" + ABC, ABC + b"f\n", b"0\n" + ABC + b"f\n"),
    "different insertions at the top": (ABC, b"0\n" + ABC, b"1\n" + ABC, None),
    "different insertions at the bottom": (ABC, ABC + b"f\n", ABC + b"g\n", None),
    "the same insertion": (ABC, b"a\nX\n" + ABC[2:], b"a\nX\n" + ABC[2:], b"a\nX\n" + ABC[2:]),
    "insertions that begin alike": (ABC, ABC + b"f\n", ABC + b"f\ng\n", None),
    "an insertion before a line edited": (ABC, b"a\nX\n" + ABC[2:], b"a\nB\nc\nd\ne\n", None),
    "an insertion behind a line edited": (ABC, b"a\nb\nX\nc\nd\ne\n", b"a\nB\nc\nd\ne\n", None),
    "an insertion behind a line deleted": (ABC, b"a\nb\nX\nc\nd\ne\n", b"a\nc\nd\ne\n", None),
    "an insertion a line further": (
        ABC,
        b"a\nb\nc\nX\nd\ne\n",
        b"a\nB\nc\nd\ne\n",
        b"a\nB\nc\nX\nd\ne\n",
    ),
    "new on both sides, the same": (b"", b"a\n", b"a\n", b"a\n"),
    "new on both sides, different": (b"", b"a\n", b"b\n", None),
    "new on both sides, one empty": (b"", b"a\n", b"", b"a\n"),
    "a line repeated twice is one insertion": (
        b"x\n}\ny\nz\n",
        b"x\n}\n}\ny\nz\n",
        b"x\n}\n}\ny\nZ\n",
        b"x\n}\n}\ny\nZ\n",
    ),
    "an added block slides down to where git has it": (
        b"f\n\ng\n\nh\nx\n",
        b"f\n\nnew\n\ng\n\nh\nx\n",
        b"F\n\ng\n\nh\nx\n",
        b"F\n\nnew\n\ng\n\nh\nx\n",
    ),
    "a rewrite amid many blank lines takes them along": (
        b"x\n\n\n\ny\nz\n" + b"\n" * 8,
        b"1\n2\n3\n4\n5\n6\n7\n\n\n\n1\n2\n3\n4\n5\n6\n7\nz\n" + b"\n" * 8,
        b"x\n\nnot blank\n\ny\nz\n" + b"\n" * 8,
        None,
    ),
    "a text with few blank lines keeps them in place": (
        b"x\n\n\n\ny\nz\n" + b"\n" * 4,
        b"1\n2\n3\n4\n5\n6\n7\n\n\n\n1\n2\n3\n4\n5\n6\n7\nz\n" + b"\n" * 4,
        b"x\n\nnot blank\n\ny\nz\n" + b"\n" * 4,
        b"1\n2\n3\n4\n5\n6\n7\n\nnot blank\n\n1\n2\n3\n4\n5\n6\n7\nz\n" + b"\n" * 4,
    ),
    "a blank line in front of a rewrite keeps its place": (
        b"x\nk\nl\n\ny\nz\n" + b"\n" * 8,
        b"1\nk\nl\n\n1\n2\n3\n4\n5\n6\n7\n8\n9\nz\n" + b"\n" * 8,
        b"x\nk\nL\n\ny\nz\n" + b"\n" * 8,
        b"1\nk\nL\n\n1\n2\n3\n4\n5\n6\n7\n8\n9\nz\n" + b"\n" * 8,
    ),
    "the same result of different deletions": (
        b"a\nb\nb\na\nb\nb\na\n",
        b"a\nb\nb\nb\n",
        b"b\nb\nb\n",
        b"b\nb\nb\n",
    ),
    "CR LF stays": (
        b"a\r\nb\r\nc\r\n",
        b"A\r\nb\r\nc\r\n",
        b"a\r\nb\r\nC\r\n",
        b"A\r\nb\r\nC\r\n",
    ),
    "mixed line ends stay": (b"a\r\nb\nc\r\n", b"A\nb\nc\r\n", b"a\r\nb\nC\n", b"A\nb\nC\n"),
    "a line end is part of its line": (b"a\nb\n", b"a\r\nb\n", b"A\nb\n", None),
    "all line ends changed, and an edit": (b"a\nb\nc\n", b"a\r\nb\r\nc\r\n", b"a\nb\nC\n", None),
    "a lone CR ends no line": (b"a\rb\rc\n", b"A\rb\rc\n", b"a\rb\rC\n", None),
    "a CR alone at the end": (b"a\nb\nc\r", b"A\nb\nc\r", b"a\nb\nC\r", b"A\nb\nC\r"),
    "no newline at the end, on all": (b"a\nb\nc", b"A\nb\nc", b"a\nb\nC", b"A\nb\nC"),
    "the last newline goes on one side": (b"a\nb\nc\n", b"A\nb\nc\n", b"a\nb\nc", b"A\nb\nc"),
    "the last newline comes on one side": (b"a\nb\nc", b"a\nb\nc\n", b"A\nb\nc", b"A\nb\nc\n"),
    "the last newline comes on both": (b"a\nb", b"a\nb\n", b"a\nb\n", b"a\nb\n"),
    "the last newline goes, the line is edited": (b"a\nb\n", b"a\nb", b"a\nB\n", None),
    "the last newline goes, a line is added": (b"a\nb\n", b"a\nb", b"a\nb\nc\n", None),
    "one line, none with a newline": (b"a", b"b", b"c", None),
    "a byte order mark is part of the first line": (
        b"\xef\xbb\xbfa\nb\nc\n",
        b"\xef\xbb\xbfa\nb\nC\n",
        b"a\nb\nc\n",
        b"a\nb\nC\n",
    ),
    "U+2028, NEL, FF and VT end no line": (
        "a\u2028b\u0085c\fd\ve\nx\ny\n".encode(),
        "A\u2028b\u0085c\fd\ve\nx\ny\n".encode(),
        "a\u2028b\u0085c\fd\vE\nx\ny\n".encode(),
        None,
    ),
    "bytes that are not UTF-8": (
        b"\xff\nb\n\x80\n",
        b"\xfe\nb\n\x80\n",
        b"\xff\nb\n\x81\n",
        b"\xfe\nb\n\x81\n",
    ),
}

WITH_CASES = pytest.mark.parametrize(("base", "ours", "theirs", "merged"), CASES.values(), ids=CASES.keys())


@WITH_CASES
def test_case(base: bytes, ours: bytes, theirs: bytes, merged: bytes | None) -> None:
    assert merge(base, ours, theirs) == merged
    assert merge(base, theirs, ours) == merged


def test_text_has_no_nul_anywhere_and_at_most_one_mebibyte() -> None:
    assert is_text(b"")
    assert is_text(b"\xff\r\x1a\n" * (MAX_TEXT // 4))
    assert not is_text(b"x" * (MAX_TEXT + 1))
    assert not is_text(b"x" * 100_000 + b"\0")


@pytest.mark.parametrize("other", [b"a\0\n", b"a\n" * (MAX_TEXT // 2) + b"\n"], ids=["NUL", "too long"])
@pytest.mark.parametrize("place", range(3))
def test_what_is_not_text_conflicts_even_if_one_side_is_unchanged(other: bytes, place: int) -> None:
    texts = [b"a\n"] * 3
    texts[place] = other
    assert merge(*texts) is None


def numbered(first: int, last: int) -> list[bytes]:
    return [b"%d\n" % number for number in range(first, last)]


def test_moved_block_merges_with_an_edit_outside_of_it() -> None:
    base = numbered(0, 1000)
    ours = numbered(0, 100) + numbered(400, 1000) + numbered(100, 400)
    theirs = [b"edited\n", *base[1:]]
    merged = b"".join([b"edited\n", *ours[1:]])
    assert merge(b"".join(base), b"".join(ours), b"".join(theirs)) == merged


def rearranged(block: list[bytes]) -> list[bytes]:
    """Return the same lines in an order that takes a search to align."""
    return block[1::2] + block[::2]


def test_texts_too_different_to_align_count_as_changed_throughout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = b"".join(numbered(0, 50))
    block, rest = numbered(10, 40), numbered(20, 30)
    lines = numbered(0, 10) + rearranged(block[:10]) + rest + rearranged(block[20:]) + numbered(40, 50)
    ours = b"".join(lines)
    amid, before = base.replace(b"25\n", b"X\n"), base.replace(b"5\n", b"X\n", 1)
    assert merge(base, ours, amid) == ours.replace(b"25\n", b"X\n")
    monkeypatch.setattr(module, "MAX_STEPS", 0)
    assert merge(base, ours, amid) is None
    assert merge(base, ours, before) == ours.replace(b"5\n", b"X\n", 1)


def test_search_ends_soon_after_its_steps_are_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    split = module._split

    def counted(a: list[bytes], b: list[bytes], allowance: int) -> tuple[module._Point | None, int]:
        taken.append((result := split(a, b, allowance))[1])
        return result

    monkeypatch.setattr(module, "_split", counted)
    monkeypatch.setattr(module, "MAX_COST", 20)
    monkeypatch.setattr(module, "MAX_STEPS", 20_000)
    rng = random.Random(1)
    base, ours, theirs = (b"".join(rng.sample(numbered(0, 3000), 3000)) for _ in range(3))
    assert merge(base, ours, theirs) is None
    assert 40_000 < sum(taken) < 50_000  # for both sides


# --- laws ---

LINES = st.sampled_from([b"a\n", b"b\n", b"c\n", b"\n", b"}\r\n", b"}\n"])
TEXT = st.builds(
    lambda lines, rest: b"".join(lines) + rest,
    st.lists(LINES, max_size=12),
    st.sampled_from([b"", b"", b"a", b"\r"]),
)
EDITED = st.tuples(TEXT, TEXT, TEXT) | st.builds(
    lambda top, texts, bottom: tuple(top + text + bottom for text in texts),
    TEXT,
    st.tuples(TEXT, TEXT, TEXT),
    TEXT,
)


@given(EDITED)
@settings(max_examples=500)
def test_order_of_the_sides_does_not_matter(texts: Texts) -> None:
    base, ours, theirs = texts
    assert merge(base, ours, theirs) == merge(base, theirs, ours)


@given(TEXT | st.binary().filter(is_text), TEXT | st.binary().filter(is_text))
@settings(max_examples=500)
def test_an_edit_on_one_side_or_the_same_on_both_is_the_result(base: bytes, edited: bytes) -> None:
    assert merge(base, base, edited) == edited
    assert merge(base, edited, edited) == edited


LONG = st.lists(LINES, min_size=10, max_size=40).map(b"".join)
LIMITS = st.sampled_from([(1, 500_000), (4, 500_000), (9, 500_000), (256, 0), (256, 9)])


@given(LONG, LONG, LIMITS)
@settings(max_examples=500)
def test_search_may_end_early_but_loses_nothing(base: bytes, edited: bytes, limits: tuple[int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_COST", limits[0])
        patch.setattr(module, "MAX_STEPS", limits[1])
        assert merge(base, base, edited) == edited


@given(st.lists(st.tuples(st.sampled_from("-otb!"), st.integers(0, 3), st.integers(0, 3)), max_size=12))
@settings(max_examples=300)
def test_edits_with_a_line_between_them_are_all_kept(blocks: list[tuple[str, int, int]]) -> None:
    """Each block is edited by no one, by ours, theirs, both alike, or both differently."""
    base, ours, theirs, merged = b"", b"", b"", b""
    for number, (who, size, new_size) in enumerate(blocks):
        old, new = (
            b"".join(b"%d %s %d\n" % (number, word, i) for i in range(count))
            for word, count in ((b"old", size), (b"new", new_size + 1))
        )
        fence = b"fence %d\n" % number
        base += old + fence
        ours += {"-": old, "t": old, "!": new + b"ours\n"}.get(who, new) + fence
        theirs += {"-": old, "o": old, "!": new + b"theirs\n"}.get(who, new) + fence
        merged += (old if who == "-" else new) + fence
    conflict = any(who == "!" for who, _, _ in blocks)
    assert merge(base, ours, theirs) == (None if conflict else merged)


# --- the same verdicts and bytes as git ---

ENV = {
    "PATH": os.environ.get("PATH", os.defpath),
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "LC_ALL": "C",
}
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is the oracle")

# One shell for many merges; git's exit code is the number of conflicts, from 128 on an error.
ASK_GIT = """
for case in *; do
    git merge-file -q -p "$case/ours" "$case/base" "$case/theirs" > "$case/merged"
    echo $? > "$case/status"
done
"""


def merged_by_git(place: Path, cases: Mapping[str, Texts]) -> Iterator[bytes | None]:
    for name, texts in cases.items():
        (place / name).mkdir()
        for side, text in zip(("base", "ours", "theirs"), texts, strict=True):
            (place / name / side).write_bytes(text)
    subprocess.run(["sh", "-c", ASK_GIT], cwd=place, env=ENV, check=True)
    for name in cases:
        status = int((place / name / "status").read_text())
        assert status < 128, name
        yield None if status else (place / name / "merged").read_bytes()


@functools.cache
def sources() -> list[list[bytes]]:
    """Return real texts that are there wherever Python is: the top level of its library."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = (path.read_bytes() for path in sorted(library.glob("*.py")))
    return [text.splitlines(keepends=True) for text in texts if 1000 < len(text) < 100_000]


class Editor:
    """Random edits as people and tools make them, near each other often enough to collide."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.sources = sources()

    def edited_file(self) -> Texts:
        """Return a stretch of a source with edits around one or two places."""
        rng = self.rng
        base = rng.choice(self.sources)
        start = rng.randrange(len(base))
        base = base[start : start + rng.choice([10, 50, 150, 400])]
        return self.edited(base, base if rng.random() < 0.6 else rng.choice(self.sources))

    def repetitive_file(self) -> Texts:
        """Return edits of few different lines, where every alignment is a matter of choice."""
        kinds = self.rng.choice([2, 3, 8, 20])
        base = [b"%d\n" % self.rng.randrange(kinds) for _ in range(self.rng.randint(1, 100))]
        return self.edited(base, base)

    def rebuilt_file(self) -> Texts:
        """Return a whole source with big blocks moved: the search settles for a good way."""
        base, pool = self.rng.sample(self.sources, 2)
        sides = [list(base), list(base)]
        for side in sides[: self.rng.randint(1, 2)]:
            for _ in range(self.rng.randint(1, 4)):
                self.move(side, self.rng.randrange(len(side) + 1), self.rng.randint(1, 400), 5000)
            self.edit(side, pool, self.rng.randrange(len(side) + 1), 300)
        self.edit(sides[1], pool, self.rng.randrange(len(sides[1]) + 1), 3)
        return b"".join(base), b"".join(sides[0]), b"".join(sides[1])

    def edited(self, base: list[bytes], pool: list[bytes]) -> Texts:
        rng = self.rng
        place = rng.randrange(len(base) + 1)
        most = rng.choice([1, 2, 4, 8])
        sides = [list(base), list(base)]
        for side in sides:
            for _ in range(rng.randint(1, most)):
                near = rng.random() < 0.7
                at = place + rng.randint(-25, 25) if near else rng.randrange(len(base) + 1)
                self.edit(side, pool, max(0, min(at, len(side))), rng.choice([1, 1, 2, 3, 6, 12]))
            place += rng.choice([0, 0, 3, 15, 60])
            if side and rng.random() < 0.03:
                side[-1] = side[-1].rstrip(b"\r\n")
        return b"".join(base), b"".join(sides[0]), b"".join(sides[1])

    def edit(self, lines: list[bytes], pool: list[bytes], at: int, size: int) -> None:
        """Make one edit of some `size` at a line."""
        rng = self.rng
        other = rng.randrange(len(pool))
        match rng.randrange(7):
            case 0:
                word = b"%d" % rng.randrange(3)
                lines[at : at + size] = [line[:3] + word + line[3:] for line in lines[at : at + size]]
            case 1:
                del lines[at : at + size]
            case 2:
                lines[at:at] = pool[other : other + size]
            case 3:
                lines[at : at + size] = pool[other : other + rng.randint(1, 4)]
            case 4:
                self.move(lines, at, size, 30)
            case 5:
                lines[at:at] = lines[at : at + size]
            case _:
                lines[at:at] = [rng.choice([b"\n", b"    pass\n", b"    }\n"])] * rng.randint(1, 2)

    def move(self, lines: list[bytes], at: int, size: int, distance: int) -> None:
        block = lines[at : at + size]
        del lines[at : at + size]
        to = max(0, min(at + self.rng.randint(-distance, distance), len(lines)))
        lines[to:to] = block

    def cases(self) -> dict[str, Texts]:
        """Return a batch of 250."""
        makers = [self.edited_file] * 197 + [self.repetitive_file] * 50 + [self.rebuilt_file] * 3
        return {f"{number:03}-{make.__name__}": make() for number, make in enumerate(makers)}


def check_batch(place: Path, seed: int) -> None:
    cases = Editor(seed).cases()
    for (name, texts), expected in zip(cases.items(), merged_by_git(place, cases), strict=True):
        assert merge(*texts) == expected, (seed, name, *texts)


@needs_git
@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_git_on_random_edits(tmp_path: Path, seed: int) -> None:
    check_batch(tmp_path, seed)


@needs_git
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_agrees_with_git_on_random_edits_at_length(tmp_path: Path, seed: int) -> None:
    check_batch(tmp_path, seed)


@needs_git
def test_agrees_with_git_on_the_cases_above(tmp_path: Path) -> None:
    cases = {f"{number}": texts[:3] for number, texts in enumerate(CASES.values())}
    expected = dict(zip(CASES, merged_by_git(tmp_path, cases), strict=True))
    assert expected == {name: merged for name, (_, _, _, merged) in CASES.items()}
