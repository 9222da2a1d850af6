"""Which names the ignore files leave out of a replica, with git's syntax and git's results.

Owned here: the meaning of a rule, from the text of `.p2pignore` and `.p2psync/ignore` to "is this
name ignored?".  Not owned: reading those files and walking the tree.  The walker goes down from the
root and never enters an ignored directory, which is git's "a file cannot be re-included if a parent
directory is excluded".

The syntax is gitignore(5)'s; where the manual is silent, what `git check-ignore` does decides
(tests/core/test_ignore.py compares the two).  Names are bytes and case counts.

A rule is a chain of steps, one per path component.  Entering a directory consumes one component, so
inside any directory a rule is asked about bare names only.  No regular expression ever spans a `/`:
`**` is a flag on a step, and a hostile pattern has nothing to backtrack over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from xxhash import xxh3_128_digest

from p2psync.core.paths import IGNORE_FILE, MAX_NAME, SIDECAR

_BOM = b"\xef\xbb\xbf"
_EVERY_BYTE = frozenset(range(256))

# wildmatch tests classes with git's own ASCII ctype table, in which \v and \f are not space.
_LOWER, _UPPER = frozenset(range(97, 123)), frozenset(range(65, 91))
_DIGIT, _GRAPH = frozenset(range(48, 58)), frozenset(range(33, 127))
_CLASSES = {
    b"alnum": _LOWER | _UPPER | _DIGIT,
    b"alpha": _LOWER | _UPPER,
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset(range(32)) | {127},
    b"digit": _DIGIT,
    b"graph": _GRAPH,
    b"lower": _LOWER,
    b"print": _GRAPH | {32},
    b"punct": _GRAPH - _LOWER - _UPPER - _DIGIT,
    b"space": frozenset(b" \t\n\r"),
    b"upper": _UPPER,
    b"xdigit": _DIGIT | frozenset(b"abcdefABCDEF"),
}

_TOKEN = re.compile(
    rb"(?P<separator>\\?/)|(?P<star>\*+)|(?P<any>\?)|(?P<bracket>\[[!^]?)|(?P<byte>\\.|[^\\])",
    re.DOTALL,
)
# One byte in a bracket, or a range of them.
_RANGE = re.compile(rb"(\\.|[^\\])(?:-(\\.|[^]\\]))?", re.DOTALL)
# `**` filling a whole component, with what ends it.
_DEEP = re.compile(rb"\*\*+(/|\\/|\Z)")
# A literal start, then `**` that fills only the rest of its component: see `_spellings`.  Further
# `**/` add nothing to the first.
_GLUED = re.compile(rb"([^*?[\\]*[^*?[\\/])\*\*+(?:/\*\*+(?=/))*(/|\\/|\Z)(.*)", re.DOTALL)


class _PatternError(Exception):
    """No path can match the pattern; git skips such a rule without a word."""


class Verdict(NamedTuple):
    """What the last matching rule of one ignore file says; the greater rank wins."""

    rank: int
    ignored: bool


_SILENT = Verdict(-1, False)


class _Exact(NamedTuple):
    name: bytes

    def fits(self, name: bytes) -> bool:
        return name == self.name


class _Suffix(NamedTuple):
    tail: bytes

    def fits(self, name: bytes) -> bool:
        return name.endswith(self.tail)


class _Glob(NamedTuple):
    regex: bytes

    def fits(self, name: bytes) -> bool:
        return _compiled(self.regex).fullmatch(name) is not None


@lru_cache(maxsize=1024)
def _compiled(regex: bytes) -> re.Pattern[bytes]:
    return re.compile(regex, re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One path component of a rule, and what the rule asks for below it."""

    verdict: Verdict
    dirs_only: bool
    deep: bool  # any number of directories may come first, as after `**/`
    names: _Exact | _Suffix | _Glob
    then: _Step | None


