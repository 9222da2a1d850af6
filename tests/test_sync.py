"""What `p2psync sync` does to the files of two and more replicas on local paths."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from p2psync import run
from tests.cli_support import (
    LONG_AGO_NS,
    Node,
    assert_same,
    contents,
    copies,
    fake_ssh,
    finish,
    history,
    locked,
    manifest,
    p2psync,
    pair,
    plan,
    replica,
    snapshot,
    start,
    wait_for,
    write,
)
from tests.support import not_as_root

ODD_NAMES = [
    b"with space",
    b"new\nline",
    b"quotes'\"`",
    b"$(touch PWNED)",
    b"-rf",
    b"--",
    b"~",
    b".hidden",
    b"..two",
    b"back\\slash",
    b"star*?[a]",
    b"\x1b[31mred\x07",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode(),
    b"latin-\xe9",
    b"\xff\xfe",
    b"n" * 255,
    b"CON",
    b"a:b",
]
needs_any_name = pytest.mark.skipif(sys.platform == "darwin", reason="APFS takes only UTF-8 names")


def zoo(root: Path) -> None:
    """Fill a tree with one of everything."""
    for number, name in enumerate(ODD_NAMES):
        write(root / os.fsdecode(name), b"%d" % number, mtime_ns=LONG_AGO_NS + number)
        os.mkdir(os.path.join(bytes(root), b"in " + name[:200]))
    for mode in (0o400, 0o444, 0o600, 0o644, 0o755, 0o777):
        write(root / "modes" / oct(mode), oct(mode), mode=mode)
    for mtime_ns in (1, -1_500_000_001, 4_102_444_800_123_456_789):
        write(root / "times" / str(mtime_ns), "", mtime_ns=mtime_ns)
    write(root / "deep/er/and/deeper/file", "deep")
    write(root / "large", os.urandom(3 * 1024 * 1024 + 1))
    write(root / "same", "contents" * 1000)
    write(root / "as that", "contents" * 1000)
    (root / "to nowhere").symlink_to("no\nwhere")
    (root / "to a folder").symlink_to("deep/er")
    (root / "outside").symlink_to("/etc")
    os.utime(root / "outside", ns=(LONG_AGO_NS, LONG_AGO_NS), follow_symlinks=False)
    (root / "empty/in/empty").mkdir(parents=True)
    (root / "private").mkdir(0o700)
    write(root / "write-protected" / "file", "guarded")
    (root / "write-protected").chmod(0o555)


# -- what is carried over


@needs_any_name
@pytest.mark.parametrize("filled", ["here", "there"])
def test_a_first_sync_carries_over_everything_to_the_byte_and_nanosecond(tmp_path: Path, filled: str) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    zoo(tmp_path / filled)
    before = snapshot(tmp_path / filled)
    p2psync(here, "sync", there)
    assert assert_same(here, there) == before
    assert p2psync(here, "sync", "--json", there).json["plan"] == []


@needs_any_name
def test_everything_deleted_here_is_deleted_there_and_kept_in_the_history(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    zoo(here)
    p2psync(here, "sync", there)
    files = set(contents(there).values()) - {b""}
    (here / "write-protected").chmod(0o755)
    for path in here.iterdir():
        if path.name != ".p2psync":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    p2psync(here, "sync", "--max-delete", "100%", there)
    assert assert_same(here, there) == {}
    assert files <= history(there)


def test_changes_on_both_sides_meet(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"a": "1", "b": "1", "c": "1", "d/e": "1", "f": "1", "g": "1"})
    write(here / "a", "2")
    write(there / "b", "2", mtime_ns=LONG_AGO_NS)
    (here / "c").unlink()
    shutil.rmtree(there / "d")
    (here / "f").chmod(0o751)
    os.utime(there / "g", ns=(LONG_AGO_NS, 2**61))
    write(there / "h/i/j", "new")
    (here / "k").mkdir(mode=0o750)
    p2psync(here, "sync", there)
    both = assert_same(here, there)
    assert contents(here) == {"a": b"2", "b": b"2", "f": b"1", "g": b"1", "h/i/j": b"new"}
    assert (both[b"b"].mtime_ns, both[b"f"].mode, both[b"g"].mtime_ns) == (LONG_AGO_NS, 0o751, 2**61)
    assert both[b"k"] == Node("folder", 0o750)


def test_a_rename_carries_the_file_over_without_its_contents(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"old": os.urandom(300_000)})
    (here / "old").rename(here / "new")
    ran = p2psync(here, "sync", "--json", there)
    assert ran.json["stats"]["copied"] == 0
    assert list(assert_same(here, there)) == [b"new"]


def test_permissions_of_folders_travel(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"folder/file": "x"})
    (here / "folder").chmod(0o711)
    p2psync(here, "sync", there)
    assert assert_same(here, there)[b"folder"] == Node("folder", 0o711)


def test_a_touch_travels_and_yields_to_an_edit(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"touched": "x", "edited": "x"})
    for name in ("touched", "edited"):
        os.utime(here / name, ns=(2**61, 2**61))
    write(there / "edited", "y", mtime_ns=LONG_AGO_NS)
    ran = p2psync(here, "sync", "--json", there)
    both = assert_same(here, there)
    assert (both[b"touched"].mtime_ns, both[b"edited"].content) == (2**61, b"y")
    assert ran.json["conflicts"] == []


def test_an_edit_that_keeps_size_and_mtime_is_seen(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    write(here / "file", "one", mtime_ns=LONG_AGO_NS)
    p2psync(here, "sync", there)
    write(here / "file", "two", mtime_ns=LONG_AGO_NS)
    p2psync(here, "sync", there)
    assert contents(there) == {"file": b"two"}


def test_files_that_both_already_have_are_not_copied_and_no_conflict(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    for root, mtime_ns in ((here, LONG_AGO_NS), (there, LONG_AGO_NS + 1)):
        write(root / "folder" / "file", "the same", mtime_ns=mtime_ns)
    ran = p2psync(here, "sync", "--json", there)
    assert (ran.json["conflicts"], ran.json["stats"]["copied"]) == ([], 0)
    assert assert_same(here, there)[b"folder/file"].mtime_ns == LONG_AGO_NS + 1


# -- another kind of thing at the same path

SHAPES = ("nothing", "file", "folder", "full folder", "link")


def make(path: Path, shape: str, mark: str) -> None:
    """Put something of that shape at a path, in the place of what is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    match shape:
        case "file":
            write(path, mark)
        case "folder":
            path.mkdir()
        case "full folder":
            write(path / "inner" / "file", mark)
        case "link":
            path.symlink_to(mark)


