from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.config import UserError
from balsa_ray.prompts.render import Prompt, prompts_of
from balsa_ray.synthesis.plan import Recipe, plan_clip, plan_groups, read_clip, samples_of, stated_labels, user_turn

RECIPE = Recipe(
    "recipe", 0, "tags", {"present": 1, "absent": 1, "combined": 1, "difference": 1, "joint": 1}, ("rain", "siren")
)


def clip(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "audio": f"/{name}.wav", "tags": ["rain", "siren"], **more}


def test_a_sample_says_what_was_asked_about_what() -> None:
    planned = list(plan_clip(RECIPE, clip("a")))
    assert [sample["kind"] for sample in planned] == ["present", "absent", "combined"]
    for sample in planned:
        assert sample["prompt"] in {
            prompt.text for prompt in prompts_of(sample["kind"]) if prompt.id == sample["prompt_id"]
        }
        assert user_turn(sample) == f"[Begin of audio] rain, siren [End of audio]\n{sample['prompt']}"
        assert (sample["clip_ids"], sample["audio"], sample["present"]) == (["a"], ["/a.wav"], ["rain", "siren"])


@given(order=st.permutations([f"clip-{i}" for i in range(9)]))
def test_the_plan_does_not_depend_on_the_order_of_clips(order: list[str]) -> None:
    def plan(names: list[str]) -> list[Any]:
        clips = [clip(name) for name in names]
        rows = [*plan_groups(RECIPE, clips), *(row for one in clips for row in plan_clip(RECIPE, one))]
        return sorted(rows, key=lambda row: row["id"])

    assert plan(order) == plan(sorted(order))


@given(share=st.floats(0, 5, exclude_min=True), number=st.integers(1, 12))
def test_ids_are_unique_and_as_many_as_counted(share: float, number: int) -> None:
    recipe = replace(RECIPE, kinds={"present": share, "joint": share})
    clips = [clip(str(i)) for i in range(number)]
    singles = [row["id"] for one in clips for row in plan_clip(recipe, one)]
    groups = [row["id"] for row in plan_groups(recipe, clips)]
    assert len(singles) == sum(samples_of(recipe, "present", one["id"]) for one in clips)
    assert len(groups) == (sum(samples_of(recipe, "joint", one["id"]) for one in clips) if number > 1 else 0)
    assert len({*singles, *groups}) == len(singles) + len(groups)


def test_a_share_of_a_half_is_every_second_clip() -> None:
    recipe = replace(RECIPE, kinds={"present": 1.5})
    counts = Counter(samples_of(recipe, "present", str(i)) for i in range(2000))
    assert set(counts) == {1, 2}
    assert 900 < counts[2] < 1100


def test_every_wording_is_used_before_one_comes_again() -> None:
    wordings = len(prompts_of("present"))
    planned = list(plan_clip(replace(RECIPE, kinds={"present": wordings + 1}), clip("a")))
    assert len({row["prompt_id"] for row in planned[:wordings]}) == wordings
    assert len({row["id"] for row in planned}) == wordings + 1


@pytest.mark.parametrize("change", [{"fingerprint": "other"}, {"seed": 1}])
def test_another_recipe_makes_other_rows(change: dict[str, Any]) -> None:
    clips = [clip(str(i)) for i in range(20)]
    ids = [
        {row["id"] for one in clips for row in plan_clip(recipe, one)} for recipe in (RECIPE, replace(RECIPE, **change))
    ]
    assert ids[0] != ids[1]


def test_mixed_metadata_is_one_form_for_all_clips_of_a_sample() -> None:
    recipe = replace(RECIPE, metadata="mixed", kinds={"joint": 1})
    events = [{"label": "rain", "start": 0.0, "end": 1.0}]
    clips = [clip(str(i), events=events, caption="It rains." if i % 2 else "") for i in range(40)]
    forms = {"rain, siren": "tags", "rain (0.0-1.0 s)": "events", "It rains.": "caption"}
    seen = [tuple(forms[text] for text in row["metadata"]) for row in plan_groups(recipe, clips)]
    assert set(seen) == {(form, form) for form in forms.values()}


