"""What benchmarks with one right option among several have in common: its words are the reference and the reading."""

from collections.abc import Sequence

from balsa_ray.config import UserError
from balsa_ray.evaluation import parsers
from balsa_ray.evaluation.questions import Answer


def options(answer: Answer) -> Sequence[str]:
    """Returns the options of a question, as they were published.

    Raises:
        UserError: If a predictions file has neither a column `choices` nor `options`.
    """
    question = answer.question
    found = question.choices or question.extra.get("choices") or question.extra.get("options")
    if not isinstance(found, list | tuple) or not found or not all(isinstance(option, str) for option in found):
        raise UserError(f"{question.id}: choices: missing; a list of the options, or set data_root")
    return found


def parse(answer: Answer) -> str:
    """Returns the option that a reply decides for, or ""."""
    return parsers.strict_option(answer.response, options(answer))


def correct(answer: Answer, parsed: str) -> bool:
    """Whether a parsed reply is right."""
    return parsed == answer.question.reference


def judge_prompt(_: Answer) -> None:
    """No judge is needed."""
