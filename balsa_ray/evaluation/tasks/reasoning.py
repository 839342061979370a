"""`reasoning`: how many different sounds are there, and which comes first? Made from a labelled manifest, ours.

A stand-in for benchmarks of reasoning, where clips are made and nobody has asked people about them: `count` asks how
many different labels a clip has, `order` which of two labels begins first, in both orders of naming them. Only clips
with timed events are asked about order, and only labels whose first onsets are half a second apart or more.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from balsa_ray.evaluation import metrics, parsers
from balsa_ray.evaluation.questions import Answer, Clip, Question
from balsa_ray.identity import pick, stable_hash
from balsa_ray.prompts.labels import extract_labels
from balsa_ray.prompts.render import labels_of, questions
from balsa_ray.schema import read_manifest

PARSERS = {"strict": parsers.COUNT_OR_FIRST}
NEEDS = "a manifest with labels: tags, or for order events"
LEAST_GAP_SECONDS = 0.5

read = read_manifest


def templates_hash() -> str:
    """Returns the hash of the templates."""
    return stable_hash(questions()["count"], questions()["order"])


def plan(clips: Sequence[Clip], seed: int) -> list[Question]:
    """Returns one question about the number of sounds a clip, and two about two of them.

    Args:
        clips: Rows of a labelled manifest.
        seed: Key of the choice of labels and templates, together with the clip's id.
    """
    return [question for clip in clips if labels_of(clip) for question in _about(clip, seed)]


def _about(clip: Clip, seed: int) -> Iterator[Question]:
    key = ("reasoning", clip["id"])
    prompt = pick(seed, (*key, "count"), questions()["count"])
    number = str(len(set(labels_of(clip))))
    yield Question(stable_hash(*key, prompt), "count", (clip,), prompt, number)
    onset: dict[str, float] = {}
    for event in sorted(clip.get("events") or [], key=lambda event: event["start"]):
        onset.setdefault(event["label"], event["start"])
    pairs = [(a, b) for a in onset for b in onset if onset[b] - onset[a] >= LEAST_GAP_SECONDS]
    if not pairs:
        return
    first, later = pick(seed, (*key, "pair"), pairs)
    template = pick(seed, (*key, "order"), questions()["order"])
    for label, other in ((first, later), (later, first)):
        prompt = template.format(label=label, other=other)
        name = stable_hash(*key, prompt)
        extra: dict[str, Any] = {"choices": [label, other]}
        yield Question(name, "order", (clip,), prompt, first, choices=(label, other), extra=extra)


def parse(answer: Answer) -> str:
    """Returns the number, or the one of the two labels, that a reply names; "" if it names none or several."""
    if answer.question.split == "count":
        return parsers.number(answer.response)
    named = set(extract_labels(answer.response, answer.question.choices or answer.question.extra.get("choices") or ()))
    return named.pop() if len(named) == 1 else ""


def correct(answer: Answer, parsed: str) -> bool:
    """Whether a parsed reply is right."""
    return parsed == answer.question.reference


def judge_prompt(_: Answer) -> None:
    """No judge is needed."""


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns accuracy and the share that could not be read."""
    clips = [answer.question.cluster for answer in answers]
    said = [parse(answer) for answer in answers]
    figures = {
        "accuracy": ([correct(answer, one) for answer, one in zip(answers, said, strict=True)], True),
        "unparsed": ([not one for one in said], True),
    }
    return {"strict": metrics.shares(clips, figures, generator, resamples)}
