"""Makes the completion scripts for bash, zsh and fish from the commands: they never have to ask p2psync.

Peers are read from the configuration, and runs from the names of folders, by the shell itself. Run it after a
command or option has changed: `.venv/bin/python completions/make.py`. A test tells when that is due.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from p2psync import settings  # noqa: E402
from p2psync.cli import cli  # noqa: E402

PEERS, CONFIGURED, RUNS, FILES, FOLDERS = "peers", "configured", "runs", "files", "folders"
"""A peer may be given by its address too, which may be a folder, or must be a configured one."""
CONFLICTED, SETTINGS, NOTHING = "conflicted", "settings", "nothing"
_BY_NAME = {
    "PEER-OR-ADDRESS": PEERS,
    "[PEER-OR-ADDRESS]...": PEERS,
    "[PEER-OR-ADDRESS] [PATH]...": PEERS,
    "peer": PEERS,
    "peers": PEERS,
    "run": RUNS,
    "version": FILES,
    "directory": FOLDERS,
    "address": FOLDERS,
    "root": FOLDERS,
    "restrict_to": FOLDERS,
    "beside": FOLDERS,
    "prefer": CONFIGURED,
}
_FILES = {"path", "paths", "patterns", "to", "exclude_from", "plan_file"}


class Option(NamedTuple):
    names: list[str]
    help: str
    values: list[str] | str | None
    """What may follow: these, what one of the kinds above has, or (None) nothing."""


class Command(NamedTuple):
    words: list[str]
    """`peer`, `add`."""
    help: str
    options: list[Option]
    arguments: list[list[str] | str]
    commands: list[tuple[str, str]]


def commands() -> list[Command]:
    """Return all commands, the one without a name first."""
    return [*_all([], cli)]


def _all(words: list[str], command: click.Command) -> Iterator[Command]:
    context = click.Context(command, **cli.context_settings)
    options = [
        _option(one)
        for one in command.get_params(context)
        if isinstance(one, click.Option) and not one.hidden
    ]
    arguments = [_values(words, one) for one in command.params if isinstance(one, click.Argument)]
    subs = []
    if isinstance(command, click.Group):
        found = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
        subs = [(name, sub) for name, sub in found if sub is not None and not sub.hidden]
    named = [(name, _line(sub.help or "")) for name, sub in subs]
    yield Command(words, _line(command.help or ""), options, arguments, named)
    for name, sub in subs:
        yield from _all([*words, name], sub)


def _option(option: click.Option) -> Option:
    names = [*option.opts, *option.secondary_opts]
    help = re.sub(r"\s+\[default: .*", "", option.help or "")
    return Option(names, _line(help), None if option.is_flag else _values([], option))


def _values(words: list[str], param: click.Parameter) -> list[str] | str:
    if isinstance(param.type, click.Choice):
        return list(param.type.choices)
    if words[:1] == ["peer"] and param.name == "name" and words[1:] != ["add"]:
        return CONFIGURED
    if words[:1] == ["config"] and param.name == "name":
        return SETTINGS
    if words in (["resolve"], ["conflicts"]) and param.name == "paths":
        return CONFLICTED
    if param.name in _FILES:
        return FILES
    return _BY_NAME.get(param.metavar or "", _BY_NAME.get(param.name or "", NOTHING))


def _main_kind(command: Command) -> list[str] | str:
    """Return what the arguments of a command are: the first that can be completed counts."""
    return next((kind for kind in command.arguments if kind != NOTHING), NOTHING)


def _line(text: str) -> str:
    line = re.sub(r"\s+", " ", text).strip()
    return re.split(r"(?<=[a-z)])[.:;] ", line)[0].rstrip(".")


UNMARK = r"s/\.sync-conflict-[0-9]\{8\}-[0-9]\{6\}-[A-Z2-7]*\(-[0-9]*\)\{0,1\}//"
"""Makes the path of a conflict copy that of the file that it is a copy of."""
SED = r's/^[[:space:]]*\[peer\."\{0,1\}\([^]"]*\)"\{0,1\}\].*/\1/p'
"""Takes the names of peers out of a configuration."""

# -- bash

BASH = r"""# bash completion for p2psync; made by completions/make.py

