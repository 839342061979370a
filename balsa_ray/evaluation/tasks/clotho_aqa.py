"""`clotho_aqa`: questions about sounds, answered by three people each: yes or no, or a single word (Clotho-AQA).

Lipping et al., Clotho-AQA (EUSIPCO 2022, arXiv 2204.09634), from zenodo.org/records/6473207; the annotations' licence
lies beside them, the recordings keep those of Freesound. Read are `clotho_aqa_{train,val,test}.csv` with `file_name,
QuestionText, answer, confidence`, one row an annotator, and the recordings below the same folder by their names. The
rows of one (file name, question) are one question here, however many they are: three, says the paper.

How others score it: the paper's baselines are classifiers, and their accuracy (repository AquaNet) takes every
annotator's row for a question of its own: of three people who don't agree, none can satisfy all. There is no official
scorer for models that write. `official` is the public script from which figures of such models come (Qwen-Audio's
`evaluate_aqa.py`): it compares the reply with each row as they stand, upper and lower case included, as `acc_score`
over all rows and `bi_acc_score` over those that say yes or no. A reply of more than the word is wrong for it. Others
report only yes/no questions with unanimous answers (Audio Flamingo 2), or match with case and punctuation ignored
(lmms-eval, on a filtered test set).

Ours, `strict`, with these splits: `yes_no`, where at least three annotators answer and all agree; `yes_no_disputed`,
where most say yes or no, but not all the same (`disputed: false` leaves them out, and the official figures are then
those of fewer questions than others'); `single_word`, the rest. Words are compared without case, article and
punctuation. `accuracy` counts a word that any annotator gave, `accuracy_majority` only that of more than half, over the
questions that have one. Synonyms, plurals and numerals are not matched. The words that ask for the form of an answer
are ours.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import files, metrics, parsers
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import stable_hash
from balsa_ray.prompts.render import questions

PARSERS = {
    "official": "qwen-audio-clotho-aqa/1",
    "strict": f"{parsers.STRICT_YES_NO}, {parsers.ONE_WORD}",
}
NEEDS = "clotho_aqa_test.csv"
Part = Literal["train", "val", "test"]

_COLUMNS: dict[str, type] = {"file_name": str, "QuestionText": str, "answer": object}
_ANNOTATORS = 3
_YES_NO = ("yes", "no")


def templates_hash() -> str:
    """Returns the hash of what is said after a question."""
    return stable_hash(questions()["clotho_aqa_yes_no"], questions()["clotho_aqa_single_word"])


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the questions of all parts that are there, in the order of the files.

    Raises:
        UserError: If there is none of the tables, or a row isn't as published.
    """
    recordings = files.AudioFolder(path)
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for part in ("train", "val", "test"):
        table = path / f"clotho_aqa_{part}.csv"
        for row in files.rows(table, _COLUMNS) if table.is_file() else ():
            name, question = row["file_name"].strip(), row["QuestionText"].strip()
            asked = found.setdefault(
                (part, name, question),
                {"part": part, "file_name": name, "question": question, "answers": []},
            )
            asked["answers"].append((row["answer"] or "").strip())
    if not found:
        raise UserError(f"data_root: {path}: no {NEEDS} there, nor another clotho_aqa_*.csv")
    return [asked | {"audio": recordings.find(asked["file_name"])} for asked in found.values()]


def plan(rows: Sequence[dict[str, Any]], seed: int, part: Part = "test", disputed: bool = True) -> list[Question]:
    """Returns the questions of one part, those about a recording together.

    Args:
        rows: What `read` returned.
        seed: Not used: nothing is drawn.
        part: Which of the tables.
        disputed: Whether yes/no questions without unanimous answers are asked.
    """
    together: dict[str, list[Question]] = {}
    for row in rows:
        split, reference = _kind(row["answers"])
        if row["part"] != part or (split == "yes_no_disputed" and not disputed):
            continue
        template = questions()["clotho_aqa_single_word" if split == "single_word" else "clotho_aqa_yes_no"][0]
        question = Question(
            id=stable_hash("clotho_aqa", part, row["file_name"], row["question"]),
            split=split,
            clips=({"id": row["file_name"], "audio": row["audio"]},),
            prompt=template.format(question=row["question"]),
            reference=reference,
            extra={"answers": row["answers"]},
            also=("all",),
        )
        together.setdefault(row["file_name"], []).append(question)
    return [question for group in together.values() for question in group]


