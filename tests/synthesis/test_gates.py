import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.miniature.text_world import example
from balsa_ray.prompts.labels import affirmed_and_denied
from balsa_ray.prompts.render import BEGIN, END, Kind
from balsa_ray.synthesis.gates import (
    PASSED,
    REASONS,
    judge,
    loops,
    other_script,
    refuses,
    repeats_an_item,
    speaks_of_metadata,
)
from balsa_ray.synthesis.plan import Recipe, stated_labels
from balsa_ray.synthesis.replies import judged

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
        ("present", "rain and siren and rain and siren and rain and siren and rain", "stop", "loops"),
        ("present", "我听到雨声和警报声。", "stop", "other_language"),
        ("present", "I'm sorry, but I can't listen to rain.", "stop", "refuses"),
        ("present", "The tags say rain and siren.", "stop", "speaks_of_metadata"),
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


@pytest.mark.parametrize(
    ("reply", "prompt", "other"),
    [
        ("Ich höre Regen.", "What do you hear?", False),
        ("Слышен дождь.", "What do you hear?", True),
        ("Слышен дождь.", "Что слышно?", False),
        ("I hear rain.", "Что слышно?", True),
        ("雨の音がします。", "听到什么？", False),
        ("The word 雨 is spoken.", "What do you hear?", False),
        ("12 - 3 …", "What do you hear?", False),
    ],
)
def test_the_script_is_that_of_the_prompt(reply: str, prompt: str, other: bool) -> None:
    assert other_script(reply, prompt) == other


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        ("As an AI, I hear rain.", True),
        ("I am a large language model.", True),
        ("I cannot directly access recordings.", True),
        ("I’m unable to play the audio.", True),
        ("I do not have the ability to hear.", True),
        ("I cannot hear a siren, and I am not able to make out any rain.", False),
        ("A man says \"I'm sorry, I can't help you\" while it rains.", False),
        ("I hear rain.", False),
    ],
)
def test_refusals(reply: str, refused: bool) -> None:
    assert refuses(reply) == refused


@pytest.mark.parametrize(
    ("reply", "prompt", "leaks"),
    [
        ("According to the metadata, it rains.", "?", True),
        ("The provided description mentions rain.", "?", True),
        ("Rain, based on the given\ninformation.", "?", True),
        ("The audio caption is about rain.", "Describe the audio.", True),
        ("Here is the joint caption: rain.", "Give one joint caption.", False),
        (f"{BEGIN} rain {END}", "?", True),
        ("Dog tags jingle, somebody reads out the label.", "?", True),
        ("A description of rain is read aloud.", "?", False),
        ("The text message tone and the tag of a coat.", "tag", False),
    ],
)
def test_talk_of_the_text_that_was_read(reply: str, prompt: str, leaks: bool) -> None:
    assert speaks_of_metadata(reply, (prompt, "rain")) == leaks


def test_a_sound_that_the_metadata_has_may_be_called_by_its_name() -> None:
    assert not speaks_of_metadata("Dog tags jingle.", ("?", "dog tags"))


@given(st.lists(st.sampled_from(LABELS), min_size=2, max_size=4), st.integers(4, 12))
def test_what_goes_round_in_circles_is_found(words: list[str], times: int) -> None:
    assert loops(" ".join(words * times))


RECIPE = Recipe("", 0, "tags", {"present": 1}, ("Dog", "rain", "gunshot", "Cat"), ontology={"Animal": ("Dog", "Cat")})


@pytest.mark.parametrize(
    ("kind", "reply", "gate"),
    [
        ("absent", "There is no puppy.", "denies_present"),
        ("absent", "There are no dogs.", "denies_present"),
        ("absent", "There is no animal.", "denies_implied"),
        ("combined", "I hear a dog, but no animals and no rain.", "denies_implied"),
        ("absent", "There is no cat and no rain.", "ignores_candidates"),
        ("absent", "There is no cat and no gunfire.", PASSED),
        ("combined", "I hear a dog, but no rain.", "ignores_candidates"),
        ("combined", "I hear a dog and gunfire.", "affirms_absent"),
        ("combined", "I hear a dog, but no gunfire.", PASSED),
        ("present", "An animal is heard.", PASSED),
        ("present", "It rains.", "misses_present"),
    ],
)
def test_other_names_and_wider_terms_count(kind: Kind, reply: str, gate: str) -> None:
    sample = {"kind": kind, "present": ["Dog"], "candidates": ["gunshot"], "prompt": "?", "metadata": ["Dog"]}
    answer = {"response": reply, "finish_reason": "stop", "prompt_tokens": 1, "response_tokens": 1}
    assert judged(sample, answer, RECIPE, (BEGIN, END))["gate"] == gate


@pytest.mark.parametrize("kind", ["present", "absent", "combined", "difference", "joint"])
def test_right_replies_of_the_miniature_pass(kind: Kind) -> None:
    groups = {
        name: tuple(x for x, its in lexicon().group_of.items() if its == name) for name in lexicon().group_of.values()
    }
    recipe = Recipe("", 0, "tags", {"present": 1}, lexicon().labels, ontology=groups)
    for index in range(300):
        right = example(0, "train" if index % 2 else "test", index, kind)
        clips = [{"tags": labels} for labels in right.clips]
        present = [label for clip in clips for label in stated_labels(clip, recipe.relations.finder)]
        sample = {
            "kind": kind,
            "present": present,
            "candidates": [],
            "prompt": right.prompt,
            "metadata": right.metadata,
        }
        answer = {"response": right.reply, "finish_reason": "stop", "prompt_tokens": 1, "response_tokens": 1}
        assert judged(sample, answer, recipe, (BEGIN, END))["gate"] == PASSED, right
