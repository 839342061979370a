from pathlib import Path

import pytest

from balsa_ray.config import UserError
from balsa_ray.prompts.render import MetadataStyle, parse_prompts, prompts, prompts_hash, read_prompts, render_metadata

CLIP = {
    "id": "a",
    "tags": ["rain", "dog", "rain"],
    "events": [{"label": "dog", "start": 1.0, "end": 2.0}, {"label": "rain", "start": 0.0, "end": 4.0}],
    "caption": "A dog barks\n in the rain.",
    "text": "come  here",
}


@pytest.mark.parametrize(
    ("style", "line"),
    [
        ("tags", "rain, dog"),
        ("events", "rain (0.0-4.0 s), dog (1.0-2.0 s)"),
        ("caption", "A dog barks in the rain."),
        ("text", 'somebody says "come here"'),
        (("caption", "tags", "text"), 'A dog barks in the rain; rain, dog; somebody says "come here"'),
    ],
)
def test_metadata_is_one_line(style: MetadataStyle, line: str) -> None:
    assert render_metadata(CLIP, style) == line


def test_of_several_styles_those_are_rendered_that_a_clip_has() -> None:
    assert render_metadata({"id": "a", "tags": ["rain"], "text": " "}, ("caption", "tags", "text")) == "rain"
    with pytest.raises(ValueError, match="none of caption, text"):
        render_metadata({"id": "a", "tags": ["rain"]}, ("caption", "text"))


def test_the_order_of_tags_can_be_another_and_that_of_events_is_of_time() -> None:
    assert render_metadata(CLIP, ("tags", "events"), sorted) == "dog, rain; rain (0.0-4.0 s), dog (1.0-2.0 s)"


GOOD = "- {id: mine, kind: present, clips: 1, text: 'What is it?', weight: 2, metadata: [caption]}\n"


def test_a_users_prompts_are_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    (prompt,) = read_prompts(tmp_path / "mine.yaml")
    assert (prompt.id, prompt.text, prompt.weight, prompt.metadata) == ("mine", "What is it?", 2.0, ("caption",))
    assert (
        prompts_hash([prompt]) != prompts_hash([prompt.model_copy(update={"weight": 1.0})]) != prompts_hash(prompts())
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- {id: [", "mine.yaml: not valid YAML"),
        ("{}", "mine.yaml: should be a list of entries"),
        (GOOD + "- {kind: present, clips: 1, text: x}", "mine.yaml: entry 2: id: Field required"),
        (GOOD + "- {id: b, kind: presence, clips: 1, text: x}", r"mine.yaml: entry 2 \(b\): kind: .*'present'"),
        (GOOD + "- {id: b, kind: joint, clips: 1, text: x}", r"entry 2 \(b\): clips: joint is about several clips"),
        (GOOD + "- {id: b, kind: absent, clips: 2, text: x}", r"entry 2 \(b\): clips: absent is about one clip"),
        (GOOD + "- {id: b, kind: joint, clips: 9, text: x}", r"entry 2 \(b\): clips: .*less than or equal to 8"),
        (GOOD + "- {id: b, kind: absent, clips: 1, text: ' '}", r"entry 2 \(b\): text: has no words"),
        (GOOD + "- {id: b, kind: absent, clips: 1, text: x, weight: 0}", r"entry 2 \(b\): weight: .*greater than 0"),
        (GOOD + "- {id: b, kind: absent, clips: 1, text: x, wieght: 2}", r"entry 2 \(b\): wieght: .*known: id, kind"),
        (GOOD + "- {id: b, kind: absent, clips: 1, text: x, metadata: [tag]}", r"entry 2 \(b\): metadata.0: .*'tags'"),
        (GOOD + GOOD, r"entry 2 \(mine\): id: an earlier entry has it"),
        (GOOD + "- nonsense", "entry 2: .*valid dictionary"),
    ],
)
def test_a_mistake_in_a_users_prompts_is_named(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_prompts(text, "mine.yaml")


def test_a_missing_file_of_prompts_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts: .*nowhere.yaml: can't be read"):
        read_prompts(tmp_path / "nowhere.yaml")
