"""Who may import whom, how pure the core is, and what a command loads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import p2psync
from p2psync.local import init

PACKAGE = Path(p2psync.__file__).parent
MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts): ast.parse(file.read_text("utf-8"))
    for file in sorted(PACKAGE.rglob("*.py"))
}
CORE = [name for name in MODULES if name.startswith("core.")]
COMMANDS = " ".join(name for name in MODULES if name.startswith("cli.") and name != "cli.__init__")

MAY_USE = {  # besides the core, which all may use
    "__init__": "",
    "__main__": "cli local serve",
    "errors": "",
    "disk": "",
    "bases": "disk",
    "workers": "disk",
    "look": "disk workers",
    "scan": "disk look",
    "leftover": "disk",
    "stage": "disk errors leftover",
    "take": "bases disk stage workers",
    "history": "disk",
    "contents": "bases disk history manifest",
    "chunks": "disk",
    "held": "chunks contents disk",
    "sender": "chunks contents disk look manifest",
    "alike": "chunks contents manifest",
    "collect": "bases chunks contents disk errors history leftover manifest past",
    "undo": "disk errors local manifest past",
    "render_log": "local undo words",
    "conflicts": "errors local",
    "rules": "errors",
    "settings": "errors",
    "drivers": "errors",
    "render_config": "settings words",
    "cli.completion": "cli.options",
    "cli.config": "cli.options config errors render_config root settings",
    "facts": "__init__",
    "render_peers": "config facts replicas words",
    "cli.clone": "cli.options config errors local peer progress render root run",
    "compare": "sync",
    "render_diff": "compare words",
    "cli.diff": "cli.options compare config errors peer progress render_diff root run",
    "render_rules": "render render_log rules run words",
    "cli.rules": "cli.options config errors local progress render_log render_rules rules run undo",
    "mergetool": "errors",
    "render_conflicts": "conflicts words",
    "cli.conflicts": "cli.options config conflicts errors local mergetool render_conflicts",
    "folders": "disk history",
    "apply": "disk folders history stage",
    "database": "disk errors",
    "columns": "",
    "past": "columns database",
    "texts": "columns",
    "samples": "columns",
    "holders": "columns",
    "replicas": "columns database",
    "manifest": "columns database errors holders past replicas samples texts",
    "watcher": "scan",
    "foreseen": "apply bases manifest",
    "reserve": "disk",
    "room": "collect contents disk errors reserve stage words",
    "local": "alike apply bases chunks collect config contents database disk errors foreseen held history"
    " look manifest past replicas reserve room root scan sender stage take watcher",
    "peer": "errors",
    "process": "errors",
    "ssh": "config errors peer process",
    "root": "",
    "stream": "errors",
    "wire": "errors stream",
    "calls": "errors wire",
    "remote": "calls errors facts wire",
    "serve": "calls errors facts watcher wire",
    "restrict": "calls disk errors local watcher",
    "connect": "calls config errors peer process remote serve ssh wire",
    "sync": "errors",
    "config": "errors settings",
    "watchfile": "errors",
    "status": "config conflicts local watchfile",
    "run": "config connect drivers errors facts local peer remote ssh sync",
    "manager": "",
    "hooks": "",
    "service": "errors",
    "watch": "config errors local manager remote run sync watcher watchfile",
    "fsck": "apply bases config disk errors history local past peer run scan stage sync wire",
    "words": "",
    "progress": "words",
    "render": "errors run sync words",
    "render_status": "status words",
    "render_fsck": "fsck words",
    "render_watch": "render sync watch words",
    "cli.options": "config drivers errors local peer root run settings",
    "cli.peers": "cli.options config errors local render_peers render_status restrict run serve status",
    "cli.sync": "cli.options errors progress render run settings ssh",
    "cli.history": "cli.options config errors fsck history local progress render_fsck render_log undo",
    "cli.watch": "cli.options config errors hooks manager progress render_watch run service settings watch",
    "cli.__init__": "__init__ cli.options errors",
}
PURE = {
    *(
        "__future__",
        "array",
        "base64",
        "bisect",
        "collections",
        "dataclasses",
        "datetime",
        "enum",
        "functools",
        "io",
        "itertools",
        "operator",
    ),
    *("re", "struct", "sys", "typing", "unicodedata", "msgspec", "xxhash"),
}
BELONGS_TO = {
    "click": f"cli.__init__ {COMMANDS} render_log",
    "rich": "progress",
    "tomlkit": "config",
    "sqlite3": "columns database holders manifest past replicas samples texts",
    "subprocess": "drivers hooks mergetool service ssh",
    "ctypes": "disk",
    "fcntl": "connect disk local ssh watcher watchfile workers",
    "watchdog": "watcher",
    "pyfastcdc": "chunks",
    "random": "run serve watch",
}
HEAVY = {"rich", "tomlkit", "subprocess", "asyncio", "multiprocessing", "watchdog"}


class Import(NamedTuple):
    module: str
    """Of this package without its name, else what is imported at its root."""
    ours: bool
    when: str
    """At the top, in a function, or for the types only."""


def imports(node: ast.AST, when: str = "top") -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                yield from imports(ast.Module(body, []), "types")
            case ast.FunctionDef():
                yield from imports(child, "function")
            case ast.Import(names=names):
                yield from (_import(alias.name, when) for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                known = {alias.name: f"{module}.{alias.name}" for alias in names}
                yield from (_import(full if _is_module(full) else module, when) for full in known.values())
            case ast.ImportFrom():
                raise AssertionError("a relative import")
            case _:
                yield from imports(child, when)


def _is_module(name: str) -> bool:
    return name.removeprefix("p2psync.") in MODULES


def _import(name: str, when: str) -> Import:
    root, _, rest = name.partition(".")
    return Import(rest or "__init__", True, when) if root == "p2psync" else Import(root, False, when)


IMPORTS = {name: set(imports(tree)) for name, tree in MODULES.items()}


@pytest.mark.parametrize("name", [name for name in MODULES if name not in CORE])
def test_a_module_uses_no_layer_above_its_own(name: str) -> None:
    used = {found.module for found in IMPORTS[name] if found.ours} - set(CORE)
    assert used <= set(MAY_USE[name].split())


def test_the_table_of_layers_has_no_line_for_what_is_not_there() -> None:
    assert MAY_USE.keys() <= MODULES.keys()
    for name, line in MAY_USE.items():
        assert set(line.split()) <= {found.module for found in IMPORTS[name]}, name


@pytest.mark.parametrize("name", CORE)
def test_the_core_is_pure(name: str) -> None:
    assert {found.module for found in IMPORTS[name] if found.ours} <= set(CORE)
    assert {found.module for found in IMPORTS[name] if not found.ours} <= PURE
    calls = {node.func.id for node in ast.walk(MODULES[name]) if _is_named_call(node)}  # type: ignore[attr-defined]
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__"}


def _is_named_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


@pytest.mark.parametrize("library", BELONGS_TO)
def test_a_library_is_the_business_of_few_modules(library: str) -> None:
    users = {name for name, found in IMPORTS.items() if library in {f.module for f in found if not f.ours}}
    assert users == set(BELONGS_TO[library].split())


@pytest.mark.parametrize("name", MODULES)
def test_what_is_slow_to_import_is_imported_where_it_is_used(name: str) -> None:
    assert not {found.module for found in IMPORTS[name] if found.when == "top" and not found.ours} & HEAVY


@pytest.mark.parametrize("name", MODULES)
def test_a_module_opens_with_what_it_owns(name: str) -> None:
    assert ast.get_docstring(MODULES[name])


def loaded_by(directory: Path, *arguments: str) -> set[str]:
    """What `p2psync` imports in a run in `directory`, in all its processes."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "p2psync", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        text=True,
    )
    timed = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip() for line in timed}
    return names | {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_version_and_the_help_load_next_to_nothing(tmp_path: Path, argument: str) -> None:
    loaded = loaded_by(tmp_path, argument)
    assert "click" in loaded
    assert not loaded & {"msgspec", "xxhash", "sqlite3", "backports", "compression", *HEAVY}
    ours = {name for name in loaded if name.startswith("p2psync.")}
    assert {name for name in ours if not name.startswith("p2psync.cli")} == {"p2psync.errors"}


def test_a_local_sync_without_a_terminal_loads_nothing_slow(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    init(os.fsencode(here))
    (here / "a").write_text("a")
    loaded = loaded_by(here, "sync", "--create", str(there))
    assert (there / "a").read_text() == "a"
    assert "sqlite3" in loaded
    assert not loaded & HEAVY
