"""The plan of a run: which samples stand in which global batch.

Everything here is a pure function of the seed, the stages and the samples' ids, kinds and sources. No worker is needed
to compute it, and a resumed run, or one with another number of workers, has the same batches: nothing of it is ever
stored.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from balsa_ray.identity import rng

if TYPE_CHECKING:
    from balsa_ray.training.config import StageConfig


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one optimisation step.

    Attributes:
        step: 1-based, of the whole run.
        stage: Index of the stage.
        stage_step: 1-based, of the stage.
        epoch: How often the stage has gone through the samples that it introduces, after this step.
        rows: The samples, as indices into the ids that the plan was made from, stream by stream.
    """

    step: int
    stage: int
    stage_step: int
    epoch: float
    rows: np.ndarray


def endless_order(seed: int, stream: str, ids: Sequence[str], rows: Sequence[int]) -> Iterator[int]:
    """Yields rows for ever: each once an epoch, every epoch in an order of its own.

    Args:
        seed: Of the run.
        stream: Name that keys the order, so that two streams over the same rows differ.
        ids: Ids of all samples.
        rows: Indices into `ids` of the samples to draw from.
    """
    # Sorted by id first: the order must not hang on how the samples are split over files.
    by_id = np.asarray(sorted(rows, key=lambda row: ids[row]), dtype=np.int64)
    epoch = 0
    while True:
        yield from by_id[rng(seed, stream, epoch).permutation(len(by_id))].tolist()
        epoch += 1


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """Returns how many of `total` rows fall to each weight; no number falls when `total` rises.

    Each in turn takes its rounded part of what those before it have left, so that every number stays within one or two
    rows of the exact share.
    """
    numbers = []
    left = sum(weights)
    for weight in weights:
        numbers.append(round(total * weight / left) if left > weight else total)
        total -= numbers[-1]
        left -= weight
    return numbers


@dataclass(frozen=True)
class Stream:
    """Rows that a stage draws from, each once before any comes again.

    Attributes:
        name: Keys their order.
        rows: Indices of the samples.
        weight: Share in what is drawn, relative to the streams beside this one.
    """

    name: str
    rows: Sequence[int]
    weight: float


class Mixture:
    """Draws from streams by their weights. The running totals are rounded, which keeps the shares over a stage."""

    def __init__(self, seed: int, ids: Sequence[str], streams: Sequence[Stream]) -> None:
        self._orders = [endless_order(seed, stream.name, ids, stream.rows) for stream in streams]
        self._weights = [stream.weight for stream in streams]
        self._drawn = 0

    def draw(self, count: int) -> list[int]:
        """Returns the next `count` rows, stream by stream."""
        before = shares(self._drawn, self._weights)
        self._drawn += count
        after = shares(self._drawn, self._weights)
        numbers = [new - old for old, new in zip(before, after, strict=True)]
        return [row for order, number in zip(self._orders, numbers, strict=True) for row in islice(order, number)]


def plan(
    seed: int,
    ids: Sequence[str],
    kinds: Sequence[str],
    stages: "Sequence[StageConfig]",
    batch_size: int,
    sources: npt.ArrayLike | None = None,
    source_weights: Sequence[float] = (1.0,),
) -> Iterator[GlobalBatch]:
    """Returns the global batches of a run, stage after stage.

    Epochs follow each other without a gap: a batch may hold the end of one and the start of the next, so that every
    batch is full and every row of a stream comes exactly once an epoch. Without weights a stage has one stream; weights
    of kinds make one of each kind, and weights of sources cut each of them by source: a kind keeps its share whichever
    sources have samples of it. Rows of earlier stages are replayed in the shares that they had there.

    Args:
        seed: Of the run.
        ids: Ids of all samples, each once.
        kinds: Kind of each sample.
        stages: What to train on, in order.
        batch_size: Samples in every global batch.
        sources: Where each sample comes from, an index into the weights; None: all from the first.
        source_weights: Of the sources.

    Raises:
        ValueError: If a kind that a stage wants has no sample, or if there is nothing to replay.
    """
    source_of = np.zeros(len(ids), dtype=np.int64) if sources is None else np.asarray(sources)
    kind_of = np.asarray(kinds)
    of_kind = {kind: np.flatnonzero(kind_of == kind) for kind in set(kinds)}
    drawn = []
    for index, stage in enumerate(stages):
        for kind in stage.kinds:
            if kind not in of_kind:
                raise ValueError(f"stage {stage.name!r} wants kind {kind!r}, but no sample is of that kind")
        taken = set(stage.kinds)
        new = _streams(f"{stage.name}/new", stage, taken, of_kind, source_of, source_weights)
        old: list[Stream] = []
        for before in reversed(stages[:index]):
            kept = set(before.kinds) - taken
            old += _streams(f"{stage.name}/replay/{before.name}", before, kept, of_kind, source_of, source_weights)
            taken |= kept
        if stage.replay and not old:
            raise ValueError(f"stage {stage.name!r} replays {stage.replay:g}, but earlier stages have no other kinds")
        drawn.append((new, old))
    return _batches(seed, ids, stages, drawn, batch_size)


def _streams(
    name: str,
    stage: "StageConfig",
    wanted: Collection[str],
    of_kind: Mapping[str, np.ndarray],
    sources: np.ndarray,
    source_weights: Sequence[float],
) -> list[Stream]:
    """What is drawn from to get the `wanted` ones of a stage's kinds.

    The weights sum to the number of samples, so that of two stages that are replayed neither outweighs the other.
    """
    if not wanted:
        return []
    if isinstance(stage.kinds, dict):
        weights = {str(kind): weight for kind, weight in stage.kinds.items()}
        per_weight = sum(len(of_kind[kind]) for kind in weights) / sum(weights.values())
        groups = [(f"{name}/{kind}", of_kind[kind], weights[kind] * per_weight) for kind in sorted(wanted)]
    else:
        rows = np.sort(np.concatenate([of_kind[kind] for kind in wanted]))
        groups = [(name, rows, float(len(rows)))]
    streams = []
    for key, rows, weight in groups:
        present = np.unique(sources[rows])
        total = sum(source_weights[source] for source in present)
        for source in present:
            share = weight * source_weights[source] / total
            streams.append(Stream(f"{key}/{source}", rows[sources[rows] == source].tolist(), share))
    return streams


def _batches(
    seed: int,
    ids: Sequence[str],
    stages: "Sequence[StageConfig]",
    drawn: Sequence[tuple[list[Stream], list[Stream]]],
    batch_size: int,
) -> Iterator[GlobalBatch]:
    step = 0
    for index, (stage, (new_streams, old_streams)) in enumerate(zip(stages, drawn, strict=True)):
        new, old = Mixture(seed, ids, new_streams), Mixture(seed, ids, old_streams)
        introduced = sum(len(stream.rows) for stream in new_streams)
        share = batch_size * stage.replay
        fresh = 0
        for stage_step in range(1, stage.steps + 1):
            # Rounding the running total, not each batch, keeps the share exact over the stage.
            replayed = round(stage_step * share) - round((stage_step - 1) * share)
            chosen = [*new.draw(batch_size - replayed), *old.draw(replayed)]
            fresh += batch_size - replayed
            step += 1
            yield GlobalBatch(step, index, stage_step, fresh / introduced, np.asarray(chosen))
