"""The committed findings are what this code makes of the committed answers, and what the README says of them."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from balsa_ray.config import load
from balsa_ray.findings.config import FindingsConfig
from balsa_ray.findings.run import Findings

ROOT = Path(__file__).parents[2]
FINDINGS = ROOT / "benchmarks" / "findings"
RECIPE = ROOT / "jobs/configs/miniature/findings.yaml"


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FINDINGS / "findings.json").read_text("utf-8"))
    return found


@pytest.mark.slow
def test_the_committed_answers_give_the_committed_figures(committed: dict[str, Any], tmp_path: Path) -> None:
    with tarfile.open(FINDINGS / "answers.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    only = ["seeds=[0,1]", "few=2", "arms=[present_only,listen]", "curve_steps=[]", "curve_clips=[]"]
    base = "conditions={base: {clips: 2000}}"
    config = load(FindingsConfig, [str(RECIPE), f"output={tmp_path}", "report_only=true", base, *only])
    Findings(config).run()
    found = json.loads((tmp_path / "findings.json").read_text("utf-8"))
    for arm in ("present_only", "listen", "difference"):
        for figure, entry in found["negatives"][arm].items():
            assert entry["by_seed"] == pytest.approx(committed["negatives"][arm][figure]["by_seed"][:2]), (arm, figure)
    assert found["text_only"]["difference"]["accuracy"]["value"] == 0


def test_the_committed_findings_are_of_the_recipe(committed: dict[str, Any]) -> None:
    recipe = load(FindingsConfig, [str(RECIPE)]).model_dump(mode="json")
    own = ("output", "report_only", "recipes")
    assert {key: value for key, value in committed["design"]["config"].items() if key not in own} == {
        key: value for key, value in recipe.items() if key not in own
    }


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text("utf-8").partition("## Does it work?")[2].partition("\n## ")[0]


def cell(entry: dict[str, Any]) -> list[str]:
    return [f"{entry[key]:+.1f}" for key in ("value", "low", "high")]


def test_the_readme_tells_the_committed_differences_and_leaves_none_out(committed: dict[str, Any], readme: str) -> None:
    rows = re.findall(
        r"^\| .*`(\w+)` `(\w+)` \| (\S+) \| (\S+) \| (\S+) \[(\S+), (\S+)\], (\d+) \|", readme, re.MULTILINE
    )
    for name, figure, *told in rows:
        pair = committed[name]
        first, other = (key for key in pair if key not in ("question", "difference", "papers"))
        difference = pair["difference"][figure]
        values = [f"{pair[first][figure]['value']:.1f}", f"{pair[other][figure]['value']:.1f}"]
        assert told == [*values, *cell(difference), str(difference["seeds"])], (name, figure)
    there = {(name, figure) for name, figure, *_ in rows}
    compared = {name: pair["difference"] for name, pair in committed.items() if "difference" in pair}
    assert len(compared) >= 5
    apart = {
        (name, figure)
        for name, figures in compared.items()
        for figure, entry in figures.items()
        if entry["seeds"] >= 3 and (entry["low"] > 0 or entry["high"] < 0)
    }
    assert apart <= there, "what is told from nothing, better or worse, stands in the table"
    assert {name for name, _ in there} == compared.keys()


def test_the_readme_tells_every_condition(committed: dict[str, Any], readme: str) -> None:
    rows = re.findall(
        r"^\| .*`(.+, backbone \d)` \| (\S+) \| (\S+) \| (\S+) \[(\S+), (\S+)\] \| (\S+) \[(\S+), (\S+)\], (\d+) \|",
        readme,
        re.MULTILINE,
    )
    assert {name for name, *_ in rows} == committed["conditions"].keys()
    for name, *told in rows:
        pair = committed["conditions"][name]
        change = pair["difference"]
        values = [f"{pair[arm]['accuracy']['value']:.1f}" for arm in ("present_only", "listen")]
        seeds = str(change["accuracy"]["seeds"])
        assert told == [*values, *cell(change["accuracy"]), *cell(change["auc"]), seeds], name
