from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.synthesis.pairing import bucket_of, group, number_of_buckets, ring

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


def test_buckets_share_the_clips_evenly() -> None:
    assert [number_of_buckets(n) for n in (0, 1, 10_000, 10_001, 1_000_000)] == [1, 1, 1, 2, 100]
    sizes = Counter(bucket_of(0, f"clip-{i}", 10) for i in range(5000))
    assert set(sizes) == set(range(10))
    assert max(sizes.values()) < 600
