"""A peer behind a real sshd: the main job, odd places, and what is said when it cannot be reached."""

from __future__ import annotations

import fcntl
import os
import pwd
import shlex
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from p2psync.config import Peer, add_peer
from tests.cli_support import (
    LONG_AGO_NS,
    assert_same,
    bring_in_step,
    contents,
    copies,
    finish,
    locked,
    manifest,
    p2psync,
    plan,
    replica,
    snapshot,
    start,
    wait_for,
    write,
)
from tests.sshd import Sshd

SONG = "".join(f"verse {number}\n" for number in range(1, 10))


def reach(sshd: Sshd, before: str = "") -> list[str]:
    """Return the options that reach the server; the far shell runs `before` first."""
    return ["-e", sshd.ssh_command, "--remote-command", f"{before}{sshd.remote_command}"]


def at(sshd: Sshd, path: Path) -> str:
    return f"{sshd.host}:{path}"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return replica(tmp_path / "here", {"song": SONG, "file": "1", "folder/deep/file": "1", "gone": "1"})


@pytest.fixture
def there(tmp_path: Path, here: Path, sshd: Sshd) -> Path:
    """A peer in step with the replica here, which knows it as "laptop" behind the server."""
    there = replica(tmp_path / "there")
    bring_in_step(here, there)
    peer = Peer("laptop", at(sshd, there), sshd.ssh_command, None, sshd.remote_command)
    add_peer(bytes(here), peer)
    return there


# -- the main job


def test_a_first_sync_makes_the_far_folder_a_replica_only_when_told(
    tmp_path: Path, here: Path, sshd: Sshd
) -> None:
    there = tmp_path / "not there" / "yet"
    (here / "link").symlink_to("../outside")
    (here / "empty").mkdir(mode=0o700)
    write(here / "script", "#!/bin/sh", mode=0o755, mtime_ns=LONG_AGO_NS)
    before = snapshot(here)
    ran = p2psync(here, "sync", *reach(sshd), at(sshd, there), code=3)
    assert "is not a replica" in ran.err
    assert not there.parent.exists()
    p2psync(here, "sync", "--create", *reach(sshd), at(sshd, there))
    assert assert_same(here, there) == before


def test_edits_on_both_sides_meet_over_ssh(here: Path, there: Path) -> None:
    write(here / "song", SONG.replace("verse 2", "verse two"))
    write(there / "song", SONG.replace("verse 8", "verse eight"))
    write(here / "from here", "x")
    write(there / "folder" / "from there", b"\0\xff")
    (here / "gone").unlink()
    shutil.rmtree(there / "folder" / "deep")
    (there / "file").chmod(0o600)
    p2psync(here, "sync")
    both = assert_same(here, there)
    assert both.keys() == {b"song", b"file", b"from here", b"folder", b"folder/from there"}
    assert both[b"song"].content.decode() == SONG.replace("2", "two").replace("8", "eight")
    assert both[b"file"].mode == 0o600


def test_a_conflict_over_ssh_is_set_aside_on_both_sides(here: Path, there: Path) -> None:
    write(here / "file", "from here")
    write(there / "file", "from there")
    p2psync(here, "sync", code=1)
    assert_same(here, there)
    assert len(copies(there)) == 1
    assert {b"from here", b"from there"} <= set(contents(there).values())
    p2psync(here, "sync")


def test_a_dry_run_over_ssh_touches_nothing_and_tells_the_truth(here: Path, there: Path) -> None:
    write(here / "new", "x")
    (there / "gone").unlink()
    before = [(snapshot(root), manifest(root)) for root in (here, there)]
    dry = p2psync(here, "sync", "-n", "--json")
    assert [(snapshot(root), manifest(root)) for root in (here, there)] == before
    assert plan(dry) == plan(p2psync(here, "sync", "--json")) != []


def test_much_the_same_bytes_cost_little_on_the_wire(here: Path, there: Path) -> None:
    write(here / "dull", b"dull " * 1_000_000)
    ran = p2psync(here, "sync", "--json")
    assert ran.json["stats"]["copied"] == 5_000_000
    assert ran.json["stats"]["sent"] < 100_000
    assert_same(here, there)


def test_what_is_compressed_and_how_fast_it_goes_is_up_to_the_user(here: Path, there: Path) -> None:
    write(here / "dull", b"dull " * 100_000)
    assert p2psync(here, "sync", "--json", "--compress", "off").json["stats"]["sent"] > 500_000
    write(here / "dull too", b"dull too " * 100_000)
    assert p2psync(here, "sync", "--json", "-z", "--bwlimit", "100M").json["stats"]["sent"] < 50_000
    assert_same(here, there)


def test_a_large_file_arrives_whole(here: Path, there: Path) -> None:
    write(there / "large", os.urandom(5_000_001))
    p2psync(here, "sync")
    assert_same(here, there)


