"""The tools that are compared: how each is told to bring two folders to the same contents."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# unison reckons times in floating-point seconds: it loses the last digits.
_EXACT, _UNISON_NS = 0, 2_000

# rsync's flags and unison's ask for the same as p2psync does by itself: contents, permission bits and mtimes.
_RSYNC = ["rsync", "-a", "--delete"]
_UNISON = [
    "unison",
    "-batch",
    "-auto",
    "-confirmbigdel=false",
    "-perms",
    "-1",
    "-times",
    "-fastcheck",
    "true",
]
_UNISON_QUIET = ["-log=false", "-contactquietly"]  # else it writes a line for each file into a log


@dataclass(frozen=True)
class Far:
    """The far side of an ssh run; `wrapper` goes before the far command, and measures it."""

    host: str
    ssh: list[str]
    wrapper: list[str]
    p2psync: str


@dataclass(frozen=True)
class Pair:
    """Two folders, the second maybe on the far side, and where tools keep state of their own."""

    source: Path
    target: Path
    state: Path
    far: Far | None


@dataclass(frozen=True)
class Tool:
    """A synchronizer.

    Attributes:
        first: The command line of a sync whose target does not exist yet.
        again: The command line of any later sync.
        two_way: It also carries the target's edits to the source.
        mtime_tolerance_ns: How far from the original it may leave an mtime.
        program: What has to be installed.
    """

    name: str
    first: Callable[[Pair], list[str]]
    again: Callable[[Pair], list[str]]
    two_way: bool
    program: str
    version_command: list[str]
    mtime_tolerance_ns: int = _EXACT

    def installed(self) -> bool:
        return shutil.which(self.program) is not None

    def version(self) -> str:
        done = subprocess.run(self.version_command, capture_output=True, text=True)
        return (done.stdout or done.stderr or "version unknown").splitlines()[0].strip()


def all_tools(p2psync: str) -> list[Tool]:
    """Every tool that can be compared; `p2psync` is the command line under test."""
    ours = shlex.split(p2psync)
    return [
        Tool(
            "p2psync",
            lambda pair: _p2psync_first(ours, pair),
            lambda pair: _p2psync_sync(ours, pair),
            two_way=True,
            program=ours[0],
            version_command=[*ours, "--version"],
        ),
        Tool("rsync", _rsync, _rsync, two_way=False, program="rsync", version_command=["rsync", "--version"]),
        Tool(
            "unison",
            _unison,
            _unison,
            two_way=True,
            mtime_tolerance_ns=_UNISON_NS,
            program="unison",
            version_command=["unison", "-version"],
        ),
    ]


def _p2psync_first(ours: list[str], pair: Pair) -> list[str]:
    """`init` belongs to the first copy: a user waits for it too."""
    init = shlex.join([*ours, "init", str(pair.source)])
    return ["sh", "-c", f"{init} && exec {shlex.join([*_p2psync_sync(ours, pair), '--create'])}"]


def _p2psync_sync(ours: list[str], pair: Pair) -> list[str]:
    sync = [*ours, "-C", str(pair.source), "sync"]
    if pair.far is None:
        return [*sync, str(pair.target), "-q"]
    far = pair.far
    remote = f"{shlex.join(far.wrapper)} {far.p2psync}"
    address = f"{far.host}:{pair.target}"
    return [*sync, address, "-q", "-e", shlex.join(far.ssh), "--remote-command", remote]


def _rsync(pair: Pair) -> list[str]:
    if pair.far is None:
        return [*_RSYNC, f"{pair.source}/", f"{pair.target}/"]
    far = pair.far
    remote = [*far.wrapper, "rsync"]
    over_ssh = ["-e", shlex.join(far.ssh), "--rsync-path", shlex.join(remote)]
    return [*_RSYNC, *over_ssh, f"{pair.source}/", f"{far.host}:{pair.target}/"]


def _unison(pair: Pair) -> list[str]:
    here = [*_unison_environment(pair.state / "near"), *_UNISON, *_UNISON_QUIET, str(pair.source)]
    if pair.far is None:
        return [*here, str(pair.target)]
    far = pair.far
    program, *arguments = far.ssh
    remote = [*_unison_environment(pair.state / "far"), *far.wrapper, "unison"]
    # unison splits -sshargs at spaces and knows no quotes: the workdir must not have any.
    over_ssh = ["-sshcmd", program, "-sshargs", " ".join(arguments), "-servercmd", shlex.join(remote)]
    return [*here, f"ssh://{far.host}/{pair.target}", *over_ssh]


def _unison_environment(folder: Path) -> list[str]:
    """Its archives go to the disk that is measured, and outlive a change of the machine's name."""
    folder.mkdir(parents=True, exist_ok=True)
    return ["env", f"UNISON={folder}", "UNISONLOCALHOSTNAME=bench"]
