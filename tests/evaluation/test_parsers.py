import time

import pytest
from benchmark_files import awkward_answers, awkward_replies, published_yes_no
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.evaluation.parsers import (
    judgement,
    listed,
    official_yes_no,
    one_word,
    strict_option,
    strict_yes_no,
    which_recording,
)


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
        ("No doubt, there is a dog.", ""),
        ("No problem! Yes, a dog.", ""),
        ("The answer is yes. The answer is no.", ""),
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
        ("Recording A.", "first"),
        ("Audio B", "second"),
        ("In this recording a siren can be heard.", ""),
        ("The first recording has both rain and a siren.", "first"),
        ("The second; the first has none.", ""),
        ("Neither the first nor the second.", "none"),
        ("I hear rain.", ""),
    ],
)
def test_which_recording(reply: str, read: str) -> None:
    assert which_recording(reply) == read


def test_the_published_parser_is_matched_on_awkward_replies() -> None:
    for reply in [*awkward_answers(10_000), *awkward_replies(10_000, ["no", "Yes"])]:
        assert official_yes_no(reply) == published_yes_no(reply), reply


@given(st.text())
def test_every_reply_has_a_reading(reply: str) -> None:
    assert official_yes_no(reply) in {"yes", "no", ""}
    assert strict_yes_no(reply) in {"yes", "no", ""}
    assert which_recording(reply) in {"first", "second", "both", "none", ""}


ANIMALS = ["Cow", "Dog", "Cat", "Pig", "None of the above"]


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("(b) Dog", "Dog"),
        ("(B)", "Dog"),
        ("(a) Cow)", "Cow"),
        ("B", "Dog"),
        ("b.", "Dog"),
        ("e) None of the above", "None of the above"),
        ("The answer is (b) Dog.", "Dog"),  # the published extractor: e, from "the"
        ("I hear a dog barking, so (b).", "Dog"),
        ('The correct answer is: "Dog".', "Dog"),
        ("The answer is A because a cow moos.", "Cow"),
        ("The answer is a dog.", "Dog"),
        ("Answer: A dog barks.", "Dog"),
        ("I choose B.", "Dog"),
        ("I choose A.", "Cow"),
        ("Option c", "Cat"),
        ("dog", "Dog"),
        ("A dog is barking. Dogs bark.", "Dog"),
        (
            "- (a) Cow: moos\n- (b) Dog: barks\n- (c) Cat: meows\n\n**Answer: (e) None of the above**.",
            "None of the above",
        ),
        ("It moos. Therefore, the correct answer is:\n\n(e) None of the above", "None of the above"),
        ("(e) None of the above\n\nIt is not (a) Cow, and (b) Dog is out.", "None of the above"),
        ("The answer is not (a), but (b).", "Dog"),
        ("It isn't a dog, it is a cat.", "Cat"),
        ("(a) or (b)", ""),
        ("(e) Cat.", ""),
        ("e. Cat", ""),
        ("Option B: pig", ""),
        ("B: dog", "Dog"),
        ("(c)  **cat**", "Cat"),
        ("The answer is (a) or (b).", ""),
        ("Of (a) Cow and (b) Dog I can't tell.", ""),
        ("It is not (a).", ""),
        ("That's not a dog.", ""),
        ("a dog or a cat", ""),
        ("The answer is cat or dog.", ""),
        ("The answer is a cat and a dog", ""),
        ("The wrong answer is cat; dog is right", ""),
        ("(f)", ""),
        ("hotdogs, e.g. with mustard", ""),
        ("A sound", ""),
        ("", ""),
    ],
)
def test_an_option_is_read_or_left_unparsed(reply: str, read: str) -> None:
    assert strict_option(reply, ANIMALS) == read


def test_keys_of_music_are_not_letters_of_options() -> None:
    keys = ["C major", "D major", "A minor"]
    assert strict_option("D major", keys) == "D major"
    assert strict_option("The key is A minor.", keys) == "A minor"
    assert strict_option("(c)", keys) == "A minor"
    assert strict_option("D", keys) == strict_option("The answer is C.", keys) == ""


def test_the_longer_option_is_meant_where_one_stands_in_another() -> None:
    assert strict_option("an acoustic  guitar", ["Guitar", "Acoustic Guitar"]) == "Acoustic Guitar"
    assert strict_option("a woman speaks", ["(A) Man", "(B) Woman"]) == "(B) Woman"


@pytest.mark.parametrize(
    "reply", ["\n" * 20_000, "- \n" * 7_000, "(a) " + "*" * 20_000 + "x", "answer is" + " " * 20_000]
)
def test_a_model_that_goes_round_in_circles_is_read_at_once(reply: str) -> None:
    began = time.process_time()
    strict_option(reply, ANIMALS)
    assert time.process_time() - began < 1


def test_nothing_but_one_of_the_options_is_ever_read() -> None:
    for reply in awkward_replies(10_000, ANIMALS):
        assert strict_option(reply, ANIMALS) in {*ANIMALS, ""}


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("Explanation: it chooses (b).\nJudgement: correct", "correct"),
        ("Explanation: not correct, it chooses two.\nJudgement: Incorrect.", "incorrect"),
        ("**Judgment:** correct", "correct"),
        ("Judgement: incorrect? No.\nJudgement: correct", "correct"),
        ("correct", ""),
        ("Judgement: correctly put", ""),
        ("Judgement: none", ""),
    ],
)
def test_a_judgement_is_what_stands_behind_its_name(reply: str, read: str) -> None:
    assert judgement(reply) == read


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("dog\ncar", ["dog", "car"]),
        ("- Dog\n* car\n3. dog.\n10) frying (food)", ["dog", "car", "frying (food)"]),
        ("Here are the nouns:\n\n**dog**, sewing machine", ["dog", "sewing machine"]),
        ("**Nouns:**\n`bow-wow`", ["bow-wow"]),
        ("None.", []),
        ("none", []),
        (" \n", []),
        ("2 stroke engine", ["2 stroke engine"]),
    ],
)
def test_a_judges_list_is_read_with_or_without_bullets(reply: str, read: list[str]) -> None:
    assert listed(reply) == read


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("dog", "dog"),
        (" **Dog**.", "dog"),
        ("A dog.", "dog"),
        ("the CD-player!", "cd-player"),
        ("The answer is: dog", "dog"),
        ("Four legs.\nAnswer: a\n dog", "dog"),
        ("Is the answer is cat? The answer is dog.", "dog"),
        ("the", "the"),  # an article alone is the word
        ("two dogs", ""),
        ("The answer is no, wait", ""),
        ("The answer isn't", ""),
        ("I don't know the answer", ""),
        ("!?", ""),
        ("", ""),
    ],
)
def test_one_word_is_read_or_nothing(reply: str, read: str) -> None:
    assert one_word(reply) == read


@pytest.mark.parametrize(
    "reply", [" " * 20_000, "! " * 10_000, "the " * 5_000, "answer: " * 5_000, "'-" * 10_000, "a" * 20_000]
)
def test_one_word_of_a_model_that_goes_round_in_circles_is_read_at_once(reply: str) -> None:
    began = time.process_time()
    for before in ("", "the", "The answer is", "dog"):
        one_word(before + reply + "!x y")
    assert time.process_time() - began < 1
