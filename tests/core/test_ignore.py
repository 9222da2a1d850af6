"""The ignore rules: cases by name, then random ones on which `git check-ignore` must agree."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from p2psync.core.ignore import Ignore

# A path ends in `/` if it is a directory; ignore files are found by their directory.
Files = Mapping[bytes, bytes]


def is_ignored(files: Files, path: bytes, local: bytes = b"") -> bool:
    """Walk down to `path` as the scanner does, and stop at the first ignored directory."""
    view = Ignore.top(local, files.get(b"", b""))
    *parents, last = path.rstrip(b"/").split(b"/")
    at = b""
    for name in parents:
        if view.matches(name, is_dir=True):
            return True
        at = at + b"/" + name if at else name
        view = view.below(name, files.get(at, b""))
    return view.matches(last, path.endswith(b"/"))


CASES: dict[str, tuple[bytes, str, str]] = {
    # name: (text of the root's file, ignored paths, other paths)
    "a name matches at every depth": (b"a\n", "a b/a b/c/a a/ a/x", "b ab b/aa"),
    "case counts": (b"Read\n", "Read", "read READ"),
    "the last line needs no newline": (b"a\nb", "a b", "c"),
    "empty lines and comments are no rules": (b"\n\n#a\n # b\n", "", "a #a b"),
    "a slash in front anchors": (b"/a\n", "a a/x", "b/a"),
    "a slash inside anchors": (b"a/b\n", "a/b a/b/c", "b c/a/b"),
    "an escaped or bracketed slash anchors": (b"a\\/b\n[a/c]x\n", "a/b ax", "x/a/b x/ax"),
    "a slash at the end asks for a directory": (b"a/\n", "a/ b/a/ a/x", "a b/a"),
    "only one slash in front is dropped": (b"//a\n/b//\n", "", "a b/"),
    "a lone slash or exclamation mark is nothing": (b"/\n!\n//\n", "", "a a/"),
    "the last match wins": (b"*.o\n!a.o\n/x/a.o\n", "b.o x/a.o", "a.o y/a.o"),
    "a file cannot come back if its directory is out": (b"a/\n!a/b\n", "a/b", "b"),
    "a file can come back if only its siblings are out": (b"a/*\n!a/b\n", "a/c a/c/", "a/b a/"),
    "escaped # and ! are plain": (b"\\#a\n\\!b\n", "#a !b", "a b"),
    "! is special only in front, # only first": (b"!!a\na!\n!#\na#\n", "a! a#", "!a a"),
    "an ending": (b"*.c\n", ".c a.c d/a.c a.c/x", "a.cc c"),
    "a star stays within a name": (b"a/*/c\n*x*y\n", "a/b/c xy axbyxy", "a/c a/b/b/c x/y"),
    "a question mark is one byte but a slash": (b"a?b\n?/c\n", "a.b x/c", "ab a..b a/b xx/c"),
    "a question mark is one byte of UTF-8": (b"?\n", "a", "é"),
    "** in front": (b"**/a/b\n", "a/b x/a/b x/y/a/b", "a b x/b"),
    "** at the end": (b"a/**\n", "a/x a/x/y a/x/", "a/ b/a/x"),
    "** in the middle": (b"a/**/b\n", "a/b a/x/b a/x/y/b", "b ab a/xb x/a/b"),
    "many ** are as one": (b"a/**/***/**/b/\n", "a/b/ a/x/y/b/", "a/b ab/"),
    "** alone is everything": (b"**\n!b\n", "a a/x", "b"),
    "** before an escaped slash takes at least one": (b"**\\/b\n", "a/b a/a/b", "b"),
    "** within a name is *": (b"a**c\n?x**/d\n", "abc ac yx/d yxz/d", "a/c yxd yx/z/d"),
    "** after a literal start, as git before 2.52": (
        b"foo**/bar\n/b/c**\n",
        "foobar foo/bar foox/bar foo/x/bar b/c b/cd",
        "foo/xbar b/dc x/foo/bar",
    ),
    "** ending a literal start, negated": (b"/f/*/*\n!/f**\n", "", "f/x/y f/x f/"),
    "** before an escaped slash after a literal start": (b"foo**\\/x\n", "foo/x foo/a/x", "foox"),
    "** repeated after a literal start": (b"a**/**/**/b**/c\n", "ab/c abx/c a/y/b/c", "abc b/c"),
    "spaces at the end go": (b"a  \nb\\ \nc\\  \nd\\\\ \n", "a d\\", "b c"),
    "tabs at the end stay": (b"a\t\n b\n", "", "a b"),
    "CR LF is a line end": (b"a\r\nb \r\n/c/\r\n\r\n", "a b c/", "c d"),
    "a BOM in front is skipped": (b"\xef\xbb\xbfa\nb\n", "a b", "c"),
    "NUL ends a line": (b"a\0b\nc \0\n\0d\n", "a c", "ab b d"),
    "a backslash at the end never matches": (b"a\\\nb\\/\n*\\\n", "", "a a\\ b/ b\\/"),
    "a backslash makes the next byte plain": (b"\\a\\*\\?\\[\\\\\n", "a*?[\\", "ab"),
    "a set": (b"[ab]x\n[c-e-g]\n[a-]y\n[]-]z\n", "ax bx c d e - g ay -y ]z -z", "cx f by az"),
    "a negated set": (b"[!ab]x\n[^a-c]y\n[!]]z\n[^^]q\n", "cx dy az aq", "ax ay ]z ^q x"),
    "escapes in a set": (b"[\\]]x\n[\\a-\\c]y\n[a\\-c]z\n", "]x by -z az cz", "\\x dy bz"),
    "a backward range has its first byte": (b"[c-a]\n", "c", "a b"),
    "a range is not taken apart": (b"[--0]\n[a-c-e]x\n", "- 0 bx -x ex", ", 1 dx"),
    "classes": (b"[[:upper:][:digit:]-]x\n[^[:alnum:]]y\n", "Ax 7x -x .y", "ax .x ay"),
    "what is not quite a class is a set": (b"[[:a]x\n[[:]y\n", "[x :x ax [y :y", "bx y"),
    "a bad class never matches": (b"[[:word:]]\n[[::]]\n[[:ALPHA:]a]\n[[.a.]]\n", ".]", "a w :"),
    "a set without end never matches": (b"a[\n[b\n[]\n[!]\n[c\\]\nd[/\n", "", "a a[ [b [] c d[/"),
    "dot names are names": (b"*\n!.*\n", "a", ".a"),
}
# Names with blanks, which the words above cannot spell.
SPACED: dict[str, tuple[bytes, bytes, bool]] = {
    "an escaped space stays": (b"b\\ \n", b"b ", True),
    "only the first of the spaces is escaped": (b"c\\  \n", b"c ", True),
    "a space inside stays": (b"a b\n", b"a b", True),
    "a tab at the end counts": (b"a\t\n", b"a\t", True),
    "a space in front counts": (b" a\n", b" a", True),
    "CR is dropped at a line end only": (b"a\rb\n", b"a\rb", True),
    "only one CR is dropped": (b"a\r\r\n", b"a\r", True),
    "a CR before spaces stays": (b"a\r \n", b"a\r", True),
    "CR is dropped at the end of the file": (b"a\r", b"a\r", False),
    "LF may be matched by a wildcard": (b"a?b\n", b"a\nb", True),
    "vertical tab is not git's space": (b"a[[:space:]]\n", b"a\v", False),
    "a BOM further on is plain": (b"a\n\xef\xbb\xbfb\n", b"\xef\xbb\xbfb", True),
    "bytes that are not UTF-8": (b"[\x80-\xff]\n", b"\xc0", True),
}


@pytest.mark.parametrize(("text", "ignored", "others"), CASES.values(), ids=CASES.keys())
def test_rule(text: bytes, ignored: str, others: str) -> None:
    for path in ignored.split():
        assert is_ignored({b"": text}, os.fsencode(path)), path
    for path in others.split():
        assert not is_ignored({b"": text}, os.fsencode(path)), path


@pytest.mark.parametrize(("text", "name", "ignored"), SPACED.values(), ids=SPACED.keys())
def test_rule_about_blanks(text: bytes, name: bytes, ignored: bool) -> None:
    assert is_ignored({b"": text}, name) is ignored


def test_deeper_file_beats_shallower_and_both_beat_the_local_one() -> None:
    files = {b"": b"a\n!b\n", b"d": b"!a\n/c\n"}
    paths = (b"a", b"b", b"c", b"d/a", b"d/b", b"d/c", b"d/e/a", b"d/e/c")
    ignored = [path for path in paths if is_ignored(files, path, local=b"b\nc\n")]
    assert ignored == [b"a", b"c", b"d/c", b"d/e/c"]


def test_anchored_rule_counts_from_its_own_directory() -> None:
    files = {b"x/y": b"/a/b\n"}
    assert is_ignored(files, b"x/y/a/b")
    assert not is_ignored(files, b"a/b")


def test_view_is_empty_where_no_rule_can_match_any_more() -> None:
    top = Ignore.top(b"# nothing\n", b"/a/b\n[\n")
    assert not top.empty
    assert not top.below(b"a").empty
    assert top.below(b"b").empty
    assert Ignore.top(b"\n#\n").empty


def test_view_without_path_rules_is_shared_on_the_way_down() -> None:
    top = Ignore.top(rules=b"*.o\n")
    assert top.below(b"a").below(b"b").fingerprint == top.fingerprint
    assert top.below(b"a").matches(b"x.o", is_dir=False)


def test_fingerprint_tells_texts_and_places_apart() -> None:
    def at(exclude: bytes, root: bytes, *below: tuple[bytes, bytes]) -> bytes:
        view = Ignore.top(exclude, root)
        for name, text in below:
            view = view.below(name, text)
        return view.fingerprint

    views = [
        at(b"", b""),
        at(b"a", b""),
        at(b"", b"a"),
        at(b"a", b"a"),
        at(b"", b"a\n"),
        at(b"", b"", (b"x", b"a")),
        at(b"", b"", (b"y", b"a")),
        at(b"", b"", (b"x", b""), (b"y", b"a")),
        at(b"", b"a", (b"x", b"a")),
    ]
    assert len(set(views)) == len(views)
    assert at(b"", b"a", (b"x", b"b")) == at(b"", b"a", (b"x", b"b"))


HOSTILE = r"""
from p2psync.core.ignore import Ignore

