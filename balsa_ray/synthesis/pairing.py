"""Which clips stand together in a sample of several.

Clips fall into buckets by a keyed hash, and a bucket is a ring in the order of another. A clip's partners are those
that follow it. Who is paired with whom hangs on (seed, ids) alone: not on the order of the manifest, the blocks of
Ray Data or the number of workers; and no place ever holds more than a bucket.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

from balsa_ray.identity import stable_hash, unit

T = TypeVar("T")

CLIPS_PER_BUCKET = 10_000
"""A bucket is held in the memory of one task: some MB of metadata."""


def number_of_buckets(clips: int) -> int:
    """Returns how many buckets to use for so many clips."""
    return max(1, math.ceil(clips / CLIPS_PER_BUCKET))


def bucket_of(seed: int, clip_id: str, buckets: int) -> int:
    """Returns the number of a clip's bucket."""
    return int(unit(seed, "bucket", clip_id) * buckets)


def ring(seed: int, kind: str, clip_ids: Sequence[str]) -> list[int]:
    """Returns the positions of a bucket's clips in the order of the ring; each kind has its own."""
    keys = [stable_hash(seed, "ring", kind, clip_id) for clip_id in clip_ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def group(order: Sequence[T], place: int, turn: int, size: int) -> list[T] | None:
    """Returns a clip and its partners.

    Args:
        order: The ring.
        place: Where the first clip stands.
        turn: Number of the clip's sample, from 0: each turn has other partners as long as there are any.
        size: Clips of a sample.

    Returns:
        `size` different members, or None if the ring is too small.
    """
    others = len(order) - 1
    if others < size - 1:
        return None
    steps = ((turn * (size - 1) + k) % others for k in range(size - 1))
    return [order[place]] + [order[(place + 1 + step) % len(order)] for step in steps]
