from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.model.configuration import IGNORED
from balsa_ray.training.packing import collate, cut, deal


def lengths(seed: int, number: int) -> np.ndarray:
    """As real samples have them: one clip in three quarters, two in the rest; short prompts, replies of any length."""
    draw = np.random.default_rng(seed)
    clips = 1 + (draw.random(number) < 0.25)
    return clips * 64 + draw.integers(15, 40, number) + np.minimum(draw.geometric(1 / 40, number), 300)


@given(
    tokens=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    world=st.integers(1, 5),
    budget=st.integers(20, 2_000),
)
def test_workers_get_equally_many_parts_within_the_budget(tokens: list[int], world: int, budget: int) -> None:
    # A multiple of the workers, as the configuration demands it.
    sizes = np.asarray(tokens * world)
    rows = np.random.default_rng(0).permutation(len(sizes)) + 7
    workers = cut(rows, sizes, sizes, world, budget)
    assert len({len(parts) for parts in workers}) == 1
    parts = [part.tolist() for worker in workers for part in worker]
    assert sorted(sample for part in parts for sample in part) == sorted(rows)
    size_of = dict(zip(rows.tolist(), sizes.tolist(), strict=True))
    for part in parts:
        lengths_of = [size_of[sample] for sample in part]
        assert lengths_of == sorted(lengths_of, reverse=True)
        assert len(part) == 1 or (sum(lengths_of) <= budget and len(part) * lengths_of[0] <= 2 * budget)
    # Nothing that is computed earlier is shorter than what comes later.
    turns = [[size_of[sample] for part in turn for sample in part] for turn in zip(*workers, strict=True)]
    assert all(min(earlier) >= max(later) for earlier, later in pairwise(turns))
    again = [part.tolist() for worker in cut(rows, sizes, sizes, world, budget) for part in worker]
    assert again == parts


def test_parts_are_few_and_cost_the_same_on_every_worker() -> None:
    sizes = lengths(0, 256)
    costs = sizes + 200.0 * (sizes > 170)  # two clips are dearer than their tokens tell
    workers = cut(np.arange(256), sizes, costs, 4, 4096)
    assert len(workers[0]) == -(-sizes.sum() // (4 * 4096)) == 3
    of_worker = [sum(costs[part].sum() for part in parts) for parts in workers]
    assert max(of_worker) < 1.01 * min(of_worker)
    # Those that run at the same time end at the same time, to part of a sample: these are of similar length.
    for parts in zip(*workers, strict=True):
        at_once = [costs[part].sum() for part in parts]
        assert max(at_once) < 1.04 * min(at_once)


@given(number=st.integers(1, 60), world=st.integers(1, 5), budget=st.integers(1, 500))
def test_every_worker_has_something_to_do_in_every_turn(number: int, world: int, budget: int) -> None:
    sizes = lengths(number, max(number, world))
    workers = cut(np.arange(len(sizes)), sizes, sizes, world, budget)
    assert len({len(parts) for parts in workers}) == 1
    assert all(len(part) for parts in workers for part in parts)


def test_a_long_sample_does_not_stand_among_many_short_ones() -> None:
    sizes = np.full(64, 150)
    sizes[40] = 4000
    costs = sizes * (1 + sizes / 1000)
    for budget in (16_384, 4096, 1024):
        [parts] = cut(np.arange(64), sizes, costs, 1, budget)
        assert parts[0][0] == 40
        assert all(len(part) == 1 or len(part) * sizes[part].max() <= 2 * budget for part in parts)


def test_samples_of_equal_length_keep_their_order() -> None:
    rows = np.array([9, 3, 7, 1])
    [parts] = cut(rows, np.full(4, 10), np.full(4, 10), 1, 20)
    assert [part.tolist() for part in parts] == [[9, 3], [7, 1]]


def test_the_dearest_are_dealt_first_to_the_cheapest_part() -> None:
    assert deal(np.array([1.0, 5.0, 2.0, 2.0, 5.0]), 2) == [[1, 2, 0], [4, 3]]


def test_more_workers_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 workers for a batch of 2 samples"):
        cut(np.arange(2), np.array([5, 5]), np.array([5, 5]), 3, 100)


def test_collate_leaves_no_position_empty() -> None:
    sequences = [np.array([5, 6, 7]), np.array([8, 9, 10, 11, 12]), np.array([13, 14])]
    arrays = collate(np.array([1, 0, 2]), sequences.__getitem__, np.array([2, 3, 1]))
    assert arrays["input_ids"].tolist() == [[8, 9, 10, 11, 12, 5, 6, 7, 13, 14]]
    x = IGNORED
    assert arrays["labels"].tolist() == [[x, x, x, 11, 12, x, x, 7, x, 14]]
    assert arrays["lengths"].tolist() == [5, 3, 2]


@pytest.mark.parametrize(("number", "world", "budget"), [(16, 2, 4096), (32, 2, 1024), (256, 4, 8192)])
def test_less_than_five_percent_of_the_positions_are_padding(number: int, world: int, budget: int) -> None:
    sizes = lengths(number, number)
    parts = [part for worker in cut(np.arange(number), sizes, sizes, world, budget) for part in worker]
    arrays = [collate(part, lambda sample: np.zeros(sizes[sample]), sizes - 1) for part in parts]
    computed = sum(one["input_ids"].size for one in arrays)
    assert 1 - sizes.sum() / computed < 0.05
