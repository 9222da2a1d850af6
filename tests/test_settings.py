"""Settings: which value counts, what is wrong with a file, and commands that change one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from p2psync.settings import PEER, SETTINGS, Value, load
from tests.cli_support import assert_same, contents, copies, p2psync, pair, replica, write


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A replica; the user has settings of their own below it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    return replica(tmp_path / "root")


def config(root: Path, text: str) -> None:
    (root / ".p2psync/config.toml").write_text(text)


def user(root: Path, text: str) -> None:
    write(root.parent / "user/p2psync/config.toml", text)


def of_user(root: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(root.parent / "user")}


def test_settings_that_are_a_fifo_are_named_and_not_waited_for(root: Path) -> None:
    os.mkfifo(root / ".p2psync/config.toml")
    told = p2psync(root, "status", code=3).err
    assert "config.toml: it is a fifo" in told


def test_the_replica_counts_before_the_user_and_the_environment_before_both(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(root / ".p2psync/config.toml")
    user_file = str(root.parent / "user/p2psync/config.toml")
    place = os.fsencode(root)
    assert load(place).values["history.days"] == Value(30.0, "default")
    user(root, "[history]\ndays = 1\npercent = 1\n[sync]\nprefer = 'newest'\n")
    assert load(place).values["history.days"] == Value(1, user_file)
    assert load(None)["sync.prefer"] == "newest"
    config(root, "[history]\ndays = 2\n")
    assert load(place).values["history.days"] == Value(2, file)
    assert load(place).values["history.percent"] == Value(1, user_file)
    monkeypatch.setenv("P2PSYNC_HISTORY_DAYS", "3")
    monkeypatch.setenv("P2PSYNC_CONNECTION_SSH_COMMAND", "myssh -v")
    monkeypatch.setenv("P2PSYNC_CONNECTION_REUSE", "no")
    assert load(place).values["history.days"] == Value(3.0, "P2PSYNC_HISTORY_DAYS")
    assert load(place)["connection.ssh-command"] == "myssh -v"
    assert load(place)["connection.reuse"] is False


def test_a_flag_counts_before_all(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"f": "1"})
    config(here, "[sync]\nprefer = 'peer'\n")
    for flag, wanted in ((["--prefer", "local"], b"here"), ([], b"there")):
        write(here / "f", "here")
        write(there / "f", "there")
        p2psync(here, "sync", *flag, there)
        assert contents(here) == {"f": wanted}


def test_what_is_set_for_all_connections_counts_for_a_peer_that_says_nothing(tmp_path: Path) -> None:
    here = replica(tmp_path / "here")
    p2psync(here, "peer", "add", "a", "host:a", "-p", "22")
    p2psync(here, "peer", "add", "b", "host:b")
    with (here / ".p2psync/config.toml").open("a") as file:
        file.write("[connection]\nport = 2222\ncompress = 'on'\n")
    told = p2psync(here, "peer", "list", "--json").json["peers"]
    assert [(one["port"], one["compress"]) for one in told] == [(22, "on"), (2222, "on")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[history]\n\ndys = 3\n", ":3: [history]: there is no setting 'dys'; did you mean 'days'?"),
        ("[hitsory]\ndays = 3\n", ":1: there is no setting 'hitsory'; did you mean 'history'?"),
        (
            "# x\n[peer.a]\naddress = '/x'\nprot = 3\n",
            ":4: [peer.a]: there is no setting 'prot'; did you mean 'port'?",
        ),
        ("[peer.a]\nport = 3\n", ":1: [peer.a] has no address"),
        ("[peer.a]\naddress = '/x'\nmode = 'up'\n", ":3: [peer.a]: mode = 'up' makes no sense"),
        ("[peer.a]\naddress = '/x'\npaths = 'x'\n", ":3: [peer.a]: paths should be a list of texts"),
        ("[sync]\nprefer = 'me'\n", ":2: [sync]: prefer = 'me' makes no sense"),
        ("[sync]\nlock-wait = true\n", ":2: [sync]: lock-wait should be a number, not True"),
        ("[ui]\ncolor = 'red'\n", "it is one of auto, always, never"),
        ("[history]\npercent = 101\n", "from 0 to 100"),
        ("[conflicts]\n'*.bak' = 'skip'\n", ":2: [conflicts]: '*.bak' = 'skip' makes no sense"),
        ("[merge]\n'*.log' = 3\n", "should be a text"),
        ("history = 3\n", "history is no table"),
        ("[peer.a\n", "cannot read"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(root: Path, text: str, why: str) -> None:
    config(root, text)
    ran = p2psync(root, "sync", code=3)
    assert f"{root}/.p2psync/config.toml" in ran.err and why in ran.err
    assert why in p2psync(root, "config", "list", code=3).err


def test_a_wrong_variable_is_told_of(root: Path) -> None:
    ran = p2psync(root, "sync", env={"P2PSYNC_HISTORY_DAYS": "many"}, code=3)
    assert "P2PSYNC_HISTORY_DAYS: 'many' makes no sense for history.days" in ran.err


# -- the commands


def test_a_variable_that_is_none_is_told_of_and_those_that_are_for_others_are_not(root: Path) -> None:
    wrong = {"P2PSYNC_SYNC_LOCK_WIAT": "3"}
    assert "did you mean 'P2PSYNC_SYNC_LOCK_WAIT'" in p2psync(root, "config", "list", env=wrong, code=3).err
    p2psync(root, "config", "list", env={"P2PSYNC_HOME": "x", "P2PSYNC_SSH": "ssh", "P2PSYNC_UI_COLOR": ""})


def test_a_setting_is_set_where_comments_stay_and_taken_back(root: Path) -> None:
    config(root, "# mine\n[history]\ndays = 3 # three\n")
    p2psync(root, "config", "set", "history.percent", "5")
    p2psync(root, "config", "set", "ui.color", "never")
    p2psync(root, "config", "set", "merge.*.log", "union")
    text = (root / ".p2psync/config.toml").read_text()
    assert text.startswith("# mine\n[history]\ndays = 3 # three\npercent = 5.0\n")
    assert p2psync(root, "config", "get", "history.percent").out == "5\n"
    assert p2psync(root, "config", "get", "merge.*.log").out == "union\n"
    p2psync(root, "config", "unset", "history.percent")
    p2psync(root, "config", "unset", "history.percent", code=1)
    assert p2psync(root, "config", "get", "history.percent").out == "10\n"
    p2psync(root, "config", "get", "connection.port", code=1)


def test_settings_of_the_user_count_for_all_replicas(root: Path, tmp_path: Path) -> None:
    p2psync(tmp_path, "config", "set", "--user", "history.days", "7", env=of_user(root))
    assert p2psync(root, "config", "get", "history.days", env=of_user(root)).out == "7\n"
    listed = p2psync(root, "config", "list", "--json", env=of_user(root)).json
    assert listed["history.days"] == {"value": 7.0, "origin": f"{tmp_path}/user/p2psync/config.toml"}
    assert set(SETTINGS) <= set(listed)
    assert "history.percent" in p2psync(root, "config", "list").out


def test_a_file_of_settings_that_is_kept_elsewhere_stays_a_link(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "dotfiles/p2psync.toml", "# mine\n")
    (tmp_path / "user/p2psync").mkdir(parents=True)
    (tmp_path / "user/p2psync/config.toml").symlink_to(tmp_path / "dotfiles/p2psync.toml")
    p2psync(root, "config", "set", "--user", "history.days", "7", env=of_user(root))
    assert (tmp_path / "user/p2psync/config.toml").is_symlink()
    assert (tmp_path / "dotfiles/p2psync.toml").read_text() == "# mine\n\n[history]\ndays = 7.0\n"


def test_a_peer_is_set_up_and_one_that_is_not_there_is_not_made(root: Path) -> None:
    p2psync(root, "peer", "add", "a", "host:a")
    for key, value in (("mode", "push"), ("paths", "x,y"), ("reuse", "false"), ("port", "7")):
        p2psync(root, "config", "set", f"peer.a.{key}", value)
    (told,) = p2psync(root, "peer", "list", "--json").json["peers"]
    assert (told["mode"], told["paths"], told["reuse"], told["port"]) == ("push", ["x", "y"], False, 7)
    assert "peer add" in p2psync(root, "config", "set", "peer.b.mode", "push", code=2).err


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("history.dys", "3", "did you mean 'history.days'"),
        ("days", "3", "did you mean 'history.days'"),
        ("peer.a.mod", "push", "did you mean 'mode'"),
        ("history.days", "x", "makes no sense"),
        ("connection.reuse", "perhaps", "neither true nor false"),
        ("connection.port", "99999", "from 1 to 65535"),
        ("conflicts.*", "skip", "it is one of"),
        ("", "x", "there is no setting"),
    ],
)
def test_what_can_be_no_setting_is_refused(root: Path, name: str, value: str, why: str) -> None:
    assert why in p2psync(root, "config", "set", name, value, code=2).err
    assert not (root / ".p2psync/config.toml").exists()


def test_the_file_is_edited_and_checked(root: Path) -> None:
    editor = root.parent / "editor"
    editor.write_text("#!/bin/sh\necho '[history]\ndys = 3' > \"$1\"\n")
    editor.chmod(0o755)
    assert "did you mean 'days'" in p2psync(root, "config", "edit", env={"EDITOR": str(editor)}, code=3).err


def test_every_setting_has_a_help_and_a_default_that_makes_sense() -> None:
    for setting in (*SETTINGS.values(), *PEER.values()):
        assert setting.help
        if setting.default is not None:
            setting.check(setting.default)


# -- rules by pattern


def disputed(here: Path, there: Path, name: str, ours: str, theirs: str) -> None:
    write(here / name, ours)
    write(there / name, theirs)


def test_texts_are_merged_as_their_names_say(tmp_path: Path) -> None:
    command = f"{sys.executable} {tmp_path}/driver"
    write(tmp_path / "driver", "import sys; print(*[open(f).read().strip() for f in sys.argv[1:]])")
    names = ["a.log", "d/b.log", "c.txt", "d.bin", "e.own", "f.fails"]
    here, there = pair(tmp_path, dict.fromkeys(names, "base\n"))
    config(
        here, f"[merge]\n'*.log' = 'union'\n'*.bin' = 'binary'\n'*.own' = '{command}'\n'*.fails' = 'false'\n"
    )
    for name in names:
        disputed(here, there, name, "base\nours\n", "base\ntheirs\n")
    p2psync(here, "sync", there, code=1)
    assert_same(here, there)
    assert contents(here)["a.log"] == contents(here)["d/b.log"] == b"base\nours\ntheirs\n"
    assert contents(here)["e.own"] == b"base base\nours base\ntheirs\n"
    assert sorted(copy.name[:1] for copy in copies(here) if "history" not in str(copy)) == ["c", "d", "f"]


def test_conflicts_end_as_their_names_say(tmp_path: Path) -> None:
    names = ["a.bak", "keep/a", "b"]
    here, there = pair(tmp_path, dict.fromkeys(names, "base"))
    config(here, "[conflicts]\n'*.bak' = 'local'\n'/keep' = 'peer'\n")
    for name in names:
        disputed(here, there, name, "ours", "theirs")
    p2psync(here, "sync", there, code=1)
    assert contents(here)["a.bak"] == b"ours" and contents(here)["keep/a"] == b"theirs"
    assert len(contents(here)) == 4


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        ("/no/such/driver", "cannot run the merge driver /no/such/driver"),
        ('sh "x', "cannot be split"),
        ("true", ""),
        ("head -c 17000000 /dev/zero", ""),
    ],
)
def test_a_driver_that_does_not_merge_leaves_a_conflict_and_stops_nothing_else(
    tmp_path: Path, driver: str, why: str
) -> None:
    here, there = pair(tmp_path, {"f": "base\n"})
    config(here, f"[merge]\n'f' = '{driver}'\n")
    disputed(here, there, "f", "ours\n", "theirs\n")
    write(here / "other", "1")
    assert why in p2psync(here, "sync", there, code=1).err
    assert contents(there)["other"] == b"1"
    assert {b"ours\n", b"theirs\n"} <= set(contents(there).values())


def test_flags_count_before_the_settings_of_a_peer_and_its_address_is_its_name(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"f": "base", "d/g": "base"})
    p2psync(here, "peer", "add", "there", there)
    p2psync(here, "config", "set", "peer.there.mode", "push")
    p2psync(here, "config", "set", "peer.there.paths", "./d/")
    p2psync(here, "config", "set", "conflicts.*", "local")
    write(there / "d/g", "theirs")
    write(here / "f", "ours")
    p2psync(here, "sync", there)
    assert (contents(here)["d/g"], contents(there)["f"]) == (b"base", b"base")
    p2psync(here, "sync", "--mode", "two-way")
    assert (contents(here)["d/g"], contents(there)["f"]) == (b"theirs", b"base")
    write(there / "f", "theirs")
    p2psync(here, "sync", "--mode", "two-way", "--path", ".", "--prefer", "both", code=1)
    assert len([name for name in contents(here) if "sync-conflict" in name]) == 1


def test_a_peer_of_the_user_is_changed_where_it_is(root: Path) -> None:
    user(root, "[peer.a]\naddress = 'host:a'\n")
    assert "for all replicas" in p2psync(root, "peer", "remove", "a", env=of_user(root), code=2).err
    assert "for all replicas" in p2psync(root, "peer", "rename", "a", "b", env=of_user(root), code=2).err


# -- near misses


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["snyc"], "did you mean 'sync'"),
        (["peer", "lst"], "did you mean 'list'"),
        (["sync", "--exlude", "x"], "--exclude"),
        (["config", "ste"], "did you mean 'set'"),
        (["xyzzy"], "known are"),
    ],
)
def test_a_near_miss_is_told_what_was_probably_meant(root: Path, arguments: list[str], why: str) -> None:
    assert why in p2psync(root, *arguments, code=2).err


def test_where_an_error_came_from_is_shown_only_if_asked_for(root: Path) -> None:
    config(root, "[peer.a\n")
    assert p2psync(root, "sync", code=3).err.count("\n") == 1
