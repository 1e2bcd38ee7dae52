"""Remembers many texts in little memory."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from hashlib import blake2b
from itertools import chain, islice, pairwise


class Fingerprints:
    """A set of texts that keeps eight bytes of each.

    Two different texts among a million have the same eight bytes once in some 40 million files.
    """

    def __init__(self) -> None:
        # By their first byte, so that not all of them are sorted at once.
        self._buckets = [array("Q") for _ in range(256)]
        self._sorted = True

    def add(self, *parts: str) -> None:
        """Add a text of some parts."""
        value = _hash(parts)
        self._buckets[value >> 56].append(value)
        self._sorted = False

    def __contains__(self, parts: tuple[str, ...]) -> bool:
        return self._holds(_hash(parts))

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def issubset(self, other: Fingerprints) -> bool:
        """Return whether another set has all of these texts."""
        return all(other._holds(value) for bucket in self._buckets for value in bucket)

    def some(self, count: int) -> Fingerprints:
        """Return a set of so many of them at most, always the same."""
        found = Fingerprints()
        self._sort()
        for value in islice(chain.from_iterable(self._buckets), count):
            found._buckets[value >> 56].append(value)
        return found

    def repeated(self) -> Fingerprints:
        """Return those that were added more than once."""
        found = Fingerprints()
        for bucket, values in zip(found._buckets, self._buckets, strict=True):
            bucket.extend(
                sorted({one for one, following in pairwise(sorted(values)) if one == following})
            )
        return found

    def _sort(self) -> None:
        if not self._sorted:
            self._buckets = [array("Q", sorted(bucket)) for bucket in self._buckets]
            self._sorted = True

    def _holds(self, value: int) -> bool:
        self._sort()
        bucket = self._buckets[value >> 56]
        position = bisect_left(bucket, value)
        return position < len(bucket) and bucket[position] == value


def _hash(parts: tuple[str, ...]) -> int:
    return int.from_bytes(blake2b("\n".join(parts).encode(), digest_size=8).digest())
