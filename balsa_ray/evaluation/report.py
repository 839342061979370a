"""Scores of a run: `scores.json`, with all that is needed to repeat it, tables for the terminal and for papers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.files import walk
from balsa_ray.evaluation.metrics import written
from balsa_ray.evaluation.questions import Answer, Outcome, Question
from balsa_ray.evaluation.report_page import blocks, cell, figures, write_report
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.identity import file_hash, rng, stable_hash

# What questions are made from; recordings are known by the answers' keys.
_DATA = {".csv", ".json", ".jsonl", ".parquet", ".tsv"}


def task_scores(name: str, questions: Sequence[Question], outcome: Outcome, config: BenchmarkConfig) -> dict[str, Any]:
    """Returns a task's entry of `scores.json`.

    Args:
        name: The task.
        questions: Those of the run.
        outcome: What came of them. Questions without an answer are counted, and no part of any metric.
        config: The run's configuration.

    Raises:
        UserError: If a reference can't be scored.
    """
    task = TASKS[name]
    asked = config.predictions is None  # of replies from a file nobody knows how they were asked for
    modality = config.modality if config.modality == "audio" else f"metadata: {config.metadata}"
    data, limit = (None, None) if config.data_root is None else (config.data_of(name), config.limit)
    return {
        "splits": {split: written(of) for split, of in split_scores(name, outcome.answers, config).items()},
        "answered": len(outcome.answers),
        "errors": len(outcome.errors),
        "unjudged": len(outcome.unjudged),
        "missing": outcome.missing,
        "extra": outcome.extra,
        "mismatched": outcome.mismatched,
        "about": (task.__doc__ or "").splitlines()[0],
        "parsers": task.PARSERS,
        "templates": task.templates_hash() if asked else None,
        "questions": stable_hash([[q.id, q.system, q.prompt, q.reference, list(q.choices)] for q in questions]),
        "settings": config.settings(name) | {"seed": config.seed, "limit": limit},
        "dataset": _hashed(data),
        "predictions": _hashed(config.predictions),
        "modality": modality if asked else None,
        "decoding": config.sampling.model_dump() if asked else None,
        "resamples": config.resamples,
    }


def split_scores(name: str, answers: Sequence[Answer], config: BenchmarkConfig) -> dict[str, Any]:
    """Returns the metrics of each split, their resamples included.

    The resamples depend on the questions alone, and not on the replies: those of two models can be paired. Splits that
    ask about the same clips in the same order draw the same clips.
    """
    splits: dict[str, Any] = {}
    for split in dict.fromkeys([*(a.question.split for a in answers), *(s for a in answers for s in a.question.also)]):
        of_split = [answer for answer in answers if split in (answer.question.split, *answer.question.also)]
        found = TASKS[name].score(of_split, rng(config.seed, "bootstrap", name), config.resamples)
        splits[split] = {"n": len(of_split), "clips": len({a.question.cluster for a in of_split}), **found}
    return splits


def write(output: Path, scores: Mapping[str, Any], outcomes: Mapping[str, Outcome], page: bool) -> None:
    """Writes `scores.json`, the tables `scores.md` and `.tex` and, if wanted, `report.html`; prints figures."""
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "scores.json", json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
    write_tables(output / "scores", {name: figures(name, entry) for name, entry in scores.items()})
    if page:
        write_report(output / "report.html", scores, outcomes)
    for name, split, block, metrics in blocks(scores):
        cells = ", ".join(f"{column} {cell(metric)}" for column, metric in metrics.items())
        print(f"{name} {split} ({block}): {cells}")
    print(f"scores: {output / 'scores.json'}" + (f", report: {output / 'report.html'}" if page else ""))


def write_tables(stem: Path, tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]]) -> None:
    """Writes tables, by title, as Markdown and as LaTeX (booktabs) to `stem` with their endings."""
    markdown = [f"## {title}\n\n{_table(*table, 'github')}\n" for title, table in tables.items()]
    latex = [f"% {title}\n{_table(*table, 'latex_booktabs')}\n" for title, table in tables.items()]
    write_text(stem.with_suffix(".md"), "\n".join(markdown))
    write_text(stem.with_suffix(".tex"), "\n".join(latex))


def write_text(path: Path, text: str) -> None:
    """Writes a file in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    return tabulate([list(row) for row in rows], list(header), tablefmt=form, disable_numparse=True)


def _hashed(path: Path | None) -> dict[str, str] | None:
    """Returns a path and the hash of that file, or of all files in that folder that questions are made from."""
    if path is None:
        return None
    if path.is_file():
        return {"path": str(path), "sha256": file_hash(path)}
    data = sorted(file for file in walk(path) if file.suffix.lower() in _DATA)
    told = "".join(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n" for file in data)
    return {"path": str(path), "sha256": hashlib.sha256(told.encode()).hexdigest()}
