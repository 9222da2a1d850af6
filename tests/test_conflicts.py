"""Conflicts are listed with whose they are, and settled as a person says, on all replicas."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from p2psync.conflicts import Keep, keep_copy, one_copy_each, open_conflicts, settle
from p2psync.core.contested import makers
from p2psync.core.model import Entry, Kind
from p2psync.core.vector import ReplicaId, Stamp, Version
from tests.cli_support import (
    LONG_AGO_NS,
    assert_same,
    contents,
    copies,
    history,
    on_terminal,
    p2psync,
    pair,
    replica,
    write,
)
from tests.support import opened

OURS, THEIRS, BASE = "one\nours\nthree\n", "one\ntheirs\nthree\n", "one\ntwo\nthree\n"
LATER = LONG_AGO_NS + 10**9


@pytest.fixture
def contested(tmp_path: Path) -> tuple[Path, Path]:
    """A conflict that `here` has lost: the later time wins."""
    return fought_over(tmp_path, 0)


def test_what_is_open_is_told_with_whose_it_is_on_both_sides(contested: tuple[Path, Path]) -> None:
    here, there = contested
    (copy,) = copies(here)
    (told,) = p2psync(here, "conflicts", "--json", code=1).json["conflicts"]
    assert told["path"] == "d/f.txt"
    assert told["copy"] == str(copy.relative_to(here))
    assert (told["kept"]["by"], told["kept"]["size"]) == (name(there), len(THEIRS))
    assert (told["set_aside"]["by"], told["set_aside"]["size"]) == (name(here), len(OURS))
    assert told["lost_here"] and not told["edited"]
    (there_told,) = p2psync(there, "conflicts", "--json", code=1).json["conflicts"]
    assert not there_told["lost_here"]
    assert (there_told["kept"]["by"], there_told["set_aside"]["by"]) == (name(there), name(here))
    text = p2psync(here / "d", "conflicts", code=1).out
    assert "d/f.txt\n" in text and "by this replica" in text and name(there) in text


def test_a_person_is_told_that_there_is_nothing_and_a_script_reads_nothing(tmp_path: Path) -> None:
    here = replica(tmp_path / "here")
    for command, told in (("conflicts", "no conflicts"), ("ignore", "there are no rules at the root")):
        ran = on_terminal(here, command)
        assert (ran.out, ran.err.strip()) == ("", told)
        ran = p2psync(here, command)
        assert (ran.out, ran.err) == ("", "")


def test_the_status_tells_that_something_is_to_be_settled(contested: tuple[Path, Path]) -> None:
    here, _ = contested
    assert "1 conflict to be settled" in p2psync(here, "status").out
    p2psync(here, "resolve", "--all", "--keep", "ours")
    assert p2psync(here, "status", "--json").json["conflicts"] == 0


def test_a_tool_is_given_what_both_had_and_not_an_edit_in_between(
    contested: tuple[Path, Path], tmp_path: Path
) -> None:
    here, there = contested
    p2psync(here, "resolve", "--all", "--keep", "theirs")
    p2psync(here, "sync", there)
    write(here / "d/f.txt", "in between\n")
    other = replica(tmp_path / "other")
    p2psync(here, "sync", other)  # so that the edit in between is a version of its own
    write(here / "d/f.txt", "ours again\n", mtime_ns=LONG_AGO_NS)
    write(there / "d/f.txt", "theirs again\n", mtime_ns=LATER)
    p2psync(here, "sync", there, code=1)
    p2psync(here, "resolve", "--all", "--tool", tool(tmp_path, "open(merged, 'w').write(open(base).read())"))
    assert contents(here) == {"d/f.txt": THEIRS.encode()}


def test_of_two_versions_the_second_is_merged_into_the_merge_of_the_first(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"f": "base\n"})
    third = replica(tmp_path / "third")
    p2psync(here, "sync", third)
    for number, root in enumerate((here, there, third)):
        write(root / "f", f"edit {number}\n", mtime_ns=LONG_AGO_NS + number)
    p2psync(here, "sync", there, code=1)
    p2psync(here, "sync", third, code=1)
    p2psync(
        here,
        "resolve",
        "--all",
        "--tool",
        tool(tmp_path, "open(merged, 'a').write(open(ours).read() + open(theirs).read())"),
    )
    assert set(contents(here)) == {"f"}
    assert {b"edit 0", b"edit 1", b"edit 2"} <= set(contents(here)["f"].splitlines())


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_what_was_saved_in_a_tool_that_failed_is_told_and_so_is_what_was_settled(
    tmp_path: Path, as_json: list[str]
) -> None:
    here, there = pair(tmp_path, {"a": "1\n", "b": "1\n"})
    for number, root in enumerate((here, there)):
        for name in ("a", "b"):
            write(root / name, f"edit {number}\n", mtime_ns=LONG_AGO_NS + number)
    p2psync(here, "sync", there, code=1)
    fails_once = "open(merged, 'w').write('precious'); os._exit('/b.' in merged)"
    ran = p2psync(here, "resolve", "--all", "--tool", tool(tmp_path, fails_once), *as_json, code=1)
    assert contents(here)["a"] == b"precious"
    saved = re.search(r"is in (\S+?)[\s\"]", ran.out + ran.err)
    assert saved and Path(saved[1]).read_text() == "precious"
    assert "a" in ran.out and "ended with 1" in ran.out + ran.err


def test_both_of_two_copies_get_names_of_their_own(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"f": "base\0"})
    third = replica(tmp_path / "third")
    p2psync(here, "sync", third)
    for number, root in enumerate((here, there, third)):
        write(root / "f", f"edit {number}\0", mtime_ns=LONG_AGO_NS + number)
    p2psync(here, "sync", there, code=1)
    p2psync(here, "sync", third, code=1)
    p2psync(here, "resolve", "--all", "--keep", "both")
    assert set(contents(here)) == {"f", "f-2", "f-3"}
    assert sorted(contents(here).values()) == [b"edit 0\0", b"edit 1\0", b"edit 2\0"]


def name(root: Path) -> str:
    told: str = p2psync(root, "status", "--json").json["name"]
    return told


def test_a_third_replica_knows_the_conflict_too(contested: tuple[Path, Path], tmp_path: Path) -> None:
    third = replica(tmp_path / "third")
    p2psync(third, "sync", contested[0])
    (told,) = p2psync(third, "conflicts", "--json", code=1).json["conflicts"]
    assert told["path"] == "d/f.txt"
    p2psync(third, "resolve", "d/f.txt", "--keep", "theirs")
    p2psync(third, "sync", contested[0])
    assert list(contents(contested[0])) == ["d/f.txt"]


def test_a_name_that_only_looks_like_a_copy_is_no_conflict(tmp_path: Path) -> None:
    _, there = pair(tmp_path, {"f": "1", "f.sync-conflict-20200101-000000-ABCDEFG": "2"})
    assert p2psync(there, "conflicts").out == ""


KEPT = {"ours": OURS, "theirs": THEIRS}


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("keep", ["ours", "theirs"])
def test_the_version_that_is_chosen_is_kept_everywhere(
    contested: tuple[Path, Path], keep: str, side: int
) -> None:
    here, there = contested
    at = contested[side]
    assert "settled" in p2psync(at / "d", "resolve", "f.txt", "--keep", keep).out
    assert p2psync(at, "conflicts").out == ""
    p2psync(here, "sync", there)
    assert_same(here, there)
    wanted = KEPT[keep] if side == 0 else KEPT["theirs" if keep == "ours" else "ours"]
    assert contents(there) == {"d/f.txt": wanted.encode()}
    assert {OURS.encode(), THEIRS.encode()} <= history(here) | set(contents(here).values())


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("decides", [0, 1])
@pytest.mark.parametrize("by_hand", [True, False])
def test_what_the_loser_settles_is_settled_whoever_starts_the_next_sync(
    tmp_path: Path, home: int, decides: int, by_hand: bool
) -> None:
    here, there = replicas = fought_over(tmp_path, decides)
    if by_hand:
        write(here / "d/f.txt", "both")
        for copy in copies(here):
            copy.unlink()
    else:
        p2psync(here, "resolve", "--all", "--keep", "ours")
    p2psync(replicas[home], "sync", replicas[1 - home])
    assert contents(here) == contents(there) == {"d/f.txt": b"both" if by_hand else OURS.encode()}


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("edited", [False, True])
def test_of_two_who_settle_a_conflict_in_opposite_ways_neither_loses_what_he_chose(
    contested: tuple[Path, Path], home: int, edited: bool
) -> None:
    for root in contested:
        p2psync(root, "resolve", "--all", "--keep", "ours")
    if edited:
        write(contested[0] / "d/f.txt", OURS + "more\n")
    ran = p2psync(contested[home], "sync", contested[1 - home], "--json", code=1)
    assert [conflict["resolution"] for conflict in ran.json["conflicts"]] == ["overtaken"]
    for root in contested:
        assert set(contents(root).values()) == {(OURS + "more\n" * edited).encode(), THEIRS.encode()}
        assert p2psync(root, "conflicts", code=1).out


@pytest.mark.parametrize("keep", [("ours", "theirs"), ("theirs", "ours")])
def test_of_two_who_settle_a_conflict_in_one_way_one_may_go_on_with_it(
    contested: tuple[Path, Path], keep: tuple[str, str]
) -> None:
    here, there = contested
    for root, choice in zip(contested, keep, strict=True):
        p2psync(root, "resolve", "--all", "--keep", choice)
    write(here / "d/f.txt", "edited\n")
    p2psync(here, "sync", there)
    assert contents(here) == contents(there) == {"d/f.txt": b"edited\n"}


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("decides", [0, 1])
@pytest.mark.parametrize("asked", [0, 1])
def test_an_edit_by_a_third_that_had_the_winner_opens_no_conflict_anew(
    tmp_path: Path, home: int, decides: int, asked: int
) -> None:
    replicas = fought_over(tmp_path, decides)
    third = replica(tmp_path / "third")
    p2psync(replicas[1], "sync", third)
    write(third / "d/f.txt", "edited")
    p2psync(replicas[asked], "sync", third)
    p2psync(replicas[home], "sync", replicas[1 - home])
    for root in replicas:
        assert sorted(contents(root).values()) == [b"edited", OURS.encode()]


def fought_over(tmp_path: Path, decides: int) -> tuple[Path, Path]:
    """Make a conflict that the first of two replicas has lost, in a sync that one of them starts."""
    here, there = replicas = pair(tmp_path, {"d/f.txt": BASE})
    write(here / "d/f.txt", OURS, mtime_ns=LONG_AGO_NS)
    write(there / "d/f.txt", THEIRS, mtime_ns=LATER)
    p2psync(replicas[decides], "sync", replicas[1 - decides], code=1)
    return replicas


def test_both_are_kept_under_names_of_their_own(contested: tuple[Path, Path]) -> None:
    here, there = contested
    write(here / "d/f-2.txt", "taken")
    p2psync(here, "resolve", "--all", "--keep", "both")
    p2psync(here, "sync", there)
    assert contents(there) == {
        "d/f.txt": THEIRS.encode(),
        "d/f-2.txt": b"taken",
        "d/f-3.txt": OURS.encode(),
    }


def test_what_was_merged_by_hand_is_kept(contested: tuple[Path, Path]) -> None:
    here, there = contested
    said = p2psync(here, "resolve", "d", "--keep", "merged", code=1).err
    assert "was not edited since the conflict" in said
    write(here / "d/f.txt", "merged\n")
    assert p2psync(here, "conflicts", "--json", code=1).json["conflicts"][0]["edited"]
    p2psync(here, "resolve", "d", "--keep", "merged")
    p2psync(here, "sync", there)
    assert contents(there) == {"d/f.txt": b"merged\n"}


@pytest.mark.parametrize(("prefer", "wanted"), [("newest", THEIRS), ("there", THEIRS), ("me", OURS)])
def test_all_are_settled_by_a_preference(contested: tuple[Path, Path], prefer: str, wanted: str) -> None:
    here, there = contested
    p2psync(here, "peer", "add", "there", there)
    p2psync(here, "resolve", "--all", "--prefer", name(here) if prefer == "me" else prefer)
    p2psync(here, "sync", there)
    assert contents(there) == {"d/f.txt": wanted.encode()}


def test_a_choice_is_a_run_that_can_be_undone(contested: tuple[Path, Path]) -> None:
    here, _ = contested
    before = contents(here)
    p2psync(here, "resolve", "--all", "--keep", "ours")
    assert "resolution of d/f.txt" in p2psync(here, "log").out
    p2psync(here, "undo")
    assert contents(here) == before


def test_a_dry_run_changes_nothing(contested: tuple[Path, Path]) -> None:
    here, _ = contested
    before = contents(here)
    assert "would be settled" in p2psync(here, "resolve", "-n", "--all", "--keep", "ours").out
    assert contents(here) == before


def test_an_open_conflict_outlives_the_history_of_its_sync(contested: tuple[Path, Path]) -> None:
    here, there = contested
    for text in ("1", "2"):  # the latest run that keeps something always stays
        write(there / "x", text)
        p2psync(here, "sync", there, code=None)
    p2psync(here, "gc", "--percent", "0")
    (told,) = p2psync(here, "conflicts", "--json", code=1).json["conflicts"]
    assert told["at"] is None and told["lost_here"]
    p2psync(here, "resolve", "--all", "--keep", "ours")
    assert contents(here) == {"d/f.txt": OURS.encode(), "x": b"2"}


def test_of_several_copies_one_is_kept(contested: tuple[Path, Path], tmp_path: Path) -> None:
    here, _ = contested
    third = replica(tmp_path / "third", {"d/f.txt": "third\n"})
    os.utime(third / "d/f.txt", ns=(LONG_AGO_NS + 10**8, LONG_AGO_NS + 10**8))
    p2psync(here, "sync", third, code=1)
    assert len(p2psync(here, "conflicts", "--json", code=1).json["conflicts"]) == 2
    with opened(here) as local:
        local.scan(True)
        both = [(one, keep_copy(one, True)) for one in open_conflicts(local)]
        refused = settle(local, both)
        assert not refused.conflicts
        assert {problem.path for problem in refused.problems} == {one.copy for one, _ in both}
        settled = settle(local, one_copy_each(both))
    assert len(settled.conflicts) == 2 and not settled.problems
    assert contents(here) == {"d/f.txt": b"third\n"}
    assert p2psync(here, "fsck").code == 0


def test_a_copy_that_has_a_copy_itself_is_settled_after_that(contested: tuple[Path, Path]) -> None:
    here, there = contested
    with opened(here) as local:
        (outer,) = open_conflicts(local)
    for root in (here, there):
        write(root / os.fsdecode(outer.copy), f"in {root.name}\n")
    p2psync(here, "sync", there, code=1)
    before = contents(here)
    with opened(here) as local:
        local.scan(True)
        first, second = open_conflicts(local)
        inner = second if first.copy == outer.copy else first
    ran = p2psync(here, "resolve", "--all", "--keep", "ours", code=1)
    assert "has one set aside itself" in ran.err and os.fsdecode(inner.copy) in ran.err
    assert contents(here)["d/f.txt"] == before["d/f.txt"]
    assert os.fsdecode(inner.copy) not in contents(here)
    p2psync(here, "resolve", "--all", "--keep", "ours")
    assert contents(here).keys() == {"d/f.txt"}


def test_a_version_that_cannot_be_had_is_not_taken_for_kept(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"f": b"\0base"})
    write(here / "f", b"\0ours", mtime_ns=LONG_AGO_NS)
    write(there / "f", b"\0theirs", mtime_ns=LATER)
    p2psync(here, "sync", there, code=1)
    with opened(there) as local:
        local.scan(True)
        (conflict,) = open_conflicts(local)
        write(there / os.fsdecode(conflict.copy), "saved meanwhile")
        settled = settle(local, [(conflict, Keep.THEIRS)])
    (problem,) = settled.problems
    assert problem.path == b"f" and "changed meanwhile" in problem.why
    assert settled.conflicts == []
    assert contents(there)["f"] == b"\0theirs"
    assert b"saved meanwhile" in contents(there).values()


def test_of_several_only_the_one_that_cannot_be_had_stays_open(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"f": b"\0base", "g": b"\0base"})
    for number, root in enumerate((here, there)):
        for name in ("f", "g"):
            write(root / name, b"\0%s %d" % (name.encode(), number), mtime_ns=LONG_AGO_NS + number)
    p2psync(here, "sync", there, code=1)
    with opened(there) as local:
        local.scan(True)
        first, second = open_conflicts(local)
        write(there / os.fsdecode(first.copy), "saved meanwhile")
        settled = settle(local, [(one, Keep.THEIRS) for one in (first, second)])
    assert [problem.path for problem in settled.problems] == [b"f"]
    assert [one.path for one, _ in settled.conflicts] == [b"g"]
    assert contents(there)["g"] == b"\0g 0" and contents(there)["f"] == b"\0f 1"


@pytest.mark.parametrize("dry", [(), ("-n",)])
def test_a_folder_that_holds_files_is_not_replaced_and_keeps_nothing_from_being_settled(
    tmp_path: Path, dry: tuple[str, ...]
) -> None:
    here, there = pair(tmp_path, {"z": "base", "other": "base"})
    (here / "z").unlink()
    write(here / "z/in", "inner")
    write(there / "z", "edited")
    p2psync(here, "sync", there, code=1)
    for number, root in enumerate((here, there)):
        for name in ("z/in", "other"):
            write(root / name, f"{name} {number}", mtime_ns=LONG_AGO_NS + number)
    p2psync(here, "sync", there, code=1)
    ran = p2psync(there, "resolve", "--all", "--keep", "ours", *dry, code=1)
    assert "left alone: z: is a folder now, with files in it" in ran.err
    assert ran.out.count("settled") == 2
    if not dry:
        p2psync(there, "resolve", "z", "--keep", "both")
        assert contents(there) == {"z/in": b"z/in 1", "z-2": b"edited", "other": b"other 1"}
    else:
        assert len(copies(there)) == 3


def test_a_copy_stays_if_the_file_could_not_be_replaced(contested: tuple[Path, Path]) -> None:
    here, _ = contested
    with opened(here) as local:
        local.scan(True)
        (conflict,) = open_conflicts(local)
        write(here / "d/f.txt", "saved meanwhile")
        settled = settle(local, [(conflict, Keep.OURS)])
    assert settled.conflicts == [] and len(settled.problems) == 2
    assert contents(here)["d/f.txt"] == b"saved meanwhile"
    assert OURS.encode() in contents(here).values()


# -- tools


def tool(folder: Path, script: str) -> str:
    path = folder / "tool"
    head = f"#!{sys.executable}\nimport os, sys\nbase, ours, theirs, merged = sys.argv[1:]\n"
    path.write_text(head + script)
    path.chmod(0o755)
    return str(path)


JOIN = "open(merged, 'w').write(''.join(open(f).read() for f in (base, ours, theirs)))"


def test_a_tool_merges(contested: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = contested
    p2psync(here, "resolve", "d/f.txt", "--tool", tool(tmp_path, JOIN))
    p2psync(here, "sync", there)
    assert contents(there) == {"d/f.txt": (BASE + OURS + THEIRS).encode()}


def test_the_tool_of_the_environment_is_used(contested: tuple[Path, Path], tmp_path: Path) -> None:
    here, _ = contested
    script = "assert [os.environ[n] for n in ('BASE','LOCAL','REMOTE','MERGED')] == sys.argv[1:]\n" + JOIN
    p2psync(here, "resolve", "--all", env={"MERGE": tool(tmp_path, script)})
    assert contents(here) == {"d/f.txt": (BASE + OURS + THEIRS).encode()}


@pytest.mark.parametrize(
    ("script", "code", "why"),
    [("pass", 1, "saved nothing new"), ("sys.exit(3)", 1, "ended with 3"), (None, 3, "No such file")],
)
def test_a_tool_that_does_nothing_leaves_the_conflict_open(
    contested: tuple[Path, Path], tmp_path: Path, script: str | None, code: int, why: str
) -> None:
    here, _ = contested
    before = contents(here)
    program = tool(tmp_path, script) if script else str(tmp_path / "none")
    assert why in p2psync(here, "resolve", "--all", "--tool", program, code=code).err
    assert contents(here) == before


def test_what_is_no_text_is_not_given_to_a_tool(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"f": b"\0"})
    write(here / "f", b"\0" * (2 << 20))
    write(there / "f", b"\0b")
    p2psync(here, "sync", there, code=1)
    assert "no text" in p2psync(here, "resolve", "--all", "--tool", "true", code=1).err


# -- wrong usage


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["resolve"], "name the paths"),
        (["resolve", "--all", "f"], "name the paths"),
        (["resolve", "--all"], "say which version"),
        (["resolve", "--all", "--keep", "ours", "--prefer", "newest"], "choose one"),
        (["resolve", "none", "--keep", "ours"], "no open conflict about none"),
        (["resolve", "--all", "--prefer", "nobody"], "no peer nobody"),
        (["conflicts", "none"], "no open conflict about none"),
    ],
)
def test_what_makes_no_sense_is_refused(contested: tuple[Path, Path], arguments: list[str], why: str) -> None:
    assert why in p2psync(contested[0], *arguments, code=2).err


# -- who made what


def entry(data: bytes, **ticks: int) -> Entry:
    replicas = {ReplicaId(ord(key)): tick for key, tick in ticks.items()}
    return Entry(kind=Kind.FILE, digest=data * 16, version=Version(replicas))  # type: ignore[arg-type]


A, B, C = (ReplicaId(ord(letter)) for letter in "abc")


@pytest.mark.parametrize("decider", [A, B, C])
@pytest.mark.parametrize("lost", [True, False])
def test_who_made_the_versions_is_read_from_their_vectors(decider: ReplicaId, lost: bool) -> None:
    """A has made one, B the other; C has decided, or one of them. Looked at from A."""
    base = entry(b"0", a=1, b=1)
    ours, theirs = entry(b"1", a=5, b=1), entry(b"2", a=1, b=6)
    decision = Stamp(decider, 9)
    winner, loser = (theirs, ours) if lost else (ours, theirs)
    path = Entry(
        kind=Kind.FILE, digest=winner.digest, version=(winner.version | loser.version).bump(decision)
    )
    copy = Entry(kind=Kind.FILE, digest=loser.digest, version=loser.version.bump(decision))
    found = makers(path, copy, [base, ours])
    assert found.lost_here is lost
    assert (found.winner, found.loser) == ((B, A) if lost else (A, B))


def test_without_any_version_nothing_is_known_of_the_makers() -> None:
    assert makers(entry(b"1"), entry(b"2"), []) == (None, None, None)


def test_folders_of_temporary_files_go(contested: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    program = tool(tmp_path, JOIN)
    p2psync(contested[0], "resolve", "--all", "--tool", program, env={"TMPDIR": str(tmp_path / "tmp")})
    assert os.listdir(tmp_path / "tmp") == []