class _Table:
    """Rules about bare names, arranged so that the last match is found without trying each."""

    __slots__ = ("_any_glob", "_exact", "_globs", "_suffixes", "_tails")

    def __init__(self, steps: Sequence[_Step]) -> None:
        self._exact: dict[bytes, Verdict] = {}
        self._suffixes: dict[bytes, Verdict] = {}
        self._globs: list[tuple[Verdict, _Glob]] = []
        for step in sorted(steps, key=lambda step: step.verdict, reverse=True):
            match step.names:
                case _Exact(name):
                    self._exact.setdefault(name, step.verdict)
                case _Suffix(tail):
                    self._suffixes.setdefault(tail, step.verdict)
                case _Glob() as glob:
                    self._globs.append((step.verdict, glob))
        self._tails = sorted({len(tail) for tail in self._suffixes})
        # Most names match none of the globs: one test of all of them says so.
        self._any_glob = _compiled(b"|".join(glob.regex for _, glob in self._globs) or rb"(?!)")

    def find(self, name: bytes) -> Verdict:
        found = self._exact.get(name, _SILENT)
        for length in self._tails:
            verdict = self._suffixes.get(name[-length:])
            if verdict is not None and verdict > found:
                found = verdict
        if self._globs and self._any_glob.fullmatch(name):
            hit = next(verdict for verdict, glob in self._globs if glob.fits(name))
            return max(found, hit)
        return found


_Tables = tuple[_Table, _Table]  # for what is not a directory and for directories: [is_dir]


@lru_cache(maxsize=1024)
def _tables(steps: tuple[_Step, ...]) -> _Tables | None:
    """Return the tables of the last steps of rules, or None if there is no rule."""
    if not steps:
        return None
    return _Table([step for step in steps if not step.dirs_only]), _Table(steps)


class _Rules(NamedTuple):
    """The rules of one ignore file, as they stand inside one directory at or below it."""

    settled: _Tables | None  # the same at every depth
    moving: tuple[_Step, ...]  # what each rule about a path still asks for
    here: _Tables | None  # those of `moving` that are down to the name

    def find(self, name: bytes, is_dir: bool) -> Verdict:
        found = _SILENT if self.settled is None else self.settled[is_dir].find(name)
        return found if self.here is None else max(found, self.here[is_dir].find(name))

    def below(self, name: bytes) -> _Rules:
        if not self.moving:
            return self
        moving = _enter(self.moving, name)
        return self if moving == self.moving else _rules(self.settled, moving)

    @property
    def empty(self) -> bool:
        return self.settled is None and not self.moving


def _rules(settled: _Tables | None, moving: tuple[_Step, ...]) -> _Rules:
    return _Rules(settled, moving, _tables(tuple(step for step in moving if step.then is None)))


def _enter(steps: tuple[_Step, ...], name: bytes) -> tuple[_Step, ...]:
    """Return what `steps` ask for inside the directory `name`, each once however it got there."""
    after: dict[_Step, None] = {}
    for step in steps:
        if step.deep:
            after[step] = None
        if step.then is not None and step.names.fits(name):
            after[step.then] = None
    return tuple(after)


@dataclass(frozen=True, slots=True, eq=False)
class Ignore:
    """The rules in force inside one directory.

    Attributes:
        fingerprint: Digest of the ignore files in force here, each with its place and text: for
            one and the same directory, equal fingerprints mean equal answers.
    """

    _files: tuple[_Rules, ...]  # nearest first: the first file with a matching rule decides
    _place: bytes  # path of this directory from the root, with a trailing slash
    fingerprint: bytes

    @classmethod
    def top(cls, exclude: bytes = b"", rules: bytes = b"") -> Ignore:
        """Return the view inside the root, from the texts of its two ignore files."""
        bare = cls((), b"", xxh3_128_digest(b""))
        return bare._with(SIDECAR + b"/ignore", exclude)._with(IGNORE_FILE, rules)

    def below(self, name: bytes, rules: bytes = b"") -> Ignore:
        """Return the view inside the child `name`, whose own ignore file reads `rules`."""
        inherited = (file.below(name) for file in self._files)
        files = tuple(file for file in inherited if not file.empty)
        return Ignore(files, self._place + name + b"/", self.fingerprint)._with(IGNORE_FILE, rules)

    def matches(self, name: bytes, is_dir: bool) -> bool:
        """Return whether the child `name` of this directory is ignored.

        This directory itself is not ignored: the caller would not have come here.  A symbolic link
        is not a directory.
        """
        found = self.verdict(name, is_dir)
        return found is not None and found.ignored

    def verdict(self, name: bytes, is_dir: bool) -> Verdict | None:
        """Return what decides about the child `name`; None: no rule is about it. See `rule_of`."""
        for file in self._files:
            found = file.find(name, is_dir)
            if found is not _SILENT:
                return found
        return None

    @property
    def empty(self) -> bool:
        """No rule at all is in force here or below, but for ignore files yet to be met."""
        return not self._files

    def _with(self, file: bytes, text: bytes) -> Ignore:
        if not text:
            return self
        rules = _parse(text)
        files = self._files if rules.empty else (rules, *self._files)
        # No path contains NUL, so the place and the text cannot run into each other.
        digest = xxh3_128_digest(self.fingerprint + self._place + file + b"\0" + text)
        return Ignore(files, self._place, digest)


