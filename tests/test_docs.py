"""What is written tells the truth: pages, completions and README name every command and option."""

from __future__ import annotations

import html
import importlib.util
import itertools
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import click
import msgspec
import pytest

from p2psync import calls, facts, settings, wire
from p2psync.cli import cli
from p2psync.core import model
from p2psync.core import replica as values
from tests import tour
from tests.cli_support import DEADLINE, p2psync, replica

REPOSITORY = Path(__file__).resolve().parents[1]
MAN, COMPLETIONS = REPOSITORY / "man", REPOSITORY / "completions"
PAGES = sorted(MAN.glob("man?/*"))


def made_by(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"make_{file.parent.name}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_command_and_option_has_its_place_in_the_manual() -> None:
    for path, text in made_by(MAN / "make.py").pages().items():
        assert (MAN / path).read_text() == text, "run man/make.py"
    assert len(PAGES) >= 25


def test_every_command_and_option_is_in_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    assert made_by(MAN / "make.py").readme(text) == text, "run man/make.py"
    for option in ("sync", "--one-file-system", "resolve", "--keep", "config set"):
        assert option in text


def test_every_command_and_option_is_completed() -> None:
    for file, text in made_by(COMPLETIONS / "make.py").scripts().items():
        assert (COMPLETIONS / file).read_text() == text, "run completions/make.py"


def options_of_commands() -> dict[str, set[str]]:
    """Return the options of every command, by its words: `peer add`; of p2psync itself, by none."""
    found = {}

    def walk(words: list[str], command: click.Command) -> None:
        context = click.Context(command, **cli.context_settings)
        found[" ".join(words)] = {
            name
            for one in command.get_params(context)
            if isinstance(one, click.Option) and not one.hidden
            for name in (*one.opts, *one.secondary_opts)
        }
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                if inner is not None and not inner.hidden:
                    walk([*words, name], inner)

    walk([], cli)
    return found


def in_pages() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for page in MAN.glob("man1/*"):
        command = page.stem.removeprefix("p2psync").removeprefix("-")
        text = page.read_text().replace("\\-", "-")
        found[command] = set()
        for line in text.splitlines():
            if line.startswith(".SS p2psync "):
                command = line.removeprefix(".SS p2psync ")
                found[command] = set()
            elif line.startswith(".SH OPTIONS"):
                command = page.stem.removeprefix("p2psync").removeprefix("-")
            elif line.startswith("\\fB-"):
                found[command].update(re.findall(r"\\fB(-[-\w]+)\\fR", line))
    return found


def in_readme() -> dict[str, set[str]]:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    listed = text.partition("<!-- commands -->")[2].partition("<!-- end of commands -->")[0]
    found = {}
    for line in re.sub(r"\n +", " ", listed).splitlines():
        words = line.split(" ")
        if words[0] == "p2psync":
            command = " ".join(itertools.takewhile(lambda word: re.fullmatch("[a-z]+", word), words[1:]))
            names = {name for word in words if word.startswith("-") for name in word.split("/")}
            found[command] = names | {"-h", "--help"}  # of all commands
    return found


def in_bash() -> dict[str, set[str]]:
    text = (COMPLETIONS / "p2psync.bash").read_text()
    return {
        command: set(options.split())
        for command, options in re.findall(r"^ +'([a-z ]*)'\) local options='([^']*)'", text, re.MULTILINE)
    }


def in_zsh() -> dict[str, set[str]]:
    text = (COMPLETIONS / "_p2psync").read_text()
    main, _, rest = text.rpartition("_p2psync() {\n")[2].partition("_p2psync_command() {")
    parts = re.split(r"^    '([a-z ]+)'\)$", rest, flags=re.MULTILINE)[1:]
    found = {"": main} | dict(zip(parts[::2], parts[1::2], strict=True))
    return {
        command: {name for names in re.findall(r"'\*'?\{?(-[-\w,]+)", body) for name in names.split(",")}
        for command, body in found.items()
    }


def in_fish() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"": set()}
    text = (COMPLETIONS / "p2psync.fish").read_text()
    line_of = r"^complete -c p2psync -n '?__p2psync_is ?([a-z ]*?)'? (-[sla] .*?)$"
    for command, rest in re.findall(line_of, text, re.MULTILINE):
        names = found.setdefault(command, set())
        for kind, name in re.findall(r"(?<!\S)-([sla]) ([-\w]+)", rest.partition(" -d ")[0]):
            if kind == "a" and f"-a {name} -d" in f"{rest} ":
                found.setdefault(f"{command} {name}".strip(), set())
            elif kind != "a":
                names.add(f"--{name}" if kind == "l" else f"-{name}")
    return found


@pytest.mark.parametrize("place", [in_pages, in_readme, in_bash, in_zsh, in_fish])
def test_just_the_commands_and_options_that_there_are_are_written_down(
    place: Callable[[], dict[str, set[str]]],
) -> None:
    """As the files are, whatever made them."""
    assert place() == options_of_commands()


