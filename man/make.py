"""Makes the manual pages from the commands' own words, and from `prose.toml`, which has what these lack.

Run it after a command or option has changed: `.venv/bin/python man/make.py`. A test tells when that is due.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from p2psync import settings  # noqa: E402
from p2psync.cli import cli  # noqa: E402

PROSE = tomllib.loads((HERE / "prose.toml").read_text("utf-8"))
"""What a page says beside the command's own help."""

HOOKS = (
    "These are run one after the other, in the root of the replica. What happened is JSON on their stdin, as"
    " p2psync-json(5) has it. A text is split into words; only with shell = true does a shell see it."
)


def pages() -> dict[str, str]:
    """Return all pages that are made: by their path below this folder, the text."""
    context = _context(cli)
    found = {"man1/p2psync.1": _main(context)}
    for name, command in _commands(cli, context):
        found[f"man1/p2psync-{name}.1"] = _page(name, command)
    found["man5/p2psync-config.5"] = _config()
    return found


def _context(command: click.Command) -> click.Context:
    return click.Context(command, **cli.context_settings)


def _commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            yield name, command


def _main(context: click.Context) -> str:
    lines = [
        _head("p2psync", 1),
        ".SH NAME",
        f"p2psync \\- {_text('keep directories identical, in both directions')}",
    ]
    lines += [".SH SYNOPSIS", ".B p2psync", "[\\fIOPTION\\fR]... \\fICOMMAND\\fR [\\fIARGUMENT\\fR]..."]
    lines += [".SH DESCRIPTION", *_description(cli, "p2psync")]
    lines += [
        ".SH OPTIONS",
        *_options(cli, context),
        ".SH COMMANDS",
    ]
    for name, command in _commands(cli, context):
        lines += [".TP", f"\\fBp2psync\\-{_text(name)}\\fR(1)", _text(_first_sentence(command))]
    lines += [".SH EXIT STATUS", *_exits(cli)]
    lines += [".SH FILES"]
    for file, what in (
        (".p2psync/", "beside the files of a replica: all that p2psync knows of it"),
        (".p2psync/config.toml", "its peers and settings: see p2psync-config(5)"),
        (".p2psync/history/", "what syncs replaced and deleted, by run"),
        (".p2pignore, .p2psync/ignore", "what is left out: see p2psync-ignore(5)"),
    ):
        lines += [".TP", f".I {_text(file)}", _text(what)]
    lines += [*_examples("p2psync"), *_see("p2psync")]
    return "\n".join(lines) + "\n"


def _page(name: str, command: click.Command) -> str:
    context = _context(command)
    lines = [_head(f"p2psync-{name}", 1), ".SH NAME", f"p2psync\\-{_text(name)} \\- {_text(_short(command))}"]
    lines += [".SH SYNOPSIS", *_synopsis(f"p2psync {name}", command, context)]
    lines += [".SH DESCRIPTION", *_description(command, name)]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for sub, inner in _commands(command, context):
            inside = _context(inner)
            lines += [
                f".SS p2psync {_text(name)} {_text(sub)}",
                *_synopsis(f"p2psync {name} {sub}", inner, inside),
            ]
            lines += [".PP", *_paragraphs(inner.help or ""), *_options(inner, inside)]
    options = _options(command, context)
    if options:
        lines += [".SH OPTIONS", *options]
    lines += [".SH EXIT STATUS", *_exits(command), *_examples(name), *_see(name)]
    return "\n".join(lines) + "\n"


def _head(name: str, section: int) -> str:
    return f'.TH {name.upper()} {section} 2026-11-26 p2psync "p2psync manual"'


