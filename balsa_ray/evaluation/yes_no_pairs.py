"""Yes/no questions in pairs, the first with the right answer yes, the second no: what three tasks have in common.

Kuan and Lee, "Can Large Audio-Language Models Truly Hear?", ICASSP 2025 (arXiv 2410.16130), from
github.com/kuan2jiu99/audio-hallucination and three Hugging Face sets, whose licence is not known here. A set is one
table (Parquet, CSV or TSV) with columns `entry_id, audio, query, attribute, ground_truth` and, in some releases,
`object`. Its file may have any name; where several sets lie below one folder, a part of the path has to name the set,
as the names of the published repositories do ("…Temporal-Order…"). Recordings are looked up by the file name in
`audio`, and by the last folder before it where it has one: CompA's sets number their files alike.

Official: the published scorer's figures, of the answer "no". Precision and recall leave out replies that it can't read
("unknown"), accuracy counts them as wrong; `instruction_follow_rate` is the share of the others. Rows 0 and 1, 2 and 3
and so on are pairs; `correct_correct`, `incorrect_incorrect`, `correct_incorrect` and `incorrect_correct` are shares of
the pairs whose two replies were read and whose right answers are yes and then no. Where the published scorer divides by
nothing and stops, a figure is 0, and those of pairs are left out.

Strict, ours: a careful parser and the figures of `existence`; the four figures of pairs are shares of all pairs with
two answers, of which an unread one is incorrect. `broken_pairs` is the share of the pairs that the four leave out: one
of the two questions has no answer (a recording was missing, say), or the right answers aren't yes and then no. Pairs of
which neither question has an answer are among the run's errors alone. A pair counts in the intervals with the clip of
its second question. `limit` draws clips and so breaks pairs about two clips.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import metrics, parsers, yes_no
from balsa_ray.evaluation.files import AudioFolder, rows, with_columns
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import stable_hash

SETS = ("object_existence", "temporal_order", "object_attribute")
PARSERS = {"official": parsers.OFFICIAL_YES_NO_UNKNOWN, "strict": parsers.STRICT_YES_NO}
NEEDS = "Parquet or CSV file with entry_id, audio, query, attribute and ground_truth"

_COLUMNS = {"entry_id": object} | dict.fromkeys(("audio", "query", "attribute", "ground_truth"), str)
_PAIRS = ("correct_correct", "incorrect_incorrect", "correct_incorrect", "incorrect_correct")

parse, correct, judge_prompt = yes_no.parse, yes_no.correct, yes_no.judge_prompt


def templates_hash() -> str:
    """Returns the hash of nothing: the published questions are asked word for word."""
    return stable_hash("as published")


def read(path: Path, name: str) -> list[dict[str, Any]]:
    """Returns a set's rows in their order, with the place `index` and the path `recording` beside their columns.

    Args:
        path: The folder, or the table itself.
        name: Which of `SETS`.

    Raises:
        UserError: If the table isn't there, it isn't clear which it is, or a row isn't as published.
    """
    table = _table(path, name)
    recordings = AudioFolder(path if path.is_dir() else path.parent)
    first_seen: dict[str, int] = {}
    out = []
    for number, row in enumerate(rows(table, _COLUMNS), 1):
        where, answer = f"{table}: row {number}", row["ground_truth"].strip().lower()
        if answer not in ("yes", "no"):
            raise UserError(f"{where}: ground_truth: should be yes or no, is {row['ground_truth']!r:.80}")
        earlier = first_seen.setdefault(str(row["entry_id"]), number)
        if earlier != number:
            raise UserError(f"{where}: entry_id: {row['entry_id']!r} stands in row {earlier} already")
        audio = row["audio"].replace("\\", "/")
        recording = recordings.find(audio, folders=min(1, audio.count("/")))
        out.append(row | {"ground_truth": answer, "index": number - 1, "recording": recording})
    return out


def _table(path: Path, name: str) -> Path:
    if path.is_file():
        return path
    of_none, of_this = [], []
    for table in with_columns(path, ("query", "ground_truth")):
        told = re.sub(r"[^a-z]+", "_", str(table.relative_to(path)).lower())
        of = [one for one in SETS if one in told]
        of_none += [] if of else [table]
        of_this += [table] if of == [name] else []
    found = of_this or of_none
    if not found:
        raise UserError(f"data_root: {path}: no {NEEDS} of {name}")
    if len(found) > 1:
        raise UserError(f"data_root: {path}: which of {', '.join(map(str, found))} is {name}? Name the file itself")
    return found[0]


def plan(rows: Sequence[dict[str, Any]], seed: int) -> list[Question]:
    """Returns the published questions, in their order.

    Args:
        rows: What `read` returned.
        seed: Not used: nothing is drawn.
    """
    return [
        Question(
            id=str(row["entry_id"]),
            split="all",
            clips=({"id": row["audio"], "audio": row["recording"]},),
            prompt=row["query"],
            reference=row["ground_truth"],
            object=str(row.get("object") or ""),
            extra={"index": row["index"], "attribute": row["attribute"]},
        )
        for row in rows
    ]


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the published figures and the strict ones."""
    clips = [answer.question.cluster for answer in answers]
    truth = [yes_no.right_answer(answer) for answer in answers]
    pairs = _pairs(answers)
    whole = [(a, b) for a, b in pairs if a is not None and b is not None and (truth[a], truth[b]) == ("yes", "no")]

    said = [parsers.official_yes_no(answer.response) for answer in answers]
    counts = np.zeros((len(answers), 10))
    counts[:, :6] = metrics.yes_no_counts(truth, said)
    for first, second in whole:
        if said[first] and said[second]:
            counts[second, 6 + _kind(said[first] == "yes", said[second] == "no")] = 1
    official = metrics.bootstrap(metrics.per_cluster(clips, counts), _official, len(answers), generator, resamples)
    read = int(counts[:, 6:].sum())
    for figure in _PAIRS:
        if not read:
            del official[figure]
        else:
            official[figure]["n"] = read

    strict = yes_no.figures(answers, parsers.strict_yes_no, metrics.strict_yes_no_metrics, generator, resamples)
    right = [parse(answer) == label for answer, label in zip(answers, truth, strict=True)]
    kinds = np.full(len(answers), -1)
    for first, second in whole:
        kinds[second] = _kind(right[first], right[second])
    # A pair stands where its second question does, or its first if that alone has an answer.
    stands = np.zeros(len(answers), dtype=bool)
    stands[[next(place for place in reversed(pair) if place is not None) for pair in pairs]] = True
    figures = {figure: (kinds == number, kinds >= 0) for number, figure in enumerate(_PAIRS)}
    strict |= metrics.shares(clips, figures | {"broken_pairs": (kinds < 0, stands)}, generator, resamples)
    return {"official": official, "strict": strict}


