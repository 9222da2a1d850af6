"""What a key is restricted to holds, whatever its holder asks for and whoever renames what meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync import calls
from p2psync.core.model import Entry, Problem, Transition
from p2psync.core.replica import Content, Identity, Like, Mark, More, Name, Replica, Want
from p2psync.core.vector import ReplicaId, Stamp
from p2psync.errors import Exit, Locked, NotAReplica, ReplicaError
from p2psync.local import LocalReplica
from p2psync.manifest import Manifest
from p2psync.replicas import READERS
from p2psync.restrict import (
    MAX_COMMAND,
    NO_SUCCESSOR,
    READ_ONLY,
    Key,
    ReadOnly,
    Request,
    RequestError,
    request,
)
from tests.cli_support import assert_same, bring_in_step, contents, copies, p2psync, replica, write
from tests.cli_support import history as kept
from tests.sshd import Sshd
from tests.support import (
    carry_out,
    digest,
    directory,
    do_not_wait_for_disk,
    entries,
    file,
    give,
    new_replica,
    opened,
    snapshot,
    sync_open,
    tombstone,
    version,
)
from tests.test_attacks import AtCall

# -- what ssh was asked for

PROGRAMS = st.sampled_from(
    ["p2psync", "~/.venv/bin/p2psync", "cd /x && env A='b c' python3 -m p2psync", "rm -rf"]
)
ROOTS = st.binary(min_size=1, max_size=40).filter(lambda root: b"\0" not in root)
AWKWARD = st.sampled_from(
    [b"' serve -- '", b"x serve -- y", b"'", b"a\nb", b"-- ", b"--create", b"\xff'\xfe"]
)


def asked(program: str, root: bytes, create: bool) -> bytes:
    """The command that `connect_ssh` gives to ssh."""
    return os.fsencode(f"{program} serve{' --create' if create else ''} -- {shlex.quote(os.fsdecode(root))}")


@given(PROGRAMS, ROOTS | AWKWARD, st.booleans())
def test_what_a_near_end_sends_is_understood(program: str, root: bytes, create: bool) -> None:
    assert request(asked(program, root, create)) == Request(root, create)


REFUSED = {
    "a login": b"",
    "another program": b"rsync --server --sender . /etc",
    "another command of ours": b"p2psync sync /etc",
    "a command after it": b"p2psync serve -- x; touch PWNED",
    "a command after a quoted path": b"p2psync serve -- 'x'; touch PWNED",
    "a command instead of a path": b"p2psync serve -- $(touch PWNED)",
    "a command in double quotes": b'p2psync serve -- "$(touch PWNED)"',
    "a command on the next line": b"p2psync serve -- x\ntouch PWNED",
    "a command on the line before": b"touch PWNED\np2psync serve -- x",
    "a pipe": b"p2psync serve -- x | sh",
    "an option of ours": b"p2psync serve --restrict-to / -- /etc",
    "an option of ours before it": b"p2psync --restrict-to / serve --restrict-to / serve -- /etc",
    "an option with a value": b"p2psync serve --restrict-to=/ -- /etc",
    "an option that undoes one": b"p2psync serve --create --no-read-only -- x",
    "an option twice": b"p2psync serve --create --create -- x",
    "no dashes": b"p2psync serve x",
    "two paths": b"p2psync serve -- x y",
    "no path": b"p2psync serve -- ",
    "an empty path": b"p2psync serve -- ''",
    "no program": b" serve -- x",
    "a quote that does not end": b"p2psync serve -- 'x",
    "a backslash": b"p2psync serve -- a\\ b",
    "a home": b"p2psync serve -- ~root",
    "a tab": b"p2psync\tserve\t--\tx",
    "a space at the end": b"p2psync serve -- x ",
    "too much": b"p2psync serve -- " + b"x" * MAX_COMMAND,
    "too many words": b"a " * MAX_COMMAND + b"serve -- x",
}


@pytest.mark.parametrize("command", REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_in_a_line_that_no_terminal_obeys(command: bytes) -> None:
    with pytest.raises(RequestError, match="this key is for p2psync alone") as error:
        request(command)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


WORDS = st.sampled_from(
    [b"serve", b"--create", b"--", b"x", b"'x y'", b"'", b'"', b"'\"'\"'", b" ", b"\n", b";", b"$(x)", b"\\"]
)


@given(st.lists(WORDS, max_size=8).map(b"".join), st.booleans())
@settings(max_examples=500)
def test_a_shell_would_read_the_same_in_what_is_accepted(words: bytes, create: bool) -> None:
    command = b"p2psync serve " + (b"--create " if create else b"") + b"-- " + words
    with contextlib.suppress(RequestError):
        root, wants = request(command)
        expected = ["p2psync", "serve", *(["--create"] if wants else []), "--", os.fsdecode(root)]
        assert shlex.split(os.fsdecode(command)) == expected


@pytest.mark.parametrize("command", ["a login", "a command after it", "an option of ours"])
def test_serve_ends_as_on_wrong_usage_and_runs_nothing(tmp_path: Path, command: str) -> None:
    replica(tmp_path / "a")
    env = {"SSH_ORIGINAL_COMMAND": os.fsdecode(REFUSED[command])}
    ran = p2psync(tmp_path, "serve", "--restrict-to", tmp_path / "a", env=env, code=2)
    assert (ran.out, ran.err.count("\n")) == ("", 1)
    assert os.listdir(tmp_path) == ["a"]


def test_serve_without_a_root_is_wrong_usage_even_if_ssh_was_asked_for_one(tmp_path: Path) -> None:
    env = {"SSH_ORIGINAL_COMMAND": "p2psync serve -- /"}
    assert "ROOT" in p2psync(tmp_path, "serve", env=env, code=2).err
    assert "ROOT" in p2psync(tmp_path, "serve", "--read-only", env=env, code=2).err


# -- which roots


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restricted key changes the working directory: give it back."""
    monkeypatch.chdir(tmp_path)
    do_not_wait_for_disk(monkeypatch)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory that a key is restricted to, beside what is none of its holder's business."""
    for name in ("ab", "outside"):
        (tmp_path / name).mkdir()
        new_replica(tmp_path / name, {b"canary": b"alive", b"in": None})
    (tmp_path / "a").mkdir()
    new_replica(tmp_path / "a" / "notes", {b"f": b"mine"})
    (tmp_path / "a" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "same").symlink_to("notes")
    (tmp_path / "a" / "plain").write_text("a file")
    return tmp_path / "a"


