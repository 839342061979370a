"""`which_recording`: two clips, one of which has X: which? An extension of ours, for models that read several clips.

Clips are paired at random (keyed), each in one pair at most, and each pair is asked about one label that only one of
its clips has. It is asked in both orders, so that "first" is right in exactly half of the answers, and a model that
ignores the audio or mixes the clips up gets 50 %. With `shared` it is also asked about a label that both have, where
they have one (split `both`), and about one that neither has (`neither`).
"""

from collections.abc import Sequence

import numpy as np

from balsa_ray.evaluation import metrics, parsers
from balsa_ray.evaluation.questions import Answer, Clip, Question
from balsa_ray.identity import pick, stable_hash, unit
from balsa_ray.prompts.render import labels_of, questions
from balsa_ray.schema import read_manifest

PARSERS = {"strict": parsers.WHICH_RECORDING}
NEEDS = "a manifest with labels: tags or events"
read = read_manifest


def templates_hash() -> str:
    """Returns the hash of the templates."""
    return stable_hash(questions()["which_recording"])


def plan(clips: Sequence[Clip], seed: int, shared: bool = False) -> list[Question]:
    """Returns two questions a pair of clips and split; what a pair has no label for is left out.

    Args:
        clips: Rows of a labelled manifest.
        seed: Key of the pairing, the label and the template.
        shared: Also ask about labels of both clips and of neither.
    """
    shuffled = sorted(clips, key=lambda clip: unit(seed, "which_recording", clip["id"]))
    everything = {label for clip in clips for label in labels_of(clip)}
    out: list[Question] = []
    for one, other in zip(shuffled[::2], shuffled[1::2], strict=False):
        a, b = set(labels_of(one)), set(labels_of(other))
        out += _ask("all", a ^ b, one, other, seed)
        if shared:
            out += _ask("both", a & b, one, other, seed) + _ask("neither", everything - a - b, one, other, seed)
    return out


def _ask(split: str, labels: set[str], one: Clip, other: Clip, seed: int) -> list[Question]:
    """Returns the question about one of these labels, in both orders of the clips."""
    if not labels:
        return []
    key = ("which_recording", one["id"], other["id"], *([] if split == "all" else [split]))
    label = pick(seed, (*key, "label"), sorted(labels))
    template = pick(seed, (*key, "template"), questions()["which_recording"])
    return [
        Question(
            id=stable_hash("which_recording", [clip["id"] for clip in pair], label, template),
            split=split,
            clips=pair,
            prompt=template.format(label=label),
            reference=_reference(label in labels_of(pair[0]), label in labels_of(pair[1])),
            object=label,
        )
        for pair in ((one, other), (other, one))
    ]


def _reference(in_first: bool, in_second: bool) -> str:
    if in_first == in_second:
        return "both" if in_first else "none"
    return "first" if in_first else "second"


def parse(answer: Answer) -> str:
    """Returns `first`, `second`, `both`, `none` or ""."""
    return parsers.which_recording(answer.response)


def correct(answer: Answer, parsed: str) -> bool:
    """Whether the right recording was named."""
    return parsed == answer.question.reference


def judge_prompt(_: Answer) -> None:
    """No judge is needed."""


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns accuracy, the share of answers "first" (50 without bias in `all`) and the share that was not read."""
    rows = [[1, correct(a, said), said == "first", not said] for a, said in ((a, parse(a)) for a in answers)]
    summed = metrics.per_cluster([a.question.cluster for a in answers], np.asarray(rows, float).reshape(-1, 4))
    return {"strict": metrics.bootstrap(summed, _statistic, len(answers), generator, resamples)}


def _statistic(counts: metrics.Counts) -> dict[str, metrics.Counts]:
    n, right, first, unread = np.moveaxis(counts, -1, 0)
    return {
        "accuracy": metrics.ratio(right, n),
        "first_rate": metrics.ratio(first, n),
        "unparsed": metrics.ratio(unread, n),
    }
