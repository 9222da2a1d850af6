"""The service that runs `p2psync watch` for one replica: a systemd user unit, or a launchd agent on macOS."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys

from p2psync.errors import P2PSyncError, ReplicaError

_UNIT = """\
[Unit]
Description=p2psync watch of {shown}

[Service]
Type=notify
ExecStart={command}
WatchdogSec=5min
Restart=on-failure
RestartSec=30

[Install]
WantedBy=default.target
"""


class ServiceError(P2PSyncError):
    """The service manager cannot do what it was asked for."""


def install(root: bytes) -> str:
    """Make the service of the replica at `root`, and start it; return the path of its file.

    Raises:
        ServiceError: the service manager refuses.
        ReplicaError: its file cannot be written.
    """
    file = _file(root)
    existed = os.path.exists(file)
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as target:
            target.write(_plist(root) if _is_mac() else _unit(root).encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise ReplicaError(f"cannot write {file}: {error.strerror}") from error
    try:
        if _is_mac():
            _do("launchctl", "bootstrap", f"gui/{os.getuid()}", file)
        else:
            _do("systemctl", "--user", "daemon-reload")
            _do("systemctl", "--user", "enable", "--now", os.path.basename(file))
    except ServiceError:
        if not existed:
            os.unlink(file)
        raise
    return file


def uninstall(root: bytes) -> bool:
    """Stop the service and remove it; return False if there is none.

    Raises:
        ServiceError: the service manager refuses.
    """
    file = _file(root)
    if not os.path.exists(file):
        return False
    if _is_mac():
        _do("launchctl", "bootout", f"gui/{os.getuid()}", file)
        os.unlink(file)
    else:
        _do("systemctl", "--user", "disable", "--now", os.path.basename(file))
        os.unlink(file)
        _do("systemctl", "--user", "daemon-reload")
    return True


def status(root: bytes) -> int | None:
    """Print what the service manager says; return its exit code, or None if there is no service.

    Raises:
        ServiceError: there is no service manager.
    """
    file = _file(root)
    if not os.path.exists(file):
        return None
    if _is_mac():
        return _call("launchctl", "print", f"gui/{os.getuid()}/{_label(root)}")
    return _call("systemctl", "--user", "--no-pager", "status", os.path.basename(file))


def _is_mac() -> bool:
    return sys.platform == "darwin"


def _label(root: bytes) -> str:
    """Return a name that is good for one replica, and tells people which."""
    place = os.path.realpath(root)
    word = re.sub(r"[^A-Za-z0-9]+", "-", os.fsdecode(os.path.basename(place))).strip("-") or "root"
    return f"p2psync-{word[:40]}-{hashlib.sha256(place).hexdigest()[:8]}"


def _file(root: bytes) -> str:
    if _is_mac():
        return os.path.expanduser(f"~/Library/LaunchAgents/{_label(root)}.plist")
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(config, "systemd", "user", f"{_label(root)}.service")


def _watch_command(root: bytes) -> list[str]:
    program = shutil.which("p2psync")
    start = [os.path.abspath(program)] if program else [sys.executable, "-P", "-m", "p2psync"]
    return [*start, "-C", os.fsdecode(os.path.realpath(root)), "watch"]


def _unit(root: bytes) -> str:
    shown = os.fsdecode(os.path.realpath(root)).replace("%", "%%").replace("\n", " ")
    return _UNIT.format(shown=shown, command=" ".join(map(_quoted, _watch_command(root))))


def _quoted(word: str) -> str:
    """Return a word of a command line as systemd.service(5) reads it."""
    if re.fullmatch(r"[\w@+=:,./-]+", word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + escaped.replace("%", "%%").replace("$", "$$") + '"'


def _plist(root: bytes) -> bytes:
    import plistlib

    command = _watch_command(root)
    agent = {"Label": _label(root), "ProgramArguments": command, "RunAtLoad": True, "KeepAlive": True}
    return plistlib.dumps(agent)


def _do(*command: str) -> None:
    code = _call(*command)
    if code:
        raise ServiceError(f"`{' '.join(command)}` ended with code {code}; what it said is above")


def _call(*command: str) -> int:
    import subprocess

    try:
        return subprocess.run(command, stdout=None if {"status", "print"} & set(command) else 2).returncode
    except OSError as error:
        raise ServiceError(f"cannot run {command[0]}: {error.strerror}") from error
