"""`mmau`: questions with options about sounds, music and speech (MMAU, test-mini).

MMAU (Sakshi et al., ICLR 2025, arXiv 2410.19168), from github.com/Sakshi113/MMAU; its repository names no licence, and
the recordings keep those of their sources. Read is `mmau-test-mini.json`, found anywhere below the folder: a list of
1,000 rows with `id, audio_id, question, choices, answer, task, difficulty, sub-category`; the recordings of
`audio_id` (`./test-mini-audios/<id>.wav`) are looked up by file name. There are two versions, `original` (2024) and
`v05.15.25`, with about a quarter of the questions revised, under the same file name: the file doesn't say which it is,
so the setting `version` has to, and stands in the scores.

Official: the published matcher of words, as accuracy over all and by task, difficulty and (with `sub_categories`)
sub-category. A reply that is a bare letter, or that speaks of another option too, is wrong for it. Ours, strict: the
option is taken out of the reply first.

The paper leaves the prompt to the model. Ours (`prompt: plain`) lists the options without letters: the matcher would
take the letter in "(a) dog" for a word of the option "a cat". `desta2.5` asks as DeSTA2.5-Audio (arXiv 2507.02768)
does, with a system turn and the options in quotes, and takes "The correct answer is: " out of replies before both
parsers.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import files, metrics, multiple_choice, parsers
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import stable_hash

PARSERS = {"official": parsers.MMAU, "strict": parsers.STRICT_OPTION}
NEEDS = "mmau-test-mini.json"
TASKS = ("sound", "music", "speech")
DIFFICULTIES = ("easy", "medium", "hard")

_PLAIN = "{question}\nReply with one of these options:\n{options}"
_DESTA = "{question} Choose from the following options: {options}"
_DESTA_SYSTEM = (
    'Focus on the audio clips and instructions. Put your answer in the format "The correct answer is: "___" ".'
)
_DESTA_PREFIX = "The correct answer is: "
_COLUMNS = dict.fromkeys(("id", "audio_id", "question", "answer", "task", "difficulty"), str) | {"choices": list}

correct, judge_prompt = multiple_choice.correct, multiple_choice.judge_prompt


def templates_hash() -> str:
    """Returns the hash of both prompts."""
    return stable_hash(_PLAIN, _DESTA, _DESTA_SYSTEM, _DESTA_PREFIX)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the published rows, with the path `audio` beside their columns.

    Raises:
        UserError: If there is no such file, or a row isn't as published.
    """
    file = files.only(path, r"mmau[-_]test[-_]?mini.*\.json", NEEDS)
    recordings = files.AudioFolder(path if path.is_dir() else path.parent)
    first_seen: dict[str, int] = {}
    out = []
    for number, row in enumerate(files.rows(file, _COLUMNS), 1):
        where = f"{file}: row {number}"
        for column, known in (("task", TASKS), ("difficulty", DIFFICULTIES)):
            if row[column] not in known:
                raise UserError(f"{where}: {column}: must be one of {', '.join(known)}, not {row[column]!r}")
        earlier = first_seen.setdefault(row["id"], number)
        if earlier != number:
            raise UserError(f"{where}: id: {row['id']!r} stands in row {earlier} already")
        out.append(row | {"audio": recordings.find(row["audio_id"])})
    return out


def _reference(row: Mapping[str, Any]) -> str:
    """Returns the choice that the answer is, written as it is among the choices."""
    same = [choice for choice in row["choices"] if choice.split() == row["answer"].split()]
    return same[0] if same else row["answer"]


def plan(
    rows: Sequence[Mapping[str, Any]],
    seed: int,
    version: str | None = None,
    prompt: Literal["plain", "desta2.5"] = "plain",
    sub_categories: bool = False,
) -> list[Question]:
    """Returns a question a row.

    Args:
        rows: What `read` returned.
        seed: Not used: nothing is drawn.
        version: Which release the rows are of.
        prompt: How the options are put.
        sub_categories: Whether sub-categories are splits too.
    """
    out = []
    for row in rows:
        also = ["all", row["difficulty"]]
        if sub_categories and row.get("sub-category"):
            also.append(f"sub-category {row['sub-category']}")
        question = Question(
            id=row["id"],
            split=row["task"],
            clips=({"id": PurePosixPath(row["audio_id"]).name, "audio": row["audio"]},),
            prompt=_prompt(row, prompt),
            reference=_reference(row),
            choices=tuple(row["choices"]),
            system=_DESTA_SYSTEM if prompt == "desta2.5" else "",
            extra={"choices": row["choices"], "version": version, "prompt_style": prompt},
            also=tuple(also),
        )
        out.append(question)
    return out


def _prompt(row: Mapping[str, Any], style: str) -> str:
    if style == "plain":
        return _PLAIN.format(question=row["question"], options="\n".join(f"- {choice}" for choice in row["choices"]))
    *most, last = [f'"{choice}"' for choice in row["choices"]]
    listed = f"{', '.join(most)} or {last}" if most else last
    return _DESTA.format(question=row["question"], options=listed)


def parse(answer: Answer) -> str:
    """Returns the option that a reply decides for, or ""."""
    return parsers.strict_option(_said(answer), multiple_choice.options(answer))


def _said(answer: Answer) -> str:
    """Returns the reply, without the words around it that DeSTA2.5's prompt asks for."""
    if answer.question.extra.get("prompt_style") == "desta2.5":
        return answer.response.replace(_DESTA_PREFIX, "").strip()
    return answer.response


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the accuracy by the published matcher, and the strict one."""
    chosen = [parse(answer) for answer in answers]
    matched = [parsers.mmau_match(str(a.question.reference), _said(a), multiple_choice.options(a)) for a in answers]
    figures = {
        "official": {
            "accuracy": (matched, True),
            "unparsed": ([not re.search(r"\w", _said(a)) for a in answers], True),
        },
        "strict": {
            "accuracy": ([correct(a, option) for a, option in zip(answers, chosen, strict=True)], True),
            "unparsed": ([not option for option in chosen], True),
        },
    }
    clusters = [answer.question.cluster for answer in answers]
    return {block: metrics.shares(clusters, of, generator, resamples) for block, of in figures.items()}
