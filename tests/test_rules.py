"""Which ignore rule decides, adding one, and why a path is as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.rules import deciding
from tests.cli_support import p2psync, pair, replica, write

RULES = {
    ".p2pignore": "# comment\n\n*.tmp\n!keep.tmp\n/build/\n",
    "sub/.p2pignore": "*.log\r\n!*.tmp\n",
    ".p2psync/ignore": "private\n*.tmp\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A replica with ignore files."""
    return replica(tmp_path / "root", RULES)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("a.tmp", ".p2pignore:3:*.tmp"),
        ("keep.tmp", ".p2pignore:4:!keep.tmp"),
        ("build/deep/file", ".p2pignore:5:/build/"),
        ("sub/a.tmp", "sub/.p2pignore:2:!*.tmp"),
        ("sub/deep/a.log", "sub/.p2pignore:1:*.log"),
        ("private", ".p2psync/ignore:1:private"),
        ("file", "::"),
    ],
)
def test_the_line_that_decides_is_named(root: Path, path: str, told: str) -> None:
    ignored = not (told == "::" or "!" in told)
    ran = p2psync(root, "ignore", "--check", path, code=0 if ignored else 1)
    assert ran.out == f"{told}\t{path}\n"


NAMES = st.sampled_from(["a", "b", "a.x", "b.x", "d"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
LINES = st.sampled_from(["a", "*.x", "!a.x", "/d/", "d/a", "**/b", "# no", "", "d/*", "!d/b", "b ", "\\#"])


@pytest.mark.skipif(not shutil.which("git"), reason="git tells")
@settings(max_examples=40)
@given(
    top=st.lists(LINES, max_size=5),
    inner=st.lists(LINES, max_size=5),
    paths=st.lists(
        st.lists(NAMES, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8, unique=True
    ),
)
def test_it_is_the_line_that_git_names(
    tmp_path_factory: pytest.TempPathFactory, top: list[str], inner: list[str], paths: list[str]
) -> None:
    root = tmp_path_factory.mktemp("git")
    subprocess.run(["git", "init", "-q", root], check=True)
    (root / "d").mkdir()
    for folder, lines in ((root, top), (root / "d", inner)):
        for name in (".p2pignore", ".gitignore"):
            (folder / name).write_text("".join(f"{line}\n" for line in lines))
    told = subprocess.run(
        ["git", "-C", root, "check-ignore", "-v", "-n", "--no-index", *paths], capture_output=True, text=True
    ).stdout
    for line, path in zip(told.splitlines(), paths, strict=True):
        rule = deciding(os.fsencode(root), path.encode(), (root / path).is_dir())
        wanted = line.split("\t")[0].replace(".gitignore", ".p2pignore")
        found = f"{rule.file.decode()}:{rule.line}:{rule.pattern.decode()}" if rule else "::"
        assert found.rstrip() == wanted.rstrip(), path


def test_a_pattern_is_added_once_and_its_hits_are_told(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"a.tmp": "1", "d/b.tmp": "2", "d/c": "3", ".p2pignore": "old"})
    os.chmod(here / ".p2pignore", 0o600)
    assert "it hits 2 known paths" in p2psync(here / "d", "ignore", "*.tmp").out
    assert "it hits 3 known paths" in p2psync(here, "ignore", "--local", "d").out
    assert "no path that is known" in p2psync(here, "ignore", "nothing").out
    assert "already" in p2psync(here, "ignore", "*.tmp").out
    assert (here / ".p2pignore").read_text() == "old\n*.tmp\nnothing\n"
    assert (here / ".p2pignore").stat().st_mode & 0o777 == 0o600
    assert (here / ".p2psync/ignore").read_text() == "d\n"
    listed = p2psync(here, "ignore").out.splitlines()
    assert listed == [".p2pignore:1:old", ".p2pignore:2:*.tmp", ".p2pignore:3:nothing", ".p2psync/ignore:1:d"]
    p2psync(here, "sync", there)
    assert (there / "a.tmp").exists()


@pytest.mark.parametrize("arguments", [["ignore", ""], ["ignore", "a\nb"], ["ignore", "--check"]])
def test_what_can_be_no_pattern_is_refused(root: Path, arguments: list[str]) -> None:
    p2psync(root, *arguments, code=2)


def test_a_link_to_an_ignore_file_is_not_written_through(tmp_path: Path) -> None:
    """Its rules would not count: a file that is a link is synced as one."""
    here = replica(tmp_path / "here", {"rules": "a\n"})
    (here / ".p2pignore").symlink_to("rules")
    assert "is a link" in p2psync(here, "ignore", "*.tmp", code=3).err
    assert (here / "rules").read_text() == "a\n"
    assert (here / ".p2pignore").is_symlink()


def test_why_tells_rule_versions_and_the_next_sync(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"f": "1\n", "both": "1\n", "gone": "x"})
    p2psync(here, "peer", "add", "there", there)
    assert "next sync with there: nothing, it is in step" in p2psync(here, "why", "f").out
    write(here / "f", "2\n")
    write(here / "both", "ours\n")
    write(there / "both", "theirs\n")
    (there / "gone").unlink()
    before = sorted(os.listdir(here))
    assert "next sync with there: changed on there" in p2psync(here, "why", "f").out
    assert "conflict: both: the other version is set aside" in p2psync(here, "why", "both").out
    assert "deleted here" in p2psync(here, "why", "gone").out
    assert "nothing is there now" in p2psync(here, "why", "new").out
    write(here / "new", "")
    assert "no sync has met it yet" in p2psync(here, "why", "new").out
    assert "next sync" not in p2psync(here, "why", "--offline", "f").out
    assert sorted(os.listdir(here)) == [*before, "new"]
    p2psync(here, "ignore", "f")
    told = p2psync(here, "why", "--json", "f").json
    assert told["rule"] == {
        "file": ".p2pignore",
        "line": 1,
        "pattern": "f",
        "ignored": True,
        "about": "f",
    }
    assert told["next"] == [] and len(told["versions"]) == 1


@pytest.mark.parametrize("where", ["here", "everywhere"])
def test_what_was_removed_here_while_it_was_ignored_comes_back_when_the_rule_goes(
    tmp_path: Path, where: str
) -> None:
    here, there = pair(tmp_path, {"photos/2024/one": "1", "photos/two": "2", "notes/three": "3"})
    p2psync(here, "ignore", *(["--local"] if where == "here" else []), "photos")
    p2psync(here, "sync", there)
    shutil.rmtree(here / "photos")
    p2psync(here, "sync", there)
    rules = here / (".p2psync/ignore" if where == "here" else ".p2pignore")
    rules.write_text("")
    p2psync(here, "sync", there)
    assert (
        (here / "photos" / "2024" / "one").read_text()
        == (there / "photos" / "2024" / "one").read_text()
        == "1"
    )
    assert (here / "photos" / "two").read_text() == "2"
    shutil.rmtree(here / "photos")
    p2psync(here, "sync", there)
    assert not (there / "photos").exists()