def ask(rules, *path):
    view = Ignore.top(rules=rules)
    for name in path[:-1]:
        view = view.below(name)
    return view.matches(path[-1], False)

assert not ask(b"a*" * 120 + b"b", b"a" * 255)
assert not ask(b"*?[ab]" * 60 + b"b", b"a" * 255)
assert not ask(b"**/a*a*a*a*a*b/" * 50 + b"c", *[b"a" * 255] * 200)
assert not ask(b"**/a/" * 300 + b"b", *[b"a"] * 400)
assert ask(b"**/*/" * 100 + b"b", *[b"a"] * 400, b"b")
assert ask(b"x" + b"**/" * 100_000 + b"b", b"x", b"b")
assert not ask(b"a/" * 100_000 + b"a", b"a", b"a")
for piece in br"[[: [: [ \ * *a **/ ! ] - [] ? [a-z]".split() + [b" ", b"\\ ", b"\r", b"\0"]:
    for line in (piece * 30_000, b"[" + piece * 30_000 + b"]", b"a" + piece * 30_000 + b"/b"):
        ask(line, b"a" * 255)
"""


def test_hostile_patterns_take_no_long_time() -> None:
    subprocess.run([sys.executable, "-c", HOSTILE], check=True, timeout=20)


# --- the same answers as git ---

ENV = {
    "PATH": os.environ.get("PATH", os.defpath),
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "LC_ALL": "C",
}
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is the oracle")

NAMES = b"a|b|c|ab|ba|aab|abb|abab|a.c|b.c|ab.c|.c|-|a-b|]|[|[a]|!a|#a|^|_|1|a,b|a:".split(b"|")
NAMES += rb"a\ \ \a * ** a* ?".split()
NAMES += [b" ", b" a", b"a ", b"a  ", b"a b", b"a\t", b"\xc3\xa9", b"\xef\xbb\xbfa"]
if sys.platform == "linux":  # elsewhere names are folded, or must be UTF-8
    NAMES += [b"A", b"B", b"aB", b"\xff", b"a\x80", b"a\r", b"a\nb", b"\x7f", b"a\v"]

CLASSES = b"alnum alpha blank cntrl digit graph lower print punct space upper xdigit".split()
ITEMS = rb"a-c b- -b --a c-a \] \a a-\c \- \\ ] ]-a ! ^ a/b * .".split()
ITEMS += [*rb"[ [: : [:alpha:] [:word:] [:] [:alpha".split(), b"\x80-\xff", b" "]
SOUP = rb"* * ** *** / / // \/ **/ /** a a b c ? [ ] [a [!a] ! ^ - \ # [[:alpha:]] [: :]".split()
SOUP += [b" ", b"\r"]


def git(repo: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    command = ["git", "-c", "core.ignorecase=false", "-C", str(repo), *arguments]
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, env=ENV, check=False)
    assert done.returncode in (0, 1), arguments  # 1: none is ignored
    return done.stdout


def ignored_by_git(repo: Path, files: Files, paths: list[bytes], local: bytes = b"") -> set[bytes]:
    """Ask git about existing `paths`; `./` keeps it from reading `:a` as pathspec magic."""
    (repo / ".git/info").mkdir(exist_ok=True)
    (repo / ".git/info/exclude").write_bytes(local)
    for old in repo.rglob(".gitignore"):
        old.unlink()
    for directory, text in files.items():
        (repo / os.fsdecode(directory) / ".gitignore").write_bytes(text)
    question = b"".join(b"./" + path.rstrip(b"/") + b"\0" for path in paths)
    answer = git(repo, "check-ignore", "--no-index", "-z", "--stdin", stdin=question)
    ignored = {line.removeprefix(b"./") for line in answer.split(b"\0") if line}
    return {path for path in paths if path.rstrip(b"/") in ignored}


def plant(repo: Path, paths: list[bytes]) -> None:
    """Create a repository with `paths`, parents first."""
    git(repo, "init", "-q")
    for path in paths:
        place = repo / os.fsdecode(path)
        if path.endswith(b"/"):
            place.mkdir()
        else:
            place.touch()


def without_glued_stars(text: bytes) -> bytes:
    """Drop the lines that git reads otherwise since 2.52; see `_spellings` in the module."""
    glued = re.compile(rb"[^/*]\*\*+(\\|/|\s|\0|\Z)")
    return b"\n".join(line for line in text.split(b"\n") if not glued.search(line))


@pytest.fixture(scope="module")
def git_is_mended(tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether `foo**/bar` no longer matches `foobar` in this git; in ours it does."""
    repo = tmp_path_factory.mktemp("probe")
    plant(repo, [b"foobar"])
    return not ignored_by_git(repo, {b"": b"foo**/bar\n"}, [b"foobar"])