def _kind(answers: Sequence[str]) -> tuple[str, str | list[str]]:
    """Returns the split of a question and what is right there: yes or no, or any of the words."""
    words = [_normal(answer) for answer in answers]
    said = [word for word in words if word in _YES_NO]
    if 2 * len(said) <= len(words):
        return "single_word", list(dict.fromkeys(words))
    if len(words) >= _ANNOTATORS and len(set(words)) == 1:
        return "yes_no", words[0]
    return "yes_no_disputed", list(dict.fromkeys(words))


def _normal(answer: str) -> str:
    """Returns an annotator's answer in the form that a reply is read in."""
    return parsers.one_word(answer) or " ".join(answer.lower().split())


def _majority(words: Sequence[str]) -> str:
    """Returns the word of more than half of the annotators, or ""."""
    word, count = Counter(words).most_common(1)[0]
    return word if 2 * count > len(words) else ""


def parse(answer: Answer) -> str:
    """Returns the strict reading of a reply: `yes`, `no`, another word, or ""."""
    single = answer.question.split == "single_word"
    return parsers.one_word(answer.response) if single else parsers.strict_yes_no(answer.response)


def correct(answer: Answer, parsed: str) -> bool:
    """Whether any annotator said so."""
    return bool(parsed) and parsed in map(_normal, _answers(answer))


def judge_prompt(_: Answer) -> None:
    """No judge is needed."""


def _answers(answer: Answer) -> list[str]:
    """Returns the annotators' answers as they stand.

    Raises:
        UserError: If a predictions file has no column `answers` with them.
    """
    found = answer.question.extra.get("answers")
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise UserError(f"{answer.question.id}: answers: missing; a list of all annotators' answers, or set data_root")
    return found


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the figures of a split; of `all` the official ones alone."""
    clusters = [answer.question.cluster for answer in answers]
    out = {"official": _official(answers, clusters, generator, resamples)}
    splits, said = {answer.question.split for answer in answers}, [parse(answer) for answer in answers]
    if splits == {"yes_no"}:
        references = [str(answer.question.reference) for answer in answers]
        out["strict"] = metrics.yes_no_scores(clusters, references, said, generator, resamples)
    elif len(splits) == 1:
        majorities = [_majority([_normal(one) for one in _answers(answer)]) for answer in answers]
        every = [True] * len(answers)
        figures = {
            "accuracy": ([correct(a, word) for a, word in zip(answers, said, strict=True)], every),
            "accuracy_majority": (
                [word == most for word, most in zip(said, majorities, strict=True)],
                [bool(most) for most in majorities],
            ),
            "unparsed": ([not word for word in said], every),
        }
        out["strict"] = metrics.shares(clusters, figures, generator, resamples)
    return out


def _official(
    answers: Sequence[Answer], clusters: Sequence[tuple[str, ...]], generator: np.random.Generator, resamples: int
) -> dict[str, metrics.Metric]:
    """Returns Qwen-Audio's two figures: each annotator's answer is an item, and the reply has to be it exactly."""
    rows = [
        (cluster, bool(said) and said == answer.response.strip(), said.lower() in _YES_NO)
        for answer, cluster in zip(answers, clusters, strict=True)
        for said in _answers(answer)
    ]
    right, binary = [row[1] for row in rows], [row[2] for row in rows]
    figures = {"acc_score": (right, [True] * len(rows)), "bi_acc_score": (right, binary)}
    return metrics.shares([row[0] for row in rows], figures, generator, resamples)