def _kind(first: bool, second: bool) -> int:
    """Returns which of `_PAIRS` a pair is."""
    return _PAIRS.index("_".join("correct" if right else "incorrect" for right in (first, second)))


def _pairs(answers: Sequence[Answer]) -> list[list[int | None]]:
    """Returns the pairs as places of the answers; None where a question has no answer.

    A file of answers without the column `index` has all rows in their order, as the published scorer wants it.
    """
    indices = [answer.question.extra.get("index") for answer in answers]
    if all(index is None for index in indices):
        indices = list(range(len(answers)))
    pairs: dict[int, list[int | None]] = {}
    for place, (answer, index) in enumerate(zip(answers, indices, strict=True)):
        if not isinstance(index, int) or index < 0:
            raise UserError(f"{answer.question.id}: index: should be the row's place in the set, from 0, is {index!r}")
        pair = pairs.setdefault(index // 2, [None, None])
        if pair[index % 2] is not None:
            raise UserError(f"{answer.question.id}: index: {index} stands twice")
        pair[index % 2] = place
    return list(pairs.values())


def _official(counts: metrics.Counts) -> dict[str, metrics.Counts]:
    """The published scorer's ten figures, rounded as it prints them; `unparsed` is ours."""
    is_yes, is_no, said_yes, said_no, right_yes, right_no = np.moveaxis(counts[..., :6], -1, 0)
    n, read = is_yes + is_no, said_yes + said_no
    precision = metrics.fraction(right_no, said_no)
    recall = metrics.fraction(right_no, right_no + said_yes - right_yes)
    pairs = np.moveaxis(counts[..., 6:], -1, 0)
    figures = {
        "accuracy": metrics.ratio(right_yes + right_no, n),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1_score": 100 * metrics.fraction(2 * (precision * recall), precision + recall),
        "yes_rate": metrics.ratio(said_yes, n),
        "instruction_follow_rate": metrics.ratio(read, n),
        **{name: metrics.ratio(pairs[number], pairs.sum(0)) for number, name in enumerate(_PAIRS)},
    }
    unparsed = metrics.ratio(n - read, n)
    return {name: metrics.rounded(figure) for name, figure in figures.items()} | {"unparsed": unparsed}
