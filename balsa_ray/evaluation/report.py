"""Scores of a run: `scores.json`, with all that is needed to repeat it, a table for the terminal and `report.html`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.metrics import Metric
from balsa_ray.evaluation.questions import Answer
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.identity import file_hash, rng
from balsa_ray.reporting.page import Section, paragraph, write_page
from balsa_ray.reporting.page import table as html_table
from balsa_ray.reporting.plots import bars


def task_scores(name: str, answers: Sequence[Answer], failed: Sequence[str], config: BenchmarkConfig) -> dict[str, Any]:
    """Returns a task's entry of `scores.json`.

    Args:
        name: The task.
        answers: Its answered questions.
        failed: Ids of the questions without an answer: counted, and no part of any metric.
        config: The run's configuration.

    Raises:
        UserError: If a reference can't be scored.
    """
    task = TASKS[name]
    splits: dict[str, Any] = {}
    for split in dict.fromkeys(answer.question.split for answer in answers):
        of_split = [answer for answer in answers if answer.question.split == split]
        blocks = task.score(of_split, rng(config.seed, "bootstrap", name, split), config.resamples)
        splits[split] = {"n": len(of_split), "clips": len({a.question.cluster for a in of_split}), **blocks}
    dataset = config.data_root or config.predictions
    assert dataset is not None
    return {
        "splits": splits,
        "answered": len(answers),
        "errors": len(failed),
        "about": (task.__doc__ or "").splitlines()[0],
        "parsers": task.PARSERS,
        "templates": task.templates_hash(),
        "settings": config.settings(name) | {"seed": config.seed, "limit": config.limit},
        "dataset": {"path": str(dataset), "sha256": file_hash(dataset)},
        "modality": config.modality if config.modality == "audio" else f"metadata: {config.metadata}",
        "decoding": config.sampling.model_dump(),
        "resamples": config.resamples,
    }


def write(output: Path, scores: dict[str, Any]) -> None:
    """Writes `scores.json` and `report.html`, each in one step, and prints the table."""
    output.mkdir(parents=True, exist_ok=True)
    partial = output / "scores.json.partial"
    partial.write_text(json.dumps(scores, indent=1, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(output / "scores.json")
    lead = "All figures are percentages with their 95 % interval by a bootstrap over clips."
    write_page(output / "report.html", "Benchmarks", lead, [_section(*entry) for entry in scores.items()])
    for name, split, block, metrics in _blocks(scores):
        cells = ", ".join(f"{column} {_cell(metric)}" for column, metric in metrics.items())
        print(f"{name} {split} ({block}): {cells}")
    print(f"scores: {output / 'scores.json'}, report: {output / 'report.html'}")


def _blocks(scores: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Metric]]]:
    """Yields task, split, block and metrics."""
    for name, entry in scores.items():
        for split, of_split in entry["splits"].items():
            for block in TASKS[name].PARSERS:
                if of_split[block]:
                    yield name, split, block, of_split[block]


def _cell(metric: Metric) -> str:
    return f"{metric['value']:.1f} [{metric['low']:.1f}, {metric['high']:.1f}]"


def _section(name: str, entry: dict[str, Any]) -> Section:
    """Returns a task's part of the page: its figures, and bars of the first of them by split."""
    rows = list(_blocks({name: entry}))
    columns = list(dict.fromkeys(column for *_, metrics in rows for column in metrics))
    cells = [
        [f"{split} ({block})", *(_cell(metrics[c]) if c in metrics else "" for c in columns)]
        for _, split, block, metrics in rows
    ]
    model = entry["model"] or {"name": "answers from a file", "fingerprint": entry["dataset"]["sha256"][:16]}
    about = [
        paragraph(entry["about"]),
        paragraph(
            f"{entry['answered']} questions answered, {entry['errors']} not; model {model['name']} "
            f"({model['fingerprint']}), {entry['modality']}, templates {entry['templates']}, "
            f"parsers {', '.join(entry['parsers'].values())}."
        ),
    ]
    if not rows:
        return Section(name, about)
    strict = {split: metrics for _, split, block, metrics in rows if block == "strict"}
    shown = [column for column in ("accuracy", "f1_score", "yes_rate") if all(column in m for m in strict.values())]
    series = {c: [(m[c]["value"], m[c]["low"], m[c]["high"]) for m in strict.values()] for c in shown}
    return Section(name, [*about, html_table(["", *columns], cells), bars(list(strict), series, "percent", 50)])
