"""What a sync refuses to do: nothing changes on either side, it says why and how to go on, exit code 4."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync import room, stage
from p2psync.core.model import Transition
from p2psync.core.paths import SIDECAR
from p2psync.disk import free_on
from p2psync.local import LocalReplica
from p2psync.watcher import Watcher
from tests.cli_support import (
    assert_same,
    contents,
    history,
    p2psync,
    pair,
    replica,
    snapshot,
    wait_for,
    write,
)
from tests.sshd import Sshd
from tests.support import file, sync

MANY = {f"d{number % 5}/{number}": f"content {number}" for number in range(40)}


def empty(root: Path) -> None:
    for path in root.iterdir():
        if path.name != os.fsdecode(SIDECAR):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def refused(here: Path, *arguments: str | Path) -> str:
    """Sync, which has to be refused and to change nothing; return the name of the plan."""
    before = snapshot(here)
    ran = p2psync(here, "sync", *arguments, code=4)
    assert "Nothing was changed" in ran.err
    assert snapshot(here) == before
    found = re.search("--approve ([0-9a-f]+)", ran.err)
    assert found
    return found[1]


@pytest.mark.parametrize("at", ["here", "there"])
def test_a_root_that_was_emptied_empties_no_other(tmp_path: Path, at: str) -> None:
    here, there = pair(tmp_path, MANY)
    emptied, whole = (here, there) if at == "here" else (there, here)
    before = snapshot(whole)
    empty(emptied)
    refused(here, there)
    refused(there, here)
    assert snapshot(whole) == before


def test_a_small_root_that_was_emptied_empties_no_other(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {str(number): str(number) for number in range(6)})
    empty(here)
    refused(here, there)


def test_files_that_come_back_after_a_refusal_are_simply_there(tmp_path: Path) -> None:
    here, there = pair(tmp_path, MANY)
    unmounted = tmp_path / "unmounted"
    unmounted.mkdir()
    for path in here.iterdir():
        if path.name != os.fsdecode(SIDECAR):
            path.rename(unmounted / path.name)
    refused(here, there)
    for path in unmounted.iterdir():
        path.rename(here / path.name)
    p2psync(here, "sync", there)
    assert len(assert_same(here, there)) == 45


def test_a_plan_that_is_approved_is_carried_out_once(tmp_path: Path) -> None:
    here, there = pair(tmp_path, MANY)
    empty(here)
    plan = refused(here, there)
    assert refused(there, here) == plan
    p2psync(here, "sync", "--approve", plan, there)
    assert assert_same(here, there) == {}
    p2psync(there, "undo")
    p2psync(there, "sync", here)
    empty(here)
    assert refused(here, "--approve", plan, there) != plan
    assert set(map(str.encode, MANY.values())) <= history(there)


def test_an_approval_is_of_one_plan_only(tmp_path: Path) -> None:
    here, there = pair(tmp_path, MANY)
    shutil.rmtree(here / "d0")
    shutil.rmtree(here / "d1")
    shutil.rmtree(here / "d2")
    plan = refused(here, there)
    shutil.rmtree(here / "d3")
    assert refused(here, "--approve", plan, there) != plan


def test_a_folder_that_moves_is_no_deletion(tmp_path: Path) -> None:
    here, there = pair(tmp_path, MANY)
    (here / "all").mkdir()
    for number in range(5):
        (here / f"d{number}").rename(here / "all" / str(number))
    p2psync(here, "sync", there)
    assert_same(here, there)


@pytest.mark.parametrize(
    ("limit", "code"), [("7", 4), ("8", 0), ("19%", 4), ("20%", 0), ("0", 4), ("100%", 0)]
)
def test_the_limit_can_be_set(tmp_path: Path, limit: str, code: int) -> None:
    here, there = pair(tmp_path, MANY)
    shutil.rmtree(here / "d0")
    p2psync(here, "sync", "--max-delete", limit, there, code=code)


@pytest.mark.parametrize("limit", ["x", "-1", "200%", ""])
def test_a_limit_that_makes_no_sense_is_wrong_usage(tmp_path: Path, limit: str) -> None:
    here = replica(tmp_path / "here")
    assert "0% to 100%" in p2psync(here, "sync", f"--max-delete={limit}", tmp_path, code=2).err


def test_a_dry_run_tells_that_it_would_be_refused(tmp_path: Path) -> None:
    here, there = pair(tmp_path, MANY)
    empty(here)
    ran = p2psync(here, "sync", "-n", there, code=4)
    assert "would be refused" in ran.err
    assert "45 deleted" in ran.out
    document = p2psync(here, "sync", "--json", there, code=4).json
    assert document["stats"]["exit_code"] == 4
    assert "--approve" in document["peers"][0]["error"]


def test_one_peer_that_is_refused_does_not_keep_another_from_its_changes(tmp_path: Path) -> None:
    here, there = pair(tmp_path, MANY)
    other = replica(tmp_path / "other", {"new": "new"})
    empty(here)
    p2psync(here, "sync", there, other, code=4)
    assert (here / "new").read_text() == "new"
    assert (there / "d0" / "0").exists()


# -- disks


@contextlib.contextmanager
def mounted(disk: Path) -> Iterator[None]:
    """A file system of 24 MiB for as long as the block runs."""
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk"):
        yield tmp_path / "disk"


def test_a_disk_in_the_tree_that_is_not_mounted_any_more_is_no_deletion(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"file": "x"})
    with mounted(here / "more"):
        (here / "more" / "too").write_text("2")
        p2psync(here, "sync", there)
        copied = assert_same(here, there)
        p2psync(here, "sync", there)
    for _ in range(2):
        ran = p2psync(here, "sync", there, code=1)
        assert "more was a mounted disk and is not mounted now" in ran.err
        assert snapshot(there) == copied
    (here / "more" / "left under it").write_text("3")
    assert "is not mounted now" in p2psync(here, "sync", there, code=1).err
    with mounted(here / "more"):
        (here / "more" / "lost+found").mkdir()
        assert "a disk is mounted on it that was not, or is empty" in p2psync(here, "sync", there, code=1).err
        (here / "more" / "too").write_text("2")
        p2psync(here, "sync", there)
    shutil.rmtree(here / "more")
    p2psync(here, "sync", there)
    assert not (there / "more").exists()


def test_a_disk_in_a_disk_that_are_both_away_is_no_deletion_when_one_comes_back(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"file": "x"})
    with mounted(here / "one"):
        write(here / "one" / "f", "1")
        with mounted(here / "one" / "two"):
            write(here / "one" / "two" / "g", "2")
            p2psync(here, "sync", there)
            before = snapshot(there)
    p2psync(here, "sync", there, code=1)
    with mounted(here / "one"):
        write(here / "one" / "f", "1")
        (here / "one" / "two").mkdir()
        assert "one/two was a mounted disk" in p2psync(here, "sync", there, code=1).err
        assert snapshot(there).keys() == before.keys()


def test_a_disk_that_went_while_it_was_ignored_is_away_when_the_rule_goes(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"file": "x"})
    with mounted(here / "disk"):
        write(here / "disk" / "f", "1")
        p2psync(here, "sync", there)
        write(here / ".p2psync" / "ignore", "disk\n")
        p2psync(here, "sync", there)
    p2psync(here, "sync", there)
    (here / ".p2psync" / "ignore").unlink()
    write(there / "disk" / "g", "2")
    for _ in range(2):
        assert "disk was a mounted disk" in p2psync(here, "sync", there, code=1).err
        assert os.listdir(here / "disk") == []
    assert (there / "disk" / "f").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="tells of what is unmounted")
def test_who_watches_notices_that_a_disk_is_unmounted(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"file": "x"})
    with contextlib.closing(Watcher(0, 0, 3600)) as watcher:
        with mounted(here / "disk"):
            write(here / "disk" / "f", "1")
            with contextlib.closing(LocalReplica(os.fsencode(here), watcher=watcher)) as watched:
                watched.scan(keep=True)
        wait_for(lambda: watcher.due() < time.monotonic(), "what is unmounted")
        with contextlib.closing(LocalReplica(os.fsencode(here), watcher=watcher)) as watched:
            assert [problem.path for problem in watched.scan(keep=True).problems] == [b"disk"]
            assert watched.refusal(Transition(b"disk/g", None, file(b"new")))


def test_an_empty_disk_mounted_over_files_is_no_deletion(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"photos/one": "1", "photos/two": "2"})
    before = snapshot(there)
    with mounted(here / "photos"):
        ran = p2psync(here, "sync", there, code=1)
        assert "photos has files, and a disk is mounted on it that was not, or is empty" in ran.err
        assert snapshot(there) == before
    p2psync(here, "sync", there)
    assert snapshot(here) == snapshot(there) == before


def test_another_disk_mounted_over_files_edits_none_of_them_unless_it_is_accepted(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"photos/one": "1", "photos/two": "2"})
    before = snapshot(there)
    with mounted(here / "photos"):
        write(here / "photos" / "one", "an older one")
        assert "--accept-folder" in p2psync(here, "sync", there, code=1).err
        assert snapshot(there) == before
        p2psync(here, "sync", "--accept-folder", here / "photos", there)
        assert contents(there) == {"photos/one": b"an older one"}
        write(here / "photos" / "three", "3")
        p2psync(here, "sync", there)
        assert_same(here, there)


@pytest.mark.parametrize("path", ["nothing", "file"])
def test_only_a_folder_is_accepted(tmp_path: Path, path: str) -> None:
    here, there = pair(tmp_path, {"file": "x"})
    p2psync(here, "sync", "--accept-folder", here / path, there, code=2)


def test_nothing_is_written_where_a_disk_is_away_nor_taken_from_there(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"file": "x"})
    with mounted(here / "disk"):
        write(here / "disk" / "old", "old")
        p2psync(here, "sync", there)
    (here / "disk").chmod(0o700)
    write(there / "disk" / "new", "precious")
    write(there / "disk" / "old", "edited")
    (there / "disk" / "folder").mkdir()
    before = snapshot(there)
    for _ in range(2):
        ran = p2psync(here, "sync", there, code=1)
        assert "disk/new left alone: its disk is not mounted here" in ran.err
        assert "disk/old left alone: its disk is not mounted here" in ran.err
        assert snapshot(there) == before
        assert os.listdir(here / "disk") == []
    with mounted(here / "disk"):
        write(here / "disk" / "old", "old")
        p2psync(here, "sync", there, code=1)  # nothing is written on another disk either
        assert (there / "disk" / "new").read_text() == "precious"


def test_a_folder_whose_disk_was_retired_is_synced_again_once_it_is_accepted(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"file": "x"})
    with mounted(here / "disk"):
        for name in ("kept", "gone"):
            write(here / "disk" / name, name)
        p2psync(here, "sync", there)
    write(here / "disk" / "kept", "kept, and edited")
    assert "--accept-folder" in p2psync(here, "sync", there, code=1).err
    p2psync(here, "sync", "-n", "--accept-folder", here / "disk", there)
    assert "--accept-folder" in p2psync(here, "sync", there, code=1).err
    p2psync(here, "sync", "--accept-folder", here / "disk", there)
    assert (there / "disk" / "kept").read_text() == "kept, and edited"
    assert not (there / "disk" / "gone").exists()
    write(there / "disk" / "new", "new")
    p2psync(here, "sync", there)
    assert_same(here, there)


def test_what_would_fill_a_disk_is_refused_before_anything_is_copied(
    tmp_path: Path, small_disk: Path
) -> None:
    here, there = replica(tmp_path / "here"), replica(small_disk / "there")
    for number in range(25):
        write(here / f"large {number}", bytes(2 << 20))
    write(here / "small", "small")
    write(there / "theirs", "theirs")
    before = snapshot(there)
    for one, other in ((here, there), (there, here)):
        ran = p2psync(one, "sync", other, code=4)
        assert re.search(r"has room for 2[23]\.\d MiB, and 50\.1 MiB are needed", ran.err)
        assert "gc" not in ran.err
        assert ran.err.rstrip().endswith("(--max-size, --exclude), as large 0 is")
        assert not (here / "theirs").exists()
        assert snapshot(there) == before
    for number in range(20):
        (here / f"large {number}").unlink()
    p2psync(here, "sync", there)
    assert_same(here, there)


def test_a_large_file_for_which_there_is_no_room_waits_and_all_else_is_synced(
    tmp_path: Path, small_disk: Path
) -> None:
    here, there = replica(tmp_path / "here"), replica(small_disk / "there")
    write(here / "d" / "large", bytes(30 << 20))
    write(here / "d" / "small", "small")
    write(there / "theirs", "theirs")
    for one, other in ((here, there), (there, here)):
        ran = p2psync(one, "sync", other, code=1)
        assert "d/large failed: there is no room for it: it takes 30.0 MiB, and beside all else" in ran.err
        assert re.search(r"comes 2[23]\.\d MiB are left", ran.err)
        assert "gc" not in ran.err
        assert {*snapshot(here)} - {*snapshot(there)} == {b"d/large"}
        assert {*snapshot(there)} <= {*snapshot(here)}
    (here / "d" / "large").write_bytes(bytes(5 << 20))
    p2psync(here, "sync", there)
    assert_same(here, there)


def test_what_a_run_that_died_left_on_a_full_disk_counts_as_room(tmp_path: Path, small_disk: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(small_disk / "there")
    write(here / "large", bytes(18 << 20))
    (there / ".p2psync" / "stage").mkdir(exist_ok=True)
    write(there / ".p2psync" / "stage" / "large", bytes(10 << 20))
    p2psync(here, "sync", there)
    assert_same(here, there)


def holey(path: Path, size: int = 30 << 20) -> None:
    """A file that takes a few KiB, and says that it is as large."""
    with open(path, "wb") as file:
        file.seek(size // 2)
        file.write(b"x" * 10000)
        file.truncate(size)


def test_a_file_with_holes_needs_room_for_what_it_takes_only(tmp_path: Path, small_disk: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(small_disk / "there")
    for number in range(12):  # more than may wait
        holey(here / f"image {number}", 17 << 20)
    p2psync(here, "sync", there)
    assert_same(here, there)
    for path in here.glob("image*"):
        path.unlink()
    p2psync(here, "sync", "--max-delete", "100%", there)
    assert "12 paths undone" in p2psync(there, "undo").out


def test_a_file_with_holes_is_known_over_ssh_too(tmp_path: Path, small_disk: Path, sshd: Sshd) -> None:
    here, there = replica(tmp_path / "here"), replica(small_disk / "there")
    holey(here / "image")
    write(here / "large", bytes(30 << 20))
    options = ["-e", sshd.ssh_command, "--remote-command", sshd.remote_command]
    ran = p2psync(here, "sync", *options, f"{sshd.host}:{there}", code=1)
    assert "large failed: there is no room for it: it takes 30.0 MiB" in ran.err
    assert {*snapshot(here)} - {*snapshot(there)} == {b"large"}


def test_what_may_fit_is_tried_and_takes_nothing_from_what_is_sure_to(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose blocks may be shared with what is there, and in the end they are not."""
    here, there = replica(tmp_path / "here", {"a large": "old"}), replica(small_disk / "there")
    assert sync(here, there).in_step
    write(here / "a large", os.urandom(30 << 20))
    for number in range(12):
        write(here / f"small {number}", os.urandom(1 << 20))
    monkeypatch.setattr(room, "can_share", lambda source, folder: True)
    free: list[int] = []

    def noting(fd: int) -> int:
        free.append(free_on(fd))
        return free[-1]

    monkeypatch.setattr(stage, "free_on", noting)
    result = sync(here, there)
    [problem] = result.peer.problems
    assert problem.path == b"a large"
    assert "there is no room for it beside all else that comes" in problem.why
    assert (there / "a large").read_text() == "old"
    assert len([*there.glob("small*")]) == 12
    assert min(free) > 11 << 20
    assert sync(here, there).peer.problems == [problem]
    monkeypatch.undo()
    assert "it takes 30.0 MiB" in sync(here, there).peer.problems[0].why


