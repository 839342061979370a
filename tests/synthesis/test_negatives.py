from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.prompts.relations import relate
from balsa_ray.synthesis.negatives import COUNTED, Negative, Occurrence, draw_absent

ONTOLOGY = {"bells": ("a", "b", "c"), "engines": ("d", "e", "f"), "weather": ("g", "h")}
LABELS = tuple("abcdefgh")
RELATIONS = relate(LABELS, ONTOLOGY)
CLIPS = [["a", "d"], ["a", "d"], ["a", "e"], ["b", "g"], ["d", "e"], ["a"]]
WAYS = st.sampled_from(["random", "popular", "cooccurring", "siblings"])


def occurrence(clips: list[list[str]]) -> Occurrence:
    counts = Occurrence()
    for labels in clips:
        counts.add(labels)
    return counts.cut()


def draw(way: Negative, present: list[str], number: int = 1, key: object = 0) -> tuple[list[str], str]:
    return draw_absent(way, present, LABELS, RELATIONS, occurrence(CLIPS), number, 0, str(key))


@given(way=WAYS, present=st.lists(st.sampled_from(LABELS), unique=True), number=st.integers(1, 6), key=st.integers())
def test_what_is_drawn_is_absent_and_as_much_as_there_is(
    way: Negative, present: list[str], number: int, key: int
) -> None:
    drawn, taken = draw(way, present, number, key)
    assert len(set(drawn)) == len(drawn) == min(number, len(LABELS) - len(present))
    assert not set(drawn) & set(present)
    assert taken in ({way, f"{way}>random"} if drawn else {f"{way}>free"})
    assert draw(way, present, number, key) == (drawn, taken)


def test_wider_terms_and_synonyms_are_never_drawn() -> None:
    labels = ("dog", "puppy", "Animal", "cat")
    relations = relate(labels, {"Animal": ("dog", "cat")})
    drawn, _ = draw_absent("random", ["dog"], labels, relations, Occurrence(), 4, 0, "key")
    assert drawn == ["cat"]


def test_each_way_draws_from_its_own() -> None:
    keys = range(300)
    assert {draw("siblings", ["a"], 1, key)[0][0] for key in keys} == {"b", "c"}
    together = Counter(draw("cooccurring", ["a"], 1, key)[0][0] for key in keys)
    assert set(together) == {"d", "e"}
    assert together["d"] > 1.4 * together["e"]
    popular = Counter(draw("popular", ["b"], 1, key)[0][0] for key in keys)
    assert set(popular) == {"a", "d", "e", "g"}
    assert popular["a"] > 1.5 * popular["e"]
    assert {draw("random", ["a"], 1, key)[0][0] for key in keys} == set(LABELS) - {"a"}


@pytest.mark.parametrize(
    ("way", "present", "taken"),
    [
        ("cooccurring", ["h"], "cooccurring>random"),
        ("siblings", ["a", "b", "c", "d", "e", "f", "g", "h"], "siblings>free"),
        ("cooccurring", [], "cooccurring>random"),
        ("free", ["a"], "free"),
    ],
)
def test_a_way_that_finds_nothing_says_what_took_over(way: Negative, present: list[str], taken: str) -> None:
    drawn, said = draw(way, present, 2)
    assert said == taken
    assert len(drawn) == (2 if taken.endswith("random") else 0)


def test_what_takes_over_is_random_indeed() -> None:
    labels = tuple(f"label {i:03}" for i in range(200))
    relations = relate(labels, {})
    drawn = [
        draw_absent("cooccurring", ["label 000"], labels, relations, Occurrence(), 3, 0, key)[0] for key in range(99)
    ]
    neighbours = sum(abs(int(a[-3:]) - int(b[-3:])) == 1 for three in drawn for a, b in pairwise(three))
    assert neighbours < 10  # of 198 pairs, in which one or two are neighbours by chance
    assert len({label for three in drawn for label in three}) > 120


@given(st.permutations(CLIPS))
def test_counts_do_not_depend_on_the_order_of_the_pieces(clips: list[list[str]]) -> None:
    whole, parts = occurrence(CLIPS), Occurrence()
    for part in (clips[:2], clips[2:]):
        counts = Occurrence()
        for labels in part:
            counts.add(labels[::-1])
        parts.merge(counts)
    for way in COUNTED:
        args = (["a"], LABELS, RELATIONS)
        assert draw_absent(way, *args, whole, 3, 0, "k") == draw_absent(way, *args, parts.cut(), 3, 0, "k")


def test_a_clip_with_very_many_labels_does_not_count_millions_of_pairs() -> None:
    counts = Occurrence()
    counts.add([f"label {i}" for i in range(10_000)])
    assert len(counts.clips) == 10_000
    assert sum(map(len, counts.together.values())) < 3_000