def kind_at(path: Path) -> str:
    return (
        "link" if path.is_symlink() else "folder" if path.is_dir() else "file" if path.exists() else "nothing"
    )


@pytest.mark.parametrize("side", ["here", "there"])
def test_anything_may_take_the_place_of_anything(tmp_path: Path, side: str) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    changes = list(itertools.product(SHAPES, SHAPES))
    for before, after in changes:
        make(here / f"{before} to {after}", before, "before")
    p2psync(here, "sync", there)
    for before, after in changes:
        make(tmp_path / side / f"{before} to {after}", after, "after")
    wanted = snapshot(tmp_path / side)
    p2psync(here, "sync", there)
    assert assert_same(here, there) == wanted


def test_whatever_two_sides_make_of_a_path_all_that_was_written_is_in_both(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    cases = list(itertools.product(SHAPES, SHAPES, SHAPES))
    for case in cases:
        make(here / " ".join(case), case[0], "before")
    p2psync(here, "sync", there)
    for root, choice in ((here, 1), (there, 2)):
        for case in cases:
            if case[choice] != case[0]:
                make(root / " ".join(case), case[choice], f"{root.name} {case}")
    written = _written(here) | _written(there)
    p2psync(here, "sync", there, code=1)
    assert _written(here) == written
    assert_same(here, there)
    assert p2psync(there, "sync", "--json", here).json["plan"] == []


def _written(root: Path) -> set[bytes]:
    return {node.content for node in snapshot(root).values()} - {b"before", b""}


def test_what_a_folder_holds_newly_survives_the_deletion_of_the_folder(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"folder/old": "old", "folder/sub/old": "old"})
    shutil.rmtree(here / "folder")
    write(there / "folder/sub/new", "new")
    p2psync(here, "sync", there)
    assert_same(here, there)
    assert contents(here) == {"folder/sub/new": b"new"}


# -- what is no file, folder or link


@pytest.fixture
def special(tmp_path: Path) -> Callable[[Path], None]:
    """Make a fifo and a socket; devices take root."""

    def make_special(root: Path) -> None:
        os.mkfifo(root / "a pipe")
        with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(root):
            listener.bind("a plug")

    return make_special


