"""Absent sounds that are put to the backbone, where it is not left to name them itself.

LISTEN as published (`free`) lets the backbone name what is absent. The other ways draw candidates that the clip's
metadata neither states nor implies, as the object-hallucination benchmark does for its questions (arXiv 2406.08402).
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate, chain, combinations
from typing import Any, Literal

from balsa_ray.identity import units
from balsa_ray.prompts.relations import Relations

Negative = Literal["free", "random", "popular", "cooccurring", "siblings"]
COUNTED: tuple[Negative, ...] = ("popular", "cooccurring")
"""Ways that need to know how often labels occur in the whole manifest."""

DRAWS_PER_CANDIDATE = 4
LABELS_OF_A_CLIP = 50
"""More labels of one clip don't count for co-occurrence: their pairs would be millions."""
NEIGHBOURS = 50
"""Of each label so many are kept that occur most with it."""


@dataclass
class Occurrence:
    """How many clips have a label, and how many have two of them together.

    Attributes:
        clips: Clips by label.
        together: Clips by label and other label.
    """

    clips: Counter[str] = field(default_factory=Counter)
    together: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, labels: Sequence[str]) -> None:
        """Counts the labels of one clip, each of which stands once in `labels`."""
        self.clips.update(labels)
        for a, b in combinations(labels[:LABELS_OF_A_CLIP], 2):
            self.together.setdefault(a, Counter())[b] += 1
            self.together.setdefault(b, Counter())[a] += 1

    def merge(self, other: "Occurrence") -> None:
        """Adds the counts of other clips."""
        self.clips.update(other.clips)
        for label, counts in other.together.items():
            self.together.setdefault(label, Counter()).update(counts)

    def cut(self) -> "Occurrence":
        """Returns the same with `NEIGHBOURS` of each label: small enough to be sent to every worker."""
        most = {
            label: sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:NEIGHBOURS]
            for label, counts in self.together.items()
        }
        return Occurrence(self.clips, {label: Counter(dict(counts)) for label, counts in most.items()})

    def neighbour(self, present: Sequence[str], position: float) -> str | None:
        """Returns a label that occurs with one of `present`, each of which has an equal part of [0, 1)."""
        which, within = divmod(position * len(present), 1)
        found = self._neighbours.get(present[int(which)]) if present else None
        return found.at(within) if found else None

    @cached_property
    def _neighbours(self) -> dict[str, "Weighted"]:
        return {label: Weighted(counts) for label, counts in self.together.items()}

    @cached_property
    def popular(self) -> "Weighted":
        """All labels by how many clips have them."""
        return Weighted(self.clips)


class Weighted:
    """Labels to draw from in proportion to a count, in an order of their own and not of the counting."""

    def __init__(self, counts: "Counter[str]") -> None:
        self._labels = sorted(counts)
        self._edges = list(accumulate(counts[label] for label in self._labels))

    def at(self, position: float) -> str | None:
        """Returns the label at a position in [0, 1), or None if there are no labels."""
        return self._labels[bisect_right(self._edges, position * self._edges[-1])] if self._labels else None


def draw_absent(
    way: Negative,
    present: Sequence[str],
    labels: Sequence[str],
    relations: Relations,
    occurrence: Occurrence,
    number: int,
    seed: int,
    *key: Any,
) -> tuple[list[str], str]:
    """Draws labels that a clip can be said to lack.

    What the way can't supply (a label without siblings, a manifest without co-occurrence) is filled at random.

    Args:
        way: `random`: any label; `popular`: in proportion to the clips that have it; `cooccurring`: in proportion to
            the clips that have it together with a label drawn from `present`; `siblings`: of a present label;
            `free`: none, the LLM names them.
        present: The clip's labels.
        labels: All labels of the run, sorted.
        relations: What labels imply.
        occurrence: Counts of the whole manifest.
        number: How many to draw; fewer only where there are no more.
        seed: Of the run.
        *key: Names the sample.

    Returns:
        The labels, and the way that was really taken: `way`, `way>random` if it supplied none, and `way>free` if
        there is nothing to draw.
    """
    if way == "free":
        return [], way
    positions = units(seed, "absent", way, *key, count=DRAWS_PER_CANDIDATE * number)
    source = _source(way, present, labels, relations, occurrence)
    chosen: list[str] = []

    def take(label: str | None) -> None:
        if label is not None and label not in chosen and not relations.implies(present, label):
            chosen.append(label)

    for position in positions:
        if len(chosen) < number:
            take(source(position))
    taken: str = way if chosen else f"{way}>random"
    if len(chosen) < number:
        filling = units(seed, "absent", way, "random", *key, count=DRAWS_PER_CANDIDATE * number)
        start = int(filling[0] * len(labels))
        # Where chance finds too few, because nearly every label is there or taken, one after the other is looked at.
        for label in chain((labels[int(at * len(labels))] for at in filling), labels[start:], labels[:start]):
            take(label)
            if len(chosen) == number:
                break
    return chosen, taken if chosen else f"{way}>free"


def _source(
    way: Negative, present: Sequence[str], labels: Sequence[str], relations: Relations, occurrence: Occurrence
) -> Callable[[float], str | None]:
    if way == "popular":
        return occurrence.popular.at
    if way == "cooccurring":
        return partial(occurrence.neighbour, present)
    options = labels
    if way == "siblings":
        options = list(dict.fromkeys(near for label in present for near in relations.siblings.get(label, ())))
    return lambda position: options[int(position * len(options))] if options else None