def test_the_far_end_may_be_bound_to_its_replica_by_the_servers_key(
    here: Path, there: Path, sshd: Sshd
) -> None:
    forced = sshd.forced(f"{sshd.remote_command} serve {shlex.quote(str(there))}")
    write(here / "new", "x")
    p2psync(here, "sync", "-e", forced, at(sshd, Path("whatever")))
    assert_same(here, there)


def test_the_ssh_of_the_environment_is_used(here: Path, there: Path, sshd: Sshd) -> None:
    write(here / "new", "x")
    env = {"P2PSYNC_SSH": sshd.ssh_command}
    p2psync(here, "sync", "--remote-command", sshd.remote_command, at(sshd, there), env=env)
    assert_same(here, there)


# -- places

ODD_ROOTS = [
    b"space and\nnew line",
    b'quote\'s "and" back\\slash',
    b"$(touch PWNED)`touch PWNED`; touch PWNED & *[a]?",
    b"-rf",
    b"~",
    b"a:b@c",
    pytest.param(
        b"\xff\xfe", marks=pytest.mark.skipif(sys.platform == "darwin", reason="APFS takes only UTF-8 names")
    ),
]


@pytest.mark.parametrize("name", ODD_ROOTS)
def test_a_far_root_may_have_any_name(tmp_path: Path, sshd: Sshd, name: bytes) -> None:
    here = replica(tmp_path / "here", {"file": "x"})
    (tmp_path / "far").mkdir()
    far = os.path.join(bytes(tmp_path), b"far", name)
    p2psync(here, "sync", "--create", *reach(sshd), os.fsencode(sshd.host) + b":" + far)
    assert_same(here, far)
    assert os.listdir(os.path.join(bytes(tmp_path), b"far")) == [name]
    assert list(tmp_path.rglob("PWNED")) == []


@pytest.mark.parametrize("address", ["{}:rel/notes", "ssh://{}/~/rel/notes"])
def test_a_relative_address_starts_where_a_login_does(tmp_path: Path, sshd: Sshd, address: str) -> None:
    here = replica(tmp_path / "here", {"file": "x"})
    login = tmp_path / "login"
    login.mkdir()
    options = reach(sshd, f"cd {shlex.quote(str(login))} && ")
    p2psync(here, "sync", "--create", *options, address.format(sshd.host))
    assert_same(here, login / "rel" / "notes")


@pytest.mark.parametrize("address", ["ssh://{user}@{host}:{port}{path}", "{user}@{host}:{path}"])
def test_host_user_and_port_may_be_in_the_address(here: Path, there: Path, sshd: Sshd, address: str) -> None:
    write(here / "new", "x")
    user = pwd.getpwuid(os.getuid()).pw_name
    place = address.format(user=user, host=sshd.host, port=sshd.port, path=there)
    p2psync(here, "sync", "-p", str(sshd.port), *reach(sshd), place)
    assert_same(here, there)


def test_another_port_is_another_server(here: Path, there: Path, sshd: Sshd) -> None:
    with socket.socket() as closed:
        closed.bind((sshd.host, 0))
        port = closed.getsockname()[1]
        ran = p2psync(here, "sync", *reach(sshd), "-p", str(port), at(sshd, there), code=5)
    assert "refused" in ran.err
    assert "ssh could not connect" in ran.err


# -- what can go wrong


def test_a_host_that_does_not_exist_is_unreachable(here: Path) -> None:
    ran = p2psync(here, "sync", "-e", "ssh -F /dev/null -o ConnectTimeout=5", "nowhere.invalid:x", code=5)
    assert "ssh could not connect to nowhere.invalid" in ran.err


def test_a_host_whose_key_is_not_known_is_unreachable(here: Path, there: Path, sshd: Sshd) -> None:
    strict = f"{sshd.ssh_command} -o UserKnownHostsFile=/dev/null"
    ran = p2psync(here, "sync", "-e", strict, at(sshd, there), code=5)
    assert "Host key verification failed" in ran.err


def test_a_login_that_is_refused_asks_no_question_where_nobody_can_answer(
    here: Path, there: Path, sshd: Sshd
) -> None:
    refused = f"{sshd.ssh_command} -o IdentityFile=/dev/null -o PubkeyAuthentication=no"
    ran = p2psync(here, "sync", "-e", refused, at(sshd, there), code=5)
    assert "Permission denied" in ran.err
    assert "ssh could not connect" in ran.err


def test_a_missing_program_there_comes_with_advice(here: Path, there: Path, sshd: Sshd) -> None:
    ran = p2psync(
        here, "sync", "-e", sshd.ssh_command, "--remote-command", "no-such-p2psync", at(sshd, there), code=5
    )
    assert "--remote-command" in ran.err
    assert "no-such-p2psync was not found" in ran.err


