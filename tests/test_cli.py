"""The command as people and scripts meet it: its words, its exit codes, its output on and off a terminal."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from p2psync.cli import cli
from p2psync.words import MANY_ALIKE
from tests.cli_support import (
    COMMAND,
    LONG_AGO_NS,
    assert_same,
    contents,
    environment,
    fake_ssh,
    locked,
    manifest,
    on_terminal,
    p2psync,
    pair,
    replica,
    snapshot,
    write,
)

needs_any_name = pytest.mark.skipif(sys.platform == "darwin", reason="APFS takes only UTF-8 names")


def in_process(*arguments: str | Path) -> Result:
    """Run a command that neither changes directory nor starts anything, here; it must succeed."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


# -- help and usage


def commands(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_the_help_of_every_command_ends_with_its_exit_codes(path: tuple[str, ...]) -> None:
    said = " ".join(in_process(*path, "--help").output.split())
    codes = re.fullmatch(r".*Exit codes: (0 .*)\.", said)
    assert codes, said
    assert [int(code.split()[0]) for code in codes[1].split("; ")] == sorted(
        int(code.split()[0]) for code in codes[1].split("; ")
    )
    assert {"2 wrong usage", "3 failed", "130 interrupted"} <= set(codes[1].split("; "))


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_and_option_has_a_help_text(path: tuple[str, ...]) -> None:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    silent = [
        option.name for option in command.params if isinstance(option, click.Option) and not option.help
    ]
    assert silent == []


USAGE_ERRORS = {
    "no such command": ["frobnicate"],
    "no such option": ["sync", "--frobnicate"],
    "a peer that is no word and no folder": ["sync", "nobody"],
    "no peer at all": ["sync"],
    "an unknown preference": ["sync", "--prefer", "mine", "x:y"],
    "a port that is no port": ["sync", "--port", "0", "x:y"],
    "a negative wait": ["sync", "--lock-wait", "-1", "x:y"],
    "another protocol": ["sync", "ftp://host/x"],
    "a host that is an option": ["sync", "ssh://-oProxyCommand=x/y"],
    "an ssh command with an open quote": ["sync", "-e", "ssh 'x", "host:x"],
    "a rate that is none": ["sync", "--bwlimit", "fast", "host:x"],
    "a compression that is none": ["sync", "--compress", "gzip", "host:x"],
    "a folder to run in that is not there": ["-C", "nowhere", "status"],
    "a peer without an address": ["peer", "add", "laptop"],
    "a peer's name with a slash": ["peer", "add", "a/b", "x:y"],
    "a peer that is not there": ["peer", "remove", "laptop"],
    "init of a file": ["init", "file"],
}


@pytest.mark.parametrize("case", USAGE_ERRORS)
def test_wrong_usage_ends_with_2_and_one_message(tmp_path: Path, case: str) -> None:
    here = replica(tmp_path / "here", {"file": "x"})
    ran = p2psync(here, *USAGE_ERRORS[case], code=2)
    assert ran.out == ""
    assert re.search("^(Error|p2psync: error): .", ran.err, re.M)


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"p2psync \d+\.\d+\.\d+\S*\n", in_process("--version").output)


# -- init


def test_init_makes_a_replica_and_says_so(tmp_path: Path) -> None:
    write(tmp_path / "notes" / "file", "x")
    assert "is a replica now" in in_process("init", tmp_path / "notes").output
    assert (tmp_path / "notes/.p2psync").stat().st_mode & 0o777 == 0o700
    assert contents(tmp_path / "notes") == {"file": b"x"}


def test_init_twice_changes_nothing_and_says_so(tmp_path: Path) -> None:
    in_process("init", tmp_path)
    before = manifest(tmp_path)
    assert "already" in in_process("init", "--name", "other", tmp_path).output
    assert manifest(tmp_path) == before


def test_init_takes_the_folder_it_is_run_in(tmp_path: Path) -> None:
    p2psync(tmp_path, "init")
    assert (tmp_path / ".p2psync").is_dir()


def test_init_names_a_replica_after_host_and_folder_or_as_told(tmp_path: Path) -> None:
    in_process("init", tmp_path / "notes")
    in_process("init", "--name", "my notes", tmp_path / "more")
    assert p2psync(tmp_path / "notes", "status", "--json").json["name"].endswith(":notes")
    assert p2psync(tmp_path / "more", "status", "--json").json["name"] == "my notes"