def test_sockets_and_fifos_are_skipped_and_told_of_once(
    tmp_path: Path, special: Callable[[Path], None]
) -> None:
    here, there = replica(tmp_path / "here", {"file": "x"}), replica(tmp_path / "there")
    special(here)
    first, second = p2psync(here, "sync", there), p2psync(here, "sync", there)
    assert (first.said.count("a pipe"), first.said.count("a plug")) == (1, 1)
    assert "skipped" not in second.said
    assert contents(there) == {"file": b"x"}
    assert (here / "a pipe").is_fifo()


def test_what_is_skipped_is_told_of_once_however_many_peers_there_are(
    tmp_path: Path, special: Callable[[Path], None]
) -> None:
    here, one, two = (replica(tmp_path / name, {name: name}) for name in ("here", "one", "two"))
    special(here)
    assert p2psync(here, "sync", one, two).said.count("a pipe") == 1


# -- conflicts

SONG = "".join(f"verse {number}\n" for number in range(1, 10))


def test_edits_of_different_lines_merge(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"song": SONG})
    write(here / "song", SONG.replace("verse 2", "verse two"))
    write(there / "song", SONG.replace("verse 8", "verse eight"))
    ran = p2psync(here, "sync", there)
    assert_same(here, there)
    assert (here / "song").read_text() == SONG.replace("2", "two").replace("8", "eight")
    assert "merged: song" in ran.out
    assert copies(here) == []


def test_a_file_that_both_had_at_the_first_meeting_merges_later(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"song": SONG}), replica(tmp_path / "there", {"song": SONG})
    p2psync(here, "sync", there)
    write(here / "song", SONG.replace("verse 2", "verse two"))
    write(there / "song", SONG.replace("verse 8", "verse eight"))
    p2psync(here, "sync", there)
    assert_same(here, there)
    assert (here / "song").read_text() == SONG.replace("2", "two").replace("8", "eight")


def test_edits_on_three_replicas_merge_whichever_way_they_meet(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"song": SONG})
    third = replica(tmp_path / "third")
    p2psync(there, "sync", third)
    for root, line, word in ((here, "1", "one"), (there, "5", "five"), (third, "9", "nine")):
        write(root / "song", SONG.replace(line, word))
    p2psync(third, "sync", here)
    p2psync(there, "sync", third)
    p2psync(here, "sync", there)
    p2psync(here, "sync", third)
    assert_same(here, there, third)
    assert (here / "song").read_text() == SONG.replace("1", "one").replace("5", "five").replace("9", "nine")
    assert copies(here) == []


def test_a_merge_keeps_what_each_side_did_to_the_permissions(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"song": SONG})
    write(here / "song", SONG.replace("verse 2", "verse two"), mode=0o755)
    write(there / "song", SONG.replace("verse 8", "verse eight"))
    p2psync(here, "sync", there)
    assert assert_same(here, there)[b"song"].mode == 0o755


def disagree(folder: Path) -> tuple[Path, Path]:
    """Make a conflict that does not merge; the peer's version is the newer one."""
    here, there = pair(folder, {"file": "base"})
    write(here / "file", "from here", mtime_ns=LONG_AGO_NS)
    write(there / "file", "from there", mtime_ns=LONG_AGO_NS + 10**9)
    return here, there


def test_of_two_versions_that_do_not_merge_one_is_set_aside_for_both(tmp_path: Path) -> None:
    here, there = disagree(tmp_path)
    ran = p2psync(here, "sync", there, code=1)
    both = assert_same(here, there)
    (copy,) = copies(here)
    assert {node.content for node in both.values()} == {b"from here", b"from there"}
    assert copy.name in ran.out
    assert p2psync(there, "sync", here, code=0).said.count("conflict") == 0


def test_a_conflict_copy_that_was_dealt_with_goes_for_good(tmp_path: Path) -> None:
    here, there = disagree(tmp_path)
    p2psync(here, "sync", there, code=1)
    (copy,) = copies(there)
    copy.replace(there / "file")
    p2psync(here, "sync", there)
    assert list(assert_same(here, there)) == [b"file"]


