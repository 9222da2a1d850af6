"""The page of the protocol is enough: a far end written from it alone, without p2psync's code."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.cli_support import p2psync, replica

FAR_END = r"""
import os, struct, sys, time
from pathlib import Path
import msgspec, xxhash

ROOT, source, target = Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer
ME, TICK = 7, time.time_ns() // 1000
entries, wanted, staged = {}, [], {}

def digest(data):
    return xxhash.xxh3_128_digest(data)

def send(tag, value=None):
    body = msgspec.msgpack.encode(value)
    target.write(struct.pack(">I", 1 + len(body)) + tag + body)

def receive():
    (length,) = struct.unpack(">I", source.read(4))
    frame = source.read(length)
    return frame[:1], msgspec.msgpack.decode(frame[1:])

def values():
    while (frame := receive())[0] == b"V":
        yield from frame[1]
    assert frame[0] == b"E"

def lacking():
    steps = [(expected, entry) for _, expected, entry, *_ in wanted if entry[0] == 1]
    files = [entry for expected, entry in steps if not (expected and expected[3:5] == entry[3:5])]
    return [[entry[3], entry[4]] for entry in files if entry[3] not in staged]

for file in ROOT.iterdir():
    data, version = file.read_bytes(), struct.pack(">QQ", ME, TICK)
    entries[file.name.encode()] = [1, version, 1, digest(data), len(data), 0o644, 10**18, b""]

target.write(struct.pack(">8sHB", b"p2psync\0", 9, 0))
magic, protocol, options = struct.unpack(">8sHB", source.read(11))
assert (magic, protocol, options) == (b"p2psync\0", 9, 0)
send(b"V", [ME, "far", 1])
send(b"E")
target.flush()
while True:
    tag, (name, *arguments) = receive()
    assert tag == b"C"
    answers = None
    if name == "Close":
        break
    elif name == "Scan":
        answers = [[[], [], b"", []]]
    elif name == "RoomIfBlank":
        answers = [0]
    elif name == "GetMark":
        answers = [None]
    elif name == "GetPoint":
        answers = [[len(entries), 1]]
    elif name == "Recalls":
        answers = [True]
    elif name in ("Newest", "Files"):
        answers = [len(entries)]
    elif name == "Changes":
        answers = [[[path, entry] for path, entry in entries.items()]]
    elif name == "Lookup":
        answers = [[[entries.get(path) for path, _ in arguments[0]], []]]
    elif name in ("Bases", "Alike", "Sources"):
        answers = [[[] for _ in arguments[0]]]
    elif name == "Texts":
        answers = [[None for _ in arguments[0]]]
    elif name == "Prepare":
        wanted = list(values())
        answers = [lacking()]
    elif name == "Take":
        answers = [[0, 0, lacking()]]
    elif name == "Read":
        held = {digest(data): data for data in map(Path.read_bytes, ROOT.iterdir())}
        answers = [[[one, held[one], 1]] for one in arguments[0]]
    elif name == "Stage":
        for one, data, *_ in values():
            staged[one] = staged.get(one, b"") + data
        answers = [None]
    elif name == "Apply":
        for path, _, entry, *_ in wanted:
            if entry[0] == 1 and entry[3] in staged:
                assert digest(staged[entry[3]]) == entry[3]
                (ROOT / os.fsdecode(path)).write_bytes(staged[entry[3]])
            entries[path] = entry
        answers = [[len(wanted), []]]
    elif name == "Acknowledge":
        answers = [None]
    for answer in answers:
        send(b"V", answer)
    send(b"E")
    target.flush()
"""


def test_a_far_end_written_from_the_page_syncs(tmp_path: Path) -> None:
    large = bytes(range(256)) * 8192
    home = replica(tmp_path / "home", {"letter.txt": "hello"})
    (home / "large").write_bytes(large)
    far = tmp_path / "far"
    far.mkdir()
    (far / "theirs.txt").write_text("from there")
    program = tmp_path / "far.py"
    program.write_text(FAR_END)
    ssh = f"{sys.executable} {program} {far}"

    sync = ("sync", "-e", ssh, "--compress", "off", "--no-reuse", "host:x")
    assert "in step" in p2psync(home, *sync).out
    assert (far / "letter.txt").read_text() == "hello"
    assert (far / "large").read_bytes() == large
    assert (home / "theirs.txt").read_text() == "from there"

    (home / "large").write_bytes(b"more" + large)  # of which the far end is asked for what it holds
    assert "in step" in p2psync(home, *sync).out
    assert (far / "large").read_bytes() == b"more" + large
