"""Guard: when a plan deletes so much that a person has to say yes. Owns that rule, and a plan's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_hexdigest

from p2psync.core.model import Action, Kind, Transition, action_of
from p2psync.core.vector import ReplicaId

EMPTIED = 5
"""More files than this, and all that there were: somebody emptied the root, or a disk is not mounted."""


@dataclass(frozen=True)
class MaxDelete:
    """How many files may be deleted from a replica without a question."""

    percent: float | None = 50
    """Of the files that it has; None: any share."""
    count: int = 20
    """So many are always allowed; without `percent`, no more than these."""


HALF = MaxDelete()
"""What is allowed unless somebody says otherwise."""


def parse_max_delete(text: str) -> MaxDelete:
    """Return what `N` (files) or `N%` (of all files) allows.

    Raises:
        ValueError: it is neither.
    """
    number, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    if not number.isascii() or not number.isdigit() or (percent and int(number) > 100):
        raise ValueError("give a number of files, or a share of them from 0% to 100%")
    return MaxDelete(int(number), 0) if percent else MaxDelete(None, int(number))


def deleted(transitions: Collection[Transition]) -> int:
    """Return how many files' contents would be gone from the tree: what only moves is not deleted."""
    gone: Counter[bytes] = Counter()
    for step in transitions if any(map(_takes_a_file, transitions)) else ():
        before = step.expected
        if before is not None and before.kind is Kind.FILE and not step.wanted.same_bytes(before):
            if step.wanted.kind is not Kind.FILE:
                gone[before.digest] += 1
        elif step.wanted.kind is Kind.FILE and (before is None or not before.alive):
            gone[step.wanted.digest] -= 1
    return sum(count for count in gone.values() if count > 0)


def _takes_a_file(step: Transition) -> bool:
    return step.wanted.kind is not Kind.FILE and step.expected is not None and step.expected.kind is Kind.FILE


def is_too_much(gone: int, files: int, limit: MaxDelete) -> bool:
    """Is it more than may go without a question?

    Args:
        gone: files that would be deleted.
        files: files that there are.
        limit: how many may go.
    """
    if limit.percent is None:
        return gone > limit.count
    if gone >= files and gone > EMPTIED and limit.percent < 100:
        return True
    return gone > limit.count and gone > files * limit.percent / 100


def plan_id(sides: Iterable[tuple[ReplicaId, Sequence[Transition]]]) -> str:
    """Return the name of a plan: the same whenever the same is to be done, whoever asks."""
    lines = []
    for replica, transitions in sides:
        for step in transitions:
            if action_of(step) is Action.NOTHING:
                continue
            before, after = (
                (int(entry.kind), entry.digest, entry.mode) if entry else None
                for entry in (step.expected, step.wanted)
            )
            seen = step.expected.version.encode() if step.expected else b""  # so that it is good once
            lines.append(repr((replica, step.path, before, seen, after)))
    return xxh3_64_hexdigest("\n".join(sorted(lines)).encode())[:12]
