"""Scores of a run: `scores.json`, with all that is needed to repeat it, and a table for the terminal."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.questions import Answer
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.identity import file_hash, rng

_COLUMNS = (
    "accuracy",
    "precision",
    "recall",
    "f1_score",
    "weighted_f1",
    "yes_rate",
    "first_rate",
    "repeated",
    "unparsed",
)


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
    """Writes `scores.json` in one step and prints the table."""
    output.mkdir(parents=True, exist_ok=True)
    partial = output / "scores.json.partial"
    partial.write_text(json.dumps(scores, indent=1, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(output / "scores.json")
    print(table(scores))
    print(f"scores: {output / 'scores.json'}")


def table(scores: dict[str, Any]) -> str:
    """Returns the metrics as text: a line for each task, split and block, values in percent with their intervals."""
    lines = []
    for name, entry in scores.items():
        for split, blocks in entry["splits"].items():
            for block in ("official", "strict"):
                if metrics := blocks.get(block):
                    cells = [_cell(column, metrics[column]) for column in _COLUMNS if column in metrics]
                    lines.append(f"{name} {split} ({block}, n = {blocks['n']}): " + ", ".join(cells))
    return "\n".join(lines)


def _cell(column: str, metric: dict[str, float]) -> str:
    return f"{column} {metric['value']:.1f} [{metric['low']:.1f}, {metric['high']:.1f}]"
