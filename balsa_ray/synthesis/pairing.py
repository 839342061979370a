"""Which clips stand together in a sample of several.

The manifest's pieces are dealt into pools by a keyed shuffle, and a pool is a ring in a keyed order of its clips. A
clip's partners are those that follow it. Who is paired with whom hangs on (seed, manifest) alone, not on the blocks of
Ray Data or the number of workers; no place ever holds more than a pool, and nothing has to be sorted or shuffled
across the cluster: a worker reads a pool straight from the manifest.
"""

from collections.abc import Sequence
from typing import TypeVar

from balsa_ray.identity import rng, stable_hash

T = TypeVar("T")

CLIPS_PER_POOL = 10_000
"""A pool is held in the memory of one task: some MB of metadata."""


def pools(seed: int, sizes: Sequence[int]) -> list[list[int]]:
    """Deals the pieces of a manifest into pools of about `CLIPS_PER_POOL` rows.

    Args:
        seed: The run's seed.
        sizes: Rows of each piece.

    Returns:
        The numbers of the pieces of each pool; every piece is in one.
    """
    number = max(1, min(len(sizes), round(sum(sizes) / CLIPS_PER_POOL)))
    dealt = [int(piece) for piece in rng(seed, "pools").permutation(len(sizes))]
    return [sorted(dealt[pool::number]) for pool in range(number)]


def ring(seed: int, kind: str, clip_ids: Sequence[str]) -> list[int]:
    """Returns the positions of a pool's clips in the order of the ring; each kind has its own."""
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
