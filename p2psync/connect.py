"""How a far end is started: in a process of its own here, or through ssh. Owns these processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from p2psync import errors
from p2psync.calls import BATCH_BYTES
from p2psync.errors import Unreachable
from p2psync.peer import Address, AddressError
from p2psync.remote import PATIENCE_SECONDS, RemoteReplica
from p2psync.serve import Opener, serve_alone
from p2psync.wire import Connection, plain

if TYPE_CHECKING:
    import subprocess


class _Fork:
    def __init__(self, pid: int) -> None:
        self._pid = pid

    def why_it_ended(self) -> str | None:
        """See `remote.Process`: what it had to say it has said."""
        return None

    def end(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        for number in (signal.SIGTERM, signal.SIGKILL):
            while not os.waitpid(self._pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.002)
            else:
                return
            os.kill(self._pid, number)
            deadline = time.monotonic() + 0.5
        os.waitpid(self._pid, 0)


def connect_local(root: bytes, opener: Opener, create: bool) -> RemoteReplica:
    """Open a replica on this machine, in a process of its own: two sides, two processors.

    Raises:
        P2PSyncError: why it could not be opened.
    """
    to_child, to_parent = os.pipe(), os.pipe()
    for fd in (to_child[1], to_parent[1]):
        _widen(fd)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_far_end(to_child[0], to_parent[1], root, opener, create)
    os.close(to_child[0])
    os.close(to_parent[1])
    connection = Connection(to_parent[0], to_child[1], plain(os.fsdecode(root)))
    return RemoteReplica(connection, _Fork(pid), compress=False)


def _widen(pipe: int) -> None:
    """Let a pipe hold a whole batch, so that neither side waits for the other to take it bit by bit."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # many pipes of one user are kept small
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, BATCH_BYTES)


def _be_far_end(source: int, target: int, root: bytes, opener: Opener, create: bool) -> NoReturn:
    """Serve in a forked child; never returns into the parent's code."""
    code = errors.Exit.FAILED
    try:
        # Only what we use stays open: the parent's locks must end with the parent.
        for fd in map(int, os.listdir("/dev/fd")):
            if fd > 2 and fd not in (source, target):
                with contextlib.suppress(OSError):
                    os.close(fd)
        code = serve_alone(Connection(source, target, "the peer"), root, opener, create)
    except KeyboardInterrupt:
        code = errors.Exit.INTERRUPTED
    finally:
        os._exit(code)


class _Command:
    def __init__(self, process: subprocess.Popen[bytes], why: Callable[[int], str]) -> None:
        self._process = process
        self._why = why

    def why_it_ended(self) -> str | None:
        import subprocess

        try:
            return self._why(self._process.wait(PATIENCE_SECONDS))
        except subprocess.TimeoutExpired:
            return None

    def end(self, patience: float) -> None:
        import subprocess

        for stop in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(patience)
                return
            except subprocess.TimeoutExpired:
                stop()
                patience = 0.5
        self._process.wait()


def connect_ssh(
    address: Address, *, ssh_command: str | None, remote_command: str | None, create: bool
) -> RemoteReplica:
    """Open a replica on another machine, through the system's ssh.

    Args:
        address: where; its host is not None.
        ssh_command: split as a shell would; if None, `$P2PSYNC_SSH`, else `ssh`.
        remote_command: p2psync there, words for the shell there; `p2psync` if None.
        create: make it a replica if it is none.

    Raises:
        Unreachable: ssh, or p2psync there, could not be started.
        P2PSyncError: why the replica could not be opened.
    """
    import shlex

    given = ssh_command or os.environ.get("P2PSYNC_SSH") or "ssh"
    try:
        command = shlex.split(given) or ["ssh"]
    except ValueError as error:
        raise AddressError(f"cannot make sense of the ssh command {given!r}: {error}") from error
    if os.path.basename(command[0]) == "ssh" and not any("ServerAliveInterval" in word for word in command):
        command += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
    if not os.isatty(0):  # under cron nobody would answer: no question, then
        command += ["-o", "BatchMode=yes"]
    if address.port:
        command += ["-p", str(address.port)]
    far = remote_command or "p2psync"
    serve_there = f"{far} serve{' --create' if create else ''} -- {shlex.quote(os.fsdecode(address.path))}"
    why = _ssh_ended(address.login, far.split()[-1])
    return _start([*command, "--", address.login, serve_there], address.login, why, compress=True)


def start_local(root: bytes, beside: bytes) -> RemoteReplica:
    """Open a replica on this machine in a process that is not forked: other threads may be at work here.

    Args:
        root: of the replica.
        beside: the root of the other side.

    Raises:
        P2PSyncError: why it could not be opened.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    program = f"import sys; sys.path.insert(0, {package!r}); from p2psync.__main__ import main; main()"
    name = plain(os.fsdecode(root))
    command: list[str | bytes] = [sys.executable, "-c", program, "serve", "--beside", beside, "--", root]
    return _start(
        command, name, lambda code: f"the process for {name} ended with code {code}", compress=False
    )


def _start(
    command: Sequence[str | bytes], name: str, why_ended: Callable[[int], str], compress: bool
) -> RemoteReplica:
    """Start a command that serves a replica on its stdin and stdout."""
    import subprocess

    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        raise Unreachable(f"cannot run {os.fsdecode(command[0])}: {error.strerror}") from error
    assert process.stdin and process.stdout
    source, target = os.dup(process.stdout.fileno()), os.dup(process.stdin.fileno())
    process.stdin.close()
    process.stdout.close()
    return RemoteReplica(Connection(source, target, name), _Command(process, why_ended), compress)


def _ssh_ended(host: str, command: str) -> Callable[[int], str]:
    """Return what the exit code of ssh means."""

    def why(code: int) -> str:
        match code:
            case 255:
                return f"ssh could not connect to {host}; what it said is above"
            case 126 | 127:
                return f"{command} was not found on {host}: install it there or give --remote-command"
            case _:
                return f"p2psync on {host} ended with code {code}, before it said anything"

    return why
