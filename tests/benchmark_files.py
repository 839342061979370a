"""Recordings and tables as benchmarks are published, and replies that parsers stumble over."""

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import soundfile
from pyarrow import parquet

from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.metrics import written
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.runner import benchmark
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.identity import rng

_PIECES = [
    *("", " ", "  ", "\n", ".", ",", ":", ")", "(", "*", "**", '"', "'", "’", "-", "_", "?", "é", "İ", "ß", "²", "犬"),
    *("(a)", "(b)", "(c)", "(d)", "(e)", "(f)", "(A)", "(B)", "a", "b", "c", "d", "e", "A", "B", "C", "D", "E", "F"),
    *("A.", "B.", "b)", "None", "none", "The answer is", "Answer:", "the", "I hear", "an", "or", "not", "option", "Dr"),
]
_YES_NO_PIECES = [
    *(
        "",
        " ",
        "\n",
        ".",
        ", ",
        "’",
        "**",
        "é",
        "犬",
        "Yes",
        "yes",
        "YES",
        "No",
        "no",
        "NO",
        "Noise",
        "eyes",
        "yesterday",
    ),
    *("there is no ", "There is no ", "does not contain", "doesn't contain", "doesn’t contain", "contain", "Contains"),
    *("not", "Not", "unable", "can't", "cannot", "a dog", "I hear ", "nothing", "know", "the answer is ", "unknown"),
]


def write_recording(path: Path) -> None:
    """Writes a hundredth of a second that no other path has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(crc32(str(path).encode())).uniform(-0.5, 0.5, 160)
    soundfile.write(path, samples, 16_000)


def write_json(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), "utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def awkward_replies(number: int, words: Sequence[str], seed: int = 0) -> list[str]:
    """Replies of random pieces: letters, brackets, articles, other scripts, and the words given."""
    draw = random.Random(seed)
    pieces = [*_PIECES, *words, *words]
    return ["".join(draw.choices(pieces, k=draw.randrange(9))) for _ in range(number)]


def scored(task: str, answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Values of a split by block."""
    found = written(TASKS[task].score(answers, rng(0, task), 2))
    return {block: {name: metric["value"] for name, metric in of.items()} for block, of in found.items()}


def answered(questions: Sequence[Question], replies: Mapping[str, str]) -> list[Answer]:
    """Answers by the questions' ids."""
    return [Answer(question, replies[question.id]) for question in questions]


def run(task: str, output: Path, data_root: Path | None = None, **keys: Any) -> dict[str, Any]:
    """Runs one benchmark and returns its entry of the scores."""
    given = {"output": output, "tasks": [task], "data_root": data_root, "resamples": 20} | keys
    return benchmark(BenchmarkConfig.model_validate(given))[task]


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], schema: Any = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows), schema), path, row_group_size=2)


def awkward_answers(number: int, words: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Replies to yes/no questions: pieces that the published parsers trip over, whole words and parts of words."""
    draw = random.Random(seed)
    pieces = [*_YES_NO_PIECES, *words]
    return ["".join(draw.choices(pieces, k=draw.randrange(6))) for _ in range(number)]


def published_yes_no(reply: str) -> str:
    """The published parser of yes/no replies, from the description of its rules: the first that fits decides."""
    rules = [
        ("yes", ["Yes", "yes"]),
        ("no", ["No"]),
        ("no", ["there is no"]),
        ("no", ["does not contain", "doesn't contain"]),
        ("yes", ["contain"]),
        ("no", ["not", "unable", "can't"]),
    ]
    for answer, parts in rules:
        for part in parts:
            if reply.find(part) >= 0:
                return answer
    return ""
