from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.training.batches import endless_order, plan, shares
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


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=8), total=st.integers(0, 500))
def test_shares_follow_the_weights_and_never_fall(weights: list[float], total: int) -> None:
    numbers, more = shares(total, weights), shares(total + 1, weights)
    assert sum(numbers) == total
    assert all(old <= new for old, new in zip(numbers, more, strict=True))
    exact = [total * weight / sum(weights) for weight in weights]
    assert all(abs(number - share) < 2 for number, share in zip(numbers, exact, strict=True))


def test_weights_of_kinds_and_sources_are_kept_over_a_stage() -> None:
    sources = [row % 2 for row in range(len(IDS))]
    sources[-9:] = [1] * 9  # only one source has differences
    stages = [
        StageConfig(name="single", kinds={"present": 1, "absent": 3}, steps=25),
        StageConfig(name="multi", kinds={"difference": 1}, steps=30, replay=0.25),
    ]
    drawn = list(plan(0, IDS, KINDS, stages, 8, sources, [2.0, 1.0]))
    single = [row for batch in drawn[:25] for row in batch.rows]
    assert Counter(KINDS[row] for row in single) == {"present": 50, "absent": 150}
    for kind, rows in (("present", 50), ("absent", 150)):
        first = sum(sources[row] == 0 for row in single if KINDS[row] == kind)
        assert first == pytest.approx(rows * 2 / 3, abs=1)
    # Within a stream every row comes equally often, however small the stream.
    absent = Counter(row for row in single if KINDS[row] == "absent" and sources[row] == 0)
    assert len(absent) == sum(k == "absent" and s == 0 for k, s in zip(KINDS, sources, strict=True))
    assert max(absent.values()) - min(absent.values()) <= 1
    multi = Counter(KINDS[row] for batch in drawn[25:] for row in batch.rows)
    assert multi["difference"] == 180
    # Replayed in the shares that the stage had.
    assert multi["absent"] == pytest.approx(45, abs=1)


def test_equal_weights_of_sources_do_not_depend_on_their_sizes() -> None:
    sources = [int(row >= 27) for row in range(len(IDS))]
    stages = [StageConfig(name="multi", kinds=["difference"], steps=20)]
    rows = [row for batch in plan(0, IDS, KINDS, stages, 5, sources, [1.0, 1.0]) for row in batch.rows]
    assert sum(sources[row] for row in rows) == 50
