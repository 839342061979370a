"""Micro-batches: the samples of a global batch dealt to the workers and put one behind the other, without padding.

Everything here is a pure function of the samples' sizes, so every worker knows the parts of all others, and nobody has
to ask how many micro-batches there will be.
"""

import heapq
from collections.abc import Callable

import numpy as np

from balsa_ray.model.configuration import IGNORED


def cut(rows: np.ndarray, tokens: np.ndarray, costs: np.ndarray, world: int, budget: int) -> list[list[np.ndarray]]:
    """Cuts a global batch into micro-batches: for each worker equally many, of nearly equal cost.

    They are as few as the budget permits. Each is a part of `rows`, longest samples first.

    Args:
        rows: Indices of the batch's samples, `[n]`.
        tokens: Length of each, `[n]`.
        costs: What each takes to compute, in any unit, `[n]`: `Flops.of_samples` counts attention, clips and replies.
        world: Number of workers, at most n.
        budget: Most tokens of a micro-batch. A sample that is longer stands alone. Only if n is no multiple of `world`
            can a part hold more.

    Raises:
        ValueError: If there are more workers than samples.
    """
    most = len(rows) // world
    if not most:
        raise ValueError(f"{world} workers for a batch of {len(rows)} samples")
    for number in range(min(most, -(-int(tokens.sum()) // (world * budget))), most + 1):
        parts = deal(costs, world * number)
        if all(len(part) == 1 or tokens[part].sum() <= budget for part in parts):
            break
    # Those that run at the same time are neighbours in the order of cost; every other time the order is turned round.
    parts.sort(key=lambda part: -costs[part].sum())
    turns = [parts[start : start + world] for start in range(0, len(parts), world)]
    turns = [turn[::-1] if index % 2 else turn for index, turn in enumerate(turns)]
    return [[rows[turn[rank]] for turn in turns] for rank in range(world)]


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
        `input_ids`, `position_ids` and `labels`, int64 `[1, tokens]`: positions begin anew with every sample, labels
        are `IGNORED` outside of replies; and `lengths`, int64 `[samples]`.
    """
    sequences = [input_ids(sample) for sample in samples]
    lengths = np.asarray([len(sequence) for sequence in sequences])
    ids = np.concatenate(sequences).astype(np.int64)
    positions = np.concatenate([np.arange(length) for length in lengths])
    labels = np.where(positions < np.repeat(prompt_tokens[samples], lengths), IGNORED, ids)
    return {"input_ids": ids[None], "position_ids": positions[None], "labels": labels[None], "lengths": lengths}
