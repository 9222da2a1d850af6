"""A real OpenSSH server on a loopback port of its own, for tests and benchmarks.

Owned here: the server's life, and the `ssh` command that reaches it.  Everything it needs (keys,
configuration, log) lies in one temporary folder; neither end reads the user's `~/.ssh`, and the far
shell none of their startup files.  Works as root and as an ordinary user.  Not owned: what is run
over the connection.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
PROGRAMS = ("sshd", "ssh", "ssh-keygen")

# Debian and others keep sshd where the PATH of an ordinary user does not look.
_SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

_START_DEADLINE = 20.0  # seconds; a busy machine needs some tenths
_STOP_DEADLINE = 10.0
_PORT_ATTEMPTS = 5  # a port seen free may be taken by another before sshd binds it

# OpenSSH 9.8 began to lock out addresses whose connections fail, which a test of failures would
# suffer from; older servers refuse the option.
_OPTIONAL = "PerSourcePenalties no"


class PortTaken(Exception):
    """Another program bound the port first."""


def missing_programs() -> list[str]:
    """Which of the programs that this module runs are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_SEARCH) is None]


@dataclass(frozen=True)
class Sshd:
    """A running server.

    Attributes:
        port: Its port on `host`.
        host: The address to name in a peer; the client configuration sends any other name here too.
        ssh_command: A complete `ssh` command line, for the shell or for `-e`.
        remote_command: How the far side starts this p2psync, for `--remote-command`.
        home: `$HOME` on the far side; a session still starts in the user's own home directory.
        log: What the server had to say.
    """

    port: int
    folder: Path
    process: subprocess.Popen[bytes]
    host: str = HOST
    remote_command: str = shlex.join([sys.executable, "-m", "p2psync"])

    @property
    def ssh_command(self) -> str:
        return shlex.join([_program("ssh"), "-F", str(self.folder / "ssh_config")])

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text(errors="replace")

    def configured(self, *lines: str) -> str:
        """An `ssh_command` with other lines about multiplexing and ciphers than "none"."""
        config = self.folder / f"configured_{len(list(self.folder.glob('configured_*')))}"
        config.write_text(_client_config(self.folder, self.port, self.folder / "user_key", lines))
        return shlex.join([_program("ssh"), "-F", str(config)])

    def forced(self, command: str) -> str:
        """An `ssh_command` whose key may run nothing but `command`, as in a real authorized_keys."""
        key = self.folder / f"forced_{len(list(self.folder.glob('forced_*.pub')))}"
        _make_key(key)
        escaped = command.replace('"', r"\"")
        with (self.folder / "authorized_keys").open("a") as keys:
            keys.write(f'restrict,command="{escaped}" {_public(key)}\n')
        config = key.with_suffix(".config")
        config.write_text(_client_config(self.folder, self.port, key))
        return shlex.join([_program("ssh"), "-F", str(config)])

    def stop(self) -> None:
        """Stop listening; may be called twice.  A session ends when its client goes."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def running_sshd(folder: Path) -> Iterator[Sshd]:
    """Run a server with its keys, configuration and log in `folder`, until the block ends.

    Raises:
        RuntimeError: It does not start; the message holds its log.
    """
    folder = folder.resolve()
    (folder / "home").mkdir()
    _make_key(folder / "host_key")
    _make_key(folder / "user_key")
    (folder / "authorized_keys").write_text(_public(folder / "user_key") + "\n")
    server = _start(folder)
    try:
        yield server
    finally:
        server.stop()


def _start(folder: Path) -> Sshd:
    for _ in range(_PORT_ATTEMPTS):
        with contextlib.suppress(PortTaken):
            return _start_on(_free_port(), folder)
    raise RuntimeError(f"sshd found no free port on {HOST} in {_PORT_ATTEMPTS} attempts")


def _start_on(port: int, folder: Path) -> Sshd:
    config = folder / "sshd_config"
    _write_server_config(config, port)
    (folder / "known_hosts").write_text(f"p2psync-test {_public(folder / 'host_key')}\n")
    (folder / "ssh_config").write_text(_client_config(folder, port, folder / "user_key"))
    # By its full path: sshd runs itself again for each connection.
    command = [_program("sshd"), "-D", "-e", "-f", str(config)]
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    server = Sshd(port, folder, process)
    try:
        _wait_until_it_answers(server)
    except BaseException:
        server.stop()
        raise
    return server


def _wait_until_it_answers(server: Sshd) -> None:
    deadline = time.monotonic() + _START_DEADLINE
    while not _answers(server.port):
        if server.process.poll() is not None:
            if "Address already in use" in server.log:
                raise PortTaken
            raise RuntimeError(f"sshd ended at once:\n{server.log}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"sshd did not answer within {_START_DEADLINE:g} s:\n{server.log}")
        time.sleep(0.01)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _write_server_config(config: Path, port: int) -> None:
    lines = _server_config(config.parent, port)
    config.write_text(f"{lines}{_OPTIONAL}\n")
    if "Bad configuration option" in _complaint(config):
        config.write_text(lines)
    complaint = _complaint(config)
    # As root, sshd wants an empty directory that its package makes only when the system's own server starts.
    if missing := re.search(r"Missing privilege separation directory: (\S+)", complaint):
        Path(missing[1]).mkdir(mode=0o755, parents=True, exist_ok=True)
        complaint = _complaint(config)
    if complaint:
        raise RuntimeError(f"sshd refuses its configuration:\n{complaint}")


def _complaint(config: Path) -> str:
    """Why sshd would not start with `config`; empty if it would."""
    check = subprocess.run([_program("sshd"), "-t", "-f", str(config)], capture_output=True, text=True)
    return check.stderr or f"exit status {check.returncode}" if check.returncode else ""


def _server_config(folder: Path, port: int) -> str:
    return f"""\
ListenAddress {HOST}
Port {port}
HostKey "{folder}/host_key"
AuthorizedKeysFile "{folder}/authorized_keys"
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitUserRC no
SetEnv "HOME={folder}/home"
UsePAM no
UseDNS no
MaxStartups 100
Subsystem sftp internal-sftp
"""


NO_REUSE = ("ControlMaster no", "ControlPath none")


def _client_config(folder: Path, port: int, key: Path, lines: Sequence[str] = NO_REUSE) -> str:
    more = "\n    ".join(lines)
    return f"""\
Host *
    HostName {HOST}
    HostKeyAlias p2psync-test
    Port {port}
    User {pwd.getpwuid(os.getuid()).pw_name}
    IdentityFile "{key}"
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile "{folder}/known_hosts"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 10
    {more}
    Compression no
    LogLevel ERROR
"""


def _make_key(path: Path) -> None:
    command = [_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "p2psync-test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _public(key: Path) -> str:
    return key.with_suffix(".pub").read_text().strip()


def _program(name: str) -> str:
    found = shutil.which(name, path=_SEARCH)
    if found is None:
        raise RuntimeError(f"{name} is not installed")
    return found