def test_a_replica_inside_a_replica_is_refused(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"sub/file": "x"})
    assert "inside the replica" in p2psync(here, "init", "sub", code=3).err
    assert not (here / "sub/.p2psync").exists()


# -- where a command runs


def test_a_command_works_from_any_folder_below_the_root(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"a/b/file": "x"}), replica(tmp_path / "there")
    p2psync(here / "a/b", "sync", "../../../there")
    assert_same(here, there)
    assert p2psync(here / "a", "status", "--json").json["root"] == str(here)


def test_a_command_runs_as_if_started_in_another_folder(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"a/file": "x"}), replica(tmp_path / "there")
    p2psync(tmp_path, "-C", "here/a", "sync", "../../there")
    assert_same(here, there)


@pytest.mark.parametrize(
    "arguments", [["sync", "x:y"], ["status"], ["peer", "list"], ["peer", "add", "a", "x:y"]]
)
def test_outside_of_a_replica_a_command_says_how_to_make_one(tmp_path: Path, arguments: list[str]) -> None:
    assert "p2psync init" in p2psync(tmp_path, *arguments, code=3).err


def test_a_folder_that_only_has_the_name_of_a_sidecar_makes_no_replica(tmp_path: Path) -> None:
    (tmp_path / ".p2psync").mkdir()
    p2psync(tmp_path, "peer", "add", "laptop", "x:y", code=3)
    in_process("init", tmp_path / "notes")


