"""What people and scripts see of how two replicas differ. Words only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from p2psync.compare import Difference
from p2psync.core.diff import counts, hunks
from p2psync.core.model import Entry, Kind
from p2psync.core.paths import printable, shown
from p2psync.words import json_path, size_of

_COLOURS = {b"+": "32", b"-": "31", b"@": "36"}


def text(found: Sequence[Difference], peer: str, colour: bool) -> Iterator[bytes]:
    """Yield differences: unified diffs of texts, a line for all else."""
    for one in found:
        if one.texts is None:
            yield f"{_line(one, peer)}\n".encode("utf-8", "backslashreplace")
            continue
        ours, theirs = one.texts
        old = f"--- {printable(peer)}:{shown(one.path)}" if one.there else "--- /dev/null"
        new = f"+++ {shown(one.path)}" if one.here else "+++ /dev/null"
        yield _bold(f"{old}\n{new}\n".encode("utf-8", "backslashreplace"), colour)
        for hunk in hunks(theirs, ours):
            yield _coloured(hunk.header, colour)
            for line in hunk.lines:
                yield _coloured(line, colour)


def _bold(data: bytes, colour: bool) -> bytes:
    return b"\x1b[1m%s\x1b[0m\n" % data.rstrip(b"\n") if colour else data


def _coloured(line: bytes, colour: bool) -> bytes:
    code = _COLOURS.get(line[:1]) if colour else None
    if not code:
        return line
    return b"\x1b[%sm%s\x1b[0m\n" % (code.encode(), line.rstrip(b"\n"))


def _line(one: Difference, peer: str) -> str:
    path, name = shown(one.path), printable(peer)
    if one.there is None and one.here is not None:
        return f"only here: {path} ({_what(one.here)})"
    if one.here is None and one.there is not None:
        return f"only on {name}: {path} ({_what(one.there)})"
    here, there = one.here, one.there
    assert here is not None and there is not None
    if here.same_bytes(there):
        return f"permissions differ: {path} ({here.mode:o} here, {there.mode:o} on {name})"
    return f"differ: {path} ({_what(here)} here, {_what(there)} on {name})"


def _what(entry: Entry) -> str:
    if entry.kind is Kind.SYMLINK:
        return f"link to {shown(entry.target)}"
    return size_of(entry.size) if entry.kind is Kind.FILE else "folder"


def stat(found: Sequence[Difference], peer: str) -> str:
    """Return a line for each difference, with how much it is."""
    lines = []
    for one in found:
        if one.texts is None:
            lines.append(_line(one, peer))
        else:
            gone, new = counts(one.texts[1], one.texts[0])
            lines.append(f"+{new} -{gone}  {shown(one.path)}")
    if found:
        lines.append(f"{len(found)} path{'s' * (len(found) != 1)} differ{'s' * (len(found) == 1)}")
    return "".join(f"{line}\n" for line in lines)


def as_json(found: Sequence[Difference], peer: str) -> str:
    """Return differences as one JSON document."""
    document = {
        "peer": peer,
        "differences": [
            {"path": json_path(one.path), "here": _json(one.here), "there": _json(one.there)} for one in found
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def _json(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {
        "kind": entry.kind.name.lower(),
        "size": entry.size,
        "mode": f"{entry.mode:o}",
        "mtime_ns": entry.mtime_ns,
        "digest": entry.digest.hex(),
    }
