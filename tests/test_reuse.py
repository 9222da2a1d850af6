"""What ssh is told beside the user's configuration: a connection that is kept, and ciphers."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2psync import ssh
from p2psync.config import Peer, peers
from p2psync.connect import connect_ssh
from p2psync.peer import Address
from p2psync.ssh import private_folder
from tests.cli_support import assert_same, locked, p2psync, replica, wait_for, write
from tests.sshd import Sshd


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as systemd gives to a user who has logged in; what is kept there ends with the test."""
    folder = Path(tempfile.mkdtemp(prefix="p2p-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    for kept in sockets(folder):
        subprocess.run(["ssh", "-S", str(kept), "-O", "exit", "x"], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)  # a master that ends removes its socket meanwhile


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return replica(tmp_path / "here", {"file": "1"})


class Far:
    """A replica behind a server, and how a sync from `here` reaches it."""

    def __init__(self, here: Path, there: Path, sshd: Sshd, command: str) -> None:
        self.there = there
        self._here = here
        self._sshd = sshd
        self._options = ["-e", command, "--remote-command", sshd.remote_command, f"{sshd.host}:{there}"]

    def sync(self, *more: str) -> int:
        """Sync something; return how often it had to log in."""
        before = self._sshd.log.count("Accepted publickey")
        write(self._here / "news", os.urandom(8).hex())
        said = p2psync(self._here, "sync", *more, *self._options)
        assert said.err == ""
        assert_same(self._here, self.there)
        return self._sshd.log.count("Accepted publickey") - before


@pytest.fixture
def far(here: Path, tmp_path: Path, sshd: Sshd) -> Far:
    there = replica(tmp_path / "there")
    return Far(here, there, sshd, sshd.configured())


def sockets(runtime: Path) -> list[Path]:
    return [path for path in runtime.glob("p2psync/*") if path.is_socket()]


def master(kept: Path) -> int:
    """The process that keeps a connection."""
    done = subprocess.run(["ssh", "-S", str(kept), "-O", "check", "x"], capture_output=True, text=True)
    return int(done.stderr.partition("pid=")[2].partition(")")[0])


# -- a connection that is kept


def test_the_next_sync_uses_the_connection_of_the_last(far: Far, runtime: Path) -> None:
    assert [far.sync(), far.sync(), far.sync()] == [1, 0, 0]
    [kept] = sockets(runtime)
    assert kept.stat().st_mode & 0o077 == 0
    # All three ended for whoever read their output to its end, though this process lives on.
    assert {os.readlink(f"/proc/{master(kept)}/fd/{fd}") for fd in range(3)} == {os.devnull}


def test_no_reuse_leaves_no_connection(far: Far, runtime: Path) -> None:
    assert [far.sync("--no-reuse"), far.sync("--no-reuse")] == [1, 1]
    assert sockets(runtime) == []


def test_a_peer_may_be_configured_not_to_be_kept(here: Path) -> None:
    p2psync(here, "peer", "add", "--no-reuse", "one", "host:x")
    p2psync(here, "peer", "add", "other", "host:y")
    assert [peer.reuse for peer in peers(bytes(here))] == [False, True]


@pytest.mark.parametrize(
    "lines",
    [
        ["ControlMaster no"],
        ["ControlPath none"],
        ["ControlPersist no", "ControlPath ~/.ssh/%C"],
        ["Match all", "ControlPersist 30"],
    ],
)
def test_what_the_user_has_configured_about_it_stays(
    here: Path, far: Far, sshd: Sshd, runtime: Path, lines: list[str]
) -> None:
    own = Far(here, far.there, sshd, sshd.configured(*lines))
    assert [own.sync(), own.sync()] == [1, 1]
    assert sockets(runtime) == []


def test_a_user_who_keeps_connections_has_them_kept_in_his_own_place(
    here: Path, far: Far, sshd: Sshd, runtime: Path
) -> None:
    (runtime / "own").mkdir(mode=0o700)
    path = runtime / "own" / "socket"
    own = Far(here, far.there, sshd, sshd.configured("ControlMaster auto", f"ControlPath {path}"))
    with contextlib.ExitStack() as stack:
        # As he has not asked for it to outlive its session, it does not.
        assert [own.sync(), own.sync()] == [1, 1]
        stack.callback(path.unlink, missing_ok=True)
    assert sockets(runtime) == []


@pytest.mark.parametrize(("line", "option"), [("RequestTTY force", ""), ("RequestTTY no", " -tt")])
def test_a_user_who_wants_a_terminal_everywhere_gets_none_for_a_sync(
    here: Path, far: Far, sshd: Sshd, runtime: Path, line: str, option: str
) -> None:
    assert Far(here, far.there, sshd, sshd.configured(line) + option).sync("--no-reuse") == 1


def test_other_options_never_get_the_connection_of_another_key(
    here: Path, far: Far, sshd: Sshd, runtime: Path
) -> None:
    assert far.sync() == 1
    other = Far(here, far.there, sshd, f"{sshd.configured()} -o IPQoS=throughput")
    assert other.sync() == 1
    assert len(sockets(runtime)) == 2


def test_a_socket_that_nobody_listens_on_is_replaced(far: Far, runtime: Path) -> None:
    assert far.sync() == 1
    [kept] = sockets(runtime)
    os.kill(master(kept), signal.SIGKILL)
    assert [far.sync(), far.sync()] == [1, 0]


def test_a_connection_that_lets_nothing_through_is_given_up(
    far: Far, sshd: Sshd, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert far.sync() == 1
    [kept] = sockets(runtime)
    stopped = master(kept)
    os.kill(stopped, signal.SIGSTOP)
    try:
        monkeypatch.setattr(ssh, "ANSWER_SECONDS", 0.2)
        command = far._options[1]
        peer = Peer("far", "", command, None, sshd.remote_command)
        connect_ssh(Address(bytes(far.there), sshd.host), peer, create=False).close()
        assert master(kept) != stopped
    finally:
        os.kill(stopped, signal.SIGKILL)


def test_two_that_connect_at_once_do_not_both_keep_it(far: Far, runtime: Path) -> None:
    """ssh would complain: "ControlSocket already exists"."""
    assert far.sync() == 1
    [kept] = sockets(runtime)
    subprocess.run(["ssh", "-S", str(kept), "-O", "exit", "x"], capture_output=True, check=True)
    wait_for(lambda: not kept.exists(), "the connection to end")
    lock = ssh._lock(f"{kept}.lock")
    assert lock is not None
    assert far.sync() == 1
    assert not kept.exists()
    os.close(lock)


def test_what_is_verbose_is_not_kept_since_it_would_never_let_go_of_stderr(
    here: Path, far: Far, sshd: Sshd, runtime: Path
) -> None:
    ran = p2psync(here, "sync", "-e", f"{sshd.configured()} -v", *far._options[2:])
    assert "debug1:" in ran.err
    assert sockets(runtime) == []


# -- ciphers


def effective(words: str, host: str) -> dict[str, str]:
    """What `ssh` would do when called as a sync calls it."""
    file = ssh._configuration(shlex.split(words), Address(b"x", host), True)
    assert file is not None
    command = [*shlex.split(words), "-F", file.path, "-G", host]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(line.partition(" ")[::2] for line in said.splitlines())


@pytest.mark.parametrize("aes", [True, False])
def test_fast_ciphers_come_first_where_the_processor_knows_them_and_none_is_dropped(
    sshd: Sshd, runtime: Path, monkeypatch: pytest.MonkeyPatch, aes: bool
) -> None:
    monkeypatch.setattr(ssh, "_has_aes", lambda: aes)
    usual = subprocess.run(
        ["ssh", "-F", "none", "-G", "x"], capture_output=True, text=True, check=True
    ).stdout
    [ciphers] = [line.split()[1].split(",") for line in usual.splitlines() if line.startswith("ciphers ")]
    found = effective(sshd.configured(), sshd.host)["ciphers"].split(",")
    assert set(found) == set(ciphers)
    assert found[:2] == (["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"] if aes else ciphers[:2])


def test_the_users_choice_of_ciphers_stays(sshd: Sshd, runtime: Path) -> None:
    found = effective(sshd.configured("Ciphers aes256-ctr"), sshd.host)
    assert found["ciphers"] == "aes256-ctr"
    assert found["controlmaster"] == "auto"


def test_another_host_on_the_way_there_gets_nothing_of_it(sshd: Sshd, runtime: Path) -> None:
    """ssh hands its -F on to the ssh of a ProxyJump."""
    file = ssh._configuration(shlex.split(sshd.configured()), Address(b"x", "target"), True)
    assert file is not None
    said = subprocess.run(["ssh", "-F", file.path, "-G", "bastion"], capture_output=True, text=True).stdout
    assert "controlmaster false" in said.splitlines()


def test_a_change_of_the_users_configuration_counts_at_once(sshd: Sshd, runtime: Path) -> None:
    words = sshd.configured()
    assert effective(words, sshd.host)["controlmaster"] == "auto"
    config = Path(shlex.split(words)[2])
    config.write_text(config.read_text() + "    ControlPath ~/own\n")
    assert effective(words, sshd.host)["controlmaster"] == "false"


@pytest.fixture
def included(sshd: Sshd, runtime: Path) -> tuple[Path, str]:
    """A folder with a file that the configuration includes, and the `ssh` that does so."""
    folder = runtime / "Möbel" / "config.d"
    folder.mkdir(parents=True)
    (folder / "one").write_text("IPQoS none\n")
    return folder, sshd.configured(f"Include {folder}/*", f"Include {runtime}/later/*.conf")


def shared(words: str, host: str) -> str | None:
    """The socket of the connection that is kept, if one is."""
    file = ssh._configuration(shlex.split(words), Address(b"x", host), True)
    return file.socket if file is not None else None


def test_a_change_of_an_included_file_counts_at_once(
    here: Path, far: Far, sshd: Sshd, runtime: Path, included: tuple[Path, str]
) -> None:
    folder, words = included
    own = Far(here, far.there, sshd, words)
    assert [own.sync(), own.sync()] == [1, 0]
    (folder / "one").write_text("IPQoS throughput\n")
    assert [own.sync(), own.sync()] == [1, 0]
    (folder / "one").write_text(f"ControlPath {runtime}/own\n")
    assert [own.sync(), own.sync()] == [1, 1]


@pytest.mark.parametrize("name", ["Möbel/config.d/two", "later/first.conf"])
def test_a_new_file_that_is_included_counts_at_once(
    sshd: Sshd, runtime: Path, included: tuple[Path, str], name: str
) -> None:
    _, words = included
    assert shared(words, sshd.host)
    (runtime / name).parent.mkdir(exist_ok=True)
    (runtime / name).write_text("ControlMaster no\n")
    assert shared(words, sshd.host) is None
    (runtime / name).unlink()
    assert shared(words, sshd.host)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What ssh is asked about its configuration."""
    calls: list[list[str]] = []
    real = ssh._ask

    def ask(command: list[str]) -> ssh._Answer:
        calls.append(command)
        return real(command)

    monkeypatch.setattr(ssh, "_ask", ask)
    return calls


def test_ssh_is_asked_anew_only_when_something_has_changed(
    sshd: Sshd, included: tuple[Path, str], asked: list[list[str]]
) -> None:
    folder, words = included
    before = [shared(words, sshd.host) for _ in range(3)]
    assert len(asked) == 2
    (folder / "one").touch()
    after = [shared(words, sshd.host) for _ in range(3)]
    assert len(asked) == 4
    assert len({*before, *after}) == 2


def test_an_included_file_that_is_broken_for_a_while_is_no_reason_to_do_without_for_good(
    sshd: Sshd, included: tuple[Path, str], asked: list[list[str]]
) -> None:
    folder, words = included
    (folder / "one").write_text("Nonsense\n")
    assert [shared(words, sshd.host) for _ in range(2)] == [None, None]
    assert len(asked) == 1
    (folder / "one").write_text("IPQoS none\n")
    assert shared(words, sshd.host)


@pytest.mark.parametrize("which", [0, 1])
def test_an_ssh_that_could_not_be_started_is_asked_again(
    sshd: Sshd, runtime: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    words, real, calls = sshd.configured("ControlMaster no"), subprocess.run, 0

    def start(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        nonlocal calls
        calls += 1
        if calls == which + 1:
            raise BlockingIOError(errno.EAGAIN, "fork: retry")
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", start)
    with pytest.raises(BlockingIOError):
        shared(words, sshd.host)
    assert effective(words, sshd.host)
    assert shared(words, sshd.host) is None  # nothing of what was not asked about yet


# -- what is no ssh, or no place


@pytest.mark.parametrize("name", ["my-ssh", "dropbear"])
def test_a_command_that_is_not_ssh_gets_none_of_it(
    here: Path, tmp_path: Path, runtime: Path, name: str
) -> None:
    program = tmp_path / name
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/told\nexit 255\n')
    program.chmod(0o755)
    p2psync(here, "sync", "-e", str(program), "host:x", code=5)
    told = (tmp_path / "told").read_text().splitlines()
    assert told == ["-o", "BatchMode=yes", "--", "host", "p2psync serve -- x"]
    assert list(runtime.iterdir()) == []


def test_an_ssh_that_is_not_openssh_gets_none_of_it(here: Path, tmp_path: Path, runtime: Path) -> None:
    program = tmp_path / "ssh"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/told\nexit 255\n')
    program.chmod(0o755)
    p2psync(here, "sync", "-e", str(program), "host:x", code=5)
    assert "-F" not in (tmp_path / "told").read_text().splitlines()


def test_the_private_folder_is_for_nobody_else(runtime: Path) -> None:
    assert private_folder() == f"{runtime}/p2psync"
    assert (runtime / "p2psync").stat().st_mode & 0o777 == 0o700


HOSTILE = {
    "open to others": lambda path: (path.mkdir(), path.chmod(0o755)),
    "a link": lambda path: path.symlink_to(path.parent),
    "a file": lambda path: path.touch(),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_folder_that_someone_else_may_have_made_is_not_used(runtime: Path, make: object) -> None:
    assert callable(make)
    for place in ("p2psync", f"p2psync-{os.geteuid()}"):  # in XDG_RUNTIME_DIR, and in TMPDIR
        make(runtime / place)
    assert not str(private_folder()).startswith(str(runtime))


def test_a_place_where_others_can_rename_it_is_not_used(runtime: Path) -> None:
    runtime.chmod(0o777)
    assert private_folder() != f"{runtime}/p2psync"
    runtime.chmod(0o1777)
    assert private_folder() == f"{runtime}/p2psync"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(runtime: Path) -> None:
    (runtime / "p2psync").mkdir(mode=0o700)
    os.chown(runtime / "p2psync", 12345, 12345)
    assert private_folder() != f"{runtime}/p2psync"


def test_a_path_that_is_too_long_for_a_socket_is_not_used(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for length in range(1, 60):
        folder = runtime / ("x" * length)
        folder.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        path = private_folder()
        # What ssh binds to first: the path with a dot and 16 letters.
        name = f"{path}/{'0' * 16}.{'x' * 16}"
        assert len(name) < 104  # macOS; Linux has 108
        used.append(path == f"{folder}/p2psync")
    assert used == sorted(used, reverse=True)
    assert set(used) == {True, False}


@pytest.mark.parametrize("of", ["", ".conf", ".lock"], ids=["anything", "configuration", "lock"])
def test_where_no_file_can_be_made_ssh_does_without(
    far: Far, sshd: Sshd, runtime: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    real = os.open

    def no_room(path: str, flags: int, *more: int, **options: int) -> int:
        if str(path).startswith(str(runtime)) and of in str(path) and flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return real(path, flags, *more, **options)

    peer = Peer("there", "", ssh_command=sshd.configured(), remote_command=sshd.remote_command)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_room)
        connect_ssh(Address(bytes(far.there), sshd.host), peer, create=False).close()
    assert sockets(runtime) == []


# -- what goes wrong is told in its turn


def noting_ssh(tmp_path: Path) -> Path:
    program = tmp_path / "noting"
    program.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\necho ssh talks >&2\nexit 255\n")
    program.chmod(0o755)
    return program


def test_outside_of_a_replica_nobody_is_called(tmp_path: Path) -> None:
    ran = p2psync(tmp_path, "sync", "-e", str(noting_ssh(tmp_path)), "host:x", code=3)
    assert "is not in a replica" in ran.err
    assert not (tmp_path / "calls").exists()


def test_a_replica_in_use_here_counts_more_than_a_peer_that_cannot_be_reached(
    here: Path, tmp_path: Path
) -> None:
    with locked(here):
        ran = p2psync(here, "sync", "--lock-wait", "0.5", "-e", str(noting_ssh(tmp_path)), "host:x", code=6)
    assert "could not connect" not in ran.err
    calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    assert len(calls) <= 1  # however often the lock was tried


def test_a_peer_is_called_once(here: Path, tmp_path: Path) -> None:
    p2psync(here, "sync", "-e", str(noting_ssh(tmp_path)), "host:x", code=5)
    assert (tmp_path / "calls").read_text() == "called\n"
