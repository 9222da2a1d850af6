"""What is left of a run that was stopped: no process, no lock, and nothing that the next run cannot mend."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli_support import (
    COMMAND,
    assert_same,
    bring_in_step,
    environment,
    fake_ssh,
    finish,
    locked,
    p2psync,
    pair,
    replica,
    snapshot,
    start,
    wait_for,
)

PROMPT = 3.0
"""Seconds within which an interrupted run has to be over; one of them should do, on an idle machine."""

FILES = 3000

Replicas = tuple[Path, Path]


@pytest.fixture
def replicas(tmp_path: Path) -> Replicas:
    """Two replicas with a run of a second or so between them."""
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    for number in range(FILES):
        (here / str(number)).write_bytes(b"%d\n" % number * 50)
    return here, there


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Runs of which nothing may be left after the test."""
    runs: list[subprocess.Popen[bytes]] = []
    yield runs
    for run in runs:
        if group(run):
            os.killpg(run.pid, signal.SIGKILL)


def group(run: subprocess.Popen[bytes]) -> list[str]:
    """Return the processes of a run that are still alive."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True
    )
    processes = (line.split(None, 2) for line in listed.stdout.splitlines())
    return [args for pgid, stat, args in processes if int(pgid) == run.pid and not stat.startswith("Z")]


def stop(run: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Stop a run as its user would (Control-C reaches the whole group), and see that it was a good end."""
    assert run.poll() is None, "over before it could be interrupted"
    began = time.monotonic()
    (os.killpg if number is signal.SIGINT else os.kill)(run.pid, number)
    run.wait(timeout=60)
    assert time.monotonic() - began < PROMPT
    ran = finish(run, 130)
    assert "interrupted" in ran.err
    wait_for(lambda: group(run) == [], "the end of what it had started")


def names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def staged(root: Path) -> bool:
    return len(names(root / ".p2psync" / "stage")) > FILES // 20


def applied(root: Path) -> bool:
    return len(names(root)) > 1


def replaced(root: Path) -> bool:
    return any(names(root / ".p2psync" / "history"))


@pytest.mark.parametrize(
    ("at", "moment", "number"),
    [
        ("here", staged, signal.SIGINT),
        ("there", staged, signal.SIGTERM),
        ("here", applied, signal.SIGTERM),
        ("there", applied, signal.SIGINT),
    ],
)
def test_an_interrupted_run_ends_at_once_and_the_next_one_carries_on(
    replicas: Replicas,
    running: list[subprocess.Popen[bytes]],
    at: str,
    moment: Callable[[Path], bool],
    number: signal.Signals,
) -> None:
    full, empty = replicas
    before = snapshot(full)
    run = start(full, "sync", empty) if at == "here" else start(empty, "sync", full)
    running.append(run)
    wait_for(lambda: moment(empty) or run.poll() is not None, "the moment to interrupt")
    stop(run, number)
    p2psync(full, "sync", "--lock-wait", "0", empty)
    assert assert_same(full, empty) == before


def test_a_run_interrupted_while_it_replaces_and_deletes_is_carried_on(
    replicas: Replicas, running: list[subprocess.Popen[bytes]]
) -> None:
    here, there = replicas
    bring_in_step(here, there)
    for number in range(FILES):
        path = here / str(number)
        path.unlink() if number % 2 else path.write_bytes(b"edited %d\n" % number)
    before = snapshot(here)
    run = start(here, "sync", there)
    running.append(run)
    wait_for(lambda: replaced(there) or run.poll() is not None, "the moment to interrupt")
    stop(run, signal.SIGINT)
    p2psync(here, "sync", "--lock-wait", "0", there)
    assert assert_same(here, there) == before


def test_a_run_that_waits_for_a_lock_can_be_interrupted(
    tmp_path: Path, running: list[subprocess.Popen[bytes]]
) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    tried = tmp_path / "tried"
    with locked(there):
        run = start(
            here, "sync", "--lock-wait", "100", f"host:{there}", *fake_ssh(tmp_path, f"touch '{tried}'")
        )
        running.append(run)
        wait_for(tried.exists, "the first try")
        stop(run, signal.SIGTERM)


def test_a_run_whose_host_does_not_answer_can_be_interrupted(
    tmp_path: Path, running: list[subprocess.Popen[bytes]]
) -> None:
    here, tried = replica(tmp_path / "here"), tmp_path / "tried"
    run = start(here, "sync", "host:x", *fake_ssh(tmp_path, f"touch '{tried}'; exec sleep 1000"))
    running.append(run)
    wait_for(tried.exists, "ssh to be started")
    stop(run, signal.SIGINT)


