"""log, show, restore, undo and gc as people and scripts meet them: words, JSON, exit codes, errors."""

from __future__ import annotations

import gc
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2psync.cli import main
from tests.cli_support import (
    LONG_AGO_NS,
    Ran,
    bring_in_step,
    contents,
    locked,
    manifest,
    p2psync,
    pair,
    replica,
    snapshot,
    write,
)
from tests.support import do_not_wait_for_disk

needs_any_name = pytest.mark.skipif(sys.platform == "darwin", reason="APFS takes only UTF-8 names")

Command = Callable[..., Ran]

RUN = re.compile(r"\d{8}-\d{6}(-\d+)?")
WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
NOTHING = "nothing to remove: no history is too old or too much (the latest run stays)\n"
BINARY = bytes(range(256)) * 10


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Command]:
    """Run the command line in a folder, in this process; it must end with `code`."""

    def run(at: Path, *arguments: str | bytes | Path, code: int = 0) -> Ran:
        monkeypatch.chdir(at)
        monkeypatch.setattr(sys, "argv", ["p2psync", *map(os.fsdecode, arguments)])
        capfdbinary.readouterr()
        ended = main()
        sys.stdout.flush()
        ran = Ran(ended, *map(os.fsdecode, capfdbinary.readouterr()))
        assert ended == code, ran
        return ran

    do_not_wait_for_disk(monkeypatch)
    yield run
    gc.enable()


def synced(folder: Path) -> tuple[Path, Path]:
    """Make two replicas; a sync has just changed, merged, deleted and made things in the first one."""
    base = "milk\nbread\neggs\n"
    here, there = pair(
        folder, {"list": base, "diary": b"\0mon", "gone/deep": "deep\n", "bin": BINARY, "same": "x"}
    )
    write(here / "list", base + "tea\n")
    write(there / "list", "oat " + base)
    write(here / "diary", b"\0here", mtime_ns=LONG_AGO_NS)
    write(there / "diary", b"\0there")
    (there / "gone" / "deep").unlink()
    (there / "gone").rmdir()
    (there / "bin").unlink()
    write(there / "sub" / "new", "new")
    bring_in_step(here, there)
    return here, there


def run_of(command: Command, here: Path) -> str:
    """Return the name of the latest run."""
    return str(parsed(command(here, "log", "--json"))[0]["run"])


def parsed(ran: Ran) -> Any:  # noqa: ANN401
    assert ran.err == ""
    return json.loads(ran.out)


def all_of(root: Path) -> tuple[object, ...]:
    """Return all that there is of a replica: its tree, its manifest, its history."""
    return snapshot(root), manifest(root), snapshot(root / ".p2psync" / "history")


# -- log


def test_the_log_of_a_new_replica_says_that_there_is_nothing(tmp_path: Path, command: Command) -> None:
    here, _ = pair(tmp_path, {"f": "1"})
    assert command(here, "log").out == "no run has changed anything here yet\n"
    assert parsed(command(here, "log", "--json")) == []


