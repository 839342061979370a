from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.config import UserError
from balsa_ray.prompts.render import prompts_of
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
