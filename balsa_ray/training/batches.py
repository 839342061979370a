"""The plan of a run: which samples stand in which global batch, and who works on which of them.

Everything here is a pure function of the seed, the stages and the sample ids. No worker is needed to compute it, and a
resumed run, or one with another number of workers, has the same batches: nothing of it is ever stored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from balsa_ray.identity import rng
from balsa_ray.model.configuration import IGNORED
from balsa_ray.training.config import StageConfig

MOST_PADDING = 1.04
"""Positions for each token, beyond which a batch is cut into more micro-batches than its budget asks for."""
LEAST_SAMPLES = 4
"""Of a micro-batch, on average: smaller ones waste more than padding does."""


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one optimisation step.

    Attributes:
        step: 1-based, of the whole run.
        stage: Index of the stage.
        stage_step: 1-based, of the stage.
        epoch: How often the stage has gone through the samples that it introduces, after this step.
        rows: Indices of the samples, in the order of the ids that the plan was made from.
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


def plan(
    seed: int, ids: Sequence[str], kinds: Sequence[str], stages: Sequence[StageConfig], batch_size: int
) -> Iterator[GlobalBatch]:
    """Returns the global batches of a run, stage after stage.

    Epochs follow each other without a gap: a batch may hold the end of one and the start of the next, so that every
    batch is full and every row of a stage comes exactly once an epoch.

    Args:
        seed: Of the run.
        ids: Ids of all samples, each once.
        kinds: Kind of each sample.
        stages: What to train on, in order.
        batch_size: Samples in every global batch.

    Raises:
        ValueError: If a kind that a stage wants has no sample, or if there is nothing to replay.
    """
    rows = [_rows_of(stage, stages[:index], kinds) for index, stage in enumerate(stages)]
    return _batches(seed, ids, stages, rows, batch_size)


def _rows_of(stage: StageConfig, earlier: Sequence[StageConfig], kinds: Sequence[str]) -> tuple[list[int], list[int]]:
    """The rows that a stage introduces, and those that it may replay."""
    for kind in stage.kinds:
        if kind not in kinds:
            raise ValueError(f"stage {stage.name!r} wants kind {kind!r}, but no sample is of that kind")
    replayed = {kind for before in earlier for kind in before.kinds} - set(stage.kinds)
    new = [row for row, kind in enumerate(kinds) if kind in stage.kinds]
    old = [row for row, kind in enumerate(kinds) if kind in replayed]
    if stage.replay and not old:
        raise ValueError(f"stage {stage.name!r} replays {stage.replay:g}, but earlier stages have no other kinds")
    return new, old


def _batches(
    seed: int,
    ids: Sequence[str],
    stages: Sequence[StageConfig],
    rows: Sequence[tuple[list[int], list[int]]],
    batch_size: int,
) -> Iterator[GlobalBatch]:
    step = 0
    for index, (stage, (new_rows, old_rows)) in enumerate(zip(stages, rows, strict=True)):
        new = endless_order(seed, f"{stage.name}/new", ids, new_rows)
        old = endless_order(seed, f"{stage.name}/replay", ids, old_rows)
        share = batch_size * stage.replay
        drawn = 0
        for stage_step in range(1, stage.steps + 1):
            # Rounding the running total, not each batch, keeps the share exact over the stage.
            replayed = round(stage_step * share) - round((stage_step - 1) * share)
            chosen = [*islice(new, batch_size - replayed), *islice(old, replayed)]
            drawn += batch_size - replayed
            # Mixed, so that every worker's slice holds its part of the replayed rows.
            mixed = np.asarray(chosen)[rng(seed, stage.name, "mix", stage_step).permutation(batch_size)]
            step += 1
            yield GlobalBatch(step, index, stage_step, drawn / len(new_rows), mixed)


def divide(lengths: np.ndarray, workers: int, budget: int) -> list[list[np.ndarray]]:
    """Divides a global batch into micro-batches of samples of about the same length.

    A micro-batch costs its samples times the longest of them. Samples are sorted by length and cut into runs of about
    equal cost: as few as keep to the budget, and more while too much of them would be padding.

    Args:
        lengths: Tokens of each sample, the embeddings of its clips included.
        workers: Among whom they are shared; no more than samples.
        budget: Positions of a micro-batch, padding included. Exceeded where a single sample does, or where there are
            fewer samples than micro-batches.

    Returns:
        For each worker its micro-batches, each as places in `lengths`. All have equally many: each takes part in every
        exchange of gradients.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order].tolist()
    at_most = len(ordered) // workers * workers
    number = min(-(-len(_runs(ordered, budget)) // workers) * workers, at_most)
    runs = _equal_runs(ordered, number)
    while sum(_cost(ordered, run) for run in runs) > MOST_PADDING * sum(ordered) and LEAST_SAMPLES * number < at_most:
        number = min(number + workers, at_most)
        runs = _equal_runs(ordered, number)
    shares: list[list[np.ndarray]] = [[] for _ in range(workers)]
    load = [0] * workers
    for run in sorted(runs, key=lambda run: -_cost(ordered, run)):
        # To whom has least so far, of those that still want one.
        rank = min((r for r in range(workers) if len(shares[r]) < number // workers), key=load.__getitem__)
        shares[rank].append(order[slice(*run)])
        load[rank] += _cost(ordered, run)
    return shares


def _equal_runs(ordered: list[int], number: int) -> list[tuple[int, int]]:
    """Cuts lengths, longest first, into so many runs whose costs are as equal as they can be."""
    low, high = ordered[0], ordered[0] * len(ordered)  # the lowest cost that needs no more runs, by bisection
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_runs(ordered, middle)) <= number else (middle + 1, high)
    runs = _runs(ordered, low)
    while len(runs) < number:
        start, end = max((run for run in runs if run[1] - run[0] > 1), key=lambda run: _cost(ordered, run))
        runs.remove((start, end))
        runs += [(start, (start + end) // 2), ((start + end) // 2, end)]
    return runs


def _cost(ordered: list[int], run: tuple[int, int]) -> int:
    return ordered[run[0]] * (run[1] - run[0])


def _runs(ordered: list[int], cost: int) -> list[tuple[int, int]]:
    """Cuts lengths, longest first, into runs whose first length times their number is at most `cost`."""
    runs, start = [], 0
    while start < len(ordered):
        end = min(start + max(1, cost // ordered[start]), len(ordered))
        runs.append((start, end))
        start = end
    return runs


def collate(sequences: Sequence[np.ndarray], prompt_lengths: Sequence[int], pad_token_id: int) -> dict[str, np.ndarray]:
    """Pads token ids to a common length and makes the labels.

    Padding stands on the left, so that the replies end in the same column and few columns pass through the LLM's head.

    Args:
        sequences: Token ids of prompt and reply, one array a sample.
        prompt_lengths: Where each reply starts; labels before are `IGNORED`.
        pad_token_id: Fills up; neither attended to nor counted in the loss.

    Returns:
        `input_ids`, `attention_mask` and `labels`, int64 [samples, length].
    """
    length = max(map(len, sequences))
    input_ids = np.full((len(sequences), length), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    labels = np.full_like(input_ids, IGNORED)
    for row, (sequence, prompt_length) in enumerate(zip(sequences, prompt_lengths, strict=True)):
        start = length - len(sequence)
        input_ids[row, start:] = sequence
        attention_mask[row, start:] = 1
        labels[row, start + prompt_length :] = sequence[prompt_length:]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