def test_after_the_death_of_a_run_its_far_end_goes_and_the_next_one_carries_on(
    replicas: Replicas, running: list[subprocess.Popen[bytes]]
) -> None:
    here, there = replicas
    run = start(here, "sync", there)
    running.append(run)
    wait_for(lambda: staged(there) or run.poll() is not None, "the moment to kill")
    run.kill()
    finish(run, -signal.SIGKILL)
    wait_for(lambda: not group(run), "the end of the far end")
    p2psync(here, "sync", "--lock-wait", "0", there)
    assert_same(here, there)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the child in /proc")
def test_after_the_death_of_the_far_end_a_run_says_so_and_the_next_one_carries_on(
    replicas: Replicas, running: list[subprocess.Popen[bytes]]
) -> None:
    here, there = replicas
    run = start(here, "sync", there)
    running.append(run)
    wait_for(lambda: staged(there) or run.poll() is not None, "the moment to kill")
    (child,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    assert "broke" in finish(run, 5).err
    p2psync(here, "sync", "--lock-wait", "0", there)
    assert_same(here, there)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the child in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_whose_far_end_has_stalled_can_be_interrupted(
    replicas: Replicas, running: list[subprocess.Popen[bytes]], number: signal.Signals
) -> None:
    here, there = replicas
    run = start(here, "sync", there)
    running.append(run)
    wait_for(lambda: staged(there) or run.poll() is not None, "the moment to stall")
    (child,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGSTOP)
    stop(run, number)
    p2psync(here, "sync", "--lock-wait", "0", there)
    assert_same(here, there)


FALLS_SILENT = """
import os, sys
left = 500_000
while data := os.read(0, 65536):
    left -= len(data)
    if left > 0:
        os.write(1, data)
    else:
        open(sys.argv[1], "w").close()
"""


@pytest.mark.parametrize("at", ["here", "there"])
def test_a_run_whose_connection_falls_silent_can_be_interrupted(
    replicas: Replicas, running: list[subprocess.Popen[bytes]], tmp_path: Path, at: str
) -> None:
    here, there = replicas
    (here / "large").write_bytes(os.urandom(4_000_000))
    silent = tmp_path / "silent"
    cut = shlex.join([sys.executable, "-S", "-P", "-c", FALLS_SILENT, str(silent)])
    options = fake_ssh(tmp_path)
    script = f'#!/bin/sh\nfor last; do :; done\n{cut} | sh -c "$last" | {cut}\n'
    (tmp_path / "fake-ssh").write_text(script)  # what was sent is lost, and nobody hangs up
    one, other = (here, there) if at == "here" else (there, here)
    run = start(one, "sync", f"host:{other}", *options)
    running.append(run)
    wait_for(lambda: silent.exists() or run.poll() is not None, "silence")
    stop(run, signal.SIGTERM)
    p2psync(here, "sync", there)
    assert_same(here, there)


DIES_AT_CHMOD = """
import os, signal
os.chmod = os.fchmod = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from p2psync.cli import main
main()
"""


def test_a_folder_that_was_being_made_when_its_side_died_gets_its_permissions(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"folder/file": "x"}), replica(tmp_path / "there")
    (here / "folder").chmod(0o777)  # more than a umask lets a mkdir do
    before = snapshot(here)
    far = shlex.join([sys.executable, "-P", "-c", DIES_AT_CHMOD])
    p2psync(here, "sync", f"host:{there}", *fake_ssh(tmp_path), "--remote-command", far, code=None)
    p2psync(here, "sync", there)
    assert assert_same(here, there) == before


def test_a_second_control_c_does_no_harm(replicas: Replicas, running: list[subprocess.Popen[bytes]]) -> None:
    here, there = replicas
    run = start(here, "sync", there)
    running.append(run)
    wait_for(lambda: staged(there) or run.poll() is not None, "the moment to interrupt")
    for _ in range(3):
        os.killpg(run.pid, signal.SIGINT)
    finish(run, 130)
    assert group(run) == []
    p2psync(here, "sync", "--lock-wait", "0", there)
    assert_same(here, there)


def test_who_ignores_the_end_of_children_gets_its_sync_all_the_same(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"f": "text"})
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
        " os.execv(sys.argv[1], sys.argv[1:])"
    )
    run = subprocess.run(
        [sys.executable, "-c", ignoring, *COMMAND, "sync", there],
        cwd=here,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, b"")
