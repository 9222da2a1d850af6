"""A disk that others have filled, and one that is read-only: what can be done there, and what is said."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from p2psync import collect, database, reserve
from p2psync.config import Peer
from p2psync.core.retention import Kept, Limits
from p2psync.errors import Damaged, NoRoom, ReplicaError
from p2psync.local import LocalReplica
from p2psync.manifest import Manifest
from p2psync.peer import parse_address
from p2psync.run import open_address
from tests.cli_support import Ran, assert_same, p2psync, pair, replica, snapshot, write
from tests.support import new_replica, opened, sync

KIB = 1024


def mount(*command: str | Path) -> bool:
    return os.geteuid() == 0 and not subprocess.run(["mount", *command], capture_output=True).returncode


@pytest.fixture(params=[pytest.param("tmpfs", marks=pytest.mark.slow), "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MiB; of ext4 with blocks smaller than a page of memory."""
    place, image = tmp_path / "disk", tmp_path / "image"
    place.mkdir()
    if request.param == "tmpfs":
        mounted = mount("-t", "tmpfs", "-o", "size=40m,mode=755", "none", place)
    else:
        image.touch()
        os.truncate(image, 40 << 20)
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", "1024", image], capture_output=True)
        mounted = mount("-o", "loop", image, place)
    if not mounted:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def few_files(tmp_path: Path) -> Iterator[Path]:
    """A disk that can hold 300 files."""
    place = tmp_path / "few"
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=40m,nr_inodes=300", "none", place):
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def take_files(disk: Path, left: int = 0) -> None:
    """Have another program leave so many files that can be made."""
    (disk / "others").mkdir()
    for number in range(os.statvfs(disk).f_favail - left):
        (disk / "others" / str(number)).touch()


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path, left: int) -> None:
    """Have another program leave so many bytes, or a little less."""
    with open(disk / "filler", "ab", buffering=0) as filler:
        while (size := free(disk) - left) > 0:
            try:
                filler.write(os.urandom(min(size, 1 << 20)))
            except OSError:
                return
            os.fsync(filler.fileno())


def old_and_new(tmp_path: Path, disk: Path) -> tuple[Path, Path]:
    """Make two replicas in step, one on the disk, with the history of two runs."""
    here, there = tmp_path / "here", disk / "there"
    pair(tmp_path, {"f": os.urandom(300 * KIB), "g": "1", "h": "1"})
    p2psync(tmp_path, "clone", "-q", here, there)
    for content in (os.urandom(300 * KIB), "short"):
        write(here / "f", content)
        p2psync(here, "sync", there)
    return here, there


def kept_for_manifest(root: Path) -> int:
    """Return how many bytes the disk has really set aside."""
    return sum(part.stat().st_blocks * 512 for part in (root / ".p2psync" / "reserve").glob("*"))


def no_room(ran: Ran, root: Path) -> bool:
    return f"there is no room on the disk of {root}" in ran.err and "disk I/O" not in ran.err


@pytest.mark.parametrize("left", [0, 8 * KIB, 40 * KIB])
def test_on_a_full_disk_commands_look_and_sync_and_gc_gives_room(
    tmp_path: Path, disk: Path, left: int
) -> None:
    here, there = old_and_new(tmp_path, disk)
    fill(disk, left)
    assert "in step" in p2psync(there, "status").out
    assert p2psync(there, "log").out.count("sync with") == 3
    assert "all sound" in p2psync(there, "fsck").out
    (here / "g").unlink()
    write(here / "new", "x" * KIB)
    assert "new failed: there is no room for it: it takes" in p2psync(here, "sync", there, code=1).err
    assert set(snapshot(there)) == {b"f", b"h"}
    assert p2psync(there, "undo", code=None).code in (0, 1)
    before = free(disk) + kept_for_manifest(there)
    assert "runs removed" in p2psync(there, "gc", "--days", "0").out
    assert free(disk) + kept_for_manifest(there) >= before + 500 * KIB
    assert kept_for_manifest(there) >= reserve.LEAST