def test_a_file_with_holes_has_the_room_that_the_others_leave(tmp_path: Path, small_disk: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(small_disk / "there")
    for number in range(8):
        write(here / f"small {number}", os.urandom(1 << 20))
    holey(here / "z image")
    with open(here / "z image", "r+b") as file:
        file.write(os.urandom(10 << 20))
    p2psync(here, "sync", there)
    assert_same(here, there)


@pytest.fixture
def sharing_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 320 MiB whose file system shares blocks."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.touch()
    os.truncate(image, 320 << 20)
    disk.mkdir()
    make = next((name for name in ("mkfs.xfs", "mkfs.btrfs") if shutil.which(name)), None)
    if os.geteuid() != 0 or make is None:
        pytest.skip("needs a file system that shares blocks, and the right to mount it")
    subprocess.run([make, "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("by", ["path", "ssh"])
def test_an_edit_of_a_large_file_needs_no_room_for_all_of_it_where_blocks_are_shared(
    sharing_disk: Path, sshd: Sshd, by: str
) -> None:
    here, there = replica(sharing_disk / "here"), replica(sharing_disk / "there")
    far = ["-e", sshd.ssh_command, "--remote-command", sshd.remote_command, f"{sshd.host}:{there}"]
    sync_there = ["sync", *(far if by == "ssh" else [there])]
    write(here / "large", os.urandom(60 << 20))
    p2psync(here, *sync_there)
    with open(sharing_disk / "filler", "wb") as filler:
        disk = os.statvfs(sharing_disk)
        os.posix_fallocate(filler.fileno(), 0, disk.f_bavail * disk.f_frsize - (30 << 20))
    with open(here / "large", "r+b") as file:
        file.write(b"edited")
    p2psync(here, *sync_there)
    subprocess.run(["cp", "--reflink=always", here / "large", here / "copy"], check=True)
    p2psync(here, *sync_there)
    assert_same(here, there)
