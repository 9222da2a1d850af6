"""The tools that are compared: how each is told to bring two folders to the same contents."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

KEPT = " kept"
"""After the name of a p2psync that uses the connection of its last run again."""

_EXACT = 0
# unison reckons times in floating-point seconds: it loses the last digits.
_UNISON_NS = 2_000
# tar's usual format keeps whole seconds.
_TAR_NS = 1_000_000_000

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
    """The far side of an ssh run.

    Attributes:
        ssh: What reaches it.
        keeping_ssh: The same, where the tool may keep the connection.
        wrapper: Goes before the far command, and measures it.
    """

    host: str
    ssh: list[str]
    keeping_ssh: list[str]
    wrapper: list[str]


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
        again: The command line of any later sync; None for what only copies.
        two_way: It also carries the target's edits to the source.
        mtime_tolerance_ns: How far from the original it may leave an mtime.
        program: What has to be installed.
        ours: It is a p2psync, and has to meet the targets.
        for_wire: It is there for its bytes on the wire alone.
        keeps: It uses the connection of its last run again.
    """

    name: str
    first: Callable[[Pair], list[str]]
    again: Callable[[Pair], list[str]] | None
    program: str
    version_command: list[str]
    two_way: bool = False
    mtime_tolerance_ns: int = _EXACT
    ours: bool = False
    for_wire: bool = False
    keeps: bool = False

    def installed(self) -> bool:
        return shutil.which(self.program) is not None

    def version(self) -> str:
        done = subprocess.run(self.version_command, capture_output=True, text=True)
        return (done.stdout or done.stderr or "version unknown").splitlines()[0].strip()


def all_tools(p2psyncs: Sequence[tuple[str, str]]) -> list[Tool]:
    """Every tool that can be compared; `p2psyncs` are names and command lines of those under test."""
    rsync = ["rsync", "--version"]
    return [
        *(
            _p2psync(name, shlex.split(command), keeps)
            for name, command in p2psyncs
            for keeps in (False, True)
        ),
        Tool("rsync", _rsync, _rsync, "rsync", rsync),
        Tool("rsync -z", _rsync_z, None, "rsync", rsync, for_wire=True),
        Tool(
            "unison",
            _unison,
            _unison,
            "unison",
            ["unison", "-version"],
            two_way=True,
            mtime_tolerance_ns=_UNISON_NS,
        ),
        Tool("copy", _copy, None, "tar", ["tar", "--version"], mtime_tolerance_ns=_TAR_NS),
    ]


def _p2psync(name: str, ours: list[str], keeps: bool) -> Tool:
    def again(pair: Pair) -> list[str]:
        sync = [*ours, "-C", str(pair.source), "sync"]
        if pair.far is None:
            return [*sync, str(pair.target), "-q"]
        far = pair.far
        remote = shlex.join([*far.wrapper, *ours])
        address = f"{far.host}:{pair.target}"
        return [
            *sync,
            address,
            "-q",
            "-e",
            shlex.join(far.keeping_ssh if keeps else far.ssh),
            "--remote-command",
            remote,
        ]

    def first(pair: Pair) -> list[str]:
        """`init` belongs to the first copy: a user waits for it too."""
        init = shlex.join([*ours, "init", str(pair.source)])
        return ["sh", "-c", f"{init} && exec {shlex.join([*again(pair), '--create'])}"]

    if keeps:
        name += KEPT
    return Tool(name, first, again, ours[0], [*ours, "--version"], two_way=True, ours=True, keeps=keeps)


def _rsync(pair: Pair, *more: str) -> list[str]:
    if pair.far is None:
        return [*_RSYNC, *more, f"{pair.source}/", f"{pair.target}/"]
    far = pair.far
    remote = [*far.wrapper, "rsync"]
    over_ssh = ["-e", shlex.join(far.ssh), "--rsync-path", shlex.join(remote)]
    return [*_RSYNC, *more, *over_ssh, f"{pair.source}/", f"{far.host}:{pair.target}/"]


def _rsync_z(pair: Pair) -> list[str]:
    return _rsync(pair, "-z")


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


def _copy(pair: Pair) -> list[str]:
    """The least that a first copy can cost: `cp -a`, or tar through ssh to tar."""
    if pair.far is None:
        return ["cp", "-a", str(pair.source), str(pair.target)]
    far, target = pair.far, shlex.quote(str(pair.target))
    unpack = shlex.join([*far.wrapper, "sh", "-c", f"mkdir {target} && tar -C {target} -xf -"])
    send = shlex.join([*far.ssh, far.host, unpack])
    return ["sh", "-c", f"tar -C {shlex.quote(str(pair.source))} -cf - . | {send}"]