def _synopsis(call: str, command: click.Command, context: click.Context) -> list[str]:
    if isinstance(command, click.Group):
        subs = "|".join(name for name, _ in _commands(command, context))
        return [f".B {_text(call)}", f"{_text(subs)} [\\fIARGUMENT\\fR]..."]
    arguments = [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
    options = any(isinstance(p, click.Option) and not p.hidden for p in command.params)
    words = (["[\\fIOPTION\\fR]..."] if options else []) + [f"\\fI{_text(word)}\\fR" for word in arguments]
    return [f".B {_text(call)}", *([" ".join(words)] if words else [])]


def _options(command: click.Command, context: click.Context) -> list[str]:
    lines = []
    for param in command.get_params(context):
        if not isinstance(param, click.Option) or param.hidden:
            continue
        value = "" if param.is_flag or param.count else f" {_value(param, context)}"
        names = ", ".join(f"\\fB{_text(name)}\\fR{value}" for name in (*param.opts, *param.secondary_opts))
        lines += [".TP", names, _text(re.sub(r"\s+", " ", _help(param, context)))]
    return lines


def _help(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    text = re.sub(r"(; )?\b(\d+<=)?x[<>]=?\d+", "", record[1] if record else "")  # as code has a range
    return text.replace("[]", "").replace("  [", " [").strip()


def _value(option: click.Option, context: click.Context) -> str:
    """Return what an option takes: a word for it, or the words that it can be."""
    if isinstance(option.type, click.Choice):
        return "|".join(f"\\fB{_text(str(word))}\\fR" for word in option.type.choices)
    return f"\\fI{_text(option.make_metavar(context))}\\fR"


def _exits(command: click.Command) -> list[str]:
    """Tell the exit codes of a command; of a group those of all that is in it."""
    inner = command.commands.values() if isinstance(command, click.Group) and command is not cli else ()
    meanings: dict[int, str] = {}
    for one in (command, *inner):
        text = (one.epilog or "").removeprefix("Exit codes: ").rstrip(".")
        for part in re.split(r"; (?=\d)", text) if text else ():
            code, _, meaning = part.partition(" ")
            meanings.setdefault(int(code), meaning)
    lines = []
    for code, meaning in sorted(meanings.items()):
        lines += [".TP", f".B {code}", _text(meaning)]
    return lines


def _description(command: click.Command, name: str) -> list[str]:
    return [*_paragraphs(command.help or ""), ".PP", *_paragraphs(PROSE[name]["more"])]


def _examples(name: str) -> list[str]:
    lines = [".SH EXAMPLES"]
    for number, (command, what) in enumerate(PROSE[name]["examples"]):
        lines += [".PP"] if number else []
        end = "" if what.endswith("?") else ":"
        lines += [_text(what[0].upper() + what[1:]) + end] if what else []
        lines += [".RS 4", ".EX", _text(command), ".EE", ".RE"]
    return lines


def _see(name: str) -> list[str]:
    found = [] if name == "p2psync" else ["p2psync(1)"]
    pages = (re.fullmatch(r"(.*)\((\d)\)", page) for page in [*found, *PROSE[name]["see"]])
    return [".SH SEE ALSO", ", ".join(f"\\fB{_text(page[1])}\\fR({page[2]})" for page in pages if page)]


def _short(command: click.Command) -> str:
    text = _first_sentence(command).rstrip(".")
    return text[0].lower() + text[1:]


def _first_sentence(command: click.Command) -> str:
    text = re.sub(r"\s+", " ", command.help or "").split(". ")[0]
    return text.split(": ")[0].rstrip(".") + "."


def _paragraphs(text: str) -> list[str]:
    lines: list[str] = []
    for number, paragraph in enumerate(inspect.cleandoc(text).split("\n\n")):
        if number:
            lines.append(".PP")
        if "\b" in paragraph or paragraph.startswith("    "):
            shown = textwrap.dedent(paragraph.removeprefix("\b\n"))
            lines += [".RS 4", ".EX", *map(_text, shown.split("\n")), ".EE", ".RE"]
        else:
            lines.append(_text(re.sub(r"\s+", " ", paragraph.strip())))
    return lines


def _text(text: str) -> str:
    """Return a text as roff has it."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("~", "\\(ti").replace("^", "\\(ha")
    return f"\\&{text}" if text.startswith(".") else text


def _config() -> str:
    lines = [
        _head("p2psync-config", 5),
        ".SH NAME",
        "p2psync\\-config \\- settings of p2psync",
        ".SH DESCRIPTION",
    ]
    for paragraph in (
        "A flag on the command line counts first, then the environment, then .p2psync/config.toml of the"
        " replica, then p2psync/config.toml in $XDG_CONFIG_HOME (by default ~/.config) of the user. The files"
        " are TOML. What is wrong in one is told with its line, and nothing is done.",
        "In the environment a setting is called P2PSYNC_SECTION_KEY, in capitals, with _ for -:"
        " P2PSYNC_SYNC_MAX_DELETE. A list is separated by commas.",
        "p2psync config list shows all settings with their values, and where these are from.",
    ):
        lines += [_text(paragraph), ".PP"]
    lines[-1] = ".SH SETTINGS"
    for section in dict.fromkeys(one.section for one in settings.SETTINGS.values()):
        lines.append(f".SS [{section}]")
        for one in settings.SETTINGS.values():
            if one.section == section:
                lines += _setting(one)
        if section == "hooks":
            lines += [".PP", _text(HOOKS)]
    lines += [".SS [peer.NAME]", _text("A replica to sync with. What it does not say is as in [connection].")]
    for one in settings.PEER.values():
        lines += _setting(one)
    for table, what in settings.TABLES.items():
        lines += [
            f".SS [{table}]",
            _text(what[0].upper() + what[1:] + ". The first pattern that hits a path counts."),
        ]
    lines += [
        ".SH EXAMPLES",
        ".EX",
        *map(
            _text,
            (
                "[peer.laptop]",
                'address = "ann@laptop:notes"',
                "",
                "[peer.backup]",
                'address = "/mnt/backup/notes"',
                'mode = "push"',
                'exclude = ["*.iso"]',
                "",
                "[merge]",
                '"*.log" = "union"',
                '"*.po" = "po-merge"',
                "",
                "[conflicts]",
                '"*.bak" = "newest"',
                "",
                "[hooks]",
                'on_change = ["make", "-C", "/home/ann/site"]',
                "on_conflict = \"notify-send 'p2psync: a conflict'\"",
            ),
        ),
        ".EE",
        ".SH SEE ALSO",
        "\\fBp2psync\\fR(1), \\fBp2psync\\-config\\fR(1), \\fBp2psync\\-json\\fR(5)",
    ]
    return "\n".join(lines) + "\n"


def _setting(one: settings.Setting) -> list[str]:
    kinds = {str: "text", int: "number", float: "number", bool: "true or false", list: "list of texts"}
    default = "" if one.default in (None, []) else f" Default: {_shown(one.default)}."
    return [
        ".TP",
        f"\\fB{_text(one.key)}\\fR ({kinds[one.kind]})",
        _text(
            f"{one.help if one.help.startswith('p2psync') else one.help[0].upper() + one.help[1:]}.{default}"
        ),
    ]


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def readme(text: str) -> str:
    """Return the README with the list of all commands and options that it has to have."""
    lines: list[str] = []
    for name, command in [("", cli), *_commands(cli, _context(cli))]:
        inner = (
            [(f"{name} {sub}", one) for sub, one in _commands(command, _context(command))]
            if name and isinstance(command, click.Group)
            else []
        )
        for call, one in [(name, command), *inner]:
            context = _context(one)
            words = [p.make_metavar(context) for p in one.params if isinstance(p, click.Argument)]
            options = [p for p in one.get_params(context) if isinstance(p, click.Option) and not p.hidden]
            shown = ["/".join([*p.opts, *p.secondary_opts]) for p in options if "--help" not in p.opts]
            lines += textwrap.wrap(
                " ".join(filter(None, ["p2psync", call, *words, *shown])),
                110,
                subsequent_indent="    ",
                break_on_hyphens=False,
                break_long_words=False,
            )
    start, end = "<!-- commands -->\n", "<!-- end of commands -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}```text\n" + "\n".join(lines) + f"\n```\n{end}{after}"


if __name__ == "__main__":
    file = HERE.parent / "README.md"
    file.write_text(readme(file.read_text("utf-8")), "utf-8")
    for path, page in pages().items():
        (HERE / path).write_text(page)
