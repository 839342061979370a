"""The committed findings are what this code makes of the committed answers, and what the README's tables say."""

import json
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
FROM_AUDIO = {
    "negatives": "negatives",
    "tokens": "negatives, against as many samples and reply tokens",
    "guided": "absent sounds given to the LLM",
    "multi_audio": "a stage on several clips",
    "lora": "LoRA on the LLM",
    "data": "the LLM's own words, against a template's",
}
IN_WORDS = {"text_only": "adapter alone", "text_only_lora": "LoRA on the LLM"}
FIGURES = {
    "accuracy": "yes/no questions right",
    "recall_no": "sounds that are not there, answered no",
    "yes_rate": "answered yes",
    "neither": "answered neither yes nor no",
    "auc": "yes told from no, wherever the line is drawn (AUC)",
    "described_f1": "sounds in a description (F1)",
    "absent_error": "sounds named as absent that are there",
    "count": "how many sounds",
    "order": "which sound comes first",
    "choice": "one of three sounds chosen",
    "choice_unanswerable": '"none of these" where none is there',
    "which_recording": "which of two recordings has it",
    "in_both_recordings": '"in both recordings"',
    "in_neither_recording": '"in neither recording"',
}
# Parts of the figures above, or other readings of the same answers.
RESTATED = {
    "accuracy_random", "accuracy_popular", "accuracy_adversarial", "f1_no", "weighted_f1", "forced_accuracy",
    "forced_yes_rate", "choice_unanswerable_conditional", "choice_unparsed",
}  # fmt: skip
CONDITIONS = {
    "base, backbone 0": "the default",
    "few clips, backbone 0": "400 clips",
    "noisy, backbone 0": "quieter events, more noise",
    "one scene, backbone 0": "sounds of a clip always of one scene",
    "weak encoder, backbone 0": "an encoder trained for 12 epochs",
    "all of it, backbone 0": "all of these",
    "base, backbone 1": "another LLM",
}


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FINDINGS / "findings.json").read_text("utf-8"))
    return found


