import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balsa_ray.config import UserError
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.runner import benchmark


def run(folder: Path, right: list[bool], start: int = 0) -> Path:
    """A run's predictions: question i is about clip i // 2, and says yes where that is right."""
    path = folder / "existence/predictions.jsonl"
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        for number, is_right in enumerate(right, start):
            reference = "yes" if number % 2 else "no"
            said = reference if is_right else {"yes": "no", "no": "yes"}[reference]
            row = {"id": str(number), "audio": f"{number // 2}.wav", "prompt": "?", "reference": reference}
            file.write(json.dumps(row | {"response": said.capitalize() + "."}) + "\n")
    return folder


def compared(tmp_path: Path, *runs: Path, **keys: Any) -> list[dict[str, Any]]:
    given = {"output": tmp_path / "out", "tasks": ["existence"], "compare": list(runs), "resamples": 500}
    return benchmark(BenchmarkConfig.model_validate(given | keys))["existence"]


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    right = list(np.random.default_rng(0).random(200) < 0.7)
    (entry,) = compared(tmp_path, run(tmp_path / "a", right), run(tmp_path / "b", right))
    accuracy = entry["splits"]["all"]["strict"]["accuracy"]
    assert accuracy["difference"] == {"value": 0, "low": 0, "high": 0}
    assert accuracy["p"] == 1


def test_pairing_finds_a_small_difference_that_the_intervals_hide(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    right = draw.random(400) < 0.6
    better = right | (draw.random(400) < 0.08)
    (entry,) = compared(tmp_path, run(tmp_path / "a", list(right)), run(tmp_path / "b", list(better)))
    accuracy = entry["splits"]["all"]["strict"]["accuracy"]
    assert accuracy["difference"]["value"] == pytest.approx(100 * (better.mean() - right.mean()))
    assert accuracy["difference"]["low"] > 0
    assert accuracy["p"] < 0.01
    assert accuracy["first"]["high"] > accuracy["other"]["low"]
    assert "strict" in (tmp_path / "out/compare.md").read_text()
    assert "paired" not in (tmp_path / "out/report.html").read_text()
    assert json.loads((tmp_path / "out/compare.json").read_text())["existence"] == [entry]


def test_no_difference_is_found_by_chance_more_often_than_it_should(tmp_path: Path) -> None:
    draw, found = np.random.default_rng(2), 0
    for trial in range(40):
        one, other = (run(tmp_path / f"{trial}-{name}", list(draw.random(120) < 0.7)) for name in "ab")
        (entry,) = compared(tmp_path / str(trial), one, other, resamples=200)
        found += entry["splits"]["all"]["strict"]["accuracy"]["p"] < 0.05
    assert found <= 6


def test_only_common_questions_count_and_others_are_told(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a", [True] * 30), run(tmp_path / "b", [True] * 30, start=10)
    (entry,) = compared(tmp_path, one, other)
    assert (entry["common"], entry["only_first"], entry["only_other"]) == (20, 10, 10)
    with pytest.raises(UserError, match="no question of existence in common"):
        compared(tmp_path, one, run(tmp_path / "c", [True] * 3, start=90))
    with pytest.raises(UserError, match=r"nowhere: no existence/predictions\.jsonl"):
        compared(tmp_path, one, tmp_path / "nowhere")
