"""`p2psync watch` in processes of its own, on real trees and over a real sshd.

What is changed anywhere is soon everywhere, and nothing else happens.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2psync import watchfile
from p2psync.config import Peer
from p2psync.errors import Locked, NoRoom
from p2psync.manager import Manager
from p2psync.manifest import Manifest
from p2psync.progress import Silent
from p2psync.remote import RemoteReplica
from p2psync.run import Link, Options, PeerRun
from p2psync.watch import Event, Settings, Synced, Warned, Watch
from tests.sshd import Sshd
from tests.support import Quiet, contents_of, make_tree, new_replica, opened, snapshot, sync

PATIENCE_SECONDS = 30.0
P2PSYNC = [sys.executable, "-m", "p2psync"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def until(true: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"it never came to be: {what()}"
        time.sleep(0.005)


@dataclass
class Watching:
    """A watch that is running."""

    process: subprocess.Popen[bytes]
    log: Path

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def until(self, event: str, **fields: object) -> None:
        """Wait for an event that has these fields."""
        until(
            lambda: any(e["event"] == event and fields.items() <= e.items() for e in self.events()),
            self.log.read_text,
        )


def run(*arguments: object) -> str:
    done = subprocess.run([*P2PSYNC, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout


@contextmanager
def watching(root: Path, *arguments: object) -> Iterator[Watching]:
    """Watch the replica at `root` until the block ends; it has to end cleanly then."""
    log = root.parent / f"{root.name}-{time.monotonic_ns()}.log"
    with log.open("wb") as file:
        command = [*P2PSYNC, "-C", str(root), "watch", "--json", *map(str, arguments)]
        process = subprocess.Popen(
            command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    watch = Watching(process, log)
    try:
        watch.until("started")
        yield watch
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def same(*roots: Path) -> bool:
    try:
        first, *others = (snapshot(root) for root in roots)
    except OSError:  # it changes while it is looked at
        return False
    return all(other == first for other in others)


def newest(root: Path) -> int:
    manifest = Manifest.open(os.fsencode(root / ".p2psync" / "manifest.db"))
    try:
        return manifest.newest()
    finally:
        manifest.close()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two replicas that are in step."""
    here = new_replica(tmp_path / "here", {b"d/f": b"1\n", b"g": b"2\n"})
    there = new_replica(tmp_path / "there")
    sync(here, there)
    return here, there


def test_changes_on_either_side_appear_on_the_other(pair: tuple[Path, Path]) -> None:
    here, there = pair
    with watching(here, there) as watch:
        watch.until("connected", peer=str(there))
        make_tree(here, {b"new/deep/f": b"from here"})
        until(lambda: (there / "new/deep/f").exists() and same(here, there))
        (there / "d" / "f").write_bytes(b"from there")
        (there / "g").unlink()
        until(lambda: (here / "d" / "f").read_bytes() == b"from there" and same(here, there))
        (there / "new" / "deep" / "g").write_bytes(b"in what came from here")
        until((here / "new" / "deep" / "g").exists)
        (there / "new").rename(there / "moved")
        until(lambda: (here / "moved" / "deep" / "f").exists() and same(here, there))


def test_a_peer_over_ssh_is_watched_too(pair: tuple[Path, Path], sshd: Sshd) -> None:
    here, there = pair
    address = f"{sshd.host}:{there}"
    options = ["-e", sshd.ssh_command, "--remote-command", sshd.remote_command]
    with watching(here, address, *options) as watch:
        watch.until("connected", peer=address)
        (here / "d" / "f").write_bytes(b"from here")
        until(lambda: (there / "d" / "f").read_bytes() == b"from here")
        (there / "g").write_bytes(b"from there")
        until(lambda: (here / "g").read_bytes() == b"from there")
        until(lambda: same(here, there))


