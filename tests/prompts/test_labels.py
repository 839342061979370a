import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.prompts.labels import affirmed_and_denied, extract_labels

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


SAID = ("rain", "siren", "train whistle", "whistling", "wind", "wind chime", "dog barking")


@pytest.mark.parametrize(
    ("reply", "affirmed", "denied"),
    [
        ("I hear rain and wind chime.", ["rain", "wind chime"], []),
        ("There is no siren, no rain and no wind.", [], ["siren", "rain", "wind"]),
        ("I hear rain and wind, but no siren, no dog barking.", ["rain", "wind"], ["siren", "dog barking"]),
        ("Rain can be heard. A siren and wind are absent.", ["rain"], ["siren", "wind"]),
        ("There's rain, not a siren.", ["rain"], ["siren"]),
        ("Neither a Siren nor RAIN; however, there is wind.", ["wind"], ["siren", "rain"]),
        ("You can't hear a train whistle while the wind blows", ["wind"], ["train whistle"]),
        ("Sounds heard:\n1. Rain\n\nSounds not heard:\n1. Siren\n2. Dog barking", ["rain"], ["siren", "dog barking"]),
        ("Present: 1. rain 2. wind. Absent: 1. siren", ["rain", "wind"], ["siren"]),
        ("- rain\n- wind\nThere is no siren.", ["rain", "wind"], ["siren"]),
        ("While I hear rain, a siren and dog barking are absent.", ["rain"], ["siren", "dog barking"]),
        ("I hear that rain is absent.", [], ["rain"]),
        ("Nothing of note.", [], []),
        ("", [], []),
    ],
)
def test_labels_are_sorted_by_what_is_said_of_them(reply: str, affirmed: list[str], denied: list[str]) -> None:
    assert affirmed_and_denied(reply, SAID) == (affirmed, denied)


@pytest.mark.parametrize(
    ("reply", "affirmed", "denied"),
    [
        ("siren, rain", [], ["siren", "rain"]),
        ("1. Siren\n2. Rain", [], ["siren", "rain"]),
        ("Siren. There is wind, though.", ["wind"], ["siren"]),
    ],
)
def test_a_bare_list_about_absent_sounds_denies(reply: str, affirmed: list[str], denied: list[str]) -> None:
    assert affirmed_and_denied(reply, SAID, about_absent=True) == (affirmed, denied)
