from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from balsa_ray.config import UserError
from balsa_ray.synthesis import recipe as module
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.manifest import Manifest, Piece
from balsa_ray.synthesis.recipe import Writer, identity, recipe_of

PROMPTS = "- {id: mine, kind: present, clips: 1, text: What is it}\n"
ONTOLOGY = '[{"id": "/a", "name": "Dog", "child_ids": []}]'


def config(folder: Path, **changes: Any) -> SynthesizeConfig:
    values = {"output": folder, "input": folder / "clips.jsonl", "model": "m", "sampling": {"temperature": 0.5}}
    return SynthesizeConfig.model_validate(values | changes)


def known(folder: Path, **changes: Any) -> dict[str, Any]:
    of = config(folder, **changes)
    return identity(
        of,
        recipe_of(of),
        Writer("m", "weights", "tokenizer"),
        Manifest("clips.jsonl", "digest", 1, (Piece(f"{folder}/clips.jsonl", 0, 0, 1, 1),)),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"metadata": ("tags", "caption")},
        {"metadata_order": "shuffled"},
        {"marks": ("<audio>", "</audio>")},
        {"system_prompt": "Be brief."},
        {"prompts": "prompts.yaml", "kinds": {"present": 1}},
        {"sampling": {"temperature": 0.6}},
    ],
)
def test_what_decides_a_reply_makes_other_ids(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    if "prompts" in changes:
        changes = changes | {"prompts": tmp_path / changes["prompts"]}
    before = known(tmp_path, **{key: changes[key] for key in changes if key == "kinds"})
    assert before == known(tmp_path, **{key: changes[key] for key in changes if key == "kinds"})
    assert before["recipe"] != known(tmp_path, **changes)["recipe"]


@pytest.mark.parametrize(
    "changes",
    [
        {"kinds": {"present": 1}},
        {"clips": 3},
        {"replies_per_prompt": 2},
        {"pairing": {"similar": 1}},
        {"negatives": {"popular": 1}},
        {"absent_candidates": 2},
        {"labels": "lexicon"},
        {"ontology": "ontology.json"},
    ],
)
def test_what_decides_the_rows_makes_another_run(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ontology.json").write_text(ONTOLOGY)
    if "ontology" in changes:
        changes = {"ontology": tmp_path / changes["ontology"]}
    before, after = known(tmp_path), known(tmp_path, **changes)
    assert before != after
    assert before["recipe"] == after["recipe"]


def test_other_gates_make_another_run_with_the_same_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = known(tmp_path)
    monkeypatch.setattr(module.gates, "VERSION", 99)
    after = known(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"gates"} <= {*module.JUDGING}


@pytest.mark.parametrize("part", ["shuffled", "draw_absent"])
def test_code_that_draws_otherwise_makes_other_ids(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = known(tmp_path)
    other: dict[str, Any] = {
        "shuffled": lambda seed, key, items, weights=None: list(items),
        "draw_absent": lambda way, *rest: (["a"], way),
    }
    monkeypatch.setattr(f"balsa_ray.synthesis.plan.{part}", other[part])
    assert before["recipe"] != known(tmp_path)["recipe"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pairing": {"random": -1}}, "none can be negative"),
        ({"negatives": {"free": 0}}, "not all can be 0"),
        ({"pairing": {"nearest": 1}}, "pairing"),
        ({"clips": 9}, "less than or equal to 8"),
        ({"metadata": ()}, "names no style"),
        ({"replies_per_prompt": 2, "sampling": {}}, "replies_per_prompt: greedy replies"),
        ({"negatives": {"siblings": 1}}, "negatives.siblings: needs `ontology: FILE`"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=reason):
        config(tmp_path, **changes)


def test_a_file_without_prompts_of_a_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    with pytest.raises(UserError, match=r"kinds.absent: no prompt of this kind"):
        recipe_of(config(tmp_path, prompts=tmp_path / "prompts.yaml"))
