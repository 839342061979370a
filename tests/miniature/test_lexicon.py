"""A lexicon of one's own: read as the packaged one, or refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from balsa_ray.config import UserError
from balsa_ray.miniature.lexicon import PACKAGED, lexicon, read_lexicon, use_lexicon
from balsa_ray.miniature.soundscapes import soundscape
from balsa_ray.miniature.text_world import example


def write(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Writes the packaged lexicon with a change."""
    data = yaml.safe_load(PACKAGED.read_text())
    change(data)
    path = folder / "lexicon.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_more_words_reach_the_text_world_and_sounds_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(data: dict[str, Any]) -> None:
        data["groups"]["odd ones"] = {"synthesised": False, "labels": ["theremin", "didgeridoo"]}
        data["scenes"]["concert"] = ["theremin", "didgeridoo"]

    path = write(tmp_path, add)
    before = lexicon()
    monkeypatch.setattr("balsa_ray.miniature.lexicon._in_use", PACKAGED)  # put back in the end
    try:
        use_lexicon(path)
        assert lexicon().synthesised == before.synthesised
        assert lexicon().neighbours("theremin") == ["didgeridoo"]
        replies = " ".join(example(0, "train", index).reply for index in range(300))
        assert "theremin" in replies
        for index in range(20):  # also of the scene that nothing can be heard of
            assert soundscape(0, "train", index)[1]
    finally:
        monkeypatch.undo()
        lexicon.cache_clear()
    assert lexicon() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.pop("scenes"), "should have `groups`"),
        (lambda data: data["groups"].update(odd=["theremin"]), "should have `groups`"),
        (lambda data: data["scenes"].update(odd=["theremin"]), "scenes name labels that no group has: theremin"),
        (lambda data: data["groups"].update(odd={"synthesised": False, "labels": ["rain"]}), "stand twice: rain"),
        (
            lambda data: data["groups"].update(odd={"synthesised": True, "labels": ["theremin"]}),
            "no generator: theremin",
        ),
        (lambda data: [g.update(synthesised=False) for g in data["groups"].values()], "keep the packaged groups"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = write(tmp_path, change)
    with pytest.raises(UserError, match=said) as refused:
        read_lexicon(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_what_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.yaml"
    path.write_text("groups: [")
    with pytest.raises(UserError, match="not readable as YAML"):
        read_lexicon(path)
