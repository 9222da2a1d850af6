"""What a sync refuses to do: nothing changes on either side, it says why and how to go on, exit code 4."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.core.paths import SIDECAR
from tests.cli_support import assert_same, history, p2psync, pair, replica, snapshot, write

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
        assert "is not mounted now" in p2psync(here, "sync", there, code=1).err
        (here / "more" / "too").write_text("2")
        p2psync(here, "sync", there)
    shutil.rmtree(here / "more")
    p2psync(here, "sync", there)
    assert not (there / "more").exists()


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
