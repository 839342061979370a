"""Micro-batches: the samples of a global batch dealt to the workers and put one behind the other, without padding.

Only attention and, for families that can't be packed, the whole LLM work on padded rows (`model.packed_attention`).
That is why a micro-batch has samples of similar length.

Everything here is a pure function of the samples' sizes, so every worker knows the parts of all others, and nobody has
to ask how many micro-batches there will be.
"""

import heapq
from collections.abc import Callable

import numpy as np

from balsa_ray.model.configuration import IGNORED

PADDED = 2
"""Most positions of the padded rows of a micro-batch, in budgets."""


def cut(rows: np.ndarray, tokens: np.ndarray, costs: np.ndarray, world: int, budget: int) -> list[list[np.ndarray]]:
    """Cuts a global batch into micro-batches: for each worker equally many, of nearly equal cost.

    They are as few as the budget permits. Each is a part of `rows`, longest samples first. Those that workers compute
    at the same time are of similar length, the longest of all come first.

    Args:
        rows: Indices of the batch's samples, `[n]`.
        tokens: Length of each, `[n]`.
        costs: What each takes to compute, in any unit, `[n]`: `Flops.of_samples` counts attention, clips and replies.
        world: Number of workers, at most n.
        budget: Most tokens of a micro-batch, and half of what its samples have if each is as long as the longest. A
            sample that is longer stands alone. Only if n is no multiple of `world` can a part hold more.

    Raises:
        ValueError: If there are more workers than samples.
    """
    most = len(rows) // world
    if not most:
        raise ValueError(f"{world} workers for a batch of {len(rows)} samples")
    for number in range(min(most, -(-int(tokens.sum()) // (world * budget))), most + 1):
        turns = []
        for turn in _in_turns(tokens, number, world):
            parts = [turn[sorted(part)] for part in deal(costs[turn], world)]
            turns.append(sorted(parts, key=lambda part: -costs[part].sum()))
        if all(_fits(tokens[part], budget) for turn in turns for part in turn):
            break
    # No worker shall have the dearest part of every turn.
    turns = [turn[::-1] if index % 2 else turn for index, turn in enumerate(turns)]
    return [[rows[turn[rank]] for turn in turns] for rank in range(world)]


def _in_turns(tokens: np.ndarray, number: int, world: int) -> list[np.ndarray]:
    """Cuts samples, longest first, into turns of about equally many tokens and equally many samples a worker."""
    order = np.argsort(-tokens, kind="stable")
    so_far = np.append(0, np.cumsum(tokens[order]))[::world]
    ends = [0]  # in samples a worker
    for left in range(number, 1, -1):
        # A share of what is left: the first samples can be longer than any share of the whole.
        share = so_far[ends[-1]] + (tokens.sum() - so_far[ends[-1]]) / left
        nearest = int(np.argmin(np.abs(so_far - share)))
        ends.append(min(max(nearest, ends[-1] + 1), len(order) // world - left + 1))
    return np.split(order, [end * world for end in ends[1:]])


def _fits(tokens: np.ndarray, budget: int) -> bool:
    """Whether samples of these lengths make a micro-batch."""
    return len(tokens) == 1 or bool(tokens.sum() <= budget and len(tokens) * tokens.max() <= PADDED * budget)


def deal(costs: np.ndarray, parts: int) -> list[list[int]]:
    """Deals samples into parts of nearly equal cost: the dearest first, each to the cheapest part so far.

    Graham, Bounds on multiprocessing timing anomalies (1969): no part costs over a third more than it has to.
    """
    heap = [(0.0, part) for part in range(parts)]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for sample in np.argsort(-costs, kind="stable").tolist():
        so_far, part = heapq.heappop(heap)
        dealt[part].append(sample)
        heapq.heappush(heap, (so_far + float(costs[sample]), part))
    return dealt


def collate(
    samples: np.ndarray, input_ids: Callable[[int], np.ndarray], prompt_tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """Makes the arrays of a micro-batch.

    Args:
        samples: Which samples, in this order.
        input_ids: Returns the token ids of a sample, prompt and reply.
        prompt_tokens: Where the reply of each sample of the data set starts.

    Returns:
        `input_ids` and `labels`, int64 `[1, tokens]`, labels `IGNORED` outside of replies; and `lengths`, int64
        `[samples]`.
    """
    sequences = [input_ids(sample) for sample in samples]
    lengths = np.asarray([len(sequence) for sequence in sequences])
    ids = np.concatenate(sequences).astype(np.int64)
    positions = np.concatenate([np.arange(length) for length in lengths])
    labels = np.where(positions < np.repeat(prompt_tokens[samples], lengths), IGNORED, ids)
    return {"input_ids": ids[None], "labels": labels[None], "lengths": lengths}
