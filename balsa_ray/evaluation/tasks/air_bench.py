"""`air_bench`: questions with two to four options about sounds, music and speech (AIR-Bench, Foundation).

AIR-Bench (Yang et al., ACL 2024, arXiv 2402.07729), from github.com/OFA-Sys/AIR-Bench; the licence of its recordings
is that of their sources. Read is `Foundation_meta.json`, found anywhere below the folder: a list of some 19,000 rows
with `path, task_name, dataset_name, question, choice_a, choice_b, choice_c, choice_d, answer_gt, uniq_id`; questions
with two or three options lack the last ones. A recording lies in `{task_name}_{dataset_name}/{path}`, or there in
another format (those of `Audio_Grounding` are published as FLAC, whatever `path` says). The Chat part isn't read.

The prompt is the published one, in which an option that isn't there stands as "None". Official: the published scorer,
which takes a letter from two places of the reply and drops replies without one from the count, so that a model that
says nothing readable isn't wrong. Its figures are by task and data set; those of a task with several data sets, and
`all`, are ours by the same rule. Strict, ours: an unparsed reply is wrong. Splits are the tasks, data sets where a task
has several, and `all`.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import files, metrics, multiple_choice, parsers
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import stable_hash

PARSERS = {"official": parsers.AIR_BENCH, "strict": parsers.STRICT_OPTION}
NEEDS = "Foundation_meta.json"

_PROMPT = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, "
    "you may only choose A or B or C or D.\n{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}"
)
_TEXTS = ("path", "task_name", "dataset_name", "question", "choice_a", "choice_b", "answer_gt")
_COLUMNS = dict.fromkeys(_TEXTS, str) | {"uniq_id": object}

parse, correct, judge_prompt = multiple_choice.parse, multiple_choice.correct, multiple_choice.judge_prompt


def templates_hash() -> str:
    """Returns the hash of the prompt."""
    return stable_hash(_PROMPT)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the published rows, with the list `choices` and the path `audio` beside their columns.

    Raises:
        UserError: If there is no such file, or a row isn't as published.
    """
    file = files.only(path, r"Foundation_meta\.json", NEEDS)
    recordings = files.AudioFolder(file.parent)
    first_seen: dict[str, int] = {}
    out = []
    for number, row in enumerate(files.rows(file, _COLUMNS), 1):
        where = f"{file}: row {number}"
        choices = [row["choice_a"], row["choice_b"]]
        for column in ("choice_c", "choice_d"):
            choice = row.get(column)
            if choice is None or choice == "":
                break
            if not isinstance(choice, str):
                raise UserError(f"{where}: {column}: should be text, is {choice!r:.80}")
            choices.append(choice)
        if row["answer_gt"] not in choices:
            raise UserError(f"{where}: answer_gt: {row['answer_gt']!r} is none of the choices")
        earlier = first_seen.setdefault(_name(row), number)
        if earlier != number:
            raise UserError(f"{where}: uniq_id: {row['uniq_id']!r} stands in row {earlier} already")
        audio = f"{row['task_name']}_{row['dataset_name']}/{row['path']}"
        out.append(row | {"choices": choices, "audio": recordings.find(audio, folders=audio.count("/"))})
    return out


def _name(row: dict[str, Any]) -> str:
    return f"{row['task_name']}/{row['dataset_name']}/{row['uniq_id']}"


def plan(rows: Sequence[dict[str, Any]], seed: int, tasks: Sequence[str] = ()) -> list[Question]:
    """Returns a question a row.

    Args:
        rows: What `read` returned.
        seed: Not used: nothing is drawn.
        tasks: Names of the tasks to ask, as in `task_name`; none: all.

    Raises:
        UserError: If there is no task of a name.
    """
    datasets: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        datasets[row["task_name"]].add(row["dataset_name"])
    for task in tasks:
        if task not in datasets:
            raise UserError(f"air_bench.tasks: {task}: is none of {', '.join(sorted(datasets))}")
    out = []
    for row in rows:
        task, dataset = row["task_name"], row["dataset_name"]
        if tasks and task not in tasks:
            continue
        a, b, c, d = [*row["choices"], None, None][:4]
        question = Question(
            id=_name(row),
            split=task,
            clips=({"id": f"{task}_{dataset}/{row['path']}", "audio": row["audio"]},),
            prompt=_PROMPT.format(question=row["question"], a=a, b=b, c=c, d=d),
            reference=row["answer_gt"],
            choices=tuple(row["choices"]),
            extra={"choices": row["choices"]},
            also=("all", f"{task}_{dataset}") if len(datasets[task]) > 1 else ("all",),
        )
        out.append(question)
    return out


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the published accuracy, of the replies with a letter, and the strict one, of all."""
    letters = [parsers.air_bench_letter(answer.response) for answer in answers]
    chosen = [parse(answer) for answer in answers]
    read = np.array([bool(letter) for letter in letters])
    hits = [letter == _letter(answer) for answer, letter in zip(answers, letters, strict=True)]
    right = [correct(answer, option) for answer, option in zip(answers, chosen, strict=True)]
    unread = [not option for option in chosen]
    clusters = [answer.question.cluster for answer in answers]
    return {
        "official": metrics.shares(
            clusters, {"accuracy": (hits, read), "unparsed": (~read, True)}, generator, resamples
        ),
        "strict": metrics.shares(
            clusters, {"accuracy": (right, True), "unparsed": (unread, True)}, generator, resamples
        ),
    }


def _letter(answer: Answer) -> str:
    options, reference = list(multiple_choice.options(answer)), str(answer.question.reference)
    if reference not in options:
        raise UserError(f"air_bench: {answer.question.id}: reference: {reference!r} is none of the choices")
    return "ABCD"[options.index(reference)]
