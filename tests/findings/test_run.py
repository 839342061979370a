"""One training of the smallest kind through every step, and again: by then everything is there."""

import json
from pathlib import Path

import pytest

from balsa_ray.config import load
from balsa_ray.findings import data as findings_data
from balsa_ray.findings.config import FindingsConfig
from balsa_ray.findings.plan import runs
from balsa_ray.findings.run import Findings

RECIPE = "jobs/configs/miniature/findings.yaml"
SMALL = ["seeds=[0]", "few=1", "arms=[lora]", "test_clips=30", "steps=52", "multi_steps=10", "curve_steps=[]",
         "curve_clips=[]", "resamples=100"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_an_arm_is_trained_and_asked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "findings.yaml"
    recipe.write_text(f"output: {tmp_path}/out\nconditions: {{base: {{clips: 64}}}}\n")
    config = load(FindingsConfig, [str(recipe), *SMALL])
    Findings(config).run()
    found = json.loads((tmp_path / "out/findings.json").read_text())
    run = tmp_path / "out/runs/base/backbone-0/seed-0/clips-64/lora-52"
    assert {path.name for path in run.iterdir()} == {"training", "test"}
    assert {path.name for path in (run / "test").iterdir()} == {"benchmark", "text", "margins.jsonl", "done.json"}
    # One arm alone has nothing to be compared with but the backbone as it came.
    assert found["text_only_lora"]["difference"]["accuracy"]["seeds"] == 1
    assert found["design"]["config"]["seeds"] == [0]
    assert "negatives" not in found
    assert not (tmp_path / "out/base/backbone-0/seed-0/clips-64/corpus").exists()
    capsys.readouterr()
    Findings(config).run()
    assert "1 trainings, 1 of them done" in capsys.readouterr().out


def test_arms_differ_in_what_their_names_say_and_in_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(
        FindingsConfig, [RECIPE, f"output={tmp_path}", "seeds=[3]", "few=1", "backbones=[miniature:backbone]"]
    )
    job = Findings(config)
    monkeypatch.setattr(job, "_data", lambda run, present=False: tmp_path / f"data-{run.arm}-{present}")
    words = {"data-present_only_tokens-False": 6.0, "data-present_only_tokens-True": 4.0}
    monkeypatch.setattr(findings_data, "reply_tokens", lambda folder, *_: words[folder.name])
    planned = {run.arm: run for run in runs(config) if run.split == "test" and run.condition == "base"}
    assert set(planned) == set(config.arms)
    recipes = {arm: job._training(run).model_dump() for arm, run in planned.items()}
    listen = recipes["listen"]
    allowed = {
        "present_only": {"stages"},
        "present_only_tokens": {"stages"},
        "listen": set(),
        "guided": set(),
        "multi_audio": {"stages"},
        "lora": {"text_lora"},
        "template": set(),
    }
    for arm, recipe in recipes.items():
        different = {key for key in recipe if recipe[key] != listen[key]} - {"output", "data"}
        assert different == allowed[arm], arm
        assert recipe["seed"] == 3
        steps = [stage["steps"] for stage in recipe["stages"]]
        assert sum(steps) == (900 if arm == "present_only_tokens" else config.steps), arm
        assert {stage["learning_rate"] for stage in recipe["stages"]} == {None}
    kinds = {arm: [stage["kinds"] for stage in recipe["stages"]] for arm, recipe in recipes.items()}
    single = ["present", "absent", "combined"]
    assert kinds["present_only"] == kinds["present_only_tokens"] == [["present"]]
    assert kinds["listen"] == kinds["guided"] == kinds["lora"] == kinds["template"] == [single]
    assert kinds["multi_audio"] == [single, ["difference", "joint"]]