def everything(*roots: Path) -> dict[Path, tuple[int, bytes]]:
    """All there is, sidecars and all."""
    found = [path for root in roots for path in (root, *root.rglob("*"))]
    return {path: (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"") for path in found}


@contextlib.contextmanager
def through(key: Key, root: bytes | Path, create: bool = False) -> Iterator[Replica]:
    with contextlib.closing(key.open(bytes(root), create)) as replica:
        yield replica


def only(base: Path, read_only: bool = False, append_only: bool = False) -> Key:
    return Key(bytes(base), read_only, append_only)


@pytest.mark.parametrize("root", ["{}/notes", "notes", "./notes/", "{}//./notes"])
def test_a_root_below_may_be_named_from_the_top_or_from_there(base: Path, root: str) -> None:
    with through(only(base), os.fsencode(root.format(base))) as replica:
        assert carry_out(replica, [Transition(b"new", None, file(b"new"))], b"new") == (1, [])
    assert (base / "notes" / "new").read_bytes() == b"new"


@pytest.mark.parametrize("root", [b".", b"/{}"])
def test_the_directory_itself_may_be_the_root(base: Path, root: bytes) -> None:
    notes = base / "notes"
    with through(only(notes), bytes(notes) if root == b"/{}" else root) as replica:
        assert replica.scan(True).problems == []


def test_the_way_to_the_directory_may_have_links(base: Path) -> None:
    (base.parent / "way").symlink_to(base)
    for within, root in (("way", "way/notes"), ("way", "a/notes"), ("a", "way/notes")):
        with through(Key(bytes(base.parent / within)), base.parent / root) as replica:
            assert replica.scan(True).problems == []


def test_what_is_missing_is_made_only_below_and_only_when_asked(base: Path) -> None:
    with pytest.raises(NotAReplica, match="x/y is not a replica"):
        only(base).open(b"x/y", False)
    assert not (base / "x").exists()
    with through(only(base), b"x/y", create=True) as replica:
        assert replica.identity.name.endswith(":y")
    assert (base / "x" / "y" / ".p2psync").stat().st_mode & 0o777 == 0o700