@pytest.mark.parametrize("left", [0, 8 * KIB, 40 * KIB])
def test_where_nothing_is_left_that_is_said_on_both_sides_and_looking_works(
    tmp_path: Path, disk: Path, left: int
) -> None:
    here, there = old_and_new(tmp_path, disk)
    shutil.rmtree(there / ".p2psync" / "reserve")
    fill(disk, left)
    assert "in step" in p2psync(there, "status").out
    assert p2psync(there, "log").out.count("sync with") == 3
    (here / "g").unlink()
    for command in ("gc", "undo", "fsck"):
        assert no_room(p2psync(there, command, code=3), there)
    assert no_room(p2psync(there, "sync", here, code=3), there)
    assert no_room(p2psync(here, "sync", there, code=3), there)
    with pytest.raises(NoRoom):
        open_address(parse_address(str(there)), Peer("there", str(there)), bytes(here))
    (disk / "filler").unlink()
    p2psync(here, "sync", there)
    assert_same(here, there)


def test_a_reserve_is_made_only_where_there_is_plenty(tmp_path: Path, disk: Path) -> None:
    root = replica(disk / "root")
    fill(disk, reserve.PLENTY - 100 * KIB)
    p2psync(root, "gc")
    assert not kept_for_manifest(root)
    (disk / "filler").unlink()
    p2psync(root, "gc")
    assert kept_for_manifest(root) >= reserve.SIZE