@pytest.mark.slow
def test_the_committed_answers_give_the_committed_figures(committed: dict[str, Any], tmp_path: Path) -> None:
    with tarfile.open(FINDINGS / "answers.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    Findings(load(FindingsConfig, [str(RECIPE), f"output={tmp_path}", "report_only=true"])).run()
    found = json.loads((tmp_path / "findings.json").read_text("utf-8"))
    assert found.keys() == committed.keys()
    assert compared(found).keys() == compared(committed).keys()
    for name, figures in compared(committed).items():
        for figure, entry in figures.items():
            again = compared(found)[name][figure]
            assert again.pop("by_seed") == pytest.approx(entry["by_seed"]), (name, figure)
            assert again == pytest.approx({key: entry[key] for key in again}, abs=1e-6), (name, figure)
    for point, expected in zip(found["curves"], committed["curves"], strict=True):
        assert point.keys() == expected.keys()
        assert all(point[key] == expected[key] for key in ("steps", "clips", "arm"))
        for figure in point.keys() - {"steps", "clips", "arm"}:
            assert point[figure]["value"] == pytest.approx(expected[figure]["value"]), (point["arm"], figure)


def compared(findings: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The differences of every comparison, and of the main one in every condition."""
    pairs = findings | findings["conditions"]
    return {name: pair["difference"] for name, pair in pairs.items() if "difference" in pair}


def test_every_run_of_the_recipe_is_there(committed: dict[str, Any]) -> None:
    config = load(FindingsConfig, [str(RECIPE)])
    recipe = config.model_dump(mode="json")
    own = ("output", "report_only", "recipes")
    assert {key: value for key, value in committed["design"]["config"].items() if key not in own} == {
        key: value for key, value in recipe.items() if key not in own
    }
    seeds = {name: committed[name]["difference"]["accuracy"]["seeds"] for name in FROM_AUDIO | IN_WORDS}
    assert seeds == {name: len(config.seeds) if name == "negatives" else config.few for name in seeds}
    assert len(committed["curves"]) == 2 * (len(config.curve_steps) + len(config.curve_clips))


def test_the_page_tells_the_committed_differences(committed: dict[str, Any]) -> None:
    page = (FINDINGS / "findings.html").read_text("utf-8")
    for name in FROM_AUDIO | IN_WORDS:
        entry = committed[name]["difference"]["accuracy"]
        assert f"{entry['value']:+.1f} [{entry['low']:+.1f}, {entry['high']:+.1f}], p {entry['p']:.3f}" in page, name


def test_an_adapter_leaves_the_llm_as_it_was(committed: dict[str, Any]) -> None:
    for figure, entry in committed["text_only"]["difference"].items():
        assert (entry["value"], entry["low"], entry["high"]) == (0, 0, 0), figure


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text("utf-8").partition("## Does it work?")[2].partition("\n## ")[0]


def difference(entry: dict[str, Any]) -> str:
    value, low, high = (f"{round(entry[key], 1) + 0.0:+.1f}" for key in ("value", "low", "high"))
    if "+0.0" in (low, high) and (entry["low"] or entry["high"]):  # a bound that is close to 0, on either side
        low, high = f"{entry['low']:+.2f}", f"{entry['high']:+.2f}"
    told = f"{value} [{low}, {high}]"
    return f"**{told}**" if entry["low"] > 0 or entry["high"] < 0 else told


def comparisons(committed: dict[str, Any], titles: dict[str, str]) -> str:
    """A table with a column for each comparison: both sides, their difference, bold where it is told from none."""
    sides = {
        name: [side for side in committed[name] if side not in ("question", "papers", "difference")] for name in titles
    }
    seeds = {name: committed[name]["difference"]["accuracy"]["seeds"] for name in titles}
    header = [f"{title}, {seeds[name]} seeds `{name}`" for name, title in titles.items()]
    lines = [["", *header], ["---"] * (len(header) + 1)]
    for figure, title in FIGURES.items():
        line = [f"{title} `{figure}`"]
        for name in titles:
            entry = committed[name]["difference"].get(figure)
            both = " → ".join(f"{committed[name][side][figure]['value']:.1f}" for side in sides[name] if entry)
            line.append(f"{both}<br>{difference(entry)}" if entry else "")
        if any(line[1:]):
            lines.append(line)
    return rendered(lines)


def rendered(lines: list[list[str]]) -> str:
    return "".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|\n" for line in lines)


@pytest.mark.parametrize("titles", [FROM_AUDIO, IN_WORDS], ids=["audio", "words"])
def test_the_readme_tells_every_comparison(committed: dict[str, Any], readme: str, titles: dict[str, str]) -> None:
    table = comparisons(committed, titles)
    assert table in readme, f"the README's table is to be\n{table}"


def test_no_figure_is_left_out(committed: dict[str, Any]) -> None:
    names = compared(committed).keys() - committed["conditions"].keys()
    assert names == FROM_AUDIO.keys() | IN_WORDS.keys()
    assert {figure for name in names for figure in compared(committed)[name]} == FIGURES.keys() | RESTATED


def conditions(committed: dict[str, Any]) -> str:
    """A table with a line for each condition: accuracy of both arms, and what changes."""
    changes = ("accuracy", "recall_no", "auc", "absent_error")
    lines = [["", "seeds", *(FIGURES[figure] for figure in changes)], ["---"] * (len(changes) + 2)]
    for name, pair in committed["conditions"].items():
        line = [f"{CONDITIONS[name]} `{name}`", str(pair["difference"]["accuracy"]["seeds"])]
        for figure in changes:
            both = " → ".join(f"{pair[arm][figure]['value']:.1f}" for arm in ("present_only", "listen"))
            line.append(f"{both}<br>{difference(pair['difference'][figure])}")
        lines.append(line)
    return rendered(lines)


def test_the_readme_tells_every_condition(committed: dict[str, Any], readme: str) -> None:
    table = conditions(committed)
    assert table in readme, f"the README's table is to be\n{table}"