@lru_cache(maxsize=256)
def _parse(text: bytes) -> _Rules:
    """Return the rules of an ignore file, inside the directory that holds it."""
    steps = [step for rank, line in enumerate(_lines(text)) for step in _rule(rank, line)]
    settled = tuple(step for step in steps if step.deep and step.then is None)
    moving = tuple(step for step in steps if not step.deep or step.then is not None)
    return _rules(_tables(settled), moving)


def hits(pattern: bytes, path: bytes) -> bool:
    """Does a pattern at the root hit a file, or a folder above it?"""
    view = Ignore.top(rules=pattern)
    *folders, name = path.split(b"/")
    for folder in folders:
        if view.matches(folder, True):
            return True
        view = view.below(folder)
    return view.matches(name, False)


def views(top: Ignore) -> Callable[[bytes], Ignore | None]:
    """Return what tells the view inside a folder, by its path; None: the folder, or one above it, is hit."""
    known: dict[bytes, Ignore | None] = {b"": top}

    def view_of(folder: bytes) -> Ignore | None:
        if folder not in known:
            above, _, name = folder.rpartition(b"/")
            view = view_of(above)
            known[folder] = None if view is None or view.matches(name, True) else view.below(name)
        return known[folder]

    return view_of


def rule_of(text: bytes, rank: int) -> tuple[int, bytes]:
    """Return the number, from 1 on, and the text of the line of an ignore file that has this rank; or 0."""
    return next(islice(_numbered(text), rank, None), (0, b""))


def _lines(text: bytes) -> Iterator[bytes]:
    """Yield the lines that may hold a rule."""
    return (line for _, line in _numbered(text))


