"""Which clips stand together in a sample of several.

The manifest's pieces are dealt into pools by a keyed shuffle, and a pool is a ring in a keyed order of its clips. Who
is paired with whom hangs on (seed, manifest) alone, not on the blocks of Ray Data or the number of workers; no place
ever holds more than a pool, and nothing has to be sorted or shuffled across the cluster: a worker reads a pool straight
from the manifest.

A clip's partners are sought in its pool only. A strategy that finds none there falls back to `random`, so that every
clip of a large enough pool has as many samples as the recipe says, and their number is known before any is planned.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

from balsa_ray.identity import pick, rng, shuffled, stable_hash, unit

T = TypeVar("T")

Strategy = Literal["random", "similar", "contrast", "same_tag_other_clip"]

CLIPS_PER_POOL = 20_000
"""A pool is held in the memory of one task: some MB of metadata. It holds ten or more of a manifest's pieces, so that
clips are paired beyond their neighbours."""
CONTRAST_REACH = 256
"""So many clips are looked at for one without a common label: in a pool where all have speech a search has to end."""


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


@dataclass(frozen=True)
class Companions:
    """A ring as the strategies see it.

    Attributes:
        labels: Of each clip, in the order of the ring.
        wider: Of each clip its labels and their parents in the ontology; without one, its labels.
    """

    labels: Sequence[Sequence[str]]
    wider: Sequence[frozenset[str]]

    def find(self, strategy: Strategy, place: int, size: int, turn: int, seed: int, key: str) -> list[int] | None:
        """Returns the places of a clip and its partners, the clip's own first.

        Args:
            strategy: `random`: whoever follows; `similar`: each partner shares a label, or a parent of one, with the
                first clip; `contrast`: no two of the clips share a label or a parent; `same_tag_other_clip`: one label
                of the first clip, drawn by key, is in all of them. Clips without labels have no partner but a random
                one.
            place: Where the first clip stands.
            size: Clips of a sample.
            turn: Number of the clip's sample, from 0.
            seed: Of the run.
            key: Names the kind and the clip.

        Returns:
            `size` different places, or None if the strategy finds too few.
        """
        if strategy == "random":
            return group(range(len(self.labels)), place, turn, size)
        if strategy == "contrast":
            return self._contrast(place, size, int(unit(seed, strategy, key, turn) * len(self.labels)))
        if strategy == "similar":
            options = sorted(name for name in self.wider[place] if len(self._with_wider[name]) > 1)
            return self._similar(place, size, turn, shuffled(seed, (strategy, key, turn), options))
        common = [label for label in self.labels[place] if len(self._with_label[label]) >= size]
        if not common:
            return None
        members = self._with_label[pick(seed, (strategy, key, turn), common)]
        return group(members, bisect_right(members, place) - 1, turn, size)

    def _similar(self, place: int, size: int, turn: int, names: Sequence[str]) -> list[int] | None:
        """Takes a partner by each name in turn, as long as one has members left."""
        chosen = [place]
        left = list(names)
        while left and len(chosen) < size:
            name = left.pop(0)
            members = self._with_wider[name]
            start = bisect_right(members, place) + turn * (size - 1)
            # `chosen` may take up some of the first members, never more than its own length.
            nearest = (members[(start + step) % len(members)] for step in range(min(len(members), size + 1)))
            partner = next((member for member in nearest if member not in chosen), None)
            if partner is not None:
                chosen.append(partner)
                left.append(name)
        return chosen if len(chosen) == size else None

    def _contrast(self, place: int, size: int, start: int) -> list[int] | None:
        chosen, taken = [place], self.wider[place]
        if not taken:
            return None
        for step in range(min(len(self.wider), CONTRAST_REACH)):
            other = (start + step) % len(self.wider)
            if self.wider[other] and taken.isdisjoint(self.wider[other]):
                chosen.append(other)
                taken = taken | self.wider[other]
                if len(chosen) == size:
                    return chosen
        return None

    @cached_property
    def _with_label(self) -> dict[str, list[int]]:
        return _places(self.labels)

    @cached_property
    def _with_wider(self) -> dict[str, list[int]]:
        return _places(self.wider)


def _places(names: Sequence[Iterable[str]]) -> dict[str, list[int]]:
    """Returns the places, in rising order, at which each name stands."""
    places: dict[str, list[int]] = {}
    for place, here in enumerate(names):
        for name in here:
            places.setdefault(name, []).append(place)
    return places
