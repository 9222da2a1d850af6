"""Runs the command as its users do, and looks at what it left on disk.

Owned here: the process (a clean environment, pipes or terminals), snapshots of trees, dumps of
manifests.  Not owned: what should be in them.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import json
import os
import pty
import select
import shlex
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from p2psync.core.model import Prefer
from p2psync.local import LocalReplica, init
from p2psync.progress import Silent
from p2psync.sync import Session

COMMAND = (sys.executable, "-P", "-m", "p2psync")
"""With -P: `-m` alone would take modules from the folder that is synced, a json/ in it for one."""
DEADLINE = 120.0  # seconds; whatever takes longer hangs

LONG_AGO_NS = 1_234_567_890_123_456_789
"""A time long ago, with nanoseconds."""


# -- running


class Ran(NamedTuple):
    """What came of a run; undecodable bytes are surrogates."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All that was said."""
        return self.out + self.err

    @property
    def json(self) -> dict[str, Any]:
        """The one document on stdout."""
        document: dict[str, Any] = json.loads(self.out)
        return document


def p2psync(
    at: Path | bytes,
    *arguments: str | bytes | Path,
    code: int | None = 0,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Ran:
    """Run the command in the folder `at`; it must end with `code`, unless that is None."""
    return finish(start(at, *arguments, env=env, stdin=subprocess.PIPE), code, stdin)


def _check(ran: Ran, code: int | None) -> None:
    assert "Traceback" not in ran.err, ran.err
    assert code is None or ran.code == code, f"ended with {ran.code}, not {code}:\n{ran.out}{ran.err}"


def start(
    at: Path | bytes,
    *arguments: str | bytes | Path,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start the command, as the leader of a session of its own; the caller waits for it."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=at,
        env=environment(env),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes], code: int | None = 0, stdin: bytes | None = None) -> Ran:
    """Wait for a command that was started; nothing that it started survives a hang."""
    try:
        out, err = process.communicate(stdin, timeout=DEADLINE)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    ran = Ran(process.returncode, os.fsdecode(out), os.fsdecode(err))
    _check(ran, code)
    return ran


