"""The service around a watch: its unit, what the service manager is told, and the hooks' commands."""

from __future__ import annotations

import os
import plistlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync import config, hooks, service
from p2psync.errors import ReplicaError
from p2psync.manager import Manager
from tests.cli_support import p2psync
from tests.support import new_replica

P2PSYNC = [sys.executable, "-m", "p2psync"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return new_replica(tmp_path / 'a "strange" % $HOME name')


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and a service manager that notes what it is told to do."""
    for name in ("systemctl", "launchctl"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/done\nexit $(cat {tmp_path}/code)\n')
        program.chmod(0o755)
    (tmp_path / "code").write_text("0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))
    return tmp_path


def done(home: Path) -> list[str]:
    return (home / "done").read_text().splitlines()


def test_a_unit_is_written_started_and_removed(root: Path, home: Path) -> None:
    file = service.install(os.fsencode(root))
    name = os.path.basename(file)
    assert Path(file).parent == home / "home" / ".config" / "systemd" / "user"
    assert done(home) == ["systemctl --user daemon-reload", f"systemctl --user enable --now {name}"]
    assert service.status(os.fsencode(root)) == 0
    assert service.uninstall(os.fsencode(root))
    assert not os.path.exists(file)
    assert f"systemctl --user disable --now {name}" in done(home)
    assert not service.uninstall(os.fsencode(root))
    assert service.status(os.fsencode(root)) is None


def test_a_unit_runs_the_watch_of_just_this_root_whatever_its_name(root: Path, home: Path) -> None:
    unit = Path(service.install(os.fsencode(root))).read_text()
    assert "Type=notify\n" in unit
    assert "WatchdogSec=" in unit
    (command,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    escaped = str(root).replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    assert command.endswith(f'-C "{escaped}" watch')
    other = new_replica(home / "elsewhere" / root.name)
    assert service.install(os.fsencode(other)) != service.install(os.fsencode(root))


def test_a_service_manager_that_refuses_is_told_of(root: Path, home: Path) -> None:
    (home / "code").write_text("1")
    for _ in range(2):
        with pytest.raises(service.ServiceError, match="ended with code 1"):
            service.install(os.fsencode(root))
        assert service.status(os.fsencode(root)) is None
    (home / "bin" / "systemctl").unlink()
    if not os.path.exists("/usr/bin/systemctl"):
        with pytest.raises(service.ServiceError, match="cannot run systemctl"):
            service.install(os.fsencode(root))


def test_on_macos_it_is_a_launch_agent(root: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_is_mac", lambda: True)
    file = service.install(os.fsencode(root))
    agent = plistlib.loads(Path(file).read_bytes())
    assert agent["ProgramArguments"][-3:] == ["-C", str(root), "watch"]
    assert done(home) == [f"launchctl bootstrap gui/{os.getuid()} {file}"]
    assert service.uninstall(os.fsencode(root))


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        yield listener


def test_a_service_manager_hears_that_a_watch_has_begun_lives_and_ends(
    root: Path, tmp_path: Path, listener: socket.socket
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
    peer = new_replica(tmp_path / "peer")
    command = [*P2PSYNC, "-C", str(root), "watch", str(peer)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        heard: list[str] = []
        while heard.count("WATCHDOG=1") < 4 or "STATUS=1 of 1 peers connected" not in heard:
            heard.append(listener.recv(1000).decode())
        process.terminate()
        while heard[-1] != "STOPPING=1":
            heard.append(listener.recv(1000).decode())
    assert "READY=1" in heard
    assert process.returncode == 0


def test_nobody_is_told_where_nobody_listens() -> None:
    manager = Manager({})
    manager.ready()
    assert manager.beat() == float("inf")


def test_a_watchdog_of_another_process_is_none_of_ours() -> None:
    assert Manager({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).beat() == float("inf")


# -- hooks


def configured(root: Path, text: str) -> dict[str, list[str]]:
    (root / ".p2psync" / "config.toml").write_text(text)
    return config.hooks(os.fsencode(root))


def test_a_hook_is_a_list_of_words_or_a_text_that_no_shell_sees(root: Path) -> None:
    found = configured(root, "[hooks]\non_change = 'say \"two words\" $HOME'\non_error = ['a', 'b c']\n")
    assert found == {"on_change": ["say", "two words", "$HOME"], "on_error": ["a", "b c"]}


def test_a_hook_sees_a_shell_only_if_that_is_asked_for(root: Path) -> None:
    found = configured(root, "[hooks]\nshell = true\non_change = 'cat >> $HOME/log'\n")
    assert found == {"on_change": ["sh", "-c", "cat >> $HOME/log"]}


@pytest.mark.parametrize("how", ["file", "variable"])
def test_a_hook_that_is_set_is_the_command_as_it_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    command = "touch 'a file', and_another"
    if how == "file":
        p2psync(root, "config", "set", "hooks.on_change", command)
    else:
        monkeypatch.setenv("P2PSYNC_HOOKS_ON_CHANGE", command)
    assert config.hooks(os.fsencode(root)) == {"on_change": ["touch", "a file,", "and_another"]}


@pytest.mark.parametrize(
    "line", ["on_chnage = 'x'", "on_change = 3", "on_change = ''", "on_change = []", "shell = 1"]
)
def test_a_hook_that_makes_no_sense_is_refused(root: Path, line: str) -> None:
    with pytest.raises(ReplicaError, match=rf":2: \[hooks\]: .*{line.split()[0]}"):
        configured(root, f"[hooks]\n{line}\n")


def test_a_hook_that_fails_is_told_of_and_stops_nothing(root: Path) -> None:
    complaints: list[str] = []
    running = hooks.Hooks(
        {"on_change": ["false"], "on_error": ["/no/such/program"]}, os.fsencode(root), complaints.append
    )
    running.run("on_change", {})
    running.run("on_error", {})
    running.run("on_conflict", {})
    running.finish(20)
    assert complaints == [
        "the hook on_change ended with code 1",
        "the hook on_error cannot be run: No such file or directory",
    ]
