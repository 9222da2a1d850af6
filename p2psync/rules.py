"""Ignore rules as people ask about them: which one decides, what one would hit, adding one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from p2psync.core.ignore import Ignore, rule_of, views
from p2psync.core.paths import IGNORE_FILE, SIDECAR, join, shown
from p2psync.errors import ReplicaError

OWN = join(SIDECAR, b"ignore")
SHARED = IGNORE_FILE


class Rule(NamedTuple):
    """A line of an ignore file that decides about a path."""

    file: bytes
    line: int
    """From 1 on."""
    pattern: bytes
    ignored: bool
    about: bytes
    """The path, or the folder above it that the rule is about."""


class _File(NamedTuple):
    path: bytes
    text: bytes
    view: Ignore
    """Its rules alone, as seen from one folder."""


def deciding(root: bytes, path: bytes, is_dir: bool) -> Rule | None:
    """Return the rule that decides whether a path is ignored; None: no rule is about it.

    Args:
        root: of the replica.
        path: from there.
        is_dir: is it a folder?

    Raises:
        ReplicaError: an ignore file cannot be read.
    """
    files = [*_file(root, OWN), *_file(root, IGNORE_FILE)]
    parts = path.split(b"/")
    found: Rule | None = None
    for depth, name in enumerate(parts, 1):
        about = b"/".join(parts[:depth])
        found = _first(files, name, is_dir or depth < len(parts), about)
        if found is not None and found.ignored:
            return found
        files = [file._replace(view=file.view.below(name)) for file in files]
        files += _file(root, join(about, IGNORE_FILE))
    return found


def _first(files: Iterable[_File], name: bytes, is_dir: bool, about: bytes) -> Rule | None:
    for file in reversed([*files]):  # the nearest first
        verdict = file.view.verdict(name, is_dir)
        if verdict is not None:
            line, pattern = rule_of(file.text, verdict.rank)
            return Rule(file.path, line, pattern, verdict.ignored, about)
    return None


def _file(root: bytes, path: bytes) -> Iterator[_File]:
    try:
        text = Path(os.fsdecode(join(root, path))).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    except OSError as error:
        raise ReplicaError(f"cannot read {shown(path)}: {error.strerror}") from error
    yield _File(path, text, Ignore.top(rules=text))


def in_force(root: bytes) -> list[tuple[bytes, int, bytes]]:
    """Return the rules of the two files at the root: file, line and pattern; raises as `deciding`."""
    found = []
    for file in [*_file(root, IGNORE_FILE), *_file(root, OWN)]:
        rank = 0
        while (rule := rule_of(file.text, rank))[0]:
            found.append((file.path, *rule))
            rank += 1
    return found


def hits(pattern: bytes, paths: Iterable[tuple[bytes, bool]]) -> int:
    """Return how many paths a pattern at the root hits, with all that is below them.

    Args:
        pattern: of an ignore file.
        paths: from the root, and whether each is a folder.
    """
    view_of = views(Ignore.top(rules=pattern))
    count = 0
    for path, is_dir in paths:
        folder, _, name = path.rpartition(b"/")
        view = view_of(folder)
        count += view is None or view.matches(name, is_dir)
    return count


def add(root: bytes, file: bytes, patterns: Iterable[bytes]) -> list[bytes]:
    """Add patterns to an ignore file; return those that were not in it.

    Args:
        root: of the replica.
        file: its path from there.
        patterns: a line each.

    Raises:
        ReplicaError: it cannot be written, or is a link: whose rules would not count.
    """
    target = Path(os.fsdecode(join(root, file)))
    if target.is_symlink():
        raise ReplicaError(f"{target} is a link, and rules count only in a file: make it one")
    made = Path(os.fsdecode(join(root, OWN) + b".new"))
    try:
        text = target.read_bytes() if target.exists() else b""
        known = set(text.splitlines())
        new = [pattern for pattern in dict.fromkeys(patterns) if pattern not in known]
        if new:
            text += b"" if not text or text.endswith(b"\n") else b"\n"
            with made.open("wb") as written:
                written.write(text + b"".join(pattern + b"\n" for pattern in new))
                written.flush()
                os.fsync(written.fileno())
            if target.exists():
                made.chmod(target.stat().st_mode & 0o777)
            made.replace(target)
    except OSError as error:
        raise ReplicaError(f"cannot write {target}: {error.strerror}") from error
    return new