OUTSIDE = {
    "beside, with the same start": "{base}b",
    "beside, from there": "../ab",
    "above": "..",
    "above, from the top": "{base}/..",
    "the top": "/",
    "down and up": "notes/../../outside",
    "down and up from the top": "{base}/notes/../../outside",
    "elsewhere": "{base.parent}/outside",
    "a link to elsewhere": "link",
    "a link to elsewhere, with a slash": "link/",
    "a link to elsewhere, with a dot": "link/.",
    "a link to elsewhere from the top": "{base}/link",
    "below a link": "link/in",
    "below a link to above": "up/outside",
    "a link to what may be opened": "same",
    "a file": "plain",
    "below a file": "plain/x",
    "a sidecar": "notes/.p2psync",
    "below a sidecar": "notes/.p2psync/stage",
    "what some file system takes for a sidecar": "notes/.P2PSYNC/stage",
    "up and down again": "{base}/../a/notes",
    "a process": "/proc/self/cwd/outside",
    "too long a name": "x" * 300,
}


@pytest.mark.parametrize("create", [False, True], ids=["", "create"])
@pytest.mark.parametrize("root", OUTSIDE.values(), ids=OUTSIDE)
def test_no_other_root_is_opened_or_made(base: Path, root: str, create: bool) -> None:
    before = everything(base.parent)
    with pytest.raises(ReplicaError) as error:
        only(base).open(os.fsencode(root.format(base=base)), create)
    assert everything(base.parent) == before
    assert str(base) not in str(error.value) or "{base" in root  # nothing is told that was not known


def test_no_name_is_more_than_a_name(base: Path) -> None:
    for name in (b"~", b"$HOME", b"*", b"-rf"):
        with through(only(base), name, create=True):
            assert os.path.isdir(os.path.join(bytes(base), name))


def test_what_is_outside_is_refused_in_the_same_words_whether_it_is_there_or_not(base: Path) -> None:
    told = set()
    for name in ("outside", "ab", "none"):
        with pytest.raises(ReplicaError) as error:
            only(base).open(bytes(base.parent / name), False)
        told.add((type(error.value), str(error.value).replace(f"{base.parent}/{name}", "ROOT")))
    assert len(told) == 1


def test_a_sidecar_that_is_a_link_is_not_followed(base: Path) -> None:
    (base / "new").mkdir()
    (base / "new" / ".p2psync").symlink_to(base.parent / "outside" / ".p2psync")
    (base.parent / "empty").mkdir()
    (base / "newer").mkdir()
    (base / "newer" / ".p2psync").symlink_to(base.parent / "empty")
    before = everything(base.parent)
    for root in (b"new", b"newer"):
        for create in (False, True):
            with pytest.raises(ReplicaError):
                only(base).open(root, create)
    assert everything(base.parent) == before


def test_a_replica_is_not_made_inside_another(base: Path) -> None:
    with pytest.raises(ReplicaError, match="a replica holds no other"):
        only(base).open(b"notes/inner", True)


def test_a_root_in_use_is_named_as_it_was_asked_for(base: Path) -> None:
    with opened(base / "notes"), pytest.raises(Locked, match="at work on notes"):
        only(base).open(b"notes", False)


def test_a_directory_that_is_missing_is_no_reason_to_serve_another(base: Path) -> None:
    with pytest.raises(ReplicaError, match="restricted to cannot be opened"):
        only(base / "none").open(b"notes", True)
    assert not (base / "none").exists()


# -- what is renamed meanwhile


def swap(base: Path) -> None:
    """Move the root away, and put a link to a replica outside in its place."""
    (base / "notes").rename(base / "moved")
    (base / "notes").symlink_to(base.parent / "outside")


def swap_back(base: Path) -> None:
    (base / "notes").unlink()
    (base / "moved").rename(base / "notes")


