"""Every command, wherever it is typed and however wrongly, answers with sense and never with a traceback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from p2psync.__main__ import UNREAD
from p2psync.cli import cli
from tests.cli_support import COMMAND, environment, p2psync, pair, write
from tests.support import not_as_root


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*words, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


ALL = list(commands(cli))
STAYS = {("serve",), ("watch",), ("config", "edit")}
"""Those that wait for something."""
ANYWHERE = {("init",), ("clone",), ("completion",), ("config",), ("config", "list"), ("config", "get")}
"""Those that need no replica."""
POOR = {"LC_ALL": "C", "TERM": "dumb", "COLUMNS": "40", "PYTHONUTF8": "0"}
every = pytest.mark.parametrize("words", ALL, ids=" ".join)
ENDS = {0, 1, 2, 3, 4, 5, 6}


@every
def test_help_fits_a_narrow_terminal_and_names_the_exit_codes(tmp_path: Path, words: tuple[str, ...]) -> None:
    told = p2psync(tmp_path, *words, "--help", env=POOR).out
    assert told.startswith("Usage: p2psync " + " ".join(words))
    assert "Exit codes" in told.replace("\n", " ")


@every
def test_without_arguments_outside_a_replica(tmp_path: Path, words: tuple[str, ...]) -> None:
    ran = p2psync(tmp_path, *words, code=None, env=POOR)
    assert ran.code in ENDS
    if words not in ANYWHERE and len(ran.err) < 1000 and "Usage" not in ran.err + ran.out:
        assert "is not in a replica" in ran.err or "Missing argument" in ran.err, ran


@every
def test_a_wrong_option_is_wrong_usage(tmp_path: Path, words: tuple[str, ...]) -> None:
    ran = p2psync(tmp_path, *words, "--no-such-option", code=2, env=POOR)
    assert "--no-such-option" in ran.err


@pytest.mark.parametrize(("limit", "told"), [("-n 40", "no more than 40 files"), ("-Sn 14", "")])
def test_too_few_open_files_are_told_of_where_more_are_not_allowed(
    tmp_path: Path, limit: str, told: str
) -> None:
    here, there = pair(tmp_path)
    write(here / "a/file", "a")
    limited = ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *COMMAND, "sync", str(there)]
    ran = subprocess.run(limited, cwd=here, env=environment(), capture_output=True, text=True, check=False)
    assert told in ran.stderr
    assert ran.returncode == (3 if told else 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replica with a peer, a conflict, and names that not every terminal can show."""
    folder = tmp_path_factory.mktemp("every")
    here, there = pair(folder, {"f": "1\n", "caf\N{LATIN SMALL LETTER E WITH ACUTE}": "2"})
    p2psync(here, "peer", "add", "there", there)
    write(here / "f", "ours\n")
    write(there / "f", "theirs\n")
    p2psync(here, "sync", code=1)
    write(here / "new", "3\n")
    return here


SENSIBLE: dict[str, list[str]] = {
    "diff": [],
    "why": ["f"],
    "show": ["f"],
    "restore": ["-n", "f"],
    "undo": ["-n"],
    "resolve": ["-n", "--all", "--keep", "ours"],
    "ignore": ["--check", "f"],
    "peer test": ["there"],
    "config get": ["history.days"],
    "completion": ["bash"],
    "clone": ["."],
    "peer rename": ["there", "there"],
    "peer remove": ["nobody"],
    "service install": ["--help"],
    "service uninstall": ["--help"],
}
SAFE = [words for words in ALL if words not in STAYS]


@pytest.mark.parametrize("words", SAFE, ids=" ".join)
def test_a_reader_that_goes_away_is_no_trouble(root: Path, words: tuple[str, ...]) -> None:
    """As with `| head -1`."""
    arguments = [*COMMAND, *words, *SENSIBLE.get(" ".join(words), [])]
    source, target = os.pipe()
    os.close(source)
    with open(target, "wb") as closed:
        ran = subprocess.run(
            arguments,
            cwd=root,
            env=environment(POOR),
            stdin=subprocess.DEVNULL,
            stdout=closed,
            stderr=subprocess.PIPE,
        )
    assert b"Traceback" not in ran.stderr and b"Exception" not in ran.stderr, ran.stderr
    assert ran.returncode in (*ENDS, UNREAD)


@pytest.mark.parametrize("words", [("log",), ("log", "--help"), ("nonsense",), ("show", "f@nothing")])
def test_who_is_not_read_to_the_end_ends_like_any_other_command(root: Path, words: tuple[str, ...]) -> None:
    source, target = os.pipe()
    os.close(source)
    with open(target, "wb") as closed:
        ran = subprocess.run([*COMMAND, *words], cwd=root, env=environment(), stdout=closed, stderr=closed)
    assert ran.returncode == UNREAD


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is full")
def test_a_disk_that_is_full_is_told_of(root: Path) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [*COMMAND, "log"], cwd=root, env=environment(), stdout=full, stderr=subprocess.PIPE
        )
    assert ran.returncode == 3
    assert ran.stderr.count(b"\n") == 1 and b"No space left" in ran.stderr


@pytest.mark.parametrize("words", SAFE, ids=" ".join)
def test_a_poor_terminal_gets_words_that_it_can_show(root: Path, words: tuple[str, ...]) -> None:
    ran = p2psync(root, *words, *SENSIBLE.get(" ".join(words), []), code=None, env=POOR)
    assert ran.code in ENDS
    assert ran.out.isascii() or words in (("show",), ("diff",))


@not_as_root
@pytest.mark.parametrize("words", SAFE, ids=" ".join)
def test_on_a_replica_that_cannot_be_written_to(root: Path, words: tuple[str, ...]) -> None:
    sidecar = root / ".p2psync"
    sidecar.chmod(0o500)
    try:
        ran = p2psync(root, *words, *SENSIBLE.get(" ".join(words), []), code=None)
    finally:
        sidecar.chmod(0o700)
    assert ran.code in ENDS
    assert ran.code in (0, 1, 2) or ran.err.startswith("p2psync: error: ")