_p2psync_sidecar() {
    local folder=$PWD
    while [[ -n $folder && ! -d $folder/.p2psync ]]; do folder=${folder%/*}; done
    [[ -d $folder/.p2psync ]] && printf '%s' "$folder/.p2psync"
}

_p2psync_words() {
    local sidecar
    case $1 in
    peers | configured)
        sidecar=$(_p2psync_sidecar)
        [[ -r $sidecar/config.toml ]] && sed -n '@SED@' "$sidecar/config.toml"
        ;;
    runs)
        sidecar=$(_p2psync_sidecar)
        [[ -d $sidecar/history ]] && ls "$sidecar/history"
        ;;
    settings) printf '%s\n' @SETTINGS@ ;;
    esac
}

_p2psync_values() {
    local cur=$1 kind=$2 IFS=$' \t\n'
    local words
    case $kind in peers | configured | runs | settings) words=$(_p2psync_words "$kind") ;; esac
    IFS=$'\n'
    case $kind in
    files) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$cur")) ;;
    folders) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -d -- "$cur")) ;;
    peers)
        COMPREPLY=($(compgen -W "$words" -- "$cur"; compgen -d -- "$cur"))
        ;;
    configured | runs | settings) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
    conflicted)
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -G "$cur*.sync-conflict-*" | sed '@UNMARK@' | sort -u))
        [[ ${COMPREPLY[*]} ]] || COMPREPLY=($(compgen -f -- "$cur"))
        ;;
    nothing) COMPREPLY=() ;;
    *) COMPREPLY=($(compgen -W "${kind// /$IFS}" -- "$cur")) ;;
    esac
}

_p2psync() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command="" word index skip=0
    COMPREPLY=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if ((skip)); then skip=0; continue; fi
        case "$command/$word" in
@SUBCOMMANDS@
        /-C | /--color) skip=1 ;;
        esac
    done
    case "$command/$prev" in
@VALUES@
    esac
    case $command in
@COMMANDS@
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    else
        _p2psync_values "$cur" "$values"
    fi
}

complete -F _p2psync p2psync
"""


def bash(found: list[Command]) -> str:
    """Return the script for bash."""
    subs, values, cases = [], [], []
    for command in found:
        name = " ".join(command.words)
        for sub, _ in command.commands:
            inner = f"{name} {sub}".strip()
            subs.append(f"        '{name}/{sub}') command='{inner}' ;;")
        for option in command.options:
            if option.values is not None:
                pattern = " | ".join(f"'{name}/{one}'" for one in option.names)
                values.append(f"    {pattern}) _p2psync_values \"$cur\" '{_words(option.values)}'; return ;;")
        options = " ".join(one for option in command.options for one in option.names)
        words = " ".join(sub for sub, _ in command.commands)
        after = words or _words(_main_kind(command))
        cases.append(f"    '{name}') local options='{options}' values='{after}' ;;")
    text = (
        BASH.replace("@SED@", SED)
        .replace("@UNMARK@", UNMARK)
        .replace("@SETTINGS@", " ".join(settings.SETTINGS))
    )
    for mark, lines in (("@SUBCOMMANDS@", subs), ("@VALUES@", values), ("@COMMANDS@", cases)):
        text = text.replace(mark, "\n".join(lines))
    return text


def _words(values: list[str] | str) -> str:
    return values if isinstance(values, str) else " ".join(values)


# -- zsh

ZSH = r"""#compdef p2psync
# zsh completion for p2psync; made by completions/make.py

_p2psync_sidecar() {
    local folder=$PWD
    while [[ -n $folder && ! -d $folder/.p2psync ]]; do folder=${folder%/*}; done
    [[ -d $folder/.p2psync ]] && print -r -- $folder/.p2psync
}

_p2psync_configured() {
    local file=$(_p2psync_sidecar)/config.toml
    local -a peers
    [[ -r $file ]] && peers=(${(f)"$(sed -n '@SED@' $file)"})
    compadd -a peers
}

_p2psync_peers() {
    _alternative 'peers:peer:_p2psync_configured' 'folders:folder:_path_files -/'
}

_p2psync_runs() {
    local -a runs
    runs=($(_p2psync_sidecar)/history/*(N:t))
    (( $#runs )) && compadd -- $runs
}

_p2psync_conflicted() {
    local -a copies=(${~PREFIX}*.sync-conflict-*(N)) paths
    (( $#copies )) && paths=(${(fu)"$(print -rl -- $copies | sed '@UNMARK@')"})
    if (( $#paths )); then compadd -f -- $paths; else _files; fi
}

_p2psync_settings() {
    compadd -- @SETTINGS@
}

_p2psync() {
    local curcontext=$curcontext state line
    local -A opt_args
@FUNCTIONS@
}

_p2psync_command() {
    local curcontext=$curcontext state line
    local -A opt_args
    case $1 in
@CASES@
    esac
}

_p2psync "$@"
"""


def zsh(found: list[Command]) -> str:
    """Return the script for zsh."""
    cases = []
    for command in found[1:]:
        name = " ".join(command.words)
        cases.append(f"    '{name}')")
        cases += [f"        {line}" for line in _zsh_body(command)]
        cases.append("        ;;")
    functions = "\n".join(f"    {line}" for line in _zsh_body(found[0]))
    text = (
        ZSH.replace("@SED@", SED)
        .replace("@UNMARK@", UNMARK)
        .replace("@SETTINGS@", " ".join(settings.SETTINGS))
    )
    return text.replace("@FUNCTIONS@", functions).replace("@CASES@", "\n".join(cases))


def _zsh_body(command: Command) -> list[str]:
    specs = [_zsh_option(option) for option in command.options]
    name = " ".join(command.words)
    if command.commands:
        specs += ["'1: :->command'", "'*:: :->arguments'"]
    else:
        kinds = command.arguments
        specs += [f"':{_zsh_action(kind)}'" for kind in kinds[:-1]]
        specs += [f"'*:{_zsh_action(kind)}'" for kind in kinds[-1:]]
    lines = ["_arguments -s -S \\", *(f"    {spec} \\" for spec in specs)]
    lines[-1] = lines[-1].removesuffix(" \\")
    if command.commands:
        subs = " ".join(f"'{sub}:{_quoted(help)}'" for sub, help in command.commands)
        lines += [
            "case $state in",
            f"command) local -a commands=({subs}); _describe command commands ;;",
            f'arguments) _p2psync_command "{(name + " ").lstrip()}$line[1]" ;;',
            "esac",
        ]
    return lines


def _zsh_option(option: Option) -> str:
    names = option.names
    value = f":{_zsh_action(option.values)}" if option.values is not None else ""
    text = _quoted(option.help).replace("[", "(").replace("]", ")")
    if len(names) == 1:
        return f"'*{names[0]}[{text}]{value}'"
    return f"'*'{{{','.join(names)}}}'[{text}]{value}'"


def _zsh_action(kind: list[str] | str) -> str:
    if not isinstance(kind, str):
        return f"value:({' '.join(kind)})"
    actions = {
        FILES: "file:_files",
        FOLDERS: "folder:_path_files -/",
        PEERS: "peer:_p2psync_peers",
        CONFIGURED: "peer:_p2psync_configured",
        RUNS: "run:_p2psync_runs",
        CONFLICTED: "file:_p2psync_conflicted",
        SETTINGS: "setting:_p2psync_settings",
    }
    return actions.get(kind, "value: ")


def _quoted(text: str) -> str:
    return text.replace("'", "").replace(":", "\\:").replace("`", "")


# -- fish

FISH = r"""# fish completion for p2psync; made by completions/make.py

function __p2psync_sidecar
    set -l folder $PWD
    while test -n "$folder" -a ! -d "$folder/.p2psync"
        set folder (string replace -r '/[^/]*$' '' -- $folder)
    end
    test -d "$folder/.p2psync"; and echo "$folder/.p2psync"
end

function __p2psync_configured
    set -l file (__p2psync_sidecar)/config.toml
    test -r "$file"; and sed -n '@SED@' $file
end

function __p2psync_peers
    __p2psync_configured
    __fish_complete_directories (commandline -ct) ''
end

function __p2psync_runs
    set -l folder (__p2psync_sidecar)/history
    test -d "$folder"; and ls $folder
end

function __p2psync_conflicted
    set -l copies (commandline -ct)*.sync-conflict-*
    if test (count $copies) -gt 0
        string split '\n' -- $copies | sed '@UNMARK@' | sort -u
    else
        __fish_complete_path (commandline -ct)
    end
end

function __p2psync_is
    set -l words (commandline -opc)
    set -l found
    for word in $words[2..-1]
        string match -q -- '-*' $word; and continue
        contains -- "$found $word" @PAIRS@; or contains -- "$word" @FIRST@; and test (count $found) -eq 0
        or contains -- "$found $word" @PAIRS@
        or continue
        set -a found $word
    end
    test "$found" = "$argv"
end

complete -c p2psync -f
"""


def fish(found: list[Command]) -> str:
    """Return the script for fish."""
    pairs = [
        f"'{command.words[0]} {sub}'" for command in found if command.words for sub, _ in command.commands
    ]
    first = [f"'{sub}'" for sub, _ in found[0].commands]
    lines = [
        FISH.replace("@SED@", SED)
        .replace("@UNMARK@", UNMARK)
        .replace("@PAIRS@", " ".join(pairs))
        .replace("@FIRST@", " ".join(first))
    ]
    for command in found:
        where = (
            f"-n '__p2psync_is {' '.join(command.words)}'".replace(" '", "'")
            if not command.words
            else (f"-n '__p2psync_is {' '.join(command.words)}'")
        )
        where = "-n __p2psync_is" if not command.words else where
        for sub, help in command.commands:
            lines.append(f"complete -c p2psync {where} -a {sub} -d '{_fished(help)}'")
        for option in command.options:
            names = " ".join(
                f"-l {one[2:]}" if one.startswith("--") else f"-s {one[1:]}" for one in option.names
            )
            value = ""
            if option.values is not None:
                value = (" -r" if option.values == FILES else " -x") + _fish_values(option.values)
            lines.append(f"complete -c p2psync {where} {names}{value} -d '{_fished(option.help)}'")
        if command.arguments:
            lines.append(f"complete -c p2psync {where}{_fish_values(_main_kind(command))}")
    return "\n".join(lines) + "\n"


def _fish_values(kind: list[str] | str) -> str:
    if not isinstance(kind, str):
        return f" -a '{' '.join(kind)}'"
    found = {
        FILES: " -F",
        FOLDERS: " -a '(__fish_complete_directories (commandline -ct))'",
        PEERS: " -a '(__p2psync_peers)'",
        CONFIGURED: " -a '(__p2psync_configured)'",
        RUNS: " -a '(__p2psync_runs)'",
        CONFLICTED: " -a '(__p2psync_conflicted)'",
        SETTINGS: f" -a '{' '.join(settings.SETTINGS)}'",
    }
    return found.get(kind, "")


def _fished(text: str) -> str:
    return text.replace("'", "").replace("`", "").replace("\\", "")


def scripts() -> dict[str, str]:
    """Return all scripts, by the name of their files."""
    found = commands()
    return {"p2psync.bash": bash(found), "_p2psync": zsh(found), "p2psync.fish": fish(found)}


if __name__ == "__main__":
    for file, text in scripts().items():
        (HERE / file).write_text(text)
