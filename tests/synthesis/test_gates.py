import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.prompts.labels import affirmed_and_denied
from balsa_ray.synthesis.gates import PASSED, REASONS, judge, repeats_an_item

LABELS = ("rain", "siren", "train whistle", "whistling", "wind", "wind chime", "dog barking")


@pytest.mark.parametrize(
    "reply",
    [
        "I hear a siren, a siren and rain.",
        "A recording of rain, wind and rain.",
        "There is no siren, no rain and no siren.",
        "I hear rain and rain.",
        "- rain\n- wind\n- rain",
    ],
)
def test_a_repeated_item_is_found(reply: str) -> None:
    assert repeats_an_item(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "I hear a siren and rain, but no wind and no wind chime.",
        "Only the first recording has rain. Only the second recording has siren and wind. Both have whistling.",
        "The first recording has rain. The second recording has rain.",
        "There is wind, wind chime and whistling.",
        "Rain.",
        "",
    ],
)
def test_other_lists_are_left_alone(reply: str) -> None:
    assert not repeats_an_item(reply)


@pytest.mark.parametrize(
    ("kind", "reply", "finish_reason", "gate"),
    [
        ("present", "I hear rain and siren.", "stop", PASSED),
        ("present", " .\n", "stop", "empty"),
        ("present", "I hear rain and", "length", "truncated"),
        ("present", "I hear rain, rain and siren.", "stop", "repeated_item"),
        ("present", "I hear wind.", "stop", "misses_present"),
        ("present", "There is no rain.", "stop", "misses_present"),
        ("absent", "There is no wind and no whistling.", "stop", PASSED),
        ("absent", "There is no wind and no siren.", "stop", "denies_present"),
        ("absent", "Nothing else.", "stop", PASSED),
        ("combined", "I hear rain, but no wind.", "stop", PASSED),
        ("combined", "I hear rain, but no siren.", "stop", "denies_present"),
        ("combined", "I hear rain, but no wind and no rain.", "stop", "denies_present"),
        ("combined", "There is no wind.", "stop", "misses_present"),
        ("difference", "Only the first recording has rain, the second has no siren.", "stop", PASSED),
        ("joint", "A recording.", "stop", "misses_present"),
    ],
)
def test_gates(kind: str, reply: str, finish_reason: str, gate: str) -> None:
    found = affirmed_and_denied(reply, LABELS, about_absent=kind == "absent")
    assert judge(kind, reply, finish_reason, ["rain", "siren"], *found) == gate


def test_nothing_is_missed_where_no_label_is_known() -> None:
    assert judge("present", "Somebody speaks.", "stop", [], [], []) == PASSED


@given(
    reply=st.text(alphabet="ab ,.;!?\nno-'", max_size=60) | st.text(max_size=60),
    kind=st.sampled_from(["present", "absent", "combined", "difference", "joint"]),
    present=st.lists(st.sampled_from(LABELS), unique=True),
)
def test_any_text_gets_one_verdict(reply: str, kind: str, present: list[str]) -> None:
    affirmed, denied = affirmed_and_denied(reply, LABELS, about_absent=kind == "absent")
    assert judge(kind, reply, "stop", present, affirmed, denied) in {PASSED, *REASONS}