def test_a_reserve_is_made_before_what_comes_fills_the_disk(tmp_path: Path, disk: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(disk / "there")
    write(here / "large", os.urandom(free(disk) - reserve.PLENTY // 2))
    p2psync(here, "sync", there)
    assert free(disk) < reserve.PLENTY
    assert kept_for_manifest(there) >= reserve.SIZE


def test_a_reserve_of_which_a_part_is_gone_is_a_smaller_one(tmp_path: Path, disk: Path) -> None:
    root = replica(disk / "root", {"f": "1"})
    p2psync(root, "gc")
    fill(disk, 0)
    with opened(root):
        fill(disk, 600 * KIB)
    assert reserve.SIZE // 2 <= kept_for_manifest(root) < reserve.SIZE
    with opened(root):
        pass
    assert reserve.SIZE // 2 <= kept_for_manifest(root) < reserve.SIZE


@pytest.mark.parametrize("size", [0, reserve.SIZE])
def test_a_reserve_that_was_cut_short_or_copied_as_a_hole_is_made_anew(tmp_path: Path, size: int) -> None:
    root = replica(tmp_path / "root")
    with opened(root):
        pass
    for part in (root / ".p2psync" / "reserve").iterdir():
        os.truncate(part, 0)
        os.truncate(part, size // reserve.PARTS)
    with opened(root):
        pass
    assert kept_for_manifest(root) >= reserve.SIZE


def test_a_reserve_that_is_one_file_is_made_one_of_several(tmp_path: Path) -> None:
    root = replica(tmp_path / "root")
    (root / ".p2psync" / "reserve").write_bytes(bytes(reserve.SIZE))
    with opened(root):
        pass
    assert kept_for_manifest(root) >= reserve.SIZE


def test_a_reserve_that_could_not_be_made_whole_grows_where_there_is_little_room_too(
    tmp_path: Path, disk: Path
) -> None:
    root = replica(disk / "root", {"f": "1"})
    p2psync(root, "gc")
    fill(disk, 0)
    with opened(root):
        fill(disk, 300 * KIB)
    assert 0 < kept_for_manifest(root) < reserve.SIZE // 2
    (disk / "filler").unlink()
    fill(disk, reserve.PLENTY // 4)
    p2psync(root, "gc")
    assert kept_for_manifest(root) >= reserve.SIZE


def test_what_a_run_was_lent_that_was_killed_is_the_reserve_of_the_next(tmp_path: Path, disk: Path) -> None:
    here, there = old_and_new(tmp_path, disk)
    fill(disk, 100 * KIB)
    ready = os.pipe()
    if (child := os.fork()) == 0:
        running = LocalReplica(bytes(there))
        os.write(ready[1], bytes([running._reserve.lent > 0]))
        os.kill(os.getpid(), 9)
    assert os.read(ready[0], 1) == b"\1"
    os.waitpid(child, 0)
    assert not kept_for_manifest(there)
    write(here / "new", os.urandom(600 * KIB))
    assert "new failed: there is no room for it" in p2psync(here, "sync", there, code=1).err
    assert kept_for_manifest(there) >= reserve.SIZE // 2


def test_what_a_process_that_was_killed_left_of_its_trial_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("trial", f"trial-{os.getpid()}"):
        (tmp_path / name).touch()
    monkeypatch.setattr(reserve, "free_on", lambda fd: 0)
    fd = os.open(tmp_path, os.O_RDONLY)
    assert reserve.has_room(fd)
    os.close(fd)


@pytest.mark.parametrize("was_full", [True, False])
def test_what_a_run_removed_from_a_full_disk_is_free_before_its_reserve_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_full: bool
) -> None:
    done: list[str] = []
    monkeypatch.setattr(reserve, "sync_file_system", lambda fd: done.append("synced"))
    monkeypatch.setattr(reserve, "allocate", lambda fd, size: done.append("made"))
    sidecar = os.open(tmp_path, os.O_RDONLY)
    if was_full:
        (tmp_path / "reserve").mkdir()  # as who was lent it leaves it
    reserve.Reserve(sidecar).take_back()
    os.close(sidecar)
    assert list(dict.fromkeys(done)) == ["synced", "made"][not was_full :]


@pytest.mark.parametrize("times", [1, 2])
def test_gc_forgets_again_after_it_has_made_room_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    for number in range(4):
        write(here / "f", f"version {number}")
        sync(here, there)
    real, full = collect.Collector._forget, [NoRoom("full")] * times
    names: list[set[str]] = []

    def forget(self: collect.Collector, kept: list[Kept], runs: set[str], *rest: Any) -> None:  # noqa: ANN401
        names.append({path.name for path in (there / ".p2psync" / "history").iterdir()} & runs)
        if full:
            raise full.pop()
        real(self, kept, runs, *rest)

    monkeypatch.setattr(collect.Collector, "_forget", forget)
    with opened(there) as replica, pytest.raises(NoRoom) if times > 1 else contextlib.nullcontext():
        replica.collect(Limits(days=0))
    before, after = names
    assert before and not after


def test_on_a_full_disk_who_looks_sees_what_a_run_at_work_has_committed(disk: Path) -> None:
    root = replica(disk / "root", {"f": "1"})
    with opened(root) as other:
        other.scan(True)
        fill(disk, 0)
        with closing(LocalReplica(bytes(root), lock=False)) as looking:
            assert looking.children(b"") == [b"f"]


def test_gc_that_has_no_room_to_forget_makes_it_first(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = old_and_new(tmp_path, disk)
    for number in range(1500):
        write(here / "d" / str(number), "")
    sync(here, there)
    for path in (here / "d").iterdir():
        path.unlink()
    p2psync(here, "sync", "--max-delete", "1500", there)
    write(here / "f", "the latest run stays")
    p2psync(here, "sync", there)
    shutil.rmtree(there / ".p2psync" / "reserve")
    fill(disk, 160 * KIB)
    monkeypatch.setattr(collect, "TOMBSTONE_DAYS", -1)
    with opened(there) as replica:
        assert len(replica.collect(Limits(days=0)).runs) > 1
        assert replica.manifest.row(b"d/7") is None
    assert free(disk) > 500 * KIB


def test_gc_is_named_where_it_would_make_the_room_that_is_lacking(tmp_path: Path, disk: Path) -> None:
    here, there = old_and_new(tmp_path, disk)
    for size, said in ((900 * KIB, "(`p2psync gc --days 0` removes 300.0 KiB of history)"), (2 << 20, "")):
        (disk / "filler").unlink(missing_ok=True)
        fill(disk, 1200 * KIB)
        write(here / "large", os.urandom(size))
        ran = p2psync(here, "sync", there, code=1)
        assert "large failed: there is no room for it" in ran.err
        assert said in ran.err and bool(said) == ("`p2psync gc" in ran.err)


@pytest.mark.parametrize(
    ("command", "files", "code"), [(("restore", "d"), 1, 1), (("undo",), 12, 4)], ids=["restore", "undo"]
)
def test_who_wants_something_back_on_a_full_disk_is_not_told_to_delete_it(
    tmp_path: Path, disk: Path, command: tuple[str, ...], files: int, code: int
) -> None:
    here, there = replica(disk / "here"), replica(tmp_path / "there")
    for number in range(files):
        write(here / "d" / f"large {number}", os.urandom((3 << 20) // files))
    write(here / "f", "1")
    sync(here, there)
    shutil.rmtree(there / "d")
    sync(here, there)
    if command == ("restore", "d"):
        for text in ("2", "3"):  # else the latest run has it, and that stays
            write(there / "f", text)
            sync(here, there)
    fill(disk, 600 * KIB)
    ran = p2psync(here, *command, code=code)
    assert "make room there" in ran.said
    assert not any(word in ran.said for word in ("gc", "history", "--max-size", "--exclude"))
    (disk / "filler").unlink()
    p2psync(here, *command)
    assert len(list((here / "d").iterdir())) == files


def test_runs_that_have_what_comes_are_not_offered_for_its_room(tmp_path: Path, disk: Path) -> None:
    here, there = replica(disk / "here"), replica(tmp_path / "there")
    large = os.urandom(2 << 20)
    for path, data in ((here / "large", large), (here / "f", b"1")):
        path.write_bytes(data)
    sync(here, there)
    (there / "large").unlink()
    sync(here, there)
    for text in ("2", "3"):
        write(there / "f", text)
        sync(here, there)
    (there / "again").write_bytes(large)
    fill(disk, 600 * KIB)
    ran = p2psync(here, "sync", there, code=1)
    assert "again failed: there is no room for it" in ran.err
    assert "gc" not in ran.err


def read_only(disk: Path, *, on: bool) -> None:
    subprocess.run(["mount", "-o", f"remount,{'ro' if on else 'rw'}", str(disk)], check=True)


def test_on_a_disk_that_is_read_only_all_that_looks_works_and_all_else_says_why(
    tmp_path: Path, disk: Path
) -> None:
    here, there = old_and_new(tmp_path, disk)
    write(there / "g", "changed there\n")
    read_only(disk, on=True)
    assert "changed      g" in p2psync(there, "status").out
    assert p2psync(there, "log").out.count("sync with") == 3
    assert p2psync(there, "show", "f").out != "short"
    assert "all sound" in p2psync(there, "fsck").out or "changed since" in p2psync(there, "fsck").out
    assert "+changed there" in p2psync(there, "diff", here).out
    assert "-changed there" in p2psync(here, "diff", there).out
    assert "changed  here  14 B  g" in p2psync(here, "sync", "-n", there).out
    for at, *command in ((here, "sync", there), (there, "sync", here), (there, "undo"), (there, "gc")):
        assert f"the disk of {there} is read-only" in p2psync(at, *command, code=3).err
    assert (here / "g").read_text() == "1"
    read_only(disk, on=False)
    p2psync(here, "sync", there)
    assert_same(here, there)


def test_what_a_killed_run_left_on_a_disk_that_is_read_only_counts(disk: Path) -> None:
    root = replica(disk / "root", {"f": "1"})
    ready, wait = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        running = LocalReplica(bytes(root))
        running.scan(True)
        os.write(ready[1], b".")
        os.read(wait[0], 1)
    os.read(ready[0], 1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert (root / ".p2psync" / "manifest.db-wal").stat().st_size
    read_only(disk, on=True)
    with opened(root) as looking:
        assert looking.children(b"") == [b"f"]


@pytest.fixture
def manifest(tmp_path: Path) -> bytes:
    file = bytes(tmp_path / "m.db")
    Manifest.create(file, "name").close()
    return file


def test_a_copy_is_one_of_a_moment_whoever_writes_meanwhile(
    manifest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def written_to(name: str, file: bytes) -> database.Database:
        nonlocal tries
        if name.startswith("file:") and (tries := tries + 1) < 3:
            with closing(sqlite3.connect(os.fsdecode(file), isolation_level=None)) as other:
                other.execute("UPDATE meta SET value = ? WHERE key = 'name'", (f"name {tries}",))
        return really_opened(name, file)

    really_opened = database._opened
    monkeypatch.setattr(database, "_opened", written_to)
    with closing(Manifest.open(manifest, copy=True)) as copy:
        assert copy.identity().name == "name 2"
    assert tries == 3


def test_a_copy_of_what_is_written_to_all_the_time_is_given_up(
    manifest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(range(10**6))
    monkeypatch.setattr(database, "_state", lambda file: (next(states), False))
    with pytest.raises(ReplicaError, match="all the time"):
        Manifest.open(manifest, copy=True)


def test_what_is_written_to_a_copy_is_forgotten(manifest: bytes) -> None:
    with closing(Manifest.open(manifest, copy=True)) as copy, copy.transaction():
        copy.use(copy.next_stamp())
    with closing(Manifest.open(manifest)) as real:
        assert real._number("tick") == 0


def test_what_is_damaged_has_no_copy(manifest: bytes) -> None:
    with open(manifest, "r+b") as file:
        file.write(bytes(100))
    with pytest.raises(Damaged):
        Manifest.open(manifest, copy=True)


def test_a_disk_that_fills_while_the_manifest_is_open_is_told_of(disk: Path) -> None:
    root = replica(disk / "root", {str(number): "" for number in range(500)})
    with opened(root) as filled:
        fill(disk, 0)
        with pytest.raises(NoRoom, match=f"no room on the disk of {root}"):
            filled.scan(True)


def test_who_writes_while_the_disk_fills_is_told_of_it_and_does_not_die(disk: Path) -> None:
    for left in range(0, 24, 2):
        file = bytes(disk / f"{left}.db")
        Manifest.create(file, "name").close()
        if (child := os.fork()) == 0:
            manifest = Manifest.open(file)
            fill(disk, left * KIB)
            with contextlib.suppress(NoRoom), manifest.transaction():
                manifest.use(manifest.next_stamp())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        (disk / "filler").unlink()


def test_files_for_which_a_disk_has_no_inodes_wait_and_what_is_deleted_goes(
    tmp_path: Path, few_files: Path
) -> None:
    here = replica(
        tmp_path / "here", {f"{folder}/{name}": f"{folder}{name}" for folder in "abc" for name in range(120)}
    )
    there = few_files / "there"
    ran = p2psync(here, "sync", "--create", there, code=1)
    assert " failed: its disk has too few inodes left" in ran.err
    shutil.rmtree(here / "a")
    ran = p2psync(here, "sync", "--max-delete", "200", there, code=1)
    assert "inodes" in ran.err and not (there / "a").exists()
    for command in ("status", "log", "fsck"):
        p2psync(there, command)
    shutil.rmtree(here / "b")
    p2psync(here, "sync", "--max-delete", "100%", there, code=None)
    p2psync(there, "gc", "--days", "0")
    shutil.rmtree(there / ".p2psync" / "history")
    p2psync(here, "sync", there)
    assert_same(here, there)


def test_where_others_took_all_inodes_what_is_deleted_goes_and_the_rest_is_told_of(
    tmp_path: Path, few_files: Path
) -> None:
    here = replica(tmp_path / "here", {"d/f": "1", "d/g": "1", "h": "1"})
    there = few_files / "there"
    p2psync(here, "sync", "--create", there)
    take_files(few_files)
    p2psync(there, "status")
    shutil.rmtree(here / "d")
    write(here / "new", "2")
    assert "new failed: its disk has too few inodes left" in p2psync(here, "sync", there, code=1).err
    assert set(snapshot(there)) == {b"h"}
    shutil.rmtree(few_files / "others")
    p2psync(here, "sync", there)
    assert_same(here, there)


def test_where_others_took_the_inodes_of_the_reserve_too_that_is_told(
    tmp_path: Path, few_files: Path
) -> None:
    here = replica(tmp_path / "here", {"f": "1"})
    there = few_files / "there"
    p2psync(here, "sync", "--create", there)
    shutil.rmtree(there / ".p2psync" / "reserve")
    take_files(few_files)
    write(here / "g", "1")
    assert f"there are no inodes left on the disk of {there}" in p2psync(here, "sync", there, code=3).err
    p2psync(there, "status")
    shutil.rmtree(few_files / "others")
    p2psync(here, "sync", there)
    assert_same(here, there)
