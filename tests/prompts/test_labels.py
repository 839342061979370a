import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.prompts.labels import extract_labels

LABELS = ["rain", "whistle", "train whistle", "car", "car alarm", "Speech", "frying (food)", "motor vehicle (road)"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I hear rain and a train whistle.", ["rain", "train whistle"]),
        ("A train-whistle, then a TRAIN  whistle", ["train whistle", "train whistle"]),
        ("The car alarm, not the car.", ["car alarm", "car"]),
        ("Cartoon training in a carpet store", []),
        ("speech over frying (food)", ["Speech", "frying (food)"]),
        ("a motor vehicle (road)!", ["motor vehicle (road)"]),
        ("", []),
    ],
)
def test_finds_whole_words_longest_first_and_in_order(text: str, found: list[str]) -> None:
    assert extract_labels(text, LABELS) == found


def test_no_labels_find_nothing() -> None:
    assert extract_labels("rain", []) == []


@given(st.lists(st.sampled_from(LABELS)))
def test_a_list_of_labels_is_read_back(named: list[str]) -> None:
    assert extract_labels("I hear " + ", ".join(named) + ".", LABELS) == named