class Grower:
    """Random trees and ignore files over few letters, so that patterns do match."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def tree(self, depth: int = 4, at: bytes = b"") -> list[bytes]:
        names = self.rng.sample(NAMES, 9)
        paths = [at + name + (b"/" if i < 3 and depth > 1 else b"") for i, name in enumerate(names)]
        for directory in paths[:3] if depth > 1 else []:
            paths += self.tree(depth - 1, directory)
        return paths

    def files(self, paths: list[bytes]) -> dict[bytes, bytes]:
        directories = [path for path in paths if path.endswith(b"/")]
        places = [b"", *self.rng.sample(directories, 12)]
        return {place.rstrip(b"/"): self.text(paths, place) for place in places}

    def text(self, paths: list[bytes], place: bytes = b"") -> bytes:
        rng = self.rng
        inside = [path.removeprefix(place) for path in paths if path.startswith(place)]
        near = [path for path in inside if path and path.rstrip(b"/").count(b"/") < 2]
        lines = [self.line(rng.choice(near)) for _ in range(rng.randint(1, 6 if place else 2))]
        text = b"".join(line + rng.choice([b"\n"] * 6 + [b"\r\n", b"\n\n"]) for line in lines)
        bom = b"\xef\xbb\xbf" if rng.random() < 0.06 else b""
        return bom + (text[:-1] if rng.random() < 0.2 else text)

    def line(self, path: bytes) -> bytes:
        rng = self.rng
        if rng.random() < 0.04:
            return rng.choice([b"# a", b"#a", b" ", b"\\", b"!", b"**/", b"[", b"\t", b"a\0b"])
        if rng.random() < 0.1:
            pattern = b"".join(rng.choices(SOUP, k=rng.randint(2, 7)))
        else:
            pattern = self.pattern(path)
        front = rng.choice([b""] * 8 + [b"!"] * 3 + [b"\\", b" "])
        blanks = [b" ", b"  ", b"\\ ", b"\\  ", b"\t", b"\r", b" \\", b"\\", b"\0x"]
        back = rng.choice([b""] * 14 + blanks)
        return (front + pattern + back).replace(b"\n", b"?")

    def pattern(self, path: bytes) -> bytes:
        rng = self.rng
        names = path.rstrip(b"/").split(b"/")
        if rng.random() < 0.35:
            names = names[-1:]
        elif rng.random() < 0.2:
            names = names[rng.randrange(len(names)) :]
        parts = [self.component(name) for name in names]
        for _ in range(rng.choice([0, 0, 1, 2])):  # stars in place of, or between, components
            at = rng.randrange(len(parts) + 1)
            parts[at : at + rng.choice([0, 1, 1, 2])] = [rng.choice([b"**", b"**", b"***", b"*"])]
        slash = rng.choice([b"/"] * 12 + [b"\\/", b"//"])
        return rng.choice([b"", b"", b"/"]) + slash.join(parts) + rng.choice([b"", b"", b"", b"/"])

    def component(self, name: bytes) -> bytes:
        rng = self.rng
        letters = [name[i : i + 1] for i in range(len(name))]
        match rng.randrange(10):
            case 0 | 1:
                return name
            case 2:
                return b"".join(b"\\" + letter for letter in letters)
            case 3:
                return rng.choice(
                    [b"?", b"*" + name[-2:], name[:1] + b"*", b"**" + name[-1:], name[:1] + b"**"]
                )
            case _:
                return b"".join(self.wildcard(letter) for letter in letters)

    def wildcard(self, letter: bytes) -> bytes:
        rng = self.rng
        same = rng.choice(
            [letter] * 4 + [b"?", b"*", b"\\" + letter, self.bracket(letter), self.bracket(letter)]
        )
        return same + rng.choice([b""] * 9 + [b"*", b"**"])

    def bracket(self, letter: bytes) -> bytes:
        rng = self.rng
        items = rng.choices(ITEMS, k=rng.randint(0, 2))
        if rng.random() < 0.7:
            before = bytes([max(1, letter[0] - 1)])
            items.append(rng.choice([letter, b"\\" + letter, before + b"-\\" + letter]))
        if rng.random() < 0.2:
            items.append(b"[:" + rng.choice(CLASSES) + b":]")
        rng.shuffle(items)
        return b"[" + rng.choice([b""] * 4 + [b"!", b"^"]) + b"".join(items) + b"]"


def check_rounds(repo: Path, seed: int, git_is_mended: bool) -> None:
    grower = Grower(seed)
    paths = grower.tree()
    plant(repo, paths)
    for _ in range(4):
        files, local = grower.files(paths), grower.text(paths)
        if git_is_mended:
            files = {place: without_glued_stars(text) for place, text in files.items()}
            local = without_glued_stars(local)
        theirs = ignored_by_git(repo, files, paths, local)
        ours = {path for path in paths if is_ignored(files, path, local)}
        assert ours == theirs, (ours ^ theirs, files, local)


@needs_git
@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_git(tmp_path: Path, seed: int, git_is_mended: bool) -> None:
    check_rounds(tmp_path, seed, git_is_mended)


@needs_git
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1600))
def test_agrees_with_git_at_length(tmp_path: Path, seed: int, git_is_mended: bool) -> None:
    check_rounds(tmp_path, seed, git_is_mended)


@needs_git
@pytest.mark.skipif(sys.platform != "linux", reason="names may be any bytes on Linux only")
def test_classes_agree_with_git_on_every_byte(tmp_path: Path) -> None:
    names = [b"x%c" % byte for byte in range(1, 256) if byte != ord("/")]
    directories = [kind + b"/" for kind in CLASSES]
    paths = directories + [directory + name for directory in directories for name in names]
    files = {kind: b"x[[:" + kind + b":]]\n" for kind in CLASSES}
    plant(tmp_path, paths)
    theirs = ignored_by_git(tmp_path, files, paths)
    assert {path for path in paths if is_ignored(files, path)} == theirs