@pytest.mark.parametrize(
    "key", [[], ["--append-only"], ["--read-only"]], ids=["any", "append-only", "read-only"]
)
def test_a_restricted_key_stays_restricted(pair: tuple[Path, Path], sshd: Sshd, key: list[str]) -> None:
    here, there = pair
    command = f"{sshd.remote_command} serve --restrict-to {there} {' '.join(key)}"
    with watching(here, f"{sshd.host}:{there}", "-e", sshd.forced(command)) as watch:
        watch.until("connected")
        (there / "g").write_bytes(b"from there")
        until(lambda: (here / "g").read_bytes() == b"from there", watch.log.read_text)
        (here / "d" / "f").write_bytes(b"from here")
        if "--read-only" in key:
            until(lambda: any(event.get("problems") for event in watch.events()))
            assert (there / "d" / "f").read_bytes() == b"1\n"
        else:
            until(lambda: (there / "d" / "f").read_bytes() == b"from here")


def test_what_one_peer_brings_goes_on_to_the_others(pair: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = pair
    third = new_replica(tmp_path / "third")
    sync(here, third)
    with watching(here, there, third) as watch:
        for peer in (there, third):
            watch.until("connected", peer=str(peer))
        for number, (source, target) in enumerate(((there, third), (third, there))):
            (source / f"new{number}").write_bytes(b"x")
            until((target / f"new{number}").exists)
        until(lambda: same(here, there, third))


def test_a_peer_at_two_addresses_is_synced_at_either_and_comes_to_rest(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    here, there = pair
    link = tmp_path / "link"
    link.symlink_to(there)
    with watching(here, there, link) as watch:
        for peer in (there, link):
            watch.until("connected", peer=str(peer))
        for number in range(5):
            (here / f"here{number}").write_bytes(b"x")
            (there / f"there{number}").write_bytes(b"x")
            until(lambda number=number: (here / f"there{number}").exists())  # type: ignore[misc]
            until(lambda: same(here, there), watch.log.read_text)
        before = [newest(root) for root in pair]
        (here / "last").write_bytes(b"")
        until((there / "last").exists)
        assert max(now - old for now, old in zip(map(newest, pair), before, strict=True)) <= 2
        assert not [event for event in watch.events() if event["event"] in ("lost", "warned")]


def test_two_that_watch_each_other_come_to_rest(pair: tuple[Path, Path]) -> None:
    here, there = pair
    with watching(here, there), watching(there, here):
        for number in range(10):
            (here / "d" / "f").write_bytes(b"here %d" % number)
            (there / f"n{number}").write_bytes(b"there")
            until(lambda number=number: (here / f"n{number}").exists())  # type: ignore[misc]
        until(lambda: same(here, there))
        # What happens last has come through, and with it all that it could have set off.
        before = [newest(root) for root in pair]
        (here / "last").write_bytes(b"")
        until((there / "last").exists)
        (there / "last of all").write_bytes(b"")
        until((here / "last of all").exists)
        until(lambda: same(here, there))
        after = [newest(root) for root in pair]
        assert max(new - old for old, new in zip(before, after, strict=True)) <= 4
        versions = json.loads(run("-C", here, "log", "--json", "last"))["versions"]
        assert len(versions) == 1
    assert not [path for path in snapshot(here) if b".sync-conflict-" in path]


def test_a_save_in_several_steps_is_one_version(pair: tuple[Path, Path]) -> None:
    here, there = pair
    with watching(here, there, "--settle", "0.5") as watch:
        watch.until("connected")
        (here / "g~").write_bytes(b"saved\n")
        (here / "g~").rename(here / "g")
        (here / "g").chmod(0o600)
        until(lambda: (there / "g").read_bytes() == b"saved\n")
        until(lambda: same(here, there))
    versions = json.loads(run("-C", here, "log", "--json", "g"))["versions"]
    assert [version["size"] for version in versions] == [6, 2]


def test_a_peer_that_went_away_is_taken_up_again(pair: tuple[Path, Path]) -> None:
    here, there = pair
    with watching(here, there) as watch:
        watch.until("connected")
        far = subprocess.run(["pgrep", "-P", str(watch.process.pid)], capture_output=True, check=True)
        os.kill(int(far.stdout.split()[0]), signal.SIGKILL)
        watch.until("lost", peer=str(there))
        (here / "g").write_bytes(b"meanwhile")
        (there / "d" / "f").write_bytes(b"meanwhile")
        until(lambda: same(here, there) and (there / "g").read_bytes() == b"meanwhile", watch.log.read_text)


def test_a_peer_that_is_not_there_keeps_nobody_waiting(pair: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = pair
    away = new_replica(tmp_path / "away")
    sync(here, away)
    away.rename(tmp_path / "disk")
    with watching(here, away, there) as watch:
        watch.until("lost", peer=str(away))
        (here / "g").write_bytes(b"edit")
        until(lambda: (there / "g").read_bytes() == b"edit")
        (tmp_path / "disk").rename(away)
        until(lambda: (away / "g").read_bytes() == b"edit", watch.log.read_text)
        shown = json.loads(run("-C", here, "status", "--json"))
        assert shown["watch"]["pid"] == watch.process.pid


def test_other_commands_work_beside_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = pair
    with watching(here, there) as watch:
        watch.until("connected")
        (there / "g").write_bytes(b"unwanted")
        until(lambda: (here / "g").read_bytes() == b"unwanted")
        run("-C", here, "undo")
        until(lambda: (there / "g").read_bytes() == b"2\n")
        third = new_replica(tmp_path / "third", {b"t": b"3"})
        run("-C", here, "sync", "-q", third)
        until((there / "t").exists)
        assert "watched" not in run("-C", there, "status")


def test_status_tells_of_it_and_of_peers_that_are_late(pair: tuple[Path, Path]) -> None:
    here, there = pair
    run("-C", here, "peer", "add", "b", there)
    check = [*P2PSYNC, "-C", str(here), "status", "--check"]
    with watching(here) as watch:
        watch.until("connected", peer="b")
        until(lambda: ", watched" in run("-C", here, "status"))
        assert subprocess.run([*check, "--max-age", "1s"], env=ENVIRONMENT).returncode == 0
        assert run("-C", here, "status").endswith("ago\n")
    assert "watch" not in run("-C", here, "status")
    (here / "g").write_bytes(b"edit")
    late = subprocess.run(check, env=ENVIRONMENT, capture_output=True, text=True)
    assert (late.returncode, late.stdout.startswith("b: last in step")) == (1, True)
    assert subprocess.run([*check, "--max-age", "2h"], env=ENVIRONMENT).returncode == 0


def test_what_deletes_too_much_waits_for_a_person(pair: tuple[Path, Path]) -> None:
    here, there = pair
    make_tree(here, {b"many/%d" % number: b"%d" % number for number in range(60)})
    sync(here, there)
    with watching(here, there) as watch:
        watch.until("connected")
        (there / "many").rename(there.parent / "elsewhere")  # at once, as when a disk is not mounted
        until(lambda: any("would be deleted" in event.get("error", "") for event in watch.events()))
        assert len(os.listdir(here / "many")) == 60
        (there / "g").write_bytes(b"held up")
        run("-C", there, "sync", "-q", "--max-delete", "100%", here)
        until(lambda: same(here, there) and (here / "g").read_bytes() == b"held up")


def test_what_was_left_behind_is_tried_again(tmp_path: Path) -> None:
    here = new_replica(tmp_path / "here", {b"d/f": b"1"})
    there = new_replica(tmp_path / "there")
    sync(here, there)
    make_tree(there, {b"d/x.o": b"ignored"})
    (there / ".p2psync" / "ignore").write_bytes(b"*.o\n")
    run("-C", here, "peer", "add", "b", there)
    check = [*P2PSYNC, "-C", str(here), "status", "--check", "--max-age", "1h"]
    with watching(here) as watch:
        watch.until("connected")
        shutil.rmtree(here / "d")
        (here / "d").write_bytes(b"a file now")
        until(lambda: any(event.get("problems") for event in watch.events()), watch.log.read_text)
        until(lambda: subprocess.run(check, env=ENVIRONMENT, stdout=subprocess.DEVNULL).returncode == 1)
        (there / "d" / "x.o").unlink()
        until(lambda: same(here, there), watch.log.read_text)
        until(lambda: subprocess.run(check, env=ENVIRONMENT, stdout=subprocess.DEVNULL).returncode == 0)


def test_trouble_here_is_told_and_does_not_end_it(pair: tuple[Path, Path]) -> None:
    here, there = pair
    lock = here / ".p2psync" / "lock"
    with watching(here, there) as watch:
        watch.until("connected")
        until(lambda: same(here, there))
        lock.rename(lock.with_name("lock.away"))
        lock.mkdir()
        (here / "g").write_bytes(b"edit")
        until(lambda: any("trying again in" in event.get("text", "") for event in watch.events()))
        lock.rmdir()
        lock.with_name("lock.away").rename(lock)
        until(lambda: (there / "g").read_bytes() == b"edit", watch.log.read_text)


def test_a_peer_that_hangs_keeps_nobody_waiting_for_long(pair: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = pair
    third = new_replica(tmp_path / "third")
    sync(here, third)
    with watching(here, there, third) as watch:
        for peer in (there, third):
            watch.until("connected", peer=str(peer))
        (here / "first").write_bytes(b"")
        until(lambda: same(here, there, third))
        state = here / ".p2psync" / "watch.json"
        until(lambda: [peer[2] for peer in json.loads(state.read_bytes())["peers"]] == [True, True])
        far = subprocess.run(["pgrep", "-f", f"beside {here} -- {there}"], capture_output=True, check=True)
        os.kill(int(far.stdout.split()[0]), signal.SIGSTOP)
        (here / "g").write_bytes(b"edit")
        until(lambda: (third / "g").read_bytes() == b"edit", watch.log.read_text)
        until(lambda: (there / "g").read_bytes() == b"edit", watch.log.read_text)


SLOW_SCANS = """
import os, sys, time
line = open("/proc/self/cmdline", "rb").read().split(b"\\0")
if b"watch" in line:
    import p2psync.remote
    p2psync.remote.PATIENCE_SECONDS = 0.15
elif b"serve" in line:
    import p2psync.serve
    p2psync.serve.LONG_SECONDS = 0.05
    scandir = os.scandir
    def slow(*at):
        os.close(os.open(__file__ + ".used", os.O_CREAT))
        time.sleep(0.03)
        return scandir(*at)
    os.scandir = slow
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_far_end_whose_scan_takes_longer_than_is_waited_for_an_answer_is_not_lost(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    make_tree(there, {b"d%d/f" % number: b"" for number in range(8)})
    make_tree(tmp_path, {b"slow/sitecustomize.py": SLOW_SCANS.encode()})
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", f"{tmp_path / 'slow'}:{ENVIRONMENT['PYTHONPATH']}")
    with watching(here, there, "--settle", "0.05") as watch:
        until(lambda: same(here, there), watch.log.read_text)
        used = tmp_path / "slow" / "sitecustomize.py.used"
        used.unlink()
        for number in range(8):
            (there / f"d{number}" / "g").write_bytes(b"")
        until(used.exists)
        (here / "g").write_bytes(b"edit")
        until(lambda: same(here, there), watch.log.read_text)
    told = [event["event"] for event in watch.events()]
    assert "lost" not in told
    assert told.count("connected") == 1


def test_a_peer_is_not_said_to_be_lost_where_an_error_here_ended_a_call_in_its_midst(tmp_path: Path) -> None:
    events: list[Event] = []
    peer = Peer("peer", str(tmp_path))
    watch = Watch(b"", [peer], Options(), Settings(), events.append, Quiet(), Manager({}))
    (link,) = watch._links
    far = SimpleNamespace(broke_off=True, close=lambda: events.append(Warned("it was hung up")))
    link.replica = far  # type: ignore[assignment]
    watch._finish(link, Link(PeerRun(peer, error=NoRoom("there is no room here"))))
    assert [type(event) for event in events] == [Synced, Warned]
    assert link.replica is None and link.why == "there is no room here"


def test_a_far_end_that_is_ended_says_nothing(pair: tuple[Path, Path]) -> None:
    here, there = pair
    command = [*P2PSYNC, "serve", "--beside", str(here), "--", str(there)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, stderr=pipe) as far:
        assert far.stdout and far.stdout.read(1)  # it is there
        far.terminate()
        assert far.wait(PATIENCE_SECONDS) == 130
        assert far.stderr and far.stderr.read() == b""


def test_a_disk_that_was_first_met_by_this_watch_is_missed_when_it_is_gone(tmp_path: Path) -> None:
    here, stick = new_replica(tmp_path / "here", {b"f": b"1"}), new_replica(tmp_path / "stick")
    with watching(here, stick) as watch:
        until(lambda: same(here, stick), watch.log.read_text)
        (stick / ".p2psync").rename(tmp_path / "unmounted")
        (here / "f").write_bytes(b"edit")
        until(lambda: "is the disk mounted?" in watch.log.read_text(), watch.log.read_text)


def test_modules_in_the_tree_are_not_ours(pair: tuple[Path, Path]) -> None:
    here, there = pair
    trap = b"open(%r, 'w').close()\n" % str(here.parent / "sprung")
    make_tree(here, {b"xxhash.py": trap, b"queue.py": trap, b"click/__init__.py": trap})
    sync(here, there)
    with watching(here, there) as watch:
        watch.until("connected")
        (here / "g").write_bytes(b"edit")
        until(lambda: (there / "g").read_bytes() == b"edit")
    assert not (here.parent / "sprung").exists()


def test_a_folder_that_vanishes_while_it_is_written_to_is_just_gone(pair: tuple[Path, Path]) -> None:
    here, there = pair
    make_tree(here, {b"stays/%d" % number: b"" for number in range(1100)})  # so that no guard trips
    sync(here, there)
    with watching(here, there) as watch:
        watch.until("connected")
        for number in range(5):
            make_tree(here, {b"t/%d/%d/f" % (number, folder): b"" for folder in range(100)})
            shutil.rmtree(here / "t")
        (here / "g").write_bytes(b"edit")
        until(lambda: (there / "g").read_bytes() == b"edit" and same(here, there), watch.log.read_text)


def test_a_peer_may_have_any_name(pair: tuple[Path, Path]) -> None:
    here, there = pair
    odd = os.path.join(os.fsencode(there.parent), b"odd\xff")
    os.rename(there, odd)
    with watching(here, os.fsdecode(odd)) as watch:
        watch.until("connected")
        (here / "g").write_bytes(b"edit")
        until(lambda: (Path(os.fsdecode(odd)) / "g").read_bytes() == b"edit", watch.log.read_text)


def test_who_looks_whether_a_watch_is_running_keeps_none_from_it(pair: tuple[Path, Path]) -> None:
    here, _ = pair
    root = os.fsencode(here)
    with watchfile.only_one(root):
        pass
    fd = os.open(here / ".p2psync" / "watch.lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    looker = threading.Timer(0.1, os.close, [fd])
    looker.start()
    with watchfile.only_one(root):
        assert watchfile.read(root) is None
    looker.join()


def test_control_c_is_told_of_once(pair: tuple[Path, Path]) -> None:
    here, there = pair
    command = [*P2PSYNC, "-C", str(here), "watch", str(there)]
    with subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout
        assert "watching" in process.stdout.readline()
        assert "connected" in process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert said.strip() == "p2psync: interrupted; the next sync carries on"


def test_there_is_one_watch_of_a_replica(pair: tuple[Path, Path]) -> None:
    here, there = pair
    with watching(here, there):
        second = subprocess.run(
            [*P2PSYNC, "-C", str(here), "watch", str(there)], env=ENVIRONMENT, capture_output=True, text=True
        )
        assert (second.returncode, "another watch is running" in second.stderr) == (6, True)


def test_hooks_get_what_happened_on_their_stdin(pair: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = pair
    sink = tmp_path / "hook.py"
    sink.write_text("import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')")
    told = tmp_path / "told; echo $HOME"
    words = json.dumps([sys.executable, str(sink), str(told)])
    config = f"[hooks]\non_change = {words}\non_conflict = {words}\non_error = {words}\n"
    (here / ".p2psync" / "config.toml").write_text(config)
    (here / "g").write_bytes(b"mine\n")
    (there / "g").write_bytes(b"theirs, which is longer\n")

    def hooked() -> set[str]:
        return (
            {json.loads(line)["hook"] for line in told.read_text().splitlines()} if told.exists() else set()
        )

    with watching(here, there, tmp_path / "nowhere/at/all") as watch:
        until(lambda: hooked() == {"on_change", "on_conflict", "on_error"}, watch.log.read_text)
    changes = [json.loads(line) for line in told.read_text().splitlines()]
    conflicts = [about["conflicts"] for about in changes if about["hook"] == "on_conflict"]
    assert [[conflict["path"] for conflict in some] for some in conflicts] == [["g"]]
    assert {b"mine\n", b"theirs, which is longer\n"} <= contents_of([here])


def is_free(root: Path) -> bool:
    try:
        with opened(root):
            return True
    except Locked:
        return False


def test_peers_are_let_go_of_when_the_replica_here_fails_after_a_sync(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    events: list[Event] = []
    peers = [Peer("there", str(there))]
    watch = Watch(bytes(here), peers, Options(), Settings(), events.append, Silent(), Manager({}))
    watch._known = set()
    (link,) = watch._links
    watch._reach(link)
    far = watch._connected.get()[1]
    assert isinstance(far, RemoteReplica)
    link.replica = far
    with opened(here) as home, closing(far):
        scanned = home.scan(keep=True)

        def fail() -> int:
            raise NoRoom("no room at home")

        monkeypatch.setattr("p2psync.run.sync_all", lambda *more: None)
        monkeypatch.setattr(home, "newest", fail)
        until(lambda: is_free(there))
        with pytest.raises(NoRoom):
            watch._sync(home, scanned, [link])
        until(lambda: is_free(there))


@pytest.mark.slow
def test_real_tools_work_in_a_watched_tree(pair: tuple[Path, Path]) -> None:
    here, there = pair
    repository = Path(__file__).parents[1]
    with watching(here, there) as watch:
        watch.until("connected")
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(here / "clone")]
        subprocess.run(["git", "clone", "-q", str(repository), str(here / "clone")], check=True)
        until(lambda: same(here, there))
        for revision in ("HEAD~20", "HEAD~5", "-"):
            subprocess.run([*git, "checkout", "-q", revision], check=True)
            until(lambda: same(here, there))
        subprocess.run([sys.executable, "-m", "venv", str(here / "venv")], check=True)
        pip = [str(here / "venv" / "bin" / "pip"), "install", "-q", "six"]
        subprocess.run(pip, check=True)
        until(lambda: same(here, there))
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True)
        assert status.stdout == b""
        shutil.rmtree(there / "clone" / "tests")
        until(
            lambda: same(here, there) and not (here / "clone" / "tests").exists(),
            lambda: watch.log.read_text()[-3000:],
        )
    assert not [path for path in snapshot(here) if b".sync-conflict-" in path]