def test_the_log_is_a_line_for_each_run_the_latest_first(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    run = run_of(command, here)
    command(here, "undo")
    undone, synced_ = command(here, "log").out.splitlines()
    assert re.fullmatch(
        rf"{RUN.pattern} +{WHEN}  undo of {run} +3 new, 2 changed, 3 deleted \(.* kept\)", undone
    )
    assert re.fullmatch(
        rf"{run} +{WHEN}  sync with \S+:there +3 new, 2 changed, 3 deleted \(.* kept\)", synced_
    )
    assert undone.index("(") == synced_.index("(")


def test_the_log_for_programs_has_all_there_is_to_know_of_a_run(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    (run,) = parsed(command(here, "log", "--json"))
    assert run.keys() == {"run", "at", "kind", "peer", "changes", "kept"}
    assert RUN.fullmatch(run["run"])
    assert re.fullmatch(rf"{WHEN}[+-]\d\d:\d\d", run["at"])
    assert (run["kind"], run["peer"].rpartition(":")[2]) == ("sync", "there")
    assert run["changes"] == {"create": 3, "update": 2, "delete": 3}
    assert run["kept"] == len(BINARY) + len("deep\n") + len("milk\nbread\neggs\ntea\n") + len(b"\0here")


def test_the_log_shows_as_many_runs_as_wanted(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    for _ in range(3):
        command(here, "undo")
    assert len(command(here, "log").out.splitlines()) == 4
    shown = command(here, "log", "--limit", "2").out.splitlines()
    assert shown == command(here, "log").out.splitlines()[:2]
    assert "0" in command(here, "log", "--limit", "0", code=2).err


def test_a_run_that_changed_nothing_that_can_be_seen_is_not_in_the_log(
    tmp_path: Path, command: Command
) -> None:
    here, there = pair(tmp_path, {"f": "1"})
    for root in (here, there):
        write(root / "same", "made on both sides", mtime_ns=LONG_AGO_NS)
    bring_in_step(here, there)
    assert parsed(command(here, "log", "--json")) == []


def test_a_run_that_did_not_finish_is_in_the_log_with_the_place_of_what_it_took(
    tmp_path: Path, command: Command
) -> None:
    here, _ = pair(tmp_path, {"f": "1"})
    write(here / ".p2psync" / "history" / "20240203-040506" / "d" / "f", b"12345")
    assert re.fullmatch(
        rf"20240203-040506  {WHEN}  not finished  see .p2psync/history/20240203-040506 \(5 B kept\)\n",
        command(here, "log").out,
    )
    (run,) = parsed(command(here, "log", "--json"))
    assert (run["run"], run["kind"], run["kept"]) == ("20240203-040506", "unrecorded", 5)


def test_the_versions_of_a_path_are_aligned_and_say_who_made_them_and_how_to_name_them(
    tmp_path: Path, command: Command
) -> None:
    here, _ = synced(tmp_path)
    run = run_of(command, here)
    lines = command(here, "log", "list").out.splitlines()
    assert [re.sub(rf"^{WHEN} +", "", line) for line in lines] == [
        f"24 B  5460f214c55f  by {name_of(here)}  (present), merged",
        f"20 B  6554a8e660b3  by {name_of(here)}  @{run}",
        f"16 B  444493344a8a  by {name_of(here)}  contents not kept here",
    ]
    first, second = command(here, "log", "bin").out.splitlines()
    assert first.split()[2:] == ["deleted", "by", name_of(here, "there"), "(present)"]
    assert second.split()[2:4] == ["2.5", "KiB"]
    assert first.index("by ") == second.index("by ")


def name_of(here: Path, other: str | None = None) -> str:
    """Return what a replica is called."""
    name = str(json.loads(p2psync(here, "status", "--json").out)["name"])
    return name.replace(":here", f":{other}") if other else name


def test_where_a_conflict_was_set_aside_the_versions_say_as_what(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    (copy,) = here.glob("diary.sync-conflict-*")
    said = command(here, "log", "diary").out.splitlines()[0]
    assert said.endswith(f"(present), the other set aside as {copy.name}")
    version = parsed(command(here, "log", "--json", "diary"))["versions"][0]
    assert (version["conflict"], version["copy"]) == ("set-aside", copy.name)


def test_the_versions_for_programs_have_all_there_is_to_know(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    run = run_of(command, here)
    document = parsed(command(here, "log", "bin", "--json"))
    assert document["path"] == "bin"
    gone, there = document["versions"]
    assert {**gone, "at": "", "replica": ""} == {
        "at": "",
        "replica": "",
        "kind": "deleted",
        "size": 0,
        "digest": "",
        "conflict": None,
        "copy": None,
        "replaced_by": None,
        "present": True,
        "kept": False,
    }
    assert (there["kind"], there["size"], len(there["digest"])) == ("file", len(BINARY), 32)
    assert (there["replaced_by"], there["present"], there["kept"]) == (run, False, True)


def test_a_path_that_nothing_is_known_of_is_an_error(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    for options in ([], ["--json"]):
        ran = command(here, "log", "nowhere", *options, code=3)
        assert (ran.out, "nothing is known of nowhere" in ran.err) == ("", True)


# -- show


def test_show_prints_the_exact_bytes(tmp_path: Path) -> None:
    here, _ = synced(tmp_path)
    assert os.fsencode(p2psync(here, "show", "bin").out) == BINARY
    run = json.loads(p2psync(here, "log", "--json").out)[0]["run"]
    assert os.fsencode(p2psync(here, "show", f"bin@{run}").out) == BINARY


def test_show_needs_no_lock_and_writes_nothing(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    before = all_of(here)
    with locked(here):
        assert command(here, "show", "gone/deep").out == "deep\n"
        command(here, "log")
        command(here, "log", "bin")
    assert all_of(here) == before


# -- restore


def test_restore_brings_back_a_file_and_says_so(tmp_path: Path, command: Command) -> None:
    here, there = synced(tmp_path)
    run = run_of(command, here)
    assert command(here, "restore", "bin").out == f"new          bin\n1 path restored, as before {run}\n"
    assert contents(here)["bin"] == BINARY
    bring_in_step(here, there)
    assert contents(there)["bin"] == BINARY


def test_restore_brings_back_a_folder(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    document = parsed(command(here, "restore", "gone/", "--json"))
    assert document["changes"] == [
        {"path": "gone", "action": "create"},
        {"path": "gone/deep", "action": "create"},
    ]
    assert contents(here)["gone/deep"] == b"deep\n"


def test_what_is_as_it_was_needs_no_restore(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    run = run_of(command, here)
    command(here, "restore", f"bin@{run}")
    assert command(here, "restore", f"bin@{run}").out == f"nothing to do: all is as before {run} already\n"


def test_restore_to_a_file_leaves_the_tree_alone(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    before = snapshot(here)
    assert command(here, "restore", "bin", "--to", "../copy").out == "wrote ../copy\n"
    assert (tmp_path / "copy").read_bytes() == BINARY
    assert command(here, "restore", "bin", "--to", "../more", "-n").out == "would write ../more\n"
    assert not (tmp_path / "more").exists()
    assert snapshot(here) == before


# -- undo


def test_undo_puts_back_what_the_latest_run_did_and_undo_again_does_it_again(
    tmp_path: Path, command: Command
) -> None:
    here, there = synced(tmp_path)
    became, run = snapshot(here), run_of(command, here)
    lines = command(here, "undo").out.splitlines()
    assert lines[-1] == f"8 paths undone, as before {run}"
    assert {tuple(line.split()) for line in lines[:-1]} > {
        ("new", "bin"),
        ("changed", "list"),
        ("deleted", "sub/new"),
    }
    assert contents(here)["list"] == b"milk\nbread\neggs\ntea\n"
    bring_in_step(here, there)
    assert snapshot(there) == snapshot(here)
    command(here, "undo")
    assert snapshot(here) == became


def test_undo_of_the_latest_run_waits_for_none_that_is_at_work(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = synced(tmp_path)
    before = snapshot(here)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits"))
    with locked(here):
        assert "another run" in command(here, "undo", code=6).err
    assert snapshot(here) == before


def test_undo_tells_what_it_leaves_alone_and_ends_with_1(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    run = run_of(command, here)
    write(here / "list", "my own")
    ran = command(here, "undo", run, code=1)
    assert ran.err == "p2psync: left alone: list: was changed since\n"
    assert ran.out.endswith(f"7 paths undone, as before {run}\n")
    assert contents(here)["list"] == b"my own"
    document = json.loads(command(here, "undo", run, "--json", code=1).out)
    assert document == {
        "run": run,
        "changes": [],
        "problems": [{"path": "list", "why": "was changed since"}],
        "done": False,
    }


def test_undo_for_programs_lists_what_was_done(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    run = run_of(command, here)
    planned = parsed(command(here, "undo", "-n", "--json"))
    document = parsed(command(here, "undo", "--json"))
    assert planned == {**document, "done": False}
    assert (document["run"], document["problems"], document["done"]) == (run, [], True)
    assert {"path": "bin", "action": "create"} in document["changes"]


@pytest.mark.parametrize(
    "arguments", [["undo"], ["restore", "bin"], ["restore", "gone"], ["gc", "--days", "0"]]
)
def test_a_dry_run_says_what_would_be_and_changes_nothing(
    tmp_path: Path, command: Command, arguments: list[str]
) -> None:
    here, _ = synced(tmp_path)
    command(here, "undo")
    command(here, "undo")
    before = all_of(here)
    for option in ("-n", "--dry-run"):
        assert "would be" in command(here, *arguments, option).out
    assert all_of(here) == before
    assert "would" not in command(here, *arguments).out
    assert all_of(here) != before


# -- gc


def test_gc_removes_what_is_beyond_the_limits_and_says_what(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    first = run_of(command, here)
    assert command(here, "gc").out == NOTHING
    command(here, "undo")
    write(here / "bin", b"\0")
    (kept,) = [run["kept"] for run in parsed(command(here, "log", "--json")) if run["run"] == first]
    lines = command(here, "gc", "--percent", "0").out.splitlines()
    assert re.fullmatch(rf"{first}  {WHEN}  2.5 KiB", lines[0])
    assert re.fullmatch(r"the history of 1 run removed, 2\.\d KiB", lines[1])
    assert kept > 2500
    assert not (here / ".p2psync" / "history" / first).exists()
    assert "no run" in command(here, "undo", first, code=3).err


def test_gc_tells_of_the_texts_that_it_forgets(tmp_path: Path, command: Command) -> None:
    here, there = synced(tmp_path)
    for number in range(12):
        write(here / "text", b"%d\n" % number)
        command(here, "sync", there)
    said = "%s forgotten, from which no merge starts any more"
    assert command(there, "gc", "-n").out.splitlines()[-1] == said % "3 texts would be"
    assert command(there, "gc").out.splitlines()[-1] == said % "3 texts"
    assert command(there, "gc").out == NOTHING


def test_gc_goes_by_the_configuration_unless_told_otherwise(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    command(here, "undo")
    (here / ".p2psync" / "config.toml").write_text("[history]\npercent = 0\n")
    assert "nothing to remove" in command(here, "gc", "--percent", "50").out
    assert "1 run removed" in command(here, "gc").out


# -- where it runs


def test_paths_are_relative_to_the_folder_it_is_run_in(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    assert command(here / "sub", "show", "../gone/deep").out == "deep\n"
    assert command(here, "-C", "sub", "show", "../gone/deep").out == "deep\n"
    assert command(here / "sub", "show", here / "gone" / "deep").out == "deep\n"
    command(here / "sub", "restore", "../gone/deep", "--to", "copy")
    assert contents(here)["sub/copy"] == b"deep\n"
    command(tmp_path, "-C", "here/sub", "restore", "../gone")
    assert contents(here)["gone/deep"] == b"deep\n"


def test_a_replica_reached_through_a_link_is_the_same(tmp_path: Path, command: Command) -> None:
    here, _ = synced(tmp_path)
    (tmp_path / "way").symlink_to(here)
    assert command(tmp_path / "way", "show", "gone/deep").out == "deep\n"
    assert command(here, "show", tmp_path / "way" / "gone" / "deep").out == "deep\n"


# -- names


@pytest.mark.parametrize(
    "name",
    [
        b"with spaces",
        b"new\nline",
        b"a@b",
        b"x@20240101-000000",
        "\N{SNOWMAN}".encode(),
        pytest.param(b"\xff\x1b[31m", marks=needs_any_name),
    ],
    ids=ascii,
)
def test_any_name_can_be_shown_and_restored_and_is_escaped(
    tmp_path: Path, command: Command, name: bytes
) -> None:
    here, there = pair(tmp_path, {os.fsdecode(name): "1"})
    os.unlink(os.path.join(bytes(there), name))
    bring_in_step(here, there)
    version = name + b"@" + run_of(command, here).encode()
    assert command(here, "show", version).out == "1"
    said = (
        command(here, "restore", version).said + command(here, "log").said + command(here, "log", name).said
    )
    assert {char for char in said if not char.isprintable()} <= {"\n"}
    assert contents(here) == {os.fsdecode(name): b"1"}
    document = parsed(command(here, "log", "--json", name))
    assert os.fsencode(document["path"]) == name


# -- errors

ERRORS: dict[str, tuple[list[str], int, str]] = {
    "log of no path": (["log", "nowhere"], 3, "nothing is known of nowhere"),
    "log of a path outside": (["log", "../there/list"], 3, "../there/list is no path in the replica"),
    "log of the root": (["log", "."], 3, "is no path in the replica"),
    "log of the sidecar": (["log", ".p2psync/manifest.db"], 3, "is no path in the replica"),
    "log without a limit": (["log", "--limit", "x"], 2, "--limit"),
    "show of nothing": (["show"], 2, "PATH"),
    "show of no path": (["show", "nowhere"], 3, "nowhere is kept here; `p2psync log nowhere`"),
    "show of a folder": (["show", "gone"], 3, "gone was a folder then: `p2psync restore`"),
    "show of a new file": (["show", "sub/new"], 3, "sub/new is kept here; `p2psync log sub/new`"),
    "show of an unknown run": (["show", "bin@20200101-000000"], 3, "no run 20200101-000000; `p2psync log`"),
    "show of a run without that path": (["show", "same@RUN"], 3, "nothing away at same; `p2psync log same`"),
    "show of nothing at a run": (["show", "@RUN"], 3, "is no path in the replica"),
    "restore of nothing": (["restore"], 2, "PATH"),
    "restore of no path": (["restore", "nowhere"], 3, "nowhere is kept here; `p2psync log nowhere`"),
    "restore of an unknown run": (["restore", "bin@20200101-000000"], 3, "no run 20200101-000000"),
    "restore of a run without that path": (["restore", "same@RUN"], 3, "nothing away at same"),
    "restore over a file": (["restore", "bin", "--to", "same"], 3, "same is there already: name a file"),
    "restore into no folder": (["restore", "bin", "--to", "no/x"], 3, "cannot write no/x: No such file"),
    "restore into the sidecar": (["restore", "bin", "--to", ".p2psync/x"], 3, ".p2psync/x lies in .p2psync"),
    "restore as the sidecar": (["restore", "bin", "--to", ".p2psync", "-n"], 3, "lies in .p2psync"),
    "restore of a folder to a file": (["restore", "gone", "--to", "x"], 3, "gone was a folder then"),
    "undo of an unknown run": (["undo", "yesterday"], 3, "no run yesterday; `p2psync log`"),
    "undo of two runs": (["undo", "RUN", "RUN"], 2, "RUN"),
    "gc of a negative age": (["gc", "--days", "-1"], 2, "--days"),
    "gc of more than all": (["gc", "--percent", "101"], 2, "--percent"),
    "gc of words": (["gc", "--days", "many"], 2, "many"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_an_error_that_names_it_and_changes_nothing(
    tmp_path: Path, command: Command, case: str
) -> None:
    here, _ = synced(tmp_path)
    run = run_of(command, here)
    before = all_of(here)
    arguments, code, why = ERRORS[case]
    ran = command(here, *(argument.replace("RUN", run) for argument in arguments), code=code)
    assert ran.out == ""
    assert why in ran.err.replace(run, "RUN")
    assert all_of(here) == before


def test_where_there_is_nothing_to_undo_it_says_so(tmp_path: Path, command: Command) -> None:
    here, _ = pair(tmp_path, {"f": "1"})
    assert "there is nothing to undo" in command(here, "undo", code=3).err


def test_a_limit_in_the_configuration_that_makes_no_sense_is_an_error(
    tmp_path: Path, command: Command
) -> None:
    here, _ = pair(tmp_path, {"f": "1"})
    (here / ".p2psync" / "config.toml").write_text("[history]\nday = 3\n")
    assert re.search(
        r"config.toml:2: \[history\]: there is no setting .day.; did you mean .days.",
        command(here, "gc", code=3).err,
    )


@pytest.mark.parametrize("arguments", [["log"], ["show", "x"], ["restore", "x"], ["undo"], ["gc"]])
def test_outside_of_a_replica_it_says_how_to_make_one(
    tmp_path: Path, command: Command, arguments: list[str]
) -> None:
    assert "p2psync init" in command(tmp_path, *arguments, code=3).err


@pytest.mark.parametrize("arguments", [["restore", "bin"], ["restore", "bin", "--to", "x"], ["undo"], ["gc"]])
def test_what_changes_a_replica_waits_for_another_run_and_gives_up(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    here, _ = synced(tmp_path)
    monkeypatch.setattr("p2psync.cli.options.LOCK_WAIT", 0.0)
    before = all_of(here)
    with locked(here):
        assert "another run" in command(here, *arguments, code=6).err
    assert all_of(here) == before


def test_the_permissions_of_the_history_keep_others_out(tmp_path: Path) -> None:
    here, _ = synced(tmp_path)
    kept = here / ".p2psync" / "history"
    assert {stat.S_IMODE(path.stat().st_mode) for path in [kept, *kept.rglob("*")] if path.is_dir()} == {
        0o700
    }


# -- graphs


def test_a_graph_shows_who_met_whom(tmp_path: Path, command: Command) -> None:
    here, there = pair(tmp_path, {"f": "1\n2\n3\n"})
    write(here / "f", "one\n2\n3\n")
    write(there / "f", "1\n2\nthree\n")
    command(here, "sync", there)
    lines = command(here, "log", "--graph").out.splitlines()
    assert lines[0] == "this replica" and lines[1].startswith("| ")
    assert lines[2].startswith("*-o  20")
    versions = command(here, "log", "--graph", "f").out.splitlines()
    assert sorted(line.lstrip("| ") for line in versions[:2]) == sorted(
        line.split()[-1] for line in versions[:2]
    )
    assert "merged" in versions[2] and set(versions[2][:3]) == set("*-o")
    assert (
        command(replica(tmp_path / "new"), "log", "--graph").out == "no run has changed anything here yet\n"
    )
