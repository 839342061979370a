"""Micro-batches: the samples of a global batch dealt to the workers, and packed into rows with hardly any padding.

Samples of a row stand one behind the other; their positions begin anew, by which transformers knows that none may see
another. Grouping samples of like length would not do: in a batch of 32 no two groups are alike enough, and a seventh of
the positions stayed empty where packing leaves a thirtieth. But attention is computed over whole rows and thrown away
between samples, so rows are made only as long as it takes.

Everything here is a pure function of the samples' sizes, so every worker knows the parts of all others, and nobody has
to ask how many micro-batches there will be.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from balsa_ray.model.configuration import IGNORED

ROWS_OF = 8  # the row length is a multiple of it: a matrix product on a GPU wants that, and few shapes occur
PADDING = 0.045  # a share of the positions that is put up with: rows are made no longer to save more
LONGEST_ROW = 8  # times the longest sample


@dataclass(frozen=True)
class Packed:
    """Samples of one micro-batch, laid out in rows of one length.

    Attributes:
        rows: The samples in each row, indices into the data set.
        length: Positions of a row.
    """

    rows: tuple[tuple[int, ...], ...]
    length: int

    @property
    def samples(self) -> np.ndarray:
        """All samples in reading order."""
        return np.asarray([sample for row in self.rows for sample in row])

    @property
    def positions(self) -> int:
        """Positions that are computed, padding included."""
        return len(self.rows) * self.length


def cut(rows: np.ndarray, tokens: np.ndarray, costs: np.ndarray, world: int, budget: int) -> list[list[Packed]]:
    """Cuts a global batch into micro-batches: for each worker equally many, of nearly equal cost.

    They are as few as the budget permits.

    Args:
        rows: Indices of the batch's samples, `[n]`.
        tokens: Length of each, `[n]`.
        costs: What each takes to compute, in any unit, `[n]`: `Flops.of_samples` counts attention, clips and replies.
        world: Number of workers, at most n.
        budget: Most positions of a micro-batch, padding included. A sample that is longer stands alone. Only if n is
            no multiple of `world` can there be more.

    Raises:
        ValueError: If there are more workers than samples.
    """
    if world > len(rows):
        raise ValueError(f"{world} workers for a batch of {len(rows)} samples")
    lengths = dict(zip(rows.tolist(), tokens.tolist(), strict=True))
    cost_of = dict(zip(rows.tolist(), costs.tolist(), strict=True))
    most = len(rows) // world
    for number in range(min(most, -(-int(tokens.sum()) // (world * budget))), most + 1):
        dealt = deal(cost_of, world * number)
        parts = [pack({sample: lengths[sample] for sample in part}, budget) for part in dealt]
        if all(part.positions <= budget or len(part.rows[0]) == len(part.samples) == 1 for part in parts):
            break
    # Those that run at the same time are neighbours in the order of cost; every other time the order is turned round.
    order = sorted(range(len(parts)), key=lambda part: -sum(cost_of[sample] for sample in dealt[part]))
    turns = [order[start : start + world] for start in range(0, len(order), world)]
    turns = [turn[::-1] if index % 2 else turn for index, turn in enumerate(turns)]
    return [[parts[turn[rank]] for turn in turns] for rank in range(world)]


def deal(costs: dict[int, float], parts: int) -> list[list[int]]:
    """Deals samples into parts of nearly equal cost: the dearest first, each to the cheapest part so far.

    Graham, Bounds on multiprocessing timing anomalies (1969): no part costs over a third more than it has to.
    """
    heap = [(0.0, part) for part in range(parts)]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for sample, cost in sorted(costs.items(), key=lambda item: (-item[1], item[0])):
        so_far, part = heapq.heappop(heap)
        dealt[part].append(sample)
        heapq.heappush(heap, (so_far + cost, part))
    return dealt


def pack(lengths: dict[int, int], budget: int) -> Packed:
    """Lays samples out in the shortest rows that leave little padding, or in those that leave the least."""
    order = sorted(lengths, key=lambda sample: (-lengths[sample], sample))
    longest, total = lengths[order[0]], sum(lengths.values())
    shortest = -(-longest // ROWS_OF) * ROWS_OF
    best: Packed | None = None
    for length in range(shortest, max(shortest, min(LONGEST_ROW * shortest, budget)) + 1, ROWS_OF):
        packed = Packed(tuple(map(tuple, _first_fit(order, lengths, length))), length)
        if best is None or packed.positions < best.positions:
            best = packed
        if total >= (1 - PADDING) * best.positions:
            break
    assert best is not None
    return best


def _first_fit(order: Sequence[int], lengths: dict[int, int], length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in order:
        place = next((row for row, left in enumerate(room) if left >= lengths[sample]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(sample)
        room[place] -= lengths[sample]
    return rows


def collate(
    packed: Packed, input_ids: Callable[[int], np.ndarray], prompt_tokens: np.ndarray, pad_token_id: int
) -> dict[str, np.ndarray]:
    """Makes the arrays of a micro-batch.

    Args:
        packed: Which samples stand where.
        input_ids: Returns the token ids of a sample, prompt and reply.
        prompt_tokens: Where each sample's reply starts.
        pad_token_id: Fills up the ends of rows.

    Returns:
        `input_ids`, `position_ids` and `labels`, int64 `[rows, length]`, labels `IGNORED` outside of replies; and
        `owners`, int64 `[reply tokens]`: the place in `packed.samples` of each label's sample.
    """
    ids = np.full((len(packed.rows), packed.length), pad_token_id, dtype=np.int64)
    labels = np.full_like(ids, IGNORED)
    positions = np.zeros_like(ids)
    replies = []
    for row, samples in enumerate(packed.rows):
        end = 0
        for sample in samples:
            sequence, prompt = input_ids(sample), int(prompt_tokens[sample])
            start, end = end, end + len(sequence)
            ids[row, start:end] = sequence
            labels[row, start + prompt : end] = sequence[prompt:]
            positions[row, start:end] = np.arange(len(sequence))
            replies.append(len(sequence) - prompt)
        positions[row, end:] = np.arange(packed.length - end)
    owners = np.repeat(np.arange(len(replies)), replies)
    return {"input_ids": ids, "position_ids": positions, "labels": labels, "owners": owners}
