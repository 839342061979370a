"""`name_absent`: what do you not hear? An extension of ours: does a list of absent sounds name one that is there?

Each clip is asked once, by an `absent` prompt. Labels are taken from the reply by `prompts.labels.affirmed_and_denied`.
`error` is the share of the labels called absent that the clip has; `replies_with_error` the share of replies with one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from balsa_ray.evaluation import metrics, parsers
from balsa_ray.evaluation.questions import Answer, Clip, Question
from balsa_ray.evaluation.tasks.describe import labels_to_find, one_each
from balsa_ray.identity import stable_hash
from balsa_ray.prompts.labels import affirmed_and_denied
from balsa_ray.prompts.render import prompts_of
from balsa_ray.schema import read_manifest

PARSERS = {"strict": parsers.LABELS}
NEEDS = "a manifest with labels: tags or events"
read = read_manifest


def templates_hash() -> str:
    """Returns the hash of the `absent` prompts."""
    return stable_hash([[prompt.id, prompt.text] for prompt in prompts_of("absent")])


def plan(
    clips: Sequence[Clip],
    seed: int,
    labels: Literal["manifest", "lexicon"] = "manifest",
    prompts: str | Path | None = None,
) -> list[Question]:
    """Returns one question a clip.

    Args:
        clips: Rows of a labelled manifest.
        seed: Key of the choice of prompt, together with the clip's id.
        labels: What counts as a label in a reply: the labels of the manifest, or also those of the packaged lexicon.
        prompts: A file in the form of `kinds.yaml`; None: the packaged prompts.
    """
    return one_each("name_absent", "absent", clips, seed, labels, prompts)


def parse(answer: Answer) -> list[str]:
    """Returns the labels that a reply calls absent, each once; `labels_to_find` says what it raises."""
    return affirmed_and_denied(answer.response, labels_to_find(answer), about_absent=True)[1]


def correct(answer: Answer, parsed: list[str]) -> bool:
    """Whether a reply calls something absent, and nothing that is there."""
    return bool(parsed) and not set(parsed) & set(answer.question.reference)


def judge_prompt(_: Answer) -> None:
    """No judge is needed."""


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the share of wrongly named sounds, of replies with one, and of replies that name nothing."""
    rows = []
    for answer in answers:
        named = parse(answer)
        wrong = len(set(named) & set(answer.question.reference))
        rows.append([1, len(named), wrong, wrong > 0, not named])
    counts = np.asarray(rows, dtype=np.float64).reshape(-1, 5)
    summed = metrics.per_cluster([answer.question.cluster for answer in answers], counts)
    return {"strict": metrics.bootstrap(summed, _statistic, len(answers), generator, resamples)}


def _statistic(counts: metrics.Counts) -> dict[str, metrics.Counts]:
    n, named, wrong, with_error, without = np.moveaxis(counts, -1, 0)
    return {
        "error": metrics.ratio(wrong, named),
        "replies_with_error": metrics.ratio(with_error, n),
        "unparsed": metrics.ratio(without, n),
    }