@pytest.mark.parametrize(
    ("prefer", "kept", "lost_by"),
    [
        ("local", b"from here", "there"),
        ("peer", b"from there", "here"),
        ("newest", b"from there", "here"),
    ],
)
def test_a_preferred_side_wins_and_the_other_goes_to_its_history(
    tmp_path: Path, prefer: str, kept: bytes, lost_by: str
) -> None:
    here, there = disagree(tmp_path)
    p2psync(here, "sync", "--prefer", prefer, there)
    assert_same(here, there)
    assert contents(here) == {"file": kept}
    assert history(tmp_path / lost_by) == {b"from here", b"from there"} - {kept}


def test_a_skipped_conflict_stays_open_while_all_else_is_synced(tmp_path: Path) -> None:
    here, there = disagree(tmp_path)
    write(here / "other", "x")
    p2psync(here, "sync", "--prefer", "skip", there, code=1)
    assert contents(here) == {"file": b"from here", "other": b"x"}
    assert contents(there) == {"file": b"from there", "other": b"x"}
    p2psync(here, "sync", "--prefer", "skip", there, code=1)
    p2psync(here, "sync", "--prefer", "local", there)
    assert assert_same(here, there)[b"file"].content == b"from here"


def test_an_edit_outlives_a_deletion_and_is_told_of(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"file": "base", "link": "x"})
    (here / "file").unlink()
    write(there / "file", "edited")
    ran = p2psync(here, "sync", there)
    assert_same(here, there)
    assert contents(here)["file"] == b"edited"
    assert "conflict: file: kept" in ran.out


def test_binary_edits_are_set_aside_not_merged(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"song": "\0" + SONG})
    write(here / "song", "\0" + SONG.replace("verse 2", "verse two"))
    write(there / "song", "\0" + SONG.replace("verse 8", "verse eight"))
    p2psync(here, "sync", there, code=1)
    assert len(assert_same(here, there)) == 2


def test_a_first_meeting_of_unlike_files_keeps_both(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"file": "from here", "dir/x": "x"})
    there = replica(tmp_path / "there", {"file": "from there", "dir": "a file"})
    p2psync(here, "sync", there, code=1)
    assert_same(here, there)
    assert {b"from here", b"from there", b"x", b"a file"} == set(contents(here).values())


# -- ignored paths


def test_a_pattern_that_newly_ignores_a_file_deletes_it_nowhere(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"a.log": "log", "sub/b.log": "log", "cache/c": "c", "kept": "x"})
    write(here / ".p2pignore", "*.log\ncache/\n")
    p2psync(here, "sync", there)
    p2psync(there, "sync", here)
    assert contents(there) == contents(here)
    write(there / "a.log", "edited")
    write(there / "cache/new", "new")
    p2psync(here, "sync", there)
    assert (contents(here)["a.log"], contents(there)["a.log"]) == (b"log", b"edited")
    assert not (here / "cache/new").exists()


def test_what_is_ignored_no_longer_is_synced_again(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    write(here / ".p2pignore", "*.log\n")
    write(here / "a.log", "a")
    p2psync(here, "sync", there)
    write(there / "b.log", "b")
    write(here / ".p2pignore", "")
    p2psync(here, "sync", there)
    p2psync(here, "sync", there)
    assert_same(here, there)
    assert contents(here) == {".p2pignore": b"", "a.log": b"a", "b.log": b"b"}


def test_nested_ignore_files_rule_their_own_folder(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    write(here / ".p2pignore", "*.tmp\n")
    write(here / "sub/.p2pignore", "!keep.tmp\n/only\n")
    for path in ("a.tmp", "sub/keep.tmp", "sub/only", "sub/deep/only", "only"):
        write(here / path, path)
    p2psync(here, "sync", there)
    assert sorted(contents(there)) == [
        ".p2pignore",
        "only",
        "sub/.p2pignore",
        "sub/deep/only",
        "sub/keep.tmp",
    ]


@pytest.mark.parametrize("ignoring", ["here", "there"])
def test_a_private_ignore_file_leaves_the_other_side_alone(tmp_path: Path, ignoring: str) -> None:
    here, there = pair(tmp_path, {"gone.iso": "1", "edited.iso": "1", "file": "1"})
    mine, other = (here, there) if ignoring == "here" else (there, here)
    write(mine / ".p2psync/ignore", "*.iso\n")
    (mine / "gone.iso").unlink()
    for name in ("edited.iso", "new.iso", "file"):
        write(other / name, "2")
    p2psync(here, "sync", there)
    assert contents(other) == {"gone.iso": b"1", "edited.iso": b"2", "new.iso": b"2", "file": b"2"}
    assert contents(mine) == {"edited.iso": b"1", "file": b"2"}
    (mine / ".p2psync/ignore").unlink()
    write(mine / "gone.iso", "back")
    p2psync(here, "sync", there)
    assert contents(mine)["edited.iso"] == b"2"
    assert assert_same(here, there).keys() == {b"gone.iso", b"edited.iso", b"new.iso", b"file"}


def test_deleting_a_folder_spares_what_is_ignored_in_it(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"folder/file": "x", ".p2pignore": "*.log"})
    write(there / "folder/a.log", "log")
    shutil.rmtree(here / "folder")
    p2psync(here, "sync", there)
    p2psync(here, "sync", there)
    assert contents(there) == {".p2pignore": b"*.log", "folder/a.log": b"log"}
    assert not (here / "folder").exists()


# -- dry runs


def test_a_dry_run_writes_nothing_and_tells_the_truth(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"song": SONG, "file": "1", "a": "1", "b": "1", "c": "1", "d/e": "1"})
    for root, number, word in ((here, "2", "two"), (there, "8", "eight")):
        write(root / "song", SONG.replace(number, word))
        write(root / "file", f"from {root.name}")
        write(root / f"new {root.name}", "new")
    make(here / "a", "full folder", "x")
    (there / "b").unlink()
    (here / "c").chmod(0o700)
    shutil.rmtree(here / "d")
    before = [(snapshot(root), manifest(root)) for root in (here, there)]
    dry = p2psync(here, "sync", "-n", "--json", there, code=None)
    assert [(snapshot(root), manifest(root)) for root in (here, there)] == before
    real = p2psync(here, "sync", "--json", there, code=1)
    assert plan(dry) == plan(real)
    assert dry.json["conflicts"] == real.json["conflicts"]
    assert (dry.json["outcomes"], len(real.json["outcomes"])) == ([], len(plan(real)))