def test_a_link_that_takes_the_place_of_a_checked_root_is_not_followed(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_swapped(root: bytes, cleans: bool, watcher: None) -> LocalReplica:
        swap(base)
        return LocalReplica(root, cleans=cleans)

    outside = base.parent / "outside"
    before = everything(outside)
    monkeypatch.setattr("p2psync.restrict.LocalReplica", open_swapped)
    with through(only(base), base / "notes") as replica:
        assert replica.scan(True).problems == []
        assert carry_out(replica, [Transition(b"new", None, file(b"new"))], b"new") == (1, [])
    assert (base / "moved" / "new").read_bytes() == b"new"
    assert everything(outside) == before


@pytest.mark.parametrize("back", [False, True], ids=["for good", "for a moment"])
def test_a_manifest_elsewhere_is_not_taken_for_the_one_here(
    base: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    real = Manifest.open

    def open_elsewhere(path: bytes, locked: bool) -> Manifest:
        # What SQLite makes of "." when the directory is moved between its asking where it is and its opening.
        swap(base)
        manifest = real(bytes(base / "notes") + path[1:])
        if back:
            swap_back(base)
        return manifest

    outside = base.parent / "outside"
    before = everything(outside)
    monkeypatch.setattr(Manifest, "open", open_elsewhere)
    with pytest.raises(ReplicaError, match="was moved while it was opened"):
        only(base).open(b"notes", False)
    assert everything(outside) == before


@pytest.mark.parametrize("moment", range(6))
def test_a_root_swapped_for_a_link_during_a_run_leads_nowhere(base: Path, moment: int) -> None:
    outside = base.parent / "outside"
    before = everything(outside)
    steps = [Transition(b"canary", None, file(b"pwned")), Transition(b"d", None, directory())]

    calls: list[Callable[[Replica], object]] = [
        lambda replica: replica.scan(True),
        lambda replica: replica.prepare(steps),
        lambda replica: give(replica, b"pwned"),
        lambda replica: list(replica.apply()),
        lambda replica: replica.acknowledge(Identity(ReplicaId(5), "near", 1), Mark(1, 1, b"")),
        lambda replica: replica.close(),
    ]
    with contextlib.suppress(ReplicaError), through(only(base), b"notes") as replica:
        for number, call in enumerate(calls):
            if number == moment:
                swap(base)
            call(replica)
    assert everything(outside) == before
    with opened(base / "moved") as replica:
        assert replica.scan(True).problems == []


def test_a_link_swapped_in_at_any_system_call_is_not_followed(base: Path) -> None:
    outside = base.parent / "outside"
    before = everything(outside)
    for number in itertools.count():
        step = Transition(b"%d" % number, None, file(b"pwned"))
        at_call = AtCall(number, lambda: swap(base))
        with pytest.MonkeyPatch.context() as patch:
            at_call.patch(patch)
            with contextlib.suppress(ReplicaError), through(only(base), b"notes") as replica:
                carry_out(replica, [step], b"pwned")
        if not at_call.done:
            break
        assert everything(outside) == before
        swap_back(base)
    assert number > 20


# -- read-only


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Two replicas in step; the second is to be read-only."""
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there", {b"f": b"1", b"d/g": b"1"})
    bring_in_step(here, there)
    return here, there


@contextlib.contextmanager
def reading(root: Path) -> Iterator[Replica]:
    with through(Key(read_only=True), root) as replica:
        yield replica


def test_all_there_is_can_be_pulled(sides: tuple[Path, Path]) -> None:
    here, there = sides
    (there / "f").write_bytes(b"2")
    (there / "new").write_bytes(b"new")
    (there / "d" / "g").unlink()
    before = snapshot(there)
    for _ in range(2):
        with opened(here) as home, reading(there) as peer:
            assert sync_open(home, peer).in_step
    assert snapshot(here) == snapshot(there) == before


def test_what_would_change_is_told_for_each_path_and_all_else_is_pulled(sides: tuple[Path, Path]) -> None:
    here, there = sides
    (here / "f").write_bytes(b"mine")
    (here / "d" / "g").unlink()
    (here / "mine").mkdir()
    (there / "theirs").write_bytes(b"theirs")
    before = snapshot(there)
    for _ in range(2):
        with opened(here) as home, reading(there) as peer:
            result = sync_open(home, peer)
        told = {problem.path: problem.why for problem in result.peer.problems}
        assert told == dict.fromkeys((b"f", b"d/g", b"mine"), f"left alone: {READ_ONLY}")
        assert not result.in_step
        assert snapshot(there) == before
    assert (here / "theirs").read_bytes() == b"theirs"
    with opened(here) as home, opened(there) as peer:  # with another key all of it goes through
        assert sync_open(home, peer).in_step
    assert snapshot(here) == snapshot(there)


def test_equal_files_made_apart_are_no_problem(tmp_path: Path) -> None:
    here, there = (new_replica(tmp_path / name, {b"f": b"same", b"d": None}) for name in ("here", "there"))
    for _ in range(2):
        with opened(here) as home, reading(there) as peer:
            assert sync_open(home, peer).in_step
    with opened(there) as peer:
        assert [len(change.entry.version) for batch in peer.changes(0) for change in batch] == [1, 1]
    (there / "f").write_bytes(b"edited")
    with opened(here) as home, reading(there) as peer:
        sync_open(home, peer)
    assert {seen.data for seen in snapshot(here).values()} >= {b"edited"}


def test_every_change_that_a_hostile_reader_asks_for_is_refused(sides: tuple[Path, Path]) -> None:
    _, there = sides
    before = snapshot(there)
    with opened(there) as replica:
        replica.scan(True)
        entries = {change.path: change.entry for batch in replica.changes(0) for change in batch}
    steps = [
        Transition(b"new", None, file(b"pwned")),
        Transition(b"f", entries[b"f"], file(b"pwned", seen=version(9))),
        Transition(b"d/g", entries[b"d/g"], tombstone(version(9))),
        Transition(b"d", entries[b"d"], directory(0o777, seen=version(9))),
    ]
    with reading(there) as peer:
        assert peer.prepare(steps) == []
        with pytest.raises(ReplicaError, match=READ_ONLY):
            give(peer, b"pwned")
        outcomes = list(peer.apply())
        assert [p for o in outcomes for p in o.problems] == [
            Problem(step.path, f"left alone: {READ_ONLY}") for step in steps
        ]
        assert list(peer.apply()) == []
    assert snapshot(there) == before
    assert os.listdir(there / ".p2psync" / "stage") == []


def test_a_reader_does_not_decide_what_was_seen(sides: tuple[Path, Path]) -> None:
    _, there = sides
    with opened(there) as replica:
        entry = replica.lookup([Name(b"f", False)]).entries[0]
        assert entry is not None
    claimed = Transition(b"f", entry, file(b"1", entry.mode, entry.mtime_ns, version(9)))
    with reading(there) as peer:
        peer.prepare([claimed])
        assert [(outcome.done, outcome.problems) for outcome in peer.apply()] == [(1, [])]
    with opened(there) as replica:
        assert replica.lookup([Name(b"f", False)]).entries == [entry]


def test_the_mark_of_a_reader_says_nothing_of_the_replica_it_claims_to_be(sides: tuple[Path, Path]) -> None:
    here, there = sides
    (here / "f").write_bytes(b"edited")
    with opened(here) as home:
        home.scan(True)
        identity, lie = home.identity, Mark(home.identity.epoch, 2**62, b"")
    with reading(there) as peer:
        peer.acknowledge(identity, lie)
        assert peer.mark(identity.replica) == lie
    with opened(here) as home, opened(there) as peer:
        assert peer.mark(identity.replica) != lie
        assert sync_open(home, peer).in_step
    assert (there / "f").read_bytes() == b"edited"


@pytest.fixture
def secretive(tmp_path: Path) -> Path:
    """A replica with files that are ignored since they were synced, or were deleted, or edited."""
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    for name in ("secret", "gone", "f", "d/secret"):
        write(there / name, f"{name} 1")
    bring_in_step(here, there)
    (here / "gone").unlink()
    for name in ("secret", "f"):
        write(here / name, f"{name} 2")
    bring_in_step(here, there)
    write(there / ".p2pignore", "secret\n")
    return there


@pytest.mark.parametrize("scans", [False, True])
def test_a_reader_gets_nothing_that_is_ignored_by_now_or_was_deleted(secretive: Path, scans: bool) -> None:
    hidden = [digest(text) for text in (b"secret 1", b"secret 2", b"gone 1", b"d/secret 1")]
    shown = digest(b"f 2")
    contents = [Content(one, 8) for one in hidden]
    with reading(secretive) as peer:
        if scans:
            peer.scan(keep=True)
        asked = [hidden[0], shown, *hidden[1:]]
        pieces = [piece for batch in peer.read(asked) for piece in batch]
        assert [(piece.digest, piece.data) for piece in pieces] == [
            (one, b"f 2" if one == shown else b"") for one in asked
        ]
        wanted = peer.differences([Want(content, []) for content in contents])
        assert [piece.more for batch in wanted for piece in batch] == [More.GONE] * 4
        assert peer.texts([digest(b"f 1"), shown, *hidden]) == [b"f 1", b"f 2", *[None] * 4]
        assert peer.rehash([b"secret", b"f", b"d/secret"]) == [None, shown, None]
        assert peer.sparse([Content(one, 100) for one in asked]) == [Content(shown, 3)]
        assert peer.alike([Like(content, [shown]) for content in contents]) == [[]] * 4
        assert [len(known) for known in peer.bases([b"secret", b"f", b"d/secret"])] == [0, 1, 0]
        names = [Name(b"secret", False), Name(b"d/secret", False)]
        assert peer.lookup(names).entries == [None, None]
    with reading(secretive) as peer:
        assert not {b"secret", b"d/secret"} & {change.path for batch in peer.changes(0) for change in batch}


def test_a_reader_still_merges_a_text_that_both_have_edited(sides: tuple[Path, Path]) -> None:
    here, there = sides
    (there / "t").write_bytes(b"1\n2\n3\n4\n5\n")
    with opened(here) as home, reading(there) as peer:
        assert sync_open(home, peer).in_step
    (here / "t").write_bytes(b"mine\n2\n3\n4\n5\n")
    (there / "t").write_bytes(b"1\n2\n3\n4\ntheirs\n")
    with opened(here) as home, reading(there) as peer:
        sync_open(home, peer)
    assert (here / "t").read_bytes() == b"mine\n2\n3\n4\ntheirs\n"


def test_readers_cannot_have_very_much_remembered(sides: tuple[Path, Path]) -> None:
    _, there = sides
    with reading(there) as peer:
        for number in range(100):
            pending = [b"%d/%d" % (number, k) for k in range(1000)]
            peer.acknowledge(Identity(ReplicaId(100 + number), "x" * 5000, 5), Mark(5, 1, b"", pending, 7))
        assert peer.mark(ReplicaId(199)) == Mark(5, 0, b"", [b"99/0"])
        assert peer.mark(ReplicaId(100)) is None
    with opened(there) as replica:
        readers = [record for record in replica.peers() if record.replica < 0]
        assert len(readers) == READERS
        assert max(len(record.name) for record in readers) <= 256
        assert replica.manifest.replicas.pending() == set()  # nothing is kept for readers
        assert len(replica.peers()) == READERS + 1  # the one that was synced through another key


def test_a_reader_is_told_what_is_known_of_it_from_others(sides: tuple[Path, Path]) -> None:
    _, there = sides
    with opened(there) as replica:
        carry_out(replica, [Transition(b"new", None, tombstone(version(77, 9)))])
    with reading(there) as peer:
        mark = peer.mark(ReplicaId(77))
        assert mark and (mark.epoch, mark.seq, mark.tick) == (0, 0, 9)
        assert peer.mark(ReplicaId(78)) is None


def test_a_reader_does_not_make_another_replica_of_it(sides: tuple[Path, Path]) -> None:
    _, there = sides
    with reading(there) as peer:
        before = peer.identity
        with pytest.raises(ReplicaError, match=READ_ONLY):
            peer.remint(ReplicaId(5), 0)
        assert peer.identity == before


def test_a_reader_makes_no_replica(base: Path) -> None:
    before = everything(base)
    for root in (b"x", b"link", b"."):
        with pytest.raises(ReplicaError):
            only(base, read_only=True).open(root, True)
    with pytest.raises(ReplicaError, match="x is not a replica, and the peer is read-only") as error:
        Key(read_only=True).open(b"x", True)
    assert type(error.value) is ReplicaError  # a NotAReplica would make the near end ask whether to make one
    assert everything(base) == before
    with through(only(base, read_only=True), b"notes", create=True) as replica:
        assert isinstance(replica, ReadOnly)


# -- append-only


def all_of_the_history_goes(root: Path) -> None:
    """Set the limits so that every sync cleans away all runs but the latest."""
    write(root / ".p2psync" / "config.toml", "[history]\ndays = 0\npercent = 0\n")


@pytest.mark.parametrize(
    ("key", "left"), [(Key(), 1), (Key(append_only=True), 3)], ids=["any", "append-only"]
)
def test_nothing_is_cleaned_away_through_an_append_only_key(
    sides: tuple[Path, Path], key: Key, left: int
) -> None:
    here, there = sides
    all_of_the_history_goes(there)
    for text in (b"2", b"3", b"4"):
        (here / "f").write_bytes(text)
        with opened(here) as home, through(key, there) as peer:
            assert sync_open(home, peer).in_step
    assert len(kept(there)) == left


@pytest.fixture
def thesis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Entry]:
    """A replica with a file that was made there, and its entry."""
    do_not_wait_for_disk(monkeypatch)
    root = new_replica(tmp_path / "there", {b"thesis": b"original"})
    with opened(root) as replica:
        replica.scan(True)
        return root, entries(replica)[b"thesis"]


def original_is_known(root: Path, original: Entry) -> bool:
    with opened(root) as replica:
        versions = replica.manifest.past.versions(b"thesis")
        return any(version.entry.same_content(original) for version in versions)


def test_what_does_not_follow_the_version_there_is_refused_through_an_append_only_key(
    thesis: tuple[Path, Entry],
) -> None:
    root, original = thesis
    mine = original.version.bump(Stamp(ReplicaId(9), 1))
    junk = [
        file(data, seen=seen) for data, seen in ((b"1", mine), (b"2", original.version), (b"3", version(8)))
    ]
    first = Transition(b"thesis", original, junk[0])
    no_successors = [Transition(b"thesis", junk[0], entry) for entry in (*junk[1:], file(b"4", seen=mine))]
    touched = Transition(b"thesis", junk[0], file(b"1", mtime_ns=7, seen=mine))
    with through(Key(append_only=True), root) as peer:
        assert carry_out(peer, [first], b"1") == (1, [])
        for step in no_successors:
            after = Transition(b"copy", None, file(b"5"), (b"thesis",))
            refused = [Problem(path, f"left alone: {NO_SUCCESSOR}") for path in (b"copy", b"thesis")]
            assert carry_out(peer, [after, step], b"2", b"3", b"4", b"5") == (0, refused)
        assert carry_out(peer, [touched]) == (1, [])
    assert original_is_known(root, original)


def test_a_version_that_comes_again_with_other_bytes_does_not_take_the_place_of_the_first(
    thesis: tuple[Path, Entry],
) -> None:
    root, original = thesis
    expected = original
    for number, seen in enumerate((version(8), original.version, version(8, 2))):
        wanted = file(b"%d" % number, seen=seen)
        with opened(root) as replica:
            assert carry_out(replica, [Transition(b"thesis", expected, wanted)], b"%d" % number) == (1, [])
        expected = wanted
    assert original_is_known(root, original)


def test_what_a_manifest_made_anew_has_found_can_be_replaced_through_an_append_only_key(
    thesis: tuple[Path, Entry],
) -> None:
    root, _ = thesis
    (root / ".p2psync" / "manifest.db").unlink()
    with opened(root) as replica:
        replica.scan(keep=True)
        (found,) = replica.lookup([Name(b"thesis", False)]).entries
    assert found is not None
    with through(Key(append_only=True), root) as peer:
        step = Transition(b"thesis", found, file(b"what it was", seen=version(9)))
        assert carry_out(peer, [step], b"what it was") == (1, [])


@pytest.mark.parametrize(("key", "known"), [(Key(), False), (Key(append_only=True), True)])
def test_no_flood_of_versions_through_an_append_only_key_has_the_first_forgotten(
    thesis: tuple[Path, Entry], monkeypatch: pytest.MonkeyPatch, key: Key, known: bool
) -> None:
    root, expected = thesis
    monkeypatch.setattr("p2psync.manifest.REMEMBERED", 3)
    original = expected
    with through(key, root) as peer:
        for number in range(10):
            data = b"%d" % number
            seen = expected.version.bump(Stamp(ReplicaId(9), 1 + number))
            wanted = msgspec.structs.replace(file(data, seen=seen), revision=expected.revision + 1)
            assert carry_out(peer, [Transition(b"thesis", expected, wanted)], data) == (1, [])
            expected = wanted
    assert original_is_known(root, original) == known


def test_no_call_destroys_what_was_stored() -> None:
    """A call that is new must be thought about here: see `Key.append_only` and `ReadOnly`."""
    known = "Scan GetMark Changes Lookup Bases Texts Prepare Read Stage Apply Newest Files GetPoint Recalls"
    known += " Rehash Remint Acknowledge Close"
    known += " Take"  # from a tree that is named where the process is started, never by the other side
    known += " Alike Sources Differences"  # read; what they remember is a cache
    known += " RoomIfBlank PutBy"  # where there is nothing at all, as much as fits
    known += " ReadUnread GetUnread"  # what a scan found
    known += " TakeUnread NoteUnread"  # there is no neighbour
    known += " Sparse"  # looks at what is held
    known += " Describe Echo"  # tries what the file system can do, in the sidecar
    known += " Watch Wait Open"  # what is opened again is opened by the same key
    assert {call.__name__ for call in calls.AnyCall.__args__} <= set(known.split())


# -- through a real sshd

Forced = Callable[..., list[str]]


@pytest.fixture
def forced(sshd: Sshd) -> Forced:
    """Makes a key that can do nothing but be served so; returns the options that use it."""

    def forced(*options: str | Path) -> list[str]:
        command = f"{sshd.remote_command} serve {shlex.join(map(str, options))}"
        return ["-e", sshd.forced(command), "--remote-command", sshd.remote_command]

    return forced


def at(sshd: Sshd, path: Path | str) -> str:
    return f"{sshd.host}:{path}"


def test_a_key_opens_what_it_is_restricted_to_and_nothing_else(
    tmp_path: Path, sshd: Sshd, forced: Forced
) -> None:
    here, base = replica(tmp_path / "here", {"file": "x"}), tmp_path / "it's $HOME"
    base.mkdir()
    outside = replica(tmp_path / "outside", {"canary": "alive"})
    (base / "link").symlink_to(outside)
    options = forced("--restrict-to", base)
    p2psync(here, "sync", "--create", *options, at(sshd, base / "notes"))
    p2psync(here, "sync", *options, at(sshd, "notes"))
    assert_same(here, base / "notes")
    before = everything(base, outside)
    for place in (outside, base / "link", "../outside", f"{base}/../outside", tmp_path):
        ran = p2psync(here, "sync", "--create", *options, at(sshd, place), code=3)
        assert str(place) in ran.err
    assert everything(base, outside) == before


@pytest.mark.parametrize(
    "command", ["touch PWNED", "p2psync serve --restrict-to / -- /", "p2psync serve -- x; touch PWNED", ""]
)
def test_nothing_else_is_run_for_a_restricted_key(
    tmp_path: Path, sshd: Sshd, forced: Forced, command: str
) -> None:
    (tmp_path / "base").mkdir()
    _, ssh, *_ = forced("--restrict-to", tmp_path / "base")
    ran = subprocess.run(
        [*shlex.split(ssh), sshd.host, *([command] if command else [])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (Exit.USAGE, "")
    assert "this key is for p2psync alone" in ran.stderr
    for folder in (tmp_path, sshd.home, Path.home()):
        assert not (folder / "PWNED").exists()
    assert os.listdir(tmp_path / "base") == []


def test_a_read_only_key_pulls_and_is_told_what_it_cannot_push(
    tmp_path: Path, sshd: Sshd, forced: Forced
) -> None:
    here = replica(tmp_path / "here")
    there = replica(tmp_path / "base" / "there", {"file": "1", "gone": "1"})
    place = [*forced("--restrict-to", tmp_path / "base", "--read-only"), at(sshd, "there")]
    p2psync(here, "sync", "--create", *place)
    assert assert_same(here, there).keys() == {b"file", b"gone"}
    write(there / "new", "from there")
    write(here / "file", "from here")
    (here / "gone").unlink()
    ran = p2psync(here, "sync", *place, code=1)
    for path in ("file", "gone"):
        assert f"{path} left alone: the peer is read-only" in ran.said
    assert contents(there) == {"file": b"1", "gone": b"1", "new": b"from there"}
    assert contents(here) == {"file": b"from here", "new": b"from there"}
    assert copies(here) == []
    missing = forced("--restrict-to", tmp_path / "base", "--read-only")
    assert "read-only" in p2psync(here, "sync", "--create", *missing, at(sshd, "none"), code=3).err


def test_an_append_only_key_pushes_and_all_that_was_there_is_kept(
    tmp_path: Path, sshd: Sshd, forced: Forced
) -> None:
    here, there = replica(tmp_path / "here", {"file": "1"}), replica(tmp_path / "there")
    bring_in_step(here, there)
    all_of_the_history_goes(there)
    options = forced("--restrict-to", tmp_path, "--append-only")
    for text in ("2", "3"):
        write(here / "file", text)
        p2psync(here, "sync", *options, at(sshd, "there"))
    (here / "file").unlink()
    p2psync(here, "sync", *options, at(sshd, there))
    assert contents(there) == {}
    assert kept(there) == {b"1", b"2", b"3"}


def test_a_root_in_the_key_is_the_one_whatever_is_asked_for(
    tmp_path: Path, sshd: Sshd, forced: Forced
) -> None:
    here, there = replica(tmp_path / "here", {"file": "1"}), replica(tmp_path / "there")
    options = forced("--restrict-to", tmp_path, "there")
    p2psync(here, "sync", *options, at(sshd, "/etc"))
    assert_same(here, there)
    assert digest(b"1") in {digest(content) for content in contents(there).values()}
