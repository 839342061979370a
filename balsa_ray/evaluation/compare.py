"""Differences between runs on the same questions, by a paired bootstrap over clips.

Both runs are scored on the questions that both answered, with the same resamples: what makes a clip hard for both then
cancels, and intervals of the difference are narrower than those of the two figures suggest.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from balsa_ray.config import UserError
from balsa_ray.evaluation.answers import read_predictions
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.metrics import Metric, from_spread, p_value, written
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.report import split_scores, write_tables, write_text
from balsa_ray.evaluation.report_page import cell
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.reporting.page import Section, paragraph, table, write_page

_HEADER = ["", "metric", "first", "other", "other − first", "p"]
_LEAD = (
    "Differences in points of a percentage, with their 95 % interval, by a bootstrap over clips that draws the same "
    "clips for both runs. p: how often a difference of the other sign, or none, is drawn, twice (two-sided)."
)


def compare(config: BenchmarkConfig, plans: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
    """Compares each further run with the first; writes `compare.json`, `.md`, `.tex` and `report.html`.

    Args:
        config: `compare` names the folders of the runs.
        plans: The questions by task, if the data are given: for tasks whose replies can't be read without them.

    Raises:
        UserError: If a run has no such task, or two runs have no question in common.
    """
    assert config.compare
    first, *others = config.compare
    found: dict[str, Any] = {}
    for name in config.tasks:
        known = {question.id: question for question in plans.get(name, ())}
        ours = _answers(first, name, known)
        for other in others:
            theirs = _answers(other, name, known)
            both = [key for key in ours if key in theirs]
            common = [key for key in both if ours[key].question.is_same(theirs[key].question)]
            if not common:
                raise UserError(f"compare: {first} and {other} have no question of {name} in common")
            entry = {
                "first": str(first),
                "other": str(other),
                "common": len(common),
                "different": len(both) - len(common),
                "only_first": len(ours) - len(both),
                "only_other": len(theirs) - len(both),
                "splits": _differences(
                    split_scores(name, [ours[key] for key in common], config),
                    split_scores(name, [theirs[key] for key in common], config),
                ),
            }
            found.setdefault(name, []).append(entry)
    _write(config.output, found)
    return found


def _answers(run: Path, name: str, known: Mapping[str, Question]) -> dict[str, Answer]:
    path = run / name / "predictions.jsonl"
    if not path.is_file():
        raise UserError(f"compare: {run}: no {name}/predictions.jsonl; run this task there first")
    return {
        answer.question.id: Answer(known.get(answer.question.id, answer.question), answer.response, answer.judgement)
        for answer in read_predictions(path)
    }


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns split → block → metric → both values and their difference."""
    out: dict[str, Any] = {}
    for split, of_split in first.items():
        for block, metrics in of_split.items():
            if isinstance(metrics, dict):
                theirs = other.get(split, {}).get(block, {})  # no judge was asked, say
                shared = {name: _difference(metrics[name], theirs[name]) for name in metrics if name in theirs}
                out.setdefault(split, {})[block] = shared
    return out


def _difference(first: Metric, other: Metric) -> dict[str, Any]:
    spread = other["spread"] - first["spread"]
    apart = from_spread(other["value"] - first["value"], spread, other["n"])
    return {
        "first": written(first),
        "other": written(other),
        "difference": {key: apart[key] for key in ("value", "low", "high")},
        "p": p_value(spread),
    }


def _rows(entry: Mapping[str, Any]) -> Iterator[list[str]]:
    for split, of_split in entry["splits"].items():
        for block in TASKS[entry["task"]].PARSERS:
            for metric, row in of_split.get(block, {}).items():
                change = row["difference"]
                told = f"{change['value']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]"
                yield [f"{split} ({block})", metric, cell(row["first"]), cell(row["other"]), told, f"{row['p']:.3f}"]


def _write(output: Path, found: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "compare.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    tables, sections = {}, []
    for name, entries in found.items():
        for entry in entries:
            title = f"{name}: {entry['other']} against {entry['first']}"
            rows = list(_rows(entry | {"task": name}))
            tables[title] = (_HEADER, rows)
            about = (
                f"{entry['common']} questions that both answered; {entry['only_first']} that only the first, "
                f"{entry['only_other']} that only the other did, {entry['different']} that differ under one id."
            )
            sections.append(Section(title, [paragraph(about), table(_HEADER, rows)]))
            for row in rows:
                print(f"{title}: {row[0]} {row[1]} {row[4]}, p {row[5]}")
    write_tables(output / "compare", tables)
    write_page(output / "report.html", "Benchmarks compared", _LEAD, sections)
    print(f"comparison: {output / 'compare.json'}, report: {output / 'report.html'}")
