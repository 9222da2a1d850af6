"""Alike: finds what large contents may be made of among what this replica holds, and the other side too.

Of each large file some chunks are remembered, so that the tree is not read for every one that is new. Source:
M. Lillibridge et al., "Sparse Indexing", 2009.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from p2psync.chunks import ChunkLists, hashes_of_some, samples_of
from p2psync.contents import Contents, written
from p2psync.core.chunking import MOST_BASES, MOST_TIMES, WORTH_BYTES, likeliest, sampled, unit_of, windows
from p2psync.core.model import Digest
from p2psync.core.replica import Content, Like
from p2psync.manifest import Manifest

_AT_ONCE = 64
"""Files that are sampled at most for one question: each takes some milliseconds."""
_AMONG = 5000
"""Files that these are chosen from: choosing is not to take longer than reading them."""
_AT_LEAST = 8
"""Files that are sampled however little would be sent, if there are so many."""


class Alike:
    """What the large contents of one replica have in common."""

    def __init__(self, manifest: Manifest, contents: Contents, lists: ChunkLists) -> None:
        self._manifest = manifest
        self._contents = contents
        self._lists = lists

    def find(self, likes: Sequence[Like], since: int) -> list[list[Digest]]:
        """Return what contents may be made of, and it is known here how that is cut; see `Replica.alike`.

        Args:
            likes: the contents, and of which bases they may be made, if that is known.
            since: the other side had all that was here up to this sequence number.
        """
        new = [content for content, bases in likes if not bases]
        if new:
            self._sample_some(new, since)
        return [self._alike(content, bases) for content, bases in likes]

    def _alike(self, content: Content, bases: Sequence[Digest]) -> list[Digest]:
        unit = unit_of(content.size)
        found = bases or self._like(content)
        if not bases:
            self._cut_some([digest for digest in found if not self._lists.get(digest, unit)], content.size)
        return [digest for digest in found if self._lists.get(digest, unit)][:MOST_BASES]

    def _like(self, content: Content) -> list[Digest]:
        """Return other contents that have chunks in common with these, the likest first."""
        if not self._manifest.samples.are_any():
            return []
        found = self._manifest.samples.contents_with(sampled(self._hashes(content)), MOST_BASES + 1)
        return [digest for digest in found if digest != content.digest]

    def _cut_some(self, digests: Sequence[Digest], size: int) -> None:
        """Find out how contents are cut of which others of that size may be made, the likest first."""
        left = MOST_TIMES * size
        for digest in digests:
            left -= self._cut(digest, unit_of(size), left)

    def _cut(self, digest: Digest, unit: int, most: int) -> int:
        """Find out how contents are cut, if that is to read so many bytes at most; return how many it was."""
        with self._contents.opened(digest, self._contents.is_as_known) as fd:
            if fd is None or (size := os.fstat(fd).st_size) > most:
                return 0
            self._lists.of(digest, unit, fd)
        return size

    # -- samples

    def _sample_some(self, new: Sequence[Content], since: int) -> None:
        """Sample files that the other side has too, those that new contents are most likely made of first.

        Of more than a few no more is read than would be sent. What cannot be read is tried another day, and
        keeps none of the others waiting.
        """
        left, count = sum(content.size for content in new), 0
        samples: list[tuple[bytes, Digest]] = []
        for other in self._likely(new, since):
            if count == _AT_ONCE or (left <= 0 and count >= _AT_LEAST):
                break
            if hashes := self._hashes(other):
                samples += samples_of(other.digest, hashes)
                left, count = left - sum(length for _, length in windows(other.size)), count + 1
        if samples:
            # No transaction is open: rows are foreseen only of what a neighbour has, who asks nothing.
            with self._manifest.transaction():
                self._manifest.samples.add(samples)

    def _likely(self, new: Sequence[Content], since: int) -> list[Content]:
        """Return what was not sampled yet, the likeliest first."""
        sizes = {content.digest: content.size for content in new}
        paths = self._manifest.holders.any_of(list(sizes))
        most = MOST_TIMES * max(sizes.values())
        found = dict(self._manifest.samples.unsampled(since, WORTH_BYTES, most, _AMONG))
        places = {path: sizes[digest] for digest, path in paths.items()}
        order = likeliest(places, {path: content.size for path, content in found.items()}) if places else []
        return list(dict.fromkeys(found[path] for path in order))

    def _hashes(self, content: Content) -> bytes:
        """Return the hashes of some chunks of contents; none, if they cannot be read or are written to."""
        with self._contents.opened(content.digest, self._contents.is_as_scanned) as fd:
            if fd is None:
                return b""
            before = written(fd)
            try:
                found = hashes_of_some(fd, content.size)
            except OSError:  # which will show
                return b""
            return found if written(fd) == before else b""