def test_a_dry_run_against_no_replica_makes_none(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"file": "x"})
    (tmp_path / "there").mkdir()
    ran = p2psync(here, "sync", "-n", "--create", tmp_path / "there", code=3)
    assert "is not a replica" in ran.err
    assert list((tmp_path / "there").iterdir()) == []


def test_a_dry_run_names_each_path_that_would_change(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"gone": "x"})
    write(here / "made", "x")
    (there / "gone").unlink()
    ran = p2psync(here, "sync", "--dry-run", there)
    assert {line.split("  (")[0].split()[-1] for line in ran.out.splitlines()[:2]} == {"made", "gone"}
    assert "would be" in ran.out


def test_a_dry_run_with_several_peers_reaches_those_that_answer(tmp_path: Path) -> None:
    here, one, two = (replica(tmp_path / name, {name: "x"}) for name in ("here", "one", "two"))
    ran = p2psync(here, "sync", "-n", "--json", tmp_path / "none", one, two, code=3)
    assert {step["peer"] for step in ran.json["plan"]} == {str(one), str(two)}


# -- peers that are none, or not what they were


def test_a_folder_that_is_no_replica_is_made_one_only_when_told(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"file": "x"})
    (tmp_path / "there").mkdir()
    ran = p2psync(here, "sync", tmp_path / "there", code=3)
    assert "is not a replica" in ran.err
    assert "--create" in ran.err
    assert list((tmp_path / "there").iterdir()) == []
    p2psync(here, "sync", "--create", tmp_path / "there")
    assert_same(here, tmp_path / "there")


@pytest.mark.parametrize("missing", ["the folder", "the sidecar"])
def test_a_known_peer_that_is_gone_is_never_begun_anew(tmp_path: Path, missing: str) -> None:
    here, there = replica(tmp_path / "here", {"file": "x"}), replica(tmp_path / "there")
    p2psync(here, "peer", "add", "disk", there)
    p2psync(here, "sync")
    gone = there if missing == "the folder" else there / ".p2psync"
    gone.rename(tmp_path / "unmounted")
    left = snapshot(tmp_path)
    for arguments in ([], ["--create"], ["--create", "disk"]):
        assert "mounted" in p2psync(here, "sync", *arguments, code=4).err
    assert snapshot(tmp_path) == left
    assert (here / "file").exists()
    (tmp_path / "unmounted").rename(gone)
    p2psync(here, "sync")


