from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.synthesis.manifest import ROWS_PER_PIECE
from balsa_ray.synthesis.pairing import CLIPS_PER_POOL, CONTRAST_REACH, Companions, Strategy, group, pools, ring

IDS = st.lists(st.text(max_size=8), unique=True, min_size=1, max_size=30)


@given(clips=st.integers(1, 40), turn=st.integers(0, 50), size=st.integers(2, 5))
def test_a_group_has_different_members_and_every_clip_is_in_as_many(clips: int, turn: int, size: int) -> None:
    groups = [group(range(clips), place, turn, size) for place in range(clips)]
    if clips < size:
        assert groups == [None] * clips
        return
    members = Counter(clip for found in groups for clip in found or ())
    assert [found and found[0] for found in groups] == list(range(clips))
    assert all(len(set(found or ())) == size for found in groups)
    assert set(members.values()) == {size}


@given(clips=st.integers(2, 40))
def test_partners_do_not_come_again_before_all_had_their_turn(clips: int) -> None:
    partners = [group(range(clips), 0, turn, 2) for turn in range(clips - 1)]
    assert len({found[1] for found in partners if found}) == clips - 1


@given(ids=IDS, seed=st.integers(0, 5))
def test_the_ring_is_of_the_ids_and_not_of_their_order(ids: list[str], seed: int) -> None:
    forward = [ids[i] for i in ring(seed, "joint", ids)]
    backward = ids[::-1]
    assert forward == [backward[i] for i in ring(seed, "joint", backward)]


def test_kinds_and_seeds_pair_differently() -> None:
    ids = [str(i) for i in range(50)]
    assert len({tuple(ring(seed, kind, ids)) for seed in (0, 1) for kind in ("joint", "difference")}) == 4


@given(sizes=st.lists(st.integers(1, CLIPS_PER_POOL), min_size=1, max_size=60), seed=st.integers(0, 3))
def test_every_piece_is_in_one_pool_of_bounded_size(sizes: list[int], seed: int) -> None:
    dealt = pools(seed, sizes)
    assert sorted(piece for pool in dealt for piece in pool) == list(range(len(sizes)))
    assert all(dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_a_pool_mixes_pieces_from_all_over_the_manifest() -> None:
    dealt = pools(0, [500] * 400)
    assert len(dealt) == 10
    assert all(len(pool) == 40 and max(pool) - min(pool) > 200 for pool in dealt)
    assert dealt != pools(1, [500] * 400)
    assert all(len(pool) >= 10 for pool in pools(0, [ROWS_PER_PIECE] * 50))


POOL = st.lists(st.lists(st.sampled_from("abcdef"), max_size=3, unique=True), min_size=1, max_size=20)
PARENTS = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z", "f": "z"}


@given(
    pool=POOL,
    strategy=st.sampled_from(["similar", "contrast", "same_tag_other_clip"]),
    size=st.integers(2, 8),
    turn=st.integers(0, 4),
    key=st.text(max_size=3),
)
def test_a_strategy_keeps_its_promise_and_finds_what_there_is(
    pool: list[list[str]], strategy: Strategy, size: int, turn: int, key: str
) -> None:
    wider = [frozenset([*labels, *(PARENTS[label] for label in labels)]) for labels in pool]
    found = Companions(pool, wider).find(strategy, 0, size, turn, 0, key)
    assert found == Companions(pool, wider).find(strategy, 0, size, turn, 0, key)
    others = range(1, len(pool))
    if found is None:
        if strategy == "similar":
            assert sum(not wider[0].isdisjoint(wider[other]) for other in others) < size - 1
        elif strategy == "same_tag_other_clip":
            assert all(sum(label in labels for labels in pool) < size for label in pool[0])
        elif size == 2 and pool[0]:
            assert not any(wider[other] and wider[0].isdisjoint(wider[other]) for other in others)
        return
    assert found[0] == 0
    assert len(set(found)) == size
    if strategy == "similar":
        assert all(wider[0] & wider[other] for other in found)
    elif strategy == "same_tag_other_clip":
        assert set.intersection(*(set(pool[place]) for place in found))
    else:
        assert all(wider[place] for place in found)
        assert sum(len(wider[place]) for place in found) == len(frozenset().union(*(wider[place] for place in found)))


def test_partners_of_one_tag_differ_from_turn_to_turn() -> None:
    pool = Companions([["a"]] * 6, [frozenset("a")] * 6)
    for strategy in ("similar", "same_tag_other_clip"):
        partners = [pool.find(strategy, 2, 2, turn, 0, "k") for turn in range(5)]
        assert {found[1] for found in partners if found} == {0, 1, 3, 4, 5}


def test_the_search_for_a_contrast_ends() -> None:
    looked = []

    class Wider(list[frozenset[str]]):
        def __getitem__(self, place: Any) -> Any:
            looked.append(place)
            return super().__getitem__(place)

    assert Companions([["a"]] * 9_000, Wider([frozenset("a")] * 9_000)).find("contrast", 0, 2, 0, 0, "k") is None
    assert len(looked) < 3 * CONTRAST_REACH
