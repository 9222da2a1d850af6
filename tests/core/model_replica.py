"""A replica reduced to its rules: a tree and a manifest in memory, driven by the real `core`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from msgspec.structs import replace
from xxhash import xxh3_128_digest

from p2psync.core.detect import observe, vanish
from p2psync.core.merge import merge
from p2psync.core.model import NO_DIGEST, Digest, Entry, Kind, Prefer, Transition
from p2psync.core.order import in_order
from p2psync.core.paths import ancestors
from p2psync.core.reconcile import Facts, Pair, Plan, Remembered, Text, reconcile
from p2psync.core.vector import NOTHING, ReplicaId, Stamp

CONTENTS: dict[Digest, bytes] = {NO_DIGEST: b""}
"""Every content ever made: stands for staging and for the kept bases."""


def digest_of(data: bytes) -> Digest:
    digest = Digest(xxh3_128_digest(data))
    CONTENTS[digest] = data
    return digest


def seen_file(data: bytes, mode: int = 0o644, mtime_ns: int = 0) -> Entry:
    return Entry(kind=Kind.FILE, digest=digest_of(data), size=len(data), mode=mode, mtime_ns=mtime_ns)


SEEN_DIRECTORY = Entry(kind=Kind.DIRECTORY, mode=0o755)


class Killed(Exception):
    """The process died here."""


@dataclass
class ModelReplica:
    ident: ReplicaId
    clock: count[int]
    tree: dict[bytes, Entry] = field(default_factory=dict)
    manifest: dict[bytes, Entry] = field(default_factory=dict)
    remembered: dict[bytes, list[Entry]] = field(default_factory=dict)
    anew: bool = False
    """Was the manifest lost, and the tree not scanned since?"""

    def lose_manifest(self, ident: ReplicaId) -> None:
        """As one that is damaged or removed: whoever makes it anew is another replica."""
        self.ident, self.manifest, self.remembered, self.anew = ident, {}, {}, True

    def tick(self) -> Stamp:
        return Stamp(self.ident, next(self.clock))

    def scan(self) -> None:
        stamp = self.tick()
        for path in self.tree.keys() | self.manifest.keys():
            known = self.manifest.get(path)
            seen = self.tree.get(path)
            if seen is not None:
                entry = observe(known, seen, stamp)
                self.record(path, replace(entry, revision=0) if self.anew else entry)
            elif known is not None:
                self.record(path, vanish(known, stamp))
        self.anew = False

    def record(self, path: bytes, entry: Entry) -> None:
        known = self.manifest.get(path)
        if known is not None and known.version != entry.version:
            self.remembered.setdefault(path, []).append(known)
        self.manifest[path] = entry

    def apply(self, transitions: Iterable[Transition], fuse: Iterable[int]) -> None:
        """Carry out all transitions, in the order of the real apply; only then know of them (I5)."""
        fuse = iter(fuse)
        done: list[Transition] = []
        failed: set[bytes] = set()
        for transition in in_order(transitions):
            if next(fuse, 1) == 0:
                raise Killed
            if failed.intersection(transition.after) or not self._swap(transition):
                failed.add(transition.path)
            else:
                done.append(transition)
        for transition in done:
            self.record(transition.path, transition.wanted)

    def _swap(self, transition: Transition) -> bool:
        path, wanted = transition.path, transition.wanted
        parent = next(ancestors(path), None)
        if wanted.kind is not Kind.DIRECTORY and any(below.startswith(path + b"/") for below in self.tree):
            return False
        if not wanted.alive:
            self.tree.pop(path, None)
            return True
        if parent is not None and self.tree.get(parent, wanted).kind is not Kind.DIRECTORY:
            return False
        self.tree[path] = replace(wanted, version=NOTHING, revision=0)
        return True


def sync(
    ours: ModelReplica,
    theirs: ModelReplica,
    fuses: tuple[Iterable[int], Iterable[int]] = ((), ()),
    prefer: Prefer = Prefer.BOTH,
) -> Plan:
    """One run of the pipeline; a fuse that yields 0 kills the side it belongs to at that transition.

    Raises:
        Killed: one of the sides died; the other may have carried out its part.
    """
    ours.scan()
    theirs.scan()
    paths = ours.manifest.keys() | theirs.manifest.keys()
    facts = Facts({path: Pair(ours.manifest.get(path), theirs.manifest.get(path)) for path in paths})
    stamp = ours.tick()
    while (plan := reconcile(facts, stamp, prefer)).questions:
        for path in plan.questions.pairs:
            facts.pairs[path] = Pair(None, None)
        for path in plan.questions.bases:
            facts.bases[path] = Remembered(*(side.remembered.get(path, ()) for side in (ours, theirs)))
        for path, question in plan.questions.texts.items():
            merged = merge(*(CONTENTS[digest] for digest in question))
            facts.texts[path] = None if merged is None else Text(digest_of(merged), len(merged))
    died = []
    for side, transitions, fuse in zip((ours, theirs), (plan.ours, plan.theirs), fuses, strict=True):
        try:
            side.apply(transitions, fuse)
        except Killed as killed:
            died.append(killed)
    if died:
        raise died[0]
    return plan