def test_clips_without_a_common_form_are_each_given_in_their_own() -> None:
    recipe = replace(RECIPE, metadata="mixed", kinds={"joint": 1})
    clips = [clip("a"), {"id": "b", "audio": "/b.wav", "caption": "It rains."}]
    assert {frozenset(row["metadata"]) for row in plan_groups(recipe, clips)} == {
        frozenset({"rain, siren", "It rains."})
    }


def test_stated_labels_come_from_every_form_and_once() -> None:
    events = [{"label": "Siren", "start": 0.0, "end": 1.0}]
    assert stated_labels(
        {"tags": ["rain"], "events": events, "caption": "Rain and wind."}, ("rain", "siren", "wind")
    ) == [
        "rain",
        "siren",
        "wind",
    ]


def test_audio_is_made_absolute() -> None:
    row = {"id": "a", "audio": "x/a.wav", "tags": ["rain"]}
    assert read_clip(row, "row 1", "/data", "tags")["audio"] == "/data/x/a.wav"
    assert (
        read_clip(row | {"audio": {"path": "s3://b/a.wav", "bytes": None}}, "row 1", "/data", "tags")["audio"]
        == "s3://b/a.wav"
    )


@pytest.mark.parametrize(
    ("row", "metadata", "reason"),
    [
        ({"audio": "a.wav", "tags": ["rain"]}, "tags", "row 1: id: missing"),
        ({"id": "a", "audio": "a.wav", "tags": "rain"}, "tags", "row 1: tags: should be"),
        ({"id": "a", "audio": "a.wav", "tags": ["rain"]}, "caption", "row 1: caption: missing"),
        ({"id": "a", "audio": "a.wav", "text": " "}, "mixed", "row 1: tags and events and caption and text: missing"),
        ({"id": "a", "audio": "a.wav", "text": "hi"}, ("tags", "caption"), "tags and caption: missing.* one of them"),
        ({"id": "a", "audio": {"bytes": b"RIFF", "path": None}, "tags": ["rain"]}, "tags", "row 1: audio: holds bytes"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: dict[str, Any], metadata: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_clip(row, "row 1", "/data", metadata)


MIXED = replace(
    RECIPE,
    labels=tuple("abcdef"),
    pairing={"random": 1, "similar": 1, "contrast": 1, "same_tag_other_clip": 1},
    negatives={"free": 1, "random": 1, "siblings": 1},
    ontology={"x": ("a", "b"), "y": ("c", "d"), "z": ("e", "f")},
    shuffle_tags=True,
)


@given(
    order=st.permutations(range(12)),
    clips=st.integers(2, 8),
    replies=st.integers(1, 2),
    tags=st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True), min_size=12, max_size=12),
)
def test_every_choice_is_the_same_in_any_order_and_counted_beforehand(
    order: list[int], clips: int, replies: int, tags: list[list[str]]
) -> None:
    recipe = replace(MIXED, clips=clips, replies=replies)
    pool = [clip(str(i), tags=labels) for i, labels in enumerate(tags)]

    def plan(pool: list[dict[str, Any]]) -> list[Any]:
        rows = [*plan_groups(recipe, pool), *(row for one in pool for row in plan_clip(recipe, one))]
        return sorted(rows, key=lambda row: row["id"])

    rows = plan(pool)
    assert rows == plan([pool[i] for i in order])
    assert len({row["id"] for row in rows}) == len(rows)
    assert len(rows) == sum(samples_of(recipe, kind, one["id"]) for kind in recipe.kinds for one in pool)
    for row in rows:
        assert len(set(row["clip_ids"])) == recipe.clips_of(row["kind"])
        labels = [set(tags[int(name)]) for name in row["clip_ids"]]
        if row["strategy"] == "same_tag_other_clip":
            assert set.intersection(*labels)
        if row["strategy"] == "contrast":
            assert sum(map(len, labels)) == len(set.union(*labels))


def test_each_way_is_taken_by_its_share() -> None:
    pool = [clip(str(i), tags=["ab"[i % 2], "cdef"[i % 4]]) for i in range(400)]
    recipe = replace(
        MIXED, kinds={"absent": 1, "joint": 1}, pairing={"random": 1, "similar": 3}, negatives={"free": 3, "random": 1}
    )
    taken = Counter(row["strategy"] for one in pool for row in plan_clip(recipe, one))
    assert set(taken) == {"free", "random"}
    assert 260 < taken["free"] < 340
    assert 260 < Counter(row["strategy"] for row in plan_groups(recipe, pool))["similar"] < 340


def test_a_strategy_without_partners_gives_way_to_random() -> None:
    recipe = replace(MIXED, kinds={"joint": 1}, pairing={"contrast": 1})
    rows = list(plan_groups(recipe, [clip(str(i), tags=["a"]) for i in range(5)]))
    assert [row["strategy"] for row in rows] == ["contrast>random"] * 5


def test_given_absent_sounds_stand_in_the_metadata_and_not_in_the_prompt() -> None:
    one = clip("1", tags=["a"])
    (free,) = plan_clip(replace(MIXED, kinds={"absent": 1}, negatives={"free": 1}), one)
    (guided,) = plan_clip(replace(MIXED, kinds={"absent": 1}, negatives={"random": 1}, candidates=2), one)
    assert (free["prompt"], free["metadata"], free["candidates"]) == (guided["prompt"], ["a"], [])
    assert len(guided["candidates"]) == 2
    assert guided["metadata"] == [f"a; absent: {', '.join(guided['candidates'])}"]
    assert guided["present"] == ["a"]
    assert guided["id"] != free["id"]


def test_several_replies_to_a_prompt_are_rows_of_their_own() -> None:
    rows = list(plan_clip(replace(RECIPE, kinds={"present": 2}, replies=3), clip("a")))
    assert Counter(row["prompt_id"] for row in rows).most_common() == [
        (rows[0]["prompt_id"], 3),
        (rows[3]["prompt_id"], 3),
    ]
    assert len({row["id"] for row in rows}) == 6


def test_prompts_come_by_weight_and_with_a_rendering_of_their_own() -> None:
    often = Prompt(id="often", kind="present", clips=1, text="?", weight=9, metadata=("caption",))
    recipe = replace(
        RECIPE, kinds={"present": 1}, prompts=(often, often.model_copy(update={"id": "rare", "weight": 1}))
    )
    rows = [row for i in range(300) for row in plan_clip(recipe, clip(str(i), caption="It rains." if i % 2 else ""))]
    assert 250 < Counter(row["prompt_id"] for row in rows)["often"] < 290
    assert [row["metadata"] for row in rows[:2]] == [["rain, siren"], ["It rains."]]


def test_a_kind_needs_a_prompt_that_fits() -> None:
    three = Prompt(id="three", kind="joint", clips=3, text="?")
    assert replace(RECIPE, kinds={"joint": 1}, prompts=(three,), clips=3).paraphrases == {"joint": [three]}
    with pytest.raises(UserError, match=r"kinds.joint: no prompt of this kind fits samples of 2 clips"):
        _ = replace(RECIPE, kinds={"joint": 1}, prompts=(three,)).paraphrases


def test_tags_are_read_in_a_drawn_order_if_asked() -> None:
    tags = list("abcdef")
    read = {tuple(row["metadata"]) for i in range(20) for row in plan_clip(MIXED, clip(str(i), tags=tags))}
    assert len(read) > 20


def test_marks_are_as_the_recipe_says() -> None:
    planned = {"metadata": ["rain", "wind"], "prompt": "?"}
    assert user_turn(planned, ("<audio>", "</audio>")) == "<audio> rain </audio>\n<audio> wind </audio>\n?"