def _numbered(text: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield these lines with their numbers, as git's C strings hold them: each ends at a NUL."""
    for number, line in enumerate(text.removeprefix(_BOM).split(b"\n"), 1):
        if line and not line.startswith(b"#"):
            yield number, _without_trailing_spaces(line.removesuffix(b"\r").partition(b"\0")[0])


def _without_trailing_spaces(line: bytes) -> bytes:
    kept = line.rstrip(b" ")
    backslashes = len(kept) - len(kept.rstrip(b"\\"))
    # An odd one out escapes the first of the spaces.
    return line[: len(kept) + 1] if backslashes % 2 else kept


def _rule(rank: int, line: bytes) -> list[_Step]:
    """Return the first steps of the rule that `line` spells; none if it can never match."""
    verdict = Verdict(rank, not line.startswith(b"!"))
    pattern = line if verdict.ignored else line[1:]
    dirs_only = pattern.endswith(b"/")
    pattern = pattern.removesuffix(b"/")
    anchored = b"/" in pattern  # even an escaped or a bracketed one
    steps = []
    for spelling in _spellings(pattern.removeprefix(b"/")) if anchored else [b"**/" + pattern]:
        try:
            components = list(_components(spelling))
        except _PatternError:
            continue
        then: _Step | None = None
        for deep, names in reversed(components):
            then = _Step(verdict, dirs_only, deep, names, then)
        if then is not None:
            steps.append(then)
    return steps


def _spellings(pattern: bytes) -> list[bytes]:
    """Return the patterns that together mean the anchored `pattern`.

    Before it calls wildmatch, git compares the literal start of an anchored pattern and cuts it
    off.  A `**` just after that start then looks as if it began the pattern: `foo**/bar` matches
    not only `foox/bar`, as the manual has it, but `foobar` and `foo/x/bar` too.  Fixed in late 2025
    ("match_pathname(): give fnmatch one char of prefix context"); we follow the gits before that.
    """
    glued = _GLUED.fullmatch(pattern)
    if glued is None:
        return [pattern]
    start, end, rest = glued.groups()
    if not end:
        return [start + b"*", start + b"*/**"]
    spellings = [start + b"*/**/" + rest]
    if end == b"/":  # an escaped slash is never skipped together with the `**`
        spellings += _spellings(start + rest) if rest.startswith(b"**") else [start + rest]
    return spellings


def _components(pattern: bytes) -> Iterator[tuple[bool, _Exact | _Suffix | _Glob]]:
    """Yield the path components of `pattern`, each with whether `**/` comes before it.

    Raises:
        _PatternError: No path can match.
    """
    at, deep = 0, False
    while at <= len(pattern):
        stars = _DEEP.match(pattern, at)
        if stars is None:
            tokens, at = _tokens(pattern, at)
            yield deep, _names(tokens)
            deep = False
            continue
        deep, at = True, stars.end()
        if stars[1] != b"/":  # at the end, or before `\/`, `**` stands for one component or more
            yield deep, _names([None])
        if not stars[1]:
            return


def _tokens(pattern: bytes, at: int) -> tuple[list[frozenset[int] | None], int]:
    """Read one component from `at`: the bytes allowed at each place, None for a star.

    Returns:
        The tokens, and where the next component starts (beyond the end if there is none).
    """
    tokens: list[frozenset[int] | None] = []
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:  # a lone backslash at the end
            raise _PatternError
        at = token.end()
        match token.lastgroup:
            case "separator":
                return tokens, at
            case "star":
                tokens.append(None)
            case "any":
                tokens.append(_EVERY_BYTE)
            case "bracket":
                members, at = _bracket(pattern, at)
                tokens.append(members if len(token[0]) == 1 else _EVERY_BYTE - members)
            case _:
                tokens.append(frozenset(token["byte"][-1:]))
    return tokens, len(pattern) + 1


def _bracket(pattern: bytes, at: int) -> tuple[frozenset[int], int]:
    """Read a bracket whose items start at `at`; return its members and where it ends."""
    members: set[int] = set()
    start, close = at, -1
    while True:
        if close < at:
            close = pattern.find(b"]", at)
        if at == close > start:  # a `]` that comes first is a member
            return frozenset(members), at + 1
        item = _RANGE.match(pattern, at)
        if close < 0 or item is None:
            raise _PatternError
        # What starts like a class but has no `:]` at the first `]` is plain bytes.
        if pattern.startswith(b"[:", at) and close > at + 2 and pattern.startswith(b":", close - 1):
            members |= _class(pattern[at + 2 : close - 1])
            at = close + 1
        else:
            first, last = item[1][-1], (item[2] or item[1])[-1]
            members.update((first,), range(first, last + 1))  # `[z-a]` still has its z
            at = item.end()


def _class(name: bytes) -> frozenset[int]:
    if name not in _CLASSES:
        raise _PatternError
    return _CLASSES[name]


def _names(tokens: list[frozenset[int] | None]) -> _Exact | _Suffix | _Glob:
    """Choose the cheapest test for the names that `tokens` allow."""
    places = [token for token in tokens if token is not None]
    if not tokens or not all(places) or len(places) > MAX_NAME:
        raise _PatternError
    if all(len(place) == 1 for place in places):
        fixed = bytes(byte for place in places for byte in place)
        if len(places) == len(tokens):
            return _Exact(fixed)
        if tokens[0] is None and len(places) == len(tokens) - 1 and fixed:
            return _Suffix(fixed)
    return _Glob(_regex(tokens))


def _regex(tokens: list[frozenset[int] | None]) -> bytes:
    """Translate one component.

    Within a name it is enough that each star but the last takes as little as it can, so it may
    forget its alternatives (an atomic group): time is at most name length times pattern length.
    """
    runs = [b""]
    for token in tokens:
        if token is None:
            runs.append(b"")
        else:
            runs[-1] += _one_byte(token)
    if len(runs) == 1:
        return runs[0]
    head, *middle, tail = runs
    return head + b"".join(b"(?>.*?" + run + b")" for run in middle) + b".*" + tail


def _one_byte(allowed: frozenset[int]) -> bytes:
    if allowed == _EVERY_BYTE:
        return b"."
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(allowed)) + b"]"
