"""What benchmarks of yes/no questions have in common: prefixes of prompts, readings, published figures beside ours."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from balsa_ray.evaluation import metrics, parsers
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.prompts.render import questions

PARSERS = {"official": parsers.OFFICIAL_YES_NO, "strict": parsers.STRICT_YES_NO}


def prefixed(asked: list[Question], prefix: str | None) -> list[Question]:
    """Returns questions with a sentence before the prompt. Their ids stay, so that runs with and without compare.

    Args:
        asked: The questions.
        prefix: `P1` to `P8`; None: no sentence.
    """
    if prefix is None:
        return asked
    words = questions()["prefixes"][int(prefix[1:]) - 1]
    return [replace(question, prompt=f"{words} {question.prompt}") for question in asked]


def parse(answer: Answer) -> str:
    """Returns the strict reading of a reply: `yes`, `no` or ""."""
    return parsers.strict_yes_no(answer.response)


def right_answer(answer: Answer) -> str:
    """Returns `yes` or `no`; others' files have them in upper case too."""
    return str(answer.question.reference).lower()


def correct(answer: Answer, parsed: str) -> bool:
    """Whether a parsed reply is right."""
    return parsed == right_answer(answer)


def judge_prompt(_: Answer) -> None:
    """No judge is needed."""


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the metrics of one split: `official` (published parser and formulas) beside `strict` (ours)."""
    official = (parsers.official_yes_no, metrics.official_yes_no_metrics)
    strict = (parsers.strict_yes_no, metrics.strict_yes_no_metrics)
    return {
        block: figures(answers, reader, statistic, generator, resamples)
        for block, (reader, statistic) in {"official": official, "strict": strict}.items()
    }


def figures(
    answers: Sequence[Answer],
    reader: Callable[[str], str],
    statistic: metrics.Statistic,
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, metrics.Metric]:
    """Returns a statistic of `metrics.yes_no_counts` over replies that are read by one parser."""
    references = [right_answer(answer) for answer in answers]
    counts = metrics.yes_no_counts(references, [reader(answer.response) for answer in answers])
    summed = metrics.per_cluster([answer.question.cluster for answer in answers], counts)
    return metrics.bootstrap(summed, statistic, len(answers), generator, resamples)