def test_a_missing_ssh_here_is_told_of(here: Path) -> None:
    assert "cannot run no-such-ssh" in p2psync(here, "sync", "-e", "no-such-ssh", "host:x", code=5).err


def test_a_program_there_that_fails_at_once_is_told_of(here: Path, there: Path, sshd: Sshd) -> None:
    options = ["-e", sshd.ssh_command, "--remote-command", "sh -c 'exit 9' --"]
    assert "ended with code 9" in p2psync(here, "sync", *options, at(sshd, there), code=5).err


@pytest.mark.parametrize("banner", ["Welcome to this host", "p2psync 0.0"])
def test_a_startup_file_that_prints_is_named_as_the_cause(
    here: Path, there: Path, sshd: Sshd, banner: str
) -> None:
    ran = p2psync(here, "sync", *reach(sshd, f"echo {banner}; "), at(sshd, there), code=3)
    assert banner in ran.err
    assert "start-up file" in ran.err


def test_a_banner_cannot_write_to_the_terminal(here: Path, there: Path, sshd: Sshd) -> None:
    ran = p2psync(here, "sync", *reach(sshd, r"printf '\033]0;title\007\n'; "), at(sshd, there), code=3)
    assert "start-up file" in ran.err
    assert "\x1b" not in ran.said


def test_what_the_far_side_says_on_stderr_is_shown_and_harmless(here: Path, there: Path, sshd: Sshd) -> None:
    write(here / "new", "x")
    ran = p2psync(here, "sync", *reach(sshd, "echo good morning >&2; "), at(sshd, there))
    assert "good morning" in ran.err
    assert_same(here, there)


CUT = """
import os, subprocess, sys
far = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
for _ in range(100):
    far.stdin.write(os.read(0, 10000))
    far.stdin.flush()
far.kill()
"""


def test_a_connection_that_breaks_is_mended_by_the_next_run(here: Path, there: Path, sshd: Sshd) -> None:
    write(here / "large", os.urandom(3_000_000))
    write(here / "small", "x")
    cut = f"{shlex.join([sys.executable, '-c', CUT])} {sshd.remote_command}"
    options = ["-e", sshd.ssh_command, "--remote-command", cut]
    assert "broke" in p2psync(here, "sync", *options, at(sshd, there), code=5).err
    p2psync(here, "sync")
    assert_same(here, there)


def test_a_far_replica_in_use_is_left_alone(here: Path, there: Path) -> None:
    write(here / "file", "2")
    with locked(there):
        p2psync(here, "sync", "--lock-wait", "0", code=6)
    assert contents(there)["file"] == b"1"


def test_a_known_far_replica_that_is_gone_is_never_begun_anew(here: Path, there: Path) -> None:
    p2psync(here, "sync")
    there.rename(there.with_name("unmounted"))
    assert "mounted" in p2psync(here, "sync", "--create", code=4).err
    assert not there.exists()
    assert (here / "file").exists()


def test_one_far_peer_that_is_down_keeps_the_other_from_nothing(
    tmp_path: Path, here: Path, there: Path, sshd: Sshd
) -> None:
    local = replica(tmp_path / "local", {"from local": "x"})
    p2psync(here, "peer", "add", "down", "nowhere:x", "-e", "false")
    p2psync(here, "peer", "add", "local", local)
    p2psync(here, "sync", code=5)
    assert_same(here, there, local)


def test_runs_from_both_ends_at_once_end_and_converge(
    tmp_path: Path, here: Path, there: Path, sshd: Sshd
) -> None:
    write(here / "from here", "x")
    write(there / "from there", "x")
    runs = [start(here, "sync"), start(there, "sync", *reach(sshd), at(sshd, here)), start(here, "sync")]
    assert {finish(run, None).code for run in runs} <= {0, 6}
    p2psync(here, "sync")
    assert assert_same(here, there).keys() >= {b"from here", b"from there"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_lock_there(
    here: Path, there: Path, sshd: Sshd, number: signal.Signals
) -> None:
    for size in range(30):
        write(here / "many" / str(size), os.urandom(1_000_000))
    run = start(here, "sync")
    wait_for(lambda: os.listdir(there / ".p2psync" / "stage") or run.poll() is not None, "staging")
    began = time.monotonic()
    (os.killpg if number is signal.SIGINT else os.kill)(run.pid, number)
    finish(run, -number if number is signal.SIGKILL else 130)
    assert time.monotonic() - began < 3
    wait_for(lambda: unlocked(there), "the far end to go")
    p2psync(here, "sync", "--lock-wait", "0")
    assert_same(here, there)


def unlocked(root: Path) -> bool:
    with (root / ".p2psync" / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