def on_terminal(
    at: Path | bytes, *arguments: str | bytes | Path, answer: bytes = b"", code: int | None = 0
) -> Ran:
    """Run the command with a terminal of its own for stdin and stdout, and another one for stderr."""
    near, far = pty.openpty()
    near_err, far_err = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=at,
        env=environment({"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}),
        stdin=far,
        stdout=far,
        stderr=far_err,
        start_new_session=True,
    ) as process:
        os.close(far)
        os.close(far_err)
        os.write(near, answer)
        try:
            said = _read_terminals(near, near_err)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            os.close(near)
            os.close(near_err)
    ran = Ran(process.returncode, *said)
    _check(ran, code)
    return ran


def _read_terminals(*terminals: int) -> tuple[str, str]:
    """Read until nobody has them open any more."""
    deadline = time.monotonic() + DEADLINE
    said = dict.fromkeys(terminals, b"")
    still = set(terminals)
    while still:
        ready = select.select(still, [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"no end after {DEADLINE:g} s: {said}"
        for terminal in ready:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # Linux says EIO where the last one has closed the other end
                data = b""
            said[terminal] += data
            if not data:
                still.discard(terminal)
    out, err = (os.fsdecode(said[terminal]) for terminal in terminals)
    return out, err


def fake_ssh(folder: Path, first: str = "") -> list[str]:
    """Return the options for a "host" that is this machine, reached after the shell command `first`."""
    script = f'#!/bin/sh\n{first}\nfor last; do :; done\nexec sh -c "$last"\n'
    write(folder / "fake-ssh", script, mode=0o755)
    return ["-e", shlex.quote(str(folder / "fake-ssh")), "--remote-command", shlex.join(COMMAND)]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a clean environment: a home without dot-files, no settings of the user who runs the tests."""
    names = ("PATH", "TMPDIR", "PYTHONPATH", "XDG_RUNTIME_DIR")
    kept = {name: value for name, value in os.environ.items() if name in names}
    return {**kept, "HOME": _home(), "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "", **(more or {})}


@functools.cache
def _home() -> str:
    home = tempfile.mkdtemp(prefix="home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE:g} s"
        time.sleep(0.002)


# -- replicas and what is in them


def replica(root: Path, files: Mapping[str, str | bytes] | None = None) -> Path:
    """Make a replica that holds `files`."""
    root.mkdir(parents=True, exist_ok=True)
    init(bytes(root))
    for path, content in (files or {}).items():
        write(root / path, content)
    return root


def pair(folder: Path, files: Mapping[str, str | bytes] | None = None) -> tuple[Path, Path]:
    """Make two replicas that hold `files` and know it."""
    here, there = replica(folder / "here", files), replica(folder / "there")
    bring_in_step(here, there)
    return here, there


def bring_in_step(*roots: Path) -> None:
    """Sync two replicas in this process: for what comes before a test's own runs."""
    with contextlib.ExitStack() as opened:
        here, there = (opened.enter_context(contextlib.closing(LocalReplica(bytes(root)))) for root in roots)
        session = Session(here, there, Silent())
        session.scan(True)
        assert session.round(Prefer.BOTH).in_step


def write(path: Path, content: str | bytes, *, mtime_ns: int | None = None, mode: int | None = None) -> None:
    """Write a file, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    if mode is not None:
        path.chmod(mode)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))


class Node(NamedTuple):
    """What is at a path."""

    kind: str
    mode: int = 0
    mtime_ns: int = 0
    content: bytes = b""
    """Of a file; of a link, where it points."""


def snapshot(root: Path | bytes) -> dict[bytes, Node]:
    """Return all that is in a tree, without sidecars.

    Left out are the times of folders, which change with every child, and the permissions of links.
    """
    top = os.path.join(bytes(root), b"")
    found: dict[bytes, Node] = {}
    stack = [top]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.name == b".p2psync":
                    continue
                found[entry.path.removeprefix(top)] = _node(entry)
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return found


def _node(entry: os.DirEntry[bytes]) -> Node:
    st = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(st.st_mode):
        return Node("folder", stat.S_IMODE(st.st_mode))
    if stat.S_ISLNK(st.st_mode):
        return Node("link", 0, st.st_mtime_ns, os.readlink(entry.path))
    if stat.S_ISREG(st.st_mode):
        with open(entry.path, "rb") as file:
            return Node("file", stat.S_IMODE(st.st_mode), st.st_mtime_ns, file.read())
    return Node("special")


def assert_same(*roots: Path | bytes) -> dict[bytes, Node]:
    """Are the trees identical? Return what is in them."""
    first, *others = map(snapshot, roots)
    for other in others:
        unlike = {
            path: (first.get(path), other.get(path))
            for path in first.keys() | other.keys()
            if first.get(path) != other.get(path)
        }
        assert not unlike, unlike
    return first


def contents(root: Path | bytes) -> dict[str, bytes]:
    """Return the contents of all files in a tree."""
    return {os.fsdecode(path): node.content for path, node in snapshot(root).items() if node.kind == "file"}


def history(root: Path) -> set[bytes]:
    """Return the contents of all files that a replica keeps in its history."""
    kept = root / ".p2psync" / "history"
    return {path.read_bytes() for path in kept.rglob("*") if path.is_file() and not path.is_symlink()}


def manifest(root: Path) -> list[str]:
    """Return all that a manifest holds, as SQL."""
    file = root / ".p2psync" / "manifest.db"
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        return list(database.iterdump())


def copies(root: Path) -> list[Path]:
    """Return the conflict copies in a tree."""
    return sorted(root.rglob("*.sync-conflict-*"))


def plan(ran: Ran) -> list[tuple[str, str, str]]:
    """Return the steps of a run's plan: side, path and action; conflict copies without their digits."""
    return sorted((step["side"], step["path"], step["action"]) for step in ran.json["plan"])


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the lock of a replica, as another run would."""
    with (root / ".p2psync" / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
