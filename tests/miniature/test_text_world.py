import re

from hypothesis import given, settings
from hypothesis import strategies as st

from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.miniature.soundscapes import held_out_set
from balsa_ray.miniature.text_world import MULTI_CLIP, example, tasks
from balsa_ray.prompts.labels import extract_labels

INDEX = st.integers(0, 100_000)
NAMES = [name for name in tasks() if name != "captions"]


def named(reply: str) -> list[str]:
    return extract_labels(reply, lexicon().labels)


def test_the_lexicon_has_the_animals_of_real_recordings() -> None:
    animals = "dog barking, cat meowing, bird chirping, cow mooing, lion roaring, sheep bleating, frog croaking"
    more = "chicken clucking, donkey braying, monkey screeching"
    assert set(f"{animals}, {more}".split(", ")) <= set(lexicon().labels)
    assert len(lexicon().labels) >= 60


@settings(max_examples=200, deadline=None)
@given(index=INDEX, task=st.sampled_from(["present", "joint"]))
def test_descriptions_name_each_sound_once_in_alphabetical_order(index: int, task: str) -> None:
    item = example(0, "train", index, task)
    assert named(item.reply) == sorted({label for clip in item.clips for label in clip})


@settings(max_examples=200, deadline=None)
@given(index=INDEX, task=st.sampled_from(["absent", "combined"]))
def test_denied_sounds_are_not_in_the_metadata(index: int, task: str) -> None:
    item = example(0, "train", index, task)
    before, after = re.split(r"\bno\b", item.reply, maxsplit=1)
    assert named(after)
    assert not set(named(after)) & set(item.clips[0])
    assert named(before) == ([] if task == "absent" else sorted(item.clips[0]))


@settings(max_examples=200, deadline=None)
@given(index=INDEX, split=st.sampled_from(["train", "test"]))
def test_existence_is_answered_by_the_metadata(index: int, split: str) -> None:
    item = example(0, split, index, "existence")
    (asked,) = set(named(item.prompt))
    assert item.reply.startswith("Yes" if asked in item.clips[0] else "No")


@settings(max_examples=200, deadline=None)
@given(index=INDEX)
def test_which_recording_is_answered_by_the_metadata(index: int) -> None:
    item = example(0, "train", index, "which_recording")
    (asked,) = set(named(item.prompt))
    first, second = (asked in clip for clip in item.clips)
    word = {(True, False): "first", (False, True): "second", (True, True): "Both", (False, False): "None"}
    assert word[first, second] in item.reply


@settings(max_examples=300, deadline=None)
@given(index=INDEX, task=st.sampled_from(NAMES))
def test_training_never_shows_what_the_test_asks(index: int, task: str) -> None:
    seen, unseen = example(0, "train", index, task), example(0, "test", index, task)
    assert not any(held_out_set(list(clip)) for clip in seen.clips)
    assert all(held_out_set(list(clip)) for clip in unseen.clips if len(clip) > 1)
    assert not set(tasks()[task]["ask"]) & set(tasks()[task]["held_out"])


def test_an_example_is_keyed() -> None:
    assert example(0, "train", 5) == example(0, "train", 5)
    assert len({example(0, "train", index).reply for index in range(50)}) > 25


def test_every_task_and_every_number_of_clips_occurs() -> None:
    items = [example(0, "train", index) for index in range(600)]
    assert {item.task for item in items} == set(NAMES)
    assert {len(item.clips) for item in items} == {1, 2, 3}
    assert all(len(item.clips) > 1 for item in items if item.task in MULTI_CLIP)