def test_a_peer_that_was_removed_is_forgotten_and_may_be_begun_anew(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"file": "x"}), replica(tmp_path / "there")
    for name in ("disk", "same"):
        p2psync(here, "peer", "add", name, there)
    p2psync(here, "sync", "disk")
    (there / ".p2psync").rename(tmp_path / "unmounted")
    p2psync(here, "peer", "remove", "same")
    p2psync(here, "sync", "--create", "disk", code=4)  # it answers at an address that is configured
    p2psync(here, "peer", "remove", "disk")
    p2psync(here, "sync", "--create", there)
    assert_same(here, there)


def test_who_came_to_sync_is_listed_and_can_be_forgotten(tmp_path: Path) -> None:
    server, laptop = replica(tmp_path / "server", {"file": "x"}), replica(tmp_path / "laptop")
    name = f"{socket.gethostname()}:laptop"
    p2psync(laptop, "sync", server)
    assert p2psync(server, "peer", "list").out.startswith(f"{name}\t\tsyncs to here, last in step 20")
    assert f"{server}\twas synced with, last in step 20" in p2psync(laptop, "peer", "list").out
    (other,) = json.loads(p2psync(server, "peer", "list", "--json").out)["others"]
    assert other["name"] == name
    assert p2psync(server, "peer", "remove", name).out == f"removed {name}\n"
    assert p2psync(server, "peer", "list").out == ""


@not_as_root
def test_a_replica_whose_files_cannot_be_read_deletes_nothing(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"folder/file": "x", "file": "x", "other": "x"})
    (here / "folder").chmod(0)
    (here / "file").chmod(0)
    write(here / "file2", "y")
    ran = p2psync(here, "sync", there, code=1)
    for root in (here, there):  # whose permissions may have travelled
        (root / "folder").chmod(0o755)
    assert "problem" in ran.err
    assert contents(there).keys() == {"folder/file", "file", "other", "file2"}


def overlapping(tmp_path: Path) -> dict[str, Path]:
    here = tmp_path / "outer" / "here"
    (tmp_path / "alias").symlink_to(here)
    return {
        "itself": here,
        "through a link": tmp_path / "alias",
        "inside it": here / "sub",
        "around it": tmp_path / "outer",
    }


@pytest.mark.parametrize("peer", ["itself", "through a link", "inside it", "around it"])
def test_a_replica_and_a_peer_that_overlap_are_refused(tmp_path: Path, peer: str) -> None:
    here = replica(tmp_path / "outer" / "here", {"file": "x", "sub/file": "y"})
    before = snapshot(tmp_path)
    ran = p2psync(here, "sync", "--create", overlapping(tmp_path)[peer], code=3)
    assert "inside" in ran.err
    (tmp_path / "alias").unlink()
    assert snapshot(tmp_path) == before


def test_all_the_machine_overlaps_with_every_replica() -> None:
    # Not through the command: were it not refused, it would be done.
    assert run._overlap(b"/", b"/somewhere/here")


# -- open conflicts


@pytest.mark.parametrize("at", ["loser", "winner"])
@pytest.mark.parametrize("home", ["here", "there"])
def test_who_lost_and_saves_over_the_winner_does_not_undo_it(tmp_path: Path, at: str, home: str) -> None:
    """An editor had the loser open when it was set aside; who won knows what is at the path."""
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    write(here / "x", "loser", mtime_ns=LONG_AGO_NS)
    write(there / "x", "winner", mtime_ns=LONG_AGO_NS + 1)
    one, other = (here, there) if home == "here" else (there, here)
    p2psync(one, "sync", other, code=1)
    write((here if at == "loser" else there) / "x", "saved")
    p2psync(one, "sync", other, code=1 if at == "loser" else 0)
    found = set(contents(here).values())
    assert found == {b"saved", b"loser"} | ({b"winner"} if at == "loser" else set())
    write(here / "x", "saved again")
    p2psync(one, "sync", other)
    assert set(contents(here).values()) == found - {b"saved"} | {b"saved again"}
    assert_same(here, there)


