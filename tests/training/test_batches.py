from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.training.batches import IGNORED, collate, divide, endless_order, plan
from balsa_ray.training.config import StageConfig

KINDS = ["present"] * 13 + ["absent"] * 7 + ["difference"] * 9
IDS = [f"sample-{row}" for row in range(len(KINDS))]
STAGES = [
    StageConfig(name="single", kinds=["present", "absent"], steps=10),
    StageConfig(name="multi", kinds=["difference"], steps=12, replay=0.3),
]


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 40), epochs=st.integers(1, 4))
def test_every_row_comes_once_an_epoch_and_epochs_differ(seed: int, rows: int, epochs: int) -> None:
    order = list(islice(endless_order(seed, "s", [str(row) for row in range(rows)], range(rows)), rows * epochs))
    for epoch in range(epochs):
        assert sorted(order[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    if rows > 20 and epochs > 1:
        assert order[:rows] != order[rows : 2 * rows]


@given(seed=st.integers(0, 2**32), batch_size=st.integers(1, 16), shuffle=st.randoms())
def test_plan_is_a_function_of_seed_and_ids(seed: int, batch_size: int, shuffle: object) -> None:
    order = list(range(len(IDS)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    ids, kinds = [IDS[row] for row in order], [KINDS[row] for row in order]
    first = [[IDS[row] for row in batch.rows] for batch in plan(seed, IDS, KINDS, STAGES, batch_size)]
    again = [[ids[row] for row in batch.rows] for batch in plan(seed, ids, kinds, STAGES, batch_size)]
    assert first == again
    assert len(first) == 22
    assert all(len(batch) == batch_size for batch in first)


def test_another_seed_gives_another_plan() -> None:
    plans = [[batch.rows.tolist() for batch in plan(seed, IDS, KINDS, STAGES, 8)] for seed in (0, 1)]
    assert plans[0] != plans[1]


@given(batch_size=st.integers(1, 16))
def test_stages_draw_their_own_kinds_and_replay_a_share(batch_size: int) -> None:
    batches = list(plan(0, IDS, KINDS, STAGES, batch_size))
    assert [batch.step for batch in batches] == list(range(1, 23))
    assert [batch.stage_step for batch in batches] == [*range(1, 11), *range(1, 13)]
    single = [KINDS[row] for batch in batches[:10] for row in batch.rows]
    multi = [KINDS[row] for batch in batches[10:] for row in batch.rows]
    assert "difference" not in single
    replayed = len(multi) - Counter(multi)["difference"]
    assert replayed == round(len(multi) * 0.3)
    new = [row for batch in batches[10:] for row in batch.rows if KINDS[row] == "difference"]
    assert max(Counter(new).values()) - min(Counter(new)[row] for row in range(20, 29)) <= 1
    assert batches[-1].epoch == pytest.approx(len(new) / 9)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"kinds": ["joint"]}, "stage 'x' wants kind 'joint', but no sample is of that kind"),
        ({"kinds": ["present"], "replay": 0.5}, "stage 'x' replays 0.5, but earlier stages have no other kinds"),
    ],
)
def test_wishes_that_no_sample_can_fill_are_refused_at_once(stage: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(0, IDS, KINDS, [StageConfig(name="x", steps=1, **stage)], 4)


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    workers=st.integers(1, 8),
    budget=st.integers(1, 2000),
)
def test_workers_and_micro_batches_divide_the_batch(lengths: list[int], workers: int, budget: int) -> None:
    workers = min(workers, len(lengths))
    shares = divide(np.array(lengths), workers, budget)
    places = [place for share in shares for part in share for place in part]
    assert sorted(places) == list(range(len(lengths)))
    assert len({len(share) for share in shares}) == 1
    assert all(len(part) for share in shares for part in share)
    costs = [len(part) * max(lengths[place] for place in part) for share in shares for part in share]
    # With hardly more samples than micro-batches, an equal number for each worker may need one beyond the budget.
    if len(costs) * 2 <= len(lengths):
        assert max(costs) <= max(budget, *lengths)
    again = divide(np.array(lengths), workers, budget)
    assert [[part.tolist() for part in share] for share in shares] == [
        [part.tolist() for part in share] for share in again
    ]


@pytest.mark.parametrize(("samples", "workers", "budget"), [(96, 4, 2048), (96, 1, 8192), (32, 2, 1024)])
def test_little_is_padded_and_workers_get_about_equal_shares(samples: int, workers: int, budget: int) -> None:
    draw = np.random.default_rng(0)
    padded = real = 0
    for _ in range(50):
        # One clip of 64 tokens or two, a prompt of about 15 and a reply of 5 to 60.
        lengths = 64 * draw.integers(1, 3, samples) + draw.integers(10, 20, samples) + draw.integers(5, 61, samples)
        shares = divide(lengths, workers, budget)
        costs = [sum(len(part) * lengths[part].max() for part in share) for share in shares]
        assert max(costs) < 1.15 * min(costs)
        padded, real = padded + sum(costs), real + lengths.sum()
    assert padded / real < 1.05


def test_collate_pads_on_the_left_and_labels_the_reply() -> None:
    batch = collate([np.array([5, 6, 7]), np.array([8, 9, 10, 11, 12])], [2, 3], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]
    assert batch["attention_mask"].tolist() == [[0] * 2 + [1] * 3, [1] * 5]
    assert batch["labels"].tolist() == [[IGNORED] * 4 + [7], [IGNORED] * 3 + [11, 12]]