def test_the_pictures_show_what_the_tour_tells() -> None:
    told = [*tour.steps(tour.README.read_text("utf-8"))]
    for name, command in made_by(MAN / "pictures.py").PICTURES.items():
        output = next(step.output for step in told if step.command == command)
        svg = (MAN / "pictures" / f"{name}.svg").read_text("utf-8")
        shown = "".join(html.unescape(text) for text in re.findall("<text[^>]*>([^<]*)</text>", svg))
        assert "".join(shown.split()).endswith("".join(f"${command}{output}".split())), "run man/pictures.py"


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc judges")
def test_pages_are_clean() -> None:
    judged = subprocess.run(["mandoc", "-Tlint", "-Wwarning", *PAGES], capture_output=True, text=True)
    assert judged.stdout + judged.stderr == ""


@pytest.mark.skipif(not shutil.which("groff"), reason="groff judges")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_man_shows_each_page_without_a_warning(page: Path) -> None:
    shown = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", page],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert shown.stderr == ""


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".1"], ids=lambda page: page.name)
def test_a_command_is_told_in_prose_and_by_example(page: Path) -> None:
    parts = dict(re.findall(r"^\.SH (.*)\n((?:(?!\.SH ).*\n)*)", page.read_text(), re.MULTILINE))
    assert {"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"} <= {*parts}
    assert len(parts["DESCRIPTION"]) > 200
    assert ".EX" in parts["EXAMPLES"]
    text = page.read_text()
    for odd in ("INTEGER", "FLOAT", "TEXT", "<=x", "x>="):
        assert odd not in text
    known = {f"{one.stem}({one.suffix[1:]})" for one in PAGES}
    named = re.findall(r"\\fB(p2psync[\w\\-]*)\\fR(\(\d\))", text)
    assert {name.replace("\\", "") + section for name, section in named} <= known


def test_every_key_of_json_is_told(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"letter.txt": "a", "b": "1"})
    p2psync(here, "sync", "--create", str(tmp_path / "there"))
    p2psync(here, "peer", "add", "there", str(tmp_path / "there"))
    for side in ("here", "there"):
        (tmp_path / side / "letter.txt").write_text(side)
    documents = [p2psync(here, "sync", *how, "--json", code=1) for how in (["-n"], [])]
    (tmp_path / "there" / "b").write_text("2")
    for command in (
        *("status", "log", "log letter.txt", "conflicts", "diff", "why letter.txt", "fsck", "peer list"),
        *("peer test there", "undo -n", "restore -n letter.txt", "resolve -n --all --keep ours"),
    ):
        documents.append(p2psync(here, *command.split(), "--json", code=command == "conflicts"))
    words = set(re.findall(r"\w+", (MAN / "man5/p2psync-json.5").read_text()))
    found = set[str]()
    for document in documents:
        found |= set(keys(json.loads(document.out)))
    told_elsewhere = {*settings.PEER, *(key.replace("-", "_") for key in settings.PEER), *DISK}
    assert found - told_elsewhere <= words
    assert {"set_aside", "left_out", "round_trip_seconds", "differences"} <= found


def keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys(inner)


DISK = {"case", "permissions", "symlinks", "nanoseconds", "any names"}
"""Keys of what a file system can do: words for people."""


def fields(kind: type) -> str:
    """Return the names of what a message or a value holds, in the order in which it travels."""
    names = [one.name for one in msgspec.structs.fields(kind)] if issubclass(kind, msgspec.Struct) else None
    return ", ".join(names if names is not None else kind._fields)  # type: ignore[attr-defined]


def test_the_protocol_is_told_in_full() -> None:
    page = (MAN / "man7/p2psync-protocol.7").read_text()
    told = re.findall(r"^\.B (\w+\(.*\))$", page, re.MULTILINE)
    assert sorted(told) == sorted(f"{call.__name__}({fields(call)})" for call in get_args(calls.AnyCall))
    told = re.findall(r"^\.B (\w+\[.*\])$", page, re.MULTILINE)
    known = [facts.Facts, model.Entry, model.Problem, model.Transition, *vars(values).values()]
    travel = {kind for kind in known if isinstance(kind, type) and kind.__module__ in MODULES} - INSIDE
    assert sorted(told) == sorted(f"{kind.__name__}[{fields(kind)}]" for kind in travel)
    assert f"protocol {wire.PROTOCOL}," in page
    words = set(re.findall(r"[\w-]+", page.replace("\\-", "-")))
    assert set(calls.FAILURES) <= words
    assert set(model.Resolution) <= words


MODULES = {"p2psync.facts", "p2psync.core.model", "p2psync.core.replica"}
INSIDE = {values.Replica, values.Home, values.More}
"""What does not travel as an array."""


def test_the_tour_of_the_readme_goes_as_it_is_told(tmp_path: Path) -> None:
    home = tmp_path / "ann"
    home.mkdir()
    told = list(tour.steps(tour.README.read_text("utf-8")))
    found = tour.run(home, [step.command for step in told])
    assert len(told) > 20
    for step, printed in zip(told, found, strict=True):
        assert blanks(tour.plain(printed, home)) == blanks(step.output), step.command