# -- peers


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A replica, which is also the current folder."""
    root = replica(tmp_path / "here")
    monkeypatch.chdir(root)
    return root


def test_peers_are_added_listed_in_their_order_and_removed(here: Path) -> None:
    for name, address in {"laptop": "me@laptop:notes", "backup": "ssh://host:2222/srv"}.items():
        assert name in in_process("peer", "add", name, address).output
    assert in_process("peer", "list").output == "laptop\tme@laptop:notes\nbackup\tssh://host:2222/srv\n"
    in_process("peer", "remove", "laptop")
    assert in_process("peer", "list").output == "backup\tssh://host:2222/srv\n"


def test_a_name_in_use_is_not_given_to_another_peer(here: Path) -> None:
    in_process("peer", "add", "laptop", "a:b")
    assert "already" in p2psync(here, "peer", "add", "laptop", "c:d", code=2).err
    assert in_process("peer", "list").output == "laptop\ta:b\n"


def test_the_options_of_a_peer_are_remembered_and_comments_in_the_file_survive(here: Path) -> None:
    file = here / ".p2psync" / "config.toml"
    in_process("peer", "add", "one", "a:b", "-e", "ssh -4", "-p", "2222", "--remote-command", "nice p2psync")
    file.write_text(f"# mine\n{file.read_text()}")
    in_process("peer", "add", "two", "c:d")
    in_process("peer", "remove", "two")
    text = file.read_text()
    assert text.startswith("# mine\n")
    assert {'ssh-command = "ssh -4"', "port = 2222", 'remote-command = "nice p2psync"'} <= set(
        text.splitlines()
    )


def test_how_a_peer_is_sent_to_is_remembered_and_the_command_line_counts_more(here: Path) -> None:
    from p2psync.cli.options import chosen_peers

    in_process("peer", "add", "one", "a:b", "-z", "--bwlimit", "1.5M", "--no-reuse")
    in_process("peer", "add", "two", "c:d", "--compress", "off")
    one, two = chosen_peers(bytes(here), (), {})
    assert (one.compress, one.bwlimit, one.reuse) == ("on", "1.5M", False)
    assert (two.compress, two.bwlimit, two.reuse) == ("off", "0", True)
    text = (here / ".p2psync" / "config.toml").read_text()
    assert text.count("bwlimit") == text.count("reuse") == 1  # what is usual is not written
    [one] = chosen_peers(bytes(here), ("one",), {"compress": "auto", "bwlimit": "0", "reuse": True})
    assert (one.compress, one.bwlimit, one.reuse) == ("auto", "0", True)


@pytest.mark.parametrize(
    "address", ["../there", "./../there", "{parent}/there", "file://{parent}/there", "../a:b"]
)
def test_a_path_given_as_a_peer_means_the_same_from_anywhere(here: Path, address: str) -> None:
    in_process("peer", "add", "there", address.format(parent=here.parent))
    known = in_process("peer", "list").output
    assert known == f"there\t{here.parent}/{'a:b' if 'a:b' in address else 'there'}\n"


@pytest.mark.parametrize(
    "address", ["me@host:notes", "host:/srv/a b", "ssh://me@host:2222/srv", "host:a/b", "[::1]:x"]
)
def test_an_address_is_remembered_as_it_was_given(here: Path, address: str) -> None:
    in_process("peer", "add", "there", address)
    assert in_process("peer", "list").output == f"there\t{address}\n"


def test_a_damaged_configuration_is_told_of_with_its_place(here: Path) -> None:
    for text in (
        "[peer",
        "[peer.x]\n",
        '[peer.x]\naddress = "a:b"\nport = "22"\n',
        '[peer.x]\naddress = "a:b"\nprot = 1\n',
        '[peer.x]\naddress = "a:b"\nbwlimit = "fast"\n',
        '[peer.x]\naddress = "a:b"\ncompress = "gzip"\n',
        '[peer.x]\naddress = "a:b"\nreuse = "no"\n',
    ):
        (here / ".p2psync" / "config.toml").write_text(text)
        assert "config.toml" in p2psync(here, "peer", "list", code=3).err


# -- addresses that are synced with


@pytest.mark.parametrize("spelling", ["path", "dotted", "file", "named"])
def test_every_spelling_of_a_local_address_is_understood(tmp_path: Path, spelling: str) -> None:
    here, there = replica(tmp_path / "here", {"x": "x"}), replica(tmp_path / "the re")
    if spelling == "named":
        p2psync(here, "peer", "add", "named", "../the re")
    file = there.as_uri()
    p2psync(
        here, "sync", {"path": str(there), "dotted": "./../the re", "file": file, "named": "named"}[spelling]
    )
    assert_same(here, there)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["me@host:notes"], "-- me@host|p2psync serve -- notes"),
        (["host:/abs/x"], "-- host|p2psync serve -- /abs/x"),
        (["ssh://me@host:2222/abs"], "-p 2222 -- me@host|p2psync serve -- /abs"),
        (["ssh://host/~/rel"], "-- host|p2psync serve -- rel"),
        (["host:x", "-p", "23"], "-p 23 -- host|p2psync serve -- x"),
        (["ssh://host:22/x", "-p", "23"], "-p 22 -- host|p2psync serve -- /x"),
        (["host:x", "--remote-command", "nice p2p"], "-- host|nice p2p serve -- x"),
        (["host:a b;c", "--create"], "-- host|p2psync serve --create -- 'a b;c'"),
        (["host:-x"], "-- host|p2psync serve -- -x"),
    ],
)
def test_ssh_is_asked_for_what_the_address_says(tmp_path: Path, arguments: list[str], asked: str) -> None:
    here = replica(tmp_path / "here")
    told = 'for last; do before="$all"; all="$all $last"; done; echo "$before|$last" > "$0.log"'
    write(tmp_path / "fake", f"#!/bin/sh\n{told}\nexit 255\n", mode=0o755)
    p2psync(here, "sync", "-e", f"{tmp_path}/fake", *arguments, code=5)
    assert (tmp_path / "fake.log").read_text() == f" -o BatchMode=yes {asked}\n"


@needs_any_name
def test_a_replica_whose_own_name_is_odd_can_do_everything(tmp_path: Path) -> None:
    names = (b"he\xffre\n\x1b[31m $(x) 'q\"", b"the\xffre\\\x07")
    here, there = (os.path.join(bytes(tmp_path), name) for name in names)
    said = p2psync(tmp_path, "init", here).out
    write(Path(os.fsdecode(here)) / "file", "x")
    said += p2psync(here, "sync", "--create", there).said
    said += p2psync(here, "status").said
    assert p2psync(here, "sync", "--json", there).json["peers"][0]["error"] is None
    assert_same(here, there)
    assert controls(said) == set()


@needs_any_name
def test_a_peer_of_an_odd_name_that_is_no_replica_is_told_of_as_any_other(tmp_path: Path) -> None:
    here = replica(tmp_path / "here")
    said = p2psync(here, "sync", os.path.join(bytes(tmp_path), b"the\xffre\n\x1b[31m"), code=3).said
    assert "--create" in said
    assert controls(said) == set()


@needs_any_name
def test_a_peer_of_an_odd_name_can_be_configured(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"file": "x"}), os.path.join(bytes(tmp_path), b"the\xffre\x07")
    os.mkdir(there)
    p2psync(tmp_path, "init", there)
    said = p2psync(here, "peer", "add", "odd", b"../the\xffre\x07").said
    said += p2psync(here, "sync").said + p2psync(here, "peer", "list").said + p2psync(here, "status").said
    assert_same(here, there)
    assert controls(said) == set()


def controls(said: str) -> set[str]:
    """Return the control characters and undecodable bytes in an output, but for those that lay out text."""
    return {char for char in said if not char.isprintable()} - {"\n", "\t"}


# -- status


def test_status_tells_what_changed_here_since_the_last_sync(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"edited": "1", "deleted": "1", "mode": "1", "touched": "1", "same": "1"})
    write(there / "from there", "x")
    p2psync(here, "sync", there)
    write(here / "edited", "2")
    (here / "deleted").unlink()
    (here / "mode").chmod(0o600)
    os.utime(here / "touched", ns=(LONG_AGO_NS, LONG_AGO_NS))
    write(here / "made", "x")
    changes = p2psync(here, "status", "--json").json["changes"]
    assert {change["path"]: change["action"] for change in changes} == {
        "edited": "update",
        "deleted": "delete",
        "mode": "mode",
        "touched": "touch",
        "made": "create",
    }


def test_status_tells_when_each_peer_was_in_step_and_how_far_behind_it_is(tmp_path: Path) -> None:
    here, one = replica(tmp_path / "here", {"a": "1"}), replica(tmp_path / "one")
    two = replica(tmp_path / "two")
    for peer in (one, two):
        p2psync(here, "peer", "add", peer.name, peer)
    p2psync(here, "sync", "one")
    write(here / "b", "1")
    peers = {peer["name"]: peer for peer in p2psync(here, "status", "--json").json["peers"]}
    assert (peers["one"]["behind"], peers["two"]["behind"]) == (1, 2)
    assert peers["one"]["synced_at"] is not None
    assert peers["two"]["synced_at"] is None
    said = p2psync(here, "status").out
    assert re.search(r"peer one +in step \d+ seconds? ago, 1 path behind", said)
    assert re.search(r"peer two +never in step, 2 paths behind", said)


def test_status_writes_nothing_and_needs_no_lock(tmp_path: Path) -> None:
    here, _ = pair(tmp_path, {"file": "x"})
    write(here / "new", "x")
    before = snapshot(here), manifest(here)
    with locked(here):
        assert "new" in p2psync(here, "status").out
    assert (snapshot(here), manifest(here)) == before


def test_status_of_a_replica_in_step_says_so(tmp_path: Path) -> None:
    here, _ = pair(tmp_path, {"file": "x"})
    assert "nothing changed here" in p2psync(here, "status").out


# -- output for people


@needs_any_name
def test_plain_output_holds_no_control_characters_whatever_the_names_hold(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    for name in (
        b"\x1b]0;title\x07",
        b"new\nline",
        b"\xff\xfe",
        "\N{RIGHT-TO-LEFT OVERRIDE}".encode(),
        b"\x9b31m",
    ):
        for root in (here, there):
            write(Path(os.fsdecode(os.path.join(bytes(root), name))), root.name)
        os.mkfifo(os.path.join(bytes(here), b"fifo " + name))
    said = p2psync(here, "status").said + p2psync(here, "sync", "-n", there, code=1).said
    said += p2psync(here, "sync", "-v", there, code=1).said
    assert controls(said) == set()
    assert "new\\nline" in said


def test_a_quiet_run_in_which_nothing_is_wrong_says_nothing(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"file": "x"})
    assert p2psync(here, "sync", "-q", there).said == ""
    write(here / "new", "x")
    os.mkfifo(here / "pipe")
    assert p2psync(here, "sync", "--quiet", there).said == ""


def test_a_quiet_run_still_tells_of_conflicts_and_errors(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"file": "1"}), replica(tmp_path / "there", {"file": "2"})
    assert "conflict: file" in p2psync(here, "sync", "-q", there, code=1).out
    assert "is not a replica" in p2psync(here, "sync", "-q", tmp_path / "none", code=3).err


def test_a_verbose_run_names_each_path_and_an_ordinary_one_counts_them(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"a": "1", "b": "1"}), replica(tmp_path / "there")
    assert "2 new on" in p2psync(here, "sync", there).out
    write(here / "a", "2")
    (here / "b").unlink()
    lines = [line.split() for line in p2psync(here, "sync", "-v", there).out.splitlines()]
    assert [str(there), "changed", "a"] in lines
    assert [str(there), "deleted", "b"] in lines


def test_a_reader_that_goes_away_gets_no_traceback(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {f"{number:0200}": "x" for number in range(500)})
    command = subprocess.Popen(
        [*COMMAND, "status"], cwd=here, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout and command.stderr
    command.stdout.close()
    with command, command.stderr as stderr:
        assert stderr.read() == b""


def test_a_failed_path_is_a_problem_and_the_rest_is_done(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"taken": "x", "other": "x"}), replica(tmp_path / "there")
    os.mkfifo(there / "taken")
    ran = p2psync(here, "sync", there, code=1)
    assert "problem: " in ran.err
    assert "taken" in ran.err
    assert "not in step" in ran.out
    assert contents(there) == {"other": b"x"}
    (there / "taken").unlink()
    p2psync(here, "sync", there)
    assert_same(here, there)


def test_of_many_problems_for_one_reason_the_first_are_told_and_a_count(tmp_path: Path) -> None:
    names = [f"taken {number}" for number in range(MANY_ALIKE + 3)]
    here, there = replica(tmp_path / "here", dict.fromkeys(names, "x")), replica(tmp_path / "there")
    for name in names:
        os.mkfifo(there / name)
    lines = p2psync(here, "sync", there, code=1).err.splitlines()
    told = [line for line in lines if ": problem: " in line]
    assert len(told) == MANY_ALIKE + 1
    assert told[-1] == told[0].replace("taken 0", "3 more paths")
    told_all = p2psync(here, "sync", "-v", there, code=1).err
    assert all(name in told_all for name in names)
    assert len(p2psync(here, "sync", "--json", there, code=1).json["problems"]) == len(names)


# -- on a terminal


@pytest.fixture
def slow_peer(tmp_path: Path) -> list[str]:
    """A peer that takes long enough to answer for the progress to be shown."""
    root = replica(tmp_path / "there")
    return [f"host:{root}", *fake_ssh(tmp_path, "sleep 0.5")]


def test_on_a_terminal_progress_goes_to_stderr_and_the_summary_to_stdout(
    tmp_path: Path, slow_peer: list[str]
) -> None:
    here = replica(tmp_path / "here", {"a": "x", "b": "x"})
    ran = on_terminal(here, "sync", *slow_peer)
    assert "scanning" in ran.err
    assert "2 new on" in ran.out
    assert controls(ran.out) <= {"\r"}
    assert_same(here, tmp_path / "there")


def test_on_a_terminal_a_quiet_or_json_run_shows_no_progress(tmp_path: Path, slow_peer: list[str]) -> None:
    here = replica(tmp_path / "here", {"a": "x", "b": "x"})
    assert on_terminal(here, "sync", "-q", *slow_peer).said == ""
    write(here / "a", "y")
    ran = on_terminal(here, "sync", "--json", *slow_peer)
    assert [step["path"] for step in json.loads(ran.out)["plan"]] == ["a"]
    assert ran.err == ""


def test_off_a_terminal_no_progress_is_shown(tmp_path: Path, slow_peer: list[str]) -> None:
    here = replica(tmp_path / "here", {"a": "x"})
    assert p2psync(here, "sync", *slow_peer).err == ""


def test_at_a_terminal_a_yes_makes_a_peer_a_replica(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"file": "x"})
    ran = on_terminal(here, "sync", tmp_path / "there", answer=b"y\n")
    assert "not a replica yet. Make it one?" in ran.said
    assert_same(here, tmp_path / "there")


@pytest.mark.parametrize("answer", [b"n\n", b"\n"])
def test_at_a_terminal_anything_else_leaves_it_alone(tmp_path: Path, answer: bytes) -> None:
    here = replica(tmp_path / "here", {"file": "x"})
    on_terminal(here, "sync", tmp_path / "there", answer=answer, code=3)
    assert not (tmp_path / "there").exists()


def test_a_control_c_at_the_question_is_an_interruption(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"file": "x"})
    on_terminal(here, "sync", tmp_path / "there", answer=b"\x04", code=130)
    assert not (tmp_path / "there").exists()


def test_a_known_peer_that_is_gone_is_not_even_asked_about(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here", {"file": "x"}), replica(tmp_path / "there")
    p2psync(here, "peer", "add", "disk", there)
    p2psync(here, "sync")
    there.rename(tmp_path / "unmounted")
    ran = on_terminal(here, "sync", answer=b"y\n", code=4)
    assert "Make it one" not in ran.said
    assert not there.exists()


# -- output for programs

KEYS = {"plan", "outcomes", "conflicts", "problems", "peers", "stats"}


@needs_any_name
def test_json_is_one_document_that_names_every_path_exactly(tmp_path: Path) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    names = [b"\xff\xfe", b"new\nline", b'quote"', b"\x1b", "\N{SNOWMAN}".encode()]
    for name in names:
        Path(os.fsdecode(os.path.join(bytes(here), name))).write_bytes(name)
    document = p2psync(here, "sync", "--json", there).json
    assert document.keys() >= KEYS
    assert sorted(os.fsencode(step["path"]) for step in document["plan"]) == sorted(names)
    assert [step["done"] for step in document["outcomes"]] == [True] * len(names)
    assert document["stats"]["exit_code"] == 0
    assert document["stats"]["copied"] == sum(map(len, names))


def test_json_tells_of_conflicts_and_problems(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"disputed": "1", "taken": "x"})
    there = replica(tmp_path / "there", {"disputed": "2"})
    os.mkfifo(there / "taken")
    ran = p2psync(here, "sync", "--json", there, code=1)
    (conflict,) = ran.json["conflicts"]
    assert (conflict["path"], conflict["resolution"]) == ("disputed", "set-aside")
    assert (here / conflict["copy"]).exists()
    assert [(problem["path"], problem["side"]) for problem in ran.json["problems"]] == [("taken", "peer")]
    assert {step["path"]: step["done"] for step in ran.json["outcomes"]}["taken"] is False
    assert ran.json["stats"]["exit_code"] == ran.code


def test_json_tells_of_each_peers_error(tmp_path: Path) -> None:
    here = replica(tmp_path / "here")
    ran = p2psync(here, "sync", "--json", tmp_path / "none", "host:x", "-e", "false", code=3)
    assert [(peer["exit_code"], bool(peer["error"])) for peer in ran.json["peers"]] == [(3, True), (5, True)]


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("locked", 6),
        ("no replica", 3),
        ("too new", 3),
        ("bad address", 2),
        ("no peer", 2),
    ],
)
def test_json_is_printed_even_when_nothing_can_be_done(tmp_path: Path, case: str, code: int) -> None:
    here, there = replica(tmp_path / "here"), replica(tmp_path / "there")
    at = tmp_path if case == "no replica" else here
    arguments = {"no peer": [], "bad address": ["ftp://x/y"]}.get(case, [str(there)])
    if case == "too new":
        with sqlite3.connect(here / ".p2psync/manifest.db") as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
    with locked(here if case == "locked" else there):
        ran = p2psync(at, "sync", "--lock-wait", "0", "--json", *arguments, code=code)
    assert ran.json.keys() >= KEYS
    assert ran.json["stats"]["exit_code"] == code


# -- serve


def test_serve_is_told_of_in_one_line_when_its_root_is_no_replica(tmp_path: Path) -> None:
    opening = b"p2psync\0\0\1\0"
    ran = p2psync(tmp_path, "serve", tmp_path / "none", stdin=opening, code=3)
    assert ran.out.startswith("p2psync\0")
    assert not (tmp_path / "none").exists()


def test_as_ssh_starts_it_serve_is_the_same_without_the_parser_of_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "p2psync", "serve"]
    loaded = []
    for number, options in enumerate((["--create", "--"], ["--create"])):
        root = tmp_path / str(number)
        ran = subprocess.run([*command, *options, str(root)], input=b"", capture_output=True, check=False)
        assert (ran.returncode, (root / ".p2psync").is_dir()) == (5, False), ran.stderr
        loaded.append(b"click" in ran.stderr)
    assert loaded == [False, True]


def test_serve_ends_when_nobody_speaks_to_it(tmp_path: Path) -> None:
    here = replica(tmp_path / "here")
    p2psync(here, "serve", here, stdin=b"", code=None)
