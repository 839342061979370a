"""One training of the smallest kind through every step, and again: by then everything is there."""

import json
from pathlib import Path

import pytest

from balsa_ray.config import load
from balsa_ray.findings.config import FindingsConfig
from balsa_ray.findings.run import Findings

SMALL = ["seeds=[0]", "few=1", "arms=[lora]", "test_clips=30", "steps=52", "multi_steps=10", "curve_steps=[]",
         "curve_clips=[]", "resamples=100"]  # fmt: skip


@pytest.mark.slow
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