def blanks(text: str) -> str:
    """Make one blank of many: what is not the same each time has not the same width either."""
    return re.sub(" +", " ", text)


# -- completion in real shells


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A replica with a peer, a run and a folder."""
    root = replica(tmp_path / "root", {"sub/file": "1", "letter.txt": "2"})
    p2psync(root, "peer", "add", "laptop", "host:x")
    (root / ".p2psync/history/20261126-101010").mkdir(parents=True)
    (root / "larder").mkdir()  # no peer, though one could be there
    for name in ("disputed.txt", "disputed.sync-conflict-20261126-101010-ABCDEFG.txt"):
        (root / name).write_text("3")
    return root


CASES = [
    ("p2psync sy", "sync"),
    ("p2psync sync lap", "laptop"),
    ("p2psync sync --chec", "--checksum"),
    ("p2psync sync --mode mi", "mirror"),
    ("p2psync -C sub peer rem", "remove"),
    ("p2psync peer rename la", "laptop"),
    ("p2psync peer remove la", "laptop"),
    ("p2psync undo 2026", "20261126-101010"),
    ("p2psync config set history.d", "history.days"),
    ("p2psync completion z", "zsh"),
    ("p2psync resolve dis", "disputed.txt"),
    ("p2psync restore let", "letter.txt"),
    ("p2psync resolve letter.txt --ke", "--keep"),
    ("p2psync resolve letter.txt --keep th", "theirs"),
]


def missing(shell: str) -> bool:
    return shutil.which(shell) is None


@pytest.mark.skipif(missing("bash"), reason="needs bash")
def test_bash_completes(root: Path) -> None:
    script = [f"source '{COMPLETIONS}/p2psync.bash'"]
    for line, _ in CASES:
        words = line.split(" ")
        script.append(f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}")
        script.append('_p2psync 2>/dev/null; echo "${COMPREPLY[*]}"')
    told = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=root / "sub/..", capture_output=True, text=True
    )
    assert told.stderr == ""
    assert dict(zip((line for line, _ in CASES), told.stdout.splitlines(), strict=True)) == dict(CASES)


@pytest.mark.skipif(missing("fish"), reason="needs fish")
def test_fish_completes(root: Path) -> None:
    script = f"source {COMPLETIONS}/p2psync.fish\n" + "".join(
        f"complete -C '{line}' | string join '|'\n" for line, _ in CASES
    )
    environment = {**os.environ, "HOME": str(root.parent), "XDG_CONFIG_HOME": str(root.parent)}
    told = subprocess.run(["fish", "-c", script], cwd=root, capture_output=True, text=True, env=environment)
    assert told.stderr == ""
    found = [re.sub(r"\t.*", "", line) for line in told.stdout.splitlines()]
    assert dict(zip((line for line, _ in CASES), found, strict=True)) == dict(CASES)


@pytest.mark.skipif(missing("zsh"), reason="needs zsh")
def test_zsh_completes(root: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(root)
        os.execvpe(
            "zsh",
            ["zsh", "-f", "-i"],
            {**os.environ, "TERM": "dumb", "HOME": str(root.parent), "COLUMNS": "200"},
        )
    try:
        setup = (
            f"unsetopt zle_bracketed_paste; PS1='READY'; fpath=({COMPLETIONS} $fpath);"
            " autoload -U compinit; compinit -u -D; bindkey '^I' complete-word; echo SET''UP\n"
        )
        os.write(terminal, setup.encode())
        read_until(terminal, "SETUP")
        for line, wanted in CASES:
            os.write(terminal, b"\x15" + line.encode() + b"\t")
            read_until(terminal, f"{line.rpartition(' ')[0]} {wanted}")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def read_until(terminal: int, text: str) -> None:
    """Read what a shell shows until this is in it, whatever the terminal is told between."""
    said, deadline = "", time.monotonic() + DEADLINE
    while text not in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\x07|.\x08", "", said):
        ready = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"{text!r} is not in {said!r}"
        said += os.read(terminal, 4096).decode("utf-8", "replace")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_printed(tmp_path: Path, shell: str) -> None:
    file = {"bash": "p2psync.bash", "zsh": "_p2psync", "fish": "p2psync.fish"}[shell]
    assert p2psync(tmp_path, "completion", shell).out == (COMPLETIONS / file).read_text()


# -- what an installation brings


@pytest.mark.slow
def test_an_installation_puts_pages_and_completions_where_the_system_looks(tmp_path: Path) -> None:
    made = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(REPOSITORY)]
    subprocess.run(made, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.partition(".data/data/")[2] or name for name in zipfile.ZipFile(wheel).namelist()}
    assert {f"share/man/{page.parent.name}/{page.name}" for page in PAGES} <= names
    assert {
        "share/bash-completion/completions/p2psync",
        "share/zsh/site-functions/_p2psync",
        "share/fish/vendor_completions.d/p2psync.fish",
        "p2psync/completions/p2psync.bash",
    } <= names
