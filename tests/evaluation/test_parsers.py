import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.evaluation.parsers import official_yes_no, strict_yes_no, which_recording


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("Yes, there is.", "yes"),
        ("I can see eyes", "yes"),  # "yes" is a part of "eyes"
        ("No, but yesterday it barked", "yes"),  # so is it of "yesterday"
        ("No.", "no"),
        ("Noise only", "no"),
        ("there is no siren", "no"),
        ("The audio does not contain it", "no"),
        ("It doesn't contain a bell", "no"),
        ("The audio contains a siren", "yes"),
        ("I am unable to tell", "no"),
        ("I can't hear it", "no"),
        ("It is not there", "no"),
        ("no", ""),
        ("NO", ""),
        ("YES", ""),
        ("I hear a dog barking.", ""),
        ("", ""),
    ],
)
def test_official_rules_are_kept_with_their_quirks(reply: str, read: str) -> None:
    assert official_yes_no(reply) == read


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("no", "no"),
        ("NO", "no"),
        (" **Yes**, there is", "yes"),
        ('"No."', "no"),
        ("No, but yesterday it barked", "no"),
        ("The answer is: yes.", "yes"),
        ("Answer: No", "no"),
        ("Noise only", ""),
        ("I can see eyes", ""),
        ("Yes and no", ""),
        ("I hear a siren, so yes", ""),
        ("", ""),
    ],
)
def test_strict_reads_what_is_said_and_no_more(reply: str, read: str) -> None:
    assert strict_yes_no(reply) == read


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("The first recording.", "first"),
        ("the SECOND one", "second"),
        ("Recording 2", "second"),
        ("Audio one has it", "first"),
        ("Both recordings.", "both"),
        ("Both the first and the second", "both"),
        ("None of the recordings.", "none"),
        ("Neither.", "none"),
        ("The first or the second", ""),
        ("I hear rain.", ""),
    ],
)
def test_which_recording(reply: str, read: str) -> None:
    assert which_recording(reply) == read


@given(st.text())
def test_every_reply_has_a_reading(reply: str) -> None:
    assert official_yes_no(reply) in {"yes", "no", ""}
    assert strict_yes_no(reply) in {"yes", "no", ""}
    assert which_recording(reply) in {"first", "second", "both", "none", ""}