def test_a_conflict_whose_copy_was_removed_is_settled(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    write(here / "x", "loser", mtime_ns=LONG_AGO_NS)
    write(there / "x", "winner", mtime_ns=LONG_AGO_NS + 1)
    p2psync(here, "sync", there, code=1)
    write(here / "x", "both")
    for copy in copies(here):
        copy.unlink()
    p2psync(here, "sync", there)
    assert contents(there) == {"x": b"both"}


# -- several peers


def test_what_a_later_peer_brings_reaches_the_earlier_ones(tmp_path: Path) -> None:
    here, one, two, three = (
        replica(tmp_path / name, {name: name}) for name in ("here", "one", "two", "three")
    )
    for peer in (one, two, three):
        p2psync(here, "peer", "add", peer.name, peer)
    p2psync(here, "sync")
    assert contents(one).keys() == {"here", "one", "two", "three"}
    assert_same(here, one, two, three)


def test_an_unreachable_peer_keeps_no_other_from_being_synced(tmp_path: Path) -> None:
    here, one, two = (replica(tmp_path / name, {name: name}) for name in ("here", "one", "two"))
    for name, address in {"one": str(one), "dead": "nowhere:x", "two": str(two)}.items():
        p2psync(here, "peer", "add", name, address, "-e", "false")
    ran = p2psync(here, "sync", "--json", code=5)
    assert_same(here, one, two)
    codes = {peer["peer"]: peer["exit_code"] for peer in ran.json["peers"]}
    assert codes == {"one": 0, "dead": 5, "two": 0}


def test_a_peer_that_fails_early_keeps_no_other_from_being_synced(tmp_path: Path) -> None:
    here, one, two = (replica(tmp_path / name, {name: name}) for name in ("here", "one", "two"))
    (one / ".p2psync" / "ignore").mkdir()
    p2psync(here, "sync", one, two, code=3)
    assert_same(here, two)


def test_a_peer_named_twice_is_synced_once(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"file": "x"}), replica(tmp_path / "there")
    p2psync(here, "sync", "--lock-wait", "0", there, f"{there}/")
    assert_same(here, there)


def test_a_peer_with_two_addresses_is_told_of_as_the_same_at_both(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"file": "x"}), replica(tmp_path / "there")
    (tmp_path / "link").symlink_to(there)
    for name in ("there", "link"):
        p2psync(here, "peer", "add", name, tmp_path / name)
        p2psync(here, "sync", name)
    assert p2psync(here, "sync").out == "there: in step\nlink: the same replica as there\n"
    assert p2psync(here, "sync", "-q").said == ""
    told = [(peer["exit_code"], peer["same_as"]) for peer in p2psync(here, "sync", "--json").json["peers"]]
    assert told == [(0, None), (0, "there")]
    p2psync(here, "status", "--check", "--max-age", "1h")


@not_as_root
@pytest.mark.parametrize("side", ["here", "there"])
def test_who_cannot_be_read_is_not_said_to_be_in_step(tmp_path: Path, side: str) -> None:
    here, there = replica(tmp_path / "here", {"file": "x"}), replica(tmp_path / "there", {"other": "y"})
    p2psync(here, "peer", "add", "peer", there)
    secret = tmp_path / side / "secret"
    write(secret, "z")
    secret.chmod(0)
    for _ in range(2):
        p2psync(here, "sync", code=1)
        assert "never in step" in p2psync(here, "status").out
        p2psync(here, "status", "--check", "--max-age", "1h", code=1)
    secret.chmod(0o600)
    p2psync(here, "sync")
    p2psync(here, "status", "--check", "--max-age", "1h")


# -- runs that meet


def test_a_replica_in_use_is_left_alone(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"file": "x"})
    write(here / "file", "y")
    for root in (here, there):
        with locked(root):
            assert "another run" in p2psync(here, "sync", "--lock-wait", "0", there, code=6).err
    assert contents(there) == {"file": b"x"}
    p2psync(here, "sync", "--lock-wait", "0", there)


def test_a_run_waits_for_the_lock_of_a_peer(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"file": "x"})
    write(here / "file", "y")
    log = tmp_path / "log"
    options = fake_ssh(tmp_path, f"echo tried >> '{log}'")
    with locked(there):
        process = start(here, "sync", f"host:{there}", *options)
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 1, "a second try")
    finish(process, 0)
    assert_same(here, there)


def test_runs_from_both_ends_at_once_end_and_converge(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"file": "x"})
    third = replica(tmp_path / "third")
    ring = [(here, there), (there, here), (there, third), (third, here), (here, third)]
    for root in (here, there, third):
        write(root / root.name, root.name)
        write(root / "disputed", root.name)
    runs = [start(root, "sync", peer) for root, peer in ring]
    assert {finish(run, None).code for run in runs} <= {0, 1, 6}
    p2psync(here, "sync", there, third, code=None)
    p2psync(here, "sync", there, third)
    assert_same(here, there, third)
    assert {b"x", b"here", b"there", b"third"} == set(contents(here).values())
