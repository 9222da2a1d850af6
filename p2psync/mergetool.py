"""Merge tools: has a person merge two texts in a program of theirs. Owns how these programs are called."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import NamedTuple

from p2psync.errors import ReplicaError

_HOW = {  # what each wants, in its own order; all others get base, ours, theirs, merged
    "vimdiff": "{tool} {merged} {ours} {base} {theirs}",
    "nvim": "{tool} -d {merged} {ours} {base} {theirs}",
    "vim": "{tool} -d {merged} {ours} {base} {theirs}",
    "meld": "{tool} --output={merged} {ours} {base} {theirs}",
    "kdiff3": "{tool} {base} {ours} {theirs} -o {merged}",
    "code": "{tool} --merge {ours} {theirs} {base} {merged}",
    "codium": "{tool} --merge {ours} {theirs} {base} {merged}",
    "opendiff": "{tool} {ours} {theirs} -ancestor {base} -merge {merged}",
}


class Texts(NamedTuple):
    """What a tool is given."""

    base: bytes
    ours: bytes
    theirs: bytes
    merged: bytes
    """What the merge starts from."""


class ToolFailed(ReplicaError):
    """A tool ended with an error."""

    def __init__(self, why: str, saved: bytes | None) -> None:
        """Keep what it had saved all the same; None: nothing new."""
        super().__init__(why)
        self.saved = saved


def merge(tool: str, name: str, texts: Texts) -> bytes | None:
    """Run a tool on copies of the texts; return what it made of `merged`, None if it left that as it was.

    The files are also in `BASE`, `LOCAL`, `REMOTE` and `MERGED`, as git has it.

    Args:
        tool: a command, split into words as a shell does.
        name: of the file, for its ending and for people.
        texts: what is to be merged.

    Raises:
        ToolFailed: it ended with an error.
        ReplicaError: it cannot be run.
    """
    import subprocess

    try:
        words = shlex.split(tool)
    except ValueError as error:
        raise ReplicaError(f"the merge tool {tool!r} cannot be split into words: {error}") from error
    if not words:
        raise ReplicaError("name a merge tool: --tool vimdiff, or set MERGE")
    with tempfile.TemporaryDirectory(prefix="p2psync-merge-") as folder:
        stem, ending = os.path.splitext(os.path.basename(name))
        files = {part: Path(folder, f"{stem}.{part}{ending}") for part in Texts._fields}
        for part, text in texts._asdict().items():
            files[part].write_bytes(text)
        how = _HOW.get(os.path.basename(words[0]), "{tool} {base} {ours} {theirs} {merged}")
        command: list[str] = []
        for part in how.split():
            command += words if part == "{tool}" else [part.format(**{k: str(v) for k, v in files.items()})]
        variables = {"BASE": "base", "LOCAL": "ours", "REMOTE": "theirs", "MERGED": "merged"}
        environment = {**os.environ, **{key: str(files[part]) for key, part in variables.items()}}
        try:
            code = subprocess.run(command, env=environment, check=False).returncode
        except OSError as error:
            raise ReplicaError(f"cannot run the merge tool {words[0]}: {error.strerror}") from error
        made = files["merged"].read_bytes() if files["merged"].exists() else texts.merged
    saved = made if made != texts.merged else None
    if code:
        raise ToolFailed(f"the merge tool {words[0]} ended with {code}; the conflict stays open", saved)
    return saved
