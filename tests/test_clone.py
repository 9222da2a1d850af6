"""A clone in one command, and peers that are renamed and tried out."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2psync import __version__
from tests.cli_support import assert_same, contents, on_terminal, p2psync, replica, write
from tests.sshd import Sshd


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return replica(tmp_path / "there", {"d/f": "1", "g": "2"})


def test_a_clone_has_all_and_goes_both_ways_from_then_on(tmp_path: Path, there: Path) -> None:
    p2psync(tmp_path, "clone", there, "here")
    here = tmp_path / "here"
    assert_same(here, there)
    assert p2psync(here, "peer", "list").out == f"origin\t{there}\n"
    write(here / "new", "3")
    p2psync(here, "sync")
    assert_same(here, there)


def test_it_is_called_as_what_it_is_a_clone_of(tmp_path: Path, there: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    p2psync(tmp_path / "elsewhere", "clone", "../there/", "--peer", "main", "-q")
    assert contents(tmp_path / "elsewhere/there") == {"d/f": b"1", "g": b"2"}
    assert p2psync(tmp_path / "elsewhere/there", "peer", "list", "--json").json["peers"][0]["name"] == "main"


def test_it_goes_over_ssh(tmp_path: Path, there: Path, sshd: Sshd) -> None:
    options = ["-e", sshd.ssh_command, "--remote-command", sshd.remote_command]
    p2psync(tmp_path, "clone", *options, f"{sshd.host}:{there}", "here")
    assert_same(tmp_path / "here", there)
    p2psync(tmp_path / "here", "sync")
    told = p2psync(tmp_path / "here", "peer", "test", "--json", "origin").json
    assert told["round_trip_seconds"] > 0 and told["up_bytes_per_second"] > 0


def test_a_clone_that_was_interrupted_is_carried_on(tmp_path: Path, there: Path) -> None:
    here = replica(tmp_path / "here")
    p2psync(here, "peer", "add", "origin", there)
    p2psync(tmp_path, "clone", there, here)
    assert_same(here, there)
    p2psync(tmp_path, "clone", there, here)


def test_a_clone_that_was_killed_as_it_began_is_made_by_the_same_command(tmp_path: Path, there: Path) -> None:
    write(tmp_path / "here" / ".p2psync" / "manifest.new", "half")
    p2psync(tmp_path, "clone", there, "here")
    assert_same(tmp_path / "here", there)


def test_what_is_there_is_not_mixed_with_a_clone(tmp_path: Path, there: Path) -> None:
    write(tmp_path / "full/mine", "1")
    assert "is not empty" in p2psync(tmp_path, "clone", there, "full", code=3).err
    assert contents(tmp_path / "full") == {"mine": b"1"}
    other = replica(tmp_path / "other")
    assert "is no peer of it" in p2psync(tmp_path, "clone", there, other, code=3).err
    assert contents(other) == {}


def test_of_what_is_no_replica_there_is_no_clone_unless_it_is_made_one(tmp_path: Path) -> None:
    write(tmp_path / "plain/f", "1")
    assert "--create" in p2psync(tmp_path, "clone", "plain", "here", code=3).err
    assert not (tmp_path / "here").exists()
    p2psync(tmp_path, "clone", "--create", "plain", "here")
    assert contents(tmp_path / "here") == {"f": b"1"}


def test_a_clone_of_a_host_that_does_not_answer_leaves_nothing(tmp_path: Path, there: Path) -> None:
    p2psync(tmp_path, "clone", "-e", "false", "host:there", "here", code=5)
    assert not (tmp_path / "here").exists()
    p2psync(tmp_path, "clone", there, "here")
    assert_same(tmp_path / "here", there)


@pytest.mark.parametrize("address", ["/", "host:", "."])
def test_an_address_that_names_no_folder_needs_a_directory(tmp_path: Path, address: str) -> None:
    assert p2psync(tmp_path, "clone", address, code=None).code in (2, 3)


# -- peers


def test_a_renamed_peer_keeps_its_settings_its_place_and_its_past(tmp_path: Path, there: Path) -> None:
    here = replica(tmp_path / "here")
    for name in ("a", "b", "c"):
        p2psync(here, "peer", "add", name, there if name == "b" else tmp_path / name, "-p", "7")
    config = here / ".p2psync/config.toml"
    config.write_text(f"# mine\n{config.read_text()}\n[history]\ndays = 3\n")
    p2psync(here, "sync", "b")
    p2psync(here, "peer", "rename", "b", "better")
    told = p2psync(here, "peer", "list", "--json").json["peers"]
    assert [one["name"] for one in told] == ["a", "better", "c"]
    assert told[1]["address"] == str(there) and told[1]["port"] == 7
    assert "# mine" in config.read_text() and "days = 3" in config.read_text()
    assert p2psync(here, "status", "--json").json["peers"][1]["synced_at"]


def test_peers_are_a_table_for_people_and_lines_for_scripts(tmp_path: Path) -> None:
    here = replica(tmp_path / "here")
    assert "peer add" in on_terminal(here, "peer", "list").out
    p2psync(here, "peer", "add", "a", "host:x")
    p2psync(here, "config", "set", "peer.a.mode", "push")
    assert p2psync(here, "peer", "list").out == "a\thost:x\n"
    lines = on_terminal(here, "peer", "list").out.splitlines()
    assert [line.split() for line in lines] == [["name", "mode", "address", "only"], ["a", "push", "host:x"]]


@pytest.mark.parametrize(
    ("names", "why"),
    [(("none", "x"), "no peer none"), (("a", "b"), "a peer b"), (("a", "x y"), "cannot name")],
)
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, names: tuple[str, str], why: str) -> None:
    here = replica(tmp_path / "here")
    for name in ("a", "b"):
        p2psync(here, "peer", "add", name, tmp_path / name)
    assert why in p2psync(here, "peer", "rename", *names, code=2).err


def test_a_peer_is_tried_out_and_nothing_is_left_there(tmp_path: Path, there: Path) -> None:
    here = replica(tmp_path / "here")
    p2psync(here, "peer", "add", "there", there)
    told = p2psync(here, "peer", "test", "there", "--json").json
    assert told["version"] == __version__
    assert abs(told["clock_ahead_seconds"]) < 60
    assert told["down_bytes_per_second"] > 1e6
    assert set(told["file_system"]) == {"case", "permissions", "symlinks", "nanoseconds", "any names"}
    text = p2psync(here, "peer", "test", there).out
    assert "round trip" in text and "throughput" in text and "clock        the same" in text
    assert not list((there / ".p2psync").glob("try*"))
    assert "no peer and no folder" in p2psync(here, "peer", "test", "nobody", code=2).err
