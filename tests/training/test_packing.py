import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.model.configuration import IGNORED
from balsa_ray.training.packing import Packed, collate, cut, deal, pack


def lengths(seed: int, number: int, queries: int) -> np.ndarray:
    """As real samples have them: one clip in three quarters, two in the rest; short prompts, replies of any length."""
    draw = np.random.default_rng(seed)
    clips = 1 + (draw.random(number) < 0.25)
    return clips * queries + draw.integers(15, 40, number) + np.minimum(draw.geometric(1 / 40, number), 300)


@given(
    tokens=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    world=st.integers(1, 5),
    budget=st.integers(20, 2_000),
)
def test_workers_get_equally_many_parts_within_the_budget(tokens: list[int], world: int, budget: int) -> None:
    # A multiple of the workers, as the configuration demands it.
    sizes = np.asarray(tokens * world)
    rows = np.random.default_rng(0).permutation(len(sizes)) + 7
    workers = cut(rows, sizes, sizes.astype(float), world, budget)
    assert len({len(parts) for parts in workers}) == 1
    parts = [part for worker in workers for part in worker]
    assert sorted(sample for part in parts for sample in part.samples) == sorted(rows)
    size_of = dict(zip(rows.tolist(), sizes.tolist(), strict=True))
    for part in parts:
        assert len(part.samples) == 1 or part.positions <= budget
        assert all(sum(size_of[sample] for sample in row) <= part.length for row in part.rows)
    again = cut(rows, sizes, sizes.astype(float), world, budget)
    assert again == workers


@pytest.mark.parametrize("queries", [12, 64])
@pytest.mark.parametrize(("number", "world", "budget"), [(16, 2, 4096), (32, 2, 1024), (256, 4, 8192)])
def test_padding_stays_under_five_percent(queries: int, number: int, world: int, budget: int) -> None:
    used = computed = 0
    for seed in range(20):
        sizes = lengths(seed, number, queries)
        for parts in cut(np.arange(number), sizes, sizes, world, budget):
            computed += sum(part.positions for part in parts)
        used += sizes.sum()
    assert 1 - used / computed < 0.05


def test_parts_are_few_and_cost_the_same_on_every_worker() -> None:
    sizes = lengths(0, 256, 64)
    costs = sizes + 200.0 * (sizes > 150)  # two clips are dearer than their tokens tell
    workers = cut(np.arange(256), sizes, costs, 4, 4096)
    of_worker = [sum(costs[part.samples].sum() for part in parts) for parts in workers]
    assert max(of_worker) < 1.02 * min(of_worker)
    # Those that run at the same time end at the same time.
    for parts in zip(*workers, strict=True):
        at_once = [costs[part.samples].sum() for part in parts]
        assert max(at_once) < 1.05 * min(at_once)
    assert len(workers[0]) == -(-sizes.sum() // (4 * 4096)) == 3


def test_the_dearest_are_dealt_first_to_the_cheapest_part() -> None:
    assert deal({0: 1.0, 1: 5.0, 2: 2.0, 3: 2.0, 4: 5.0}, 2) == [[1, 2, 0], [4, 3]]


def test_rows_are_no_longer_than_they_have_to_be() -> None:
    assert pack({0: 64, 1: 64, 2: 64}, 10_000) == Packed(((0,), (1,), (2,)), 64)
    assert pack({0: 96, 1: 40, 2: 56}, 10_000) == Packed(((0,), (2, 1)), 96)
    assert pack({0: 500}, 100) == Packed(((0,),), 504)
    # Two of them in a row of 184 positions waste less than each in one of 150.
    assert pack(dict.fromkeys(range(20), 90) | {20: 150}, 10_000).length == 184


def test_more_workers_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 workers for a batch of 2 samples"):
        cut(np.arange(2), np.array([5, 5]), np.array([5, 5]), 3, 100)


def test_collate_lays_out_ids_labels_and_positions() -> None:
    sequences = [np.array([5, 6, 7]), np.array([8, 9, 10, 11, 12]), np.array([13, 14])]
    arrays = collate(Packed(((1, 0), (2,)), 9), sequences.__getitem__, np.array([2, 3, 1]), pad_token_id=0)
    assert arrays["input_ids"].tolist() == [[8, 9, 10, 11, 12, 5, 6, 7, 0], [13, 14, 0, 0, 0, 0, 0, 0, 0]]
    assert arrays["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0], [0, 1, 0, 1, 2, 3, 4, 5, 6]]
    x = IGNORED
    assert arrays["labels"].tolist() == [[x, x, x, 11, 12, x, x, 7, x], [x, 14, x, x, x, x, x, x, x]]
    assert arrays["owners"].tolist() == [0, 0, 1, 2]
