"""The report says what was compared, and how much greater each figure is."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from balsa_ray.config import load
from balsa_ray.findings.config import FindingsConfig
from balsa_ray.findings.report import build, write
from balsa_ray.findings.results import FIGURES, Seeds

RECIPE = "jobs/configs/miniature/findings.yaml"


def arm(value: float, seeds: int = 3) -> Seeds:
    draw = np.random.default_rng(0)
    metric = {"value": value, "low": 0.0, "high": 0.0, "n": 10, "spread": value + draw.normal(size=100)}
    return Seeds({seed: dict.fromkeys(FIGURES, metric) for seed in range(seeds)})  # type: ignore[arg-type]


def test_every_comparison_stands_with_its_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(FindingsConfig, [RECIPE, f"output={tmp_path}", "resamples=100", "backbones=[one,two]"])
    runs = {("base", 0, "present_only"): arm(60, 8), ("base", 0, "listen"): arm(62.5, 8)}
    runs |= {("base", 0, "lora"): arm(70), ("base", 1, "present_only"): arm(50), ("base", 1, "listen"): arm(49)}
    runs |= {("base", 1, "guided"): arm(51), ("noisy", 0, "present_only"): arm(40), ("noisy", 0, "listen"): arm(44)}
    text = {"before": arm(99), "listen": arm(99), "lora": arm(90)}
    points = [
        *((steps, 2000) for steps in config.curve_steps),
        *((config.steps, clips) for clips in config.curve_clips),
    ]
    curves = [((*point, name), arm(point[0] / 20, 1)) for point in points for name in ("present_only", "listen")]
    found = build(config, runs, text, curves, {"listen": [600]})
    assert found["design"]["steps"] == {"listen": [600]}
    gains = {name: found[name]["difference"]["accuracy"] for name in ("negatives", "lora", "guided", "text_only")}
    assert [round(gain["value"], 3) for gain in gains.values()] == [2.5, 7.5, 2, 0]  # given: on the last backbone
    assert gains["negatives"]["seeds"] == 8
    assert (gains["text_only"]["low"], gains["text_only"]["high"]) == (0, 0)
    assert found["text_only_lora"]["difference"]["accuracy"]["value"] == -9
    surface = {name: pair["difference"]["accuracy"]["value"] for name, pair in found["conditions"].items()}
    assert surface == {"base, backbone 0": 2.5, "noisy, backbone 0": 4, "base, backbone 1": -1}
    assert "tokens" not in found, "what was not run is not compared"
    write(config, found)
    assert json.loads((tmp_path / "findings.json").read_text()) == found
    page = (tmp_path / "findings.html").read_text()
    for told in ("Is an arm undertrained?", "When do they help?", "66.0 → 77.5 (LISTEN)", "+2.5 [+2.5, +2.5]", "noisy"):
        assert told in page
    for axis in ("steps", "clips"):
        assert f"accuracy on validation clips (%) against {axis}" in page, "both curves are drawn"
    assert imread(tmp_path / "conditions.png").shape[2] == 4
    assert "Do samples about what is absent help? accuracy: +2.5" in capsys.readouterr().out
