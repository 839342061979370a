"""`describe`: what do you hear? An extension of ours: are the sounds that a free description names the right ones?

Each clip is described once, in answer to a `present` prompt. Labels are taken from the reply by
`prompts.labels.extract_labels`, and precision, recall and F1 count labels over all clips (micro). `repeated` is the
share of replies that name a label twice, a known fault of small models.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import metrics, parsers
from balsa_ray.evaluation.questions import Answer, Clip, Question
from balsa_ray.identity import pick, stable_hash
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.prompts.labels import extract_labels
from balsa_ray.prompts.render import labels_of, prompts_of, read_prompts
from balsa_ray.schema import read_manifest

PARSERS = {"strict": parsers.LABELS}
NEEDS = "a manifest with labels: tags or events"
read = read_manifest


def templates_hash() -> str:
    """Returns the hash of the `present` prompts."""
    return stable_hash([[prompt.id, prompt.text] for prompt in prompts_of("present")])


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
        labels: What counts as a label in a reply: the labels of the manifest, or also those of the packaged lexicon
            (then naming a sound that no clip has counts against precision).
        prompts: A file in the form of `kinds.yaml`; None: the packaged prompts.
    """
    return one_each("describe", "present", clips, seed, labels, prompts)


def one_each(
    task: str, kind: str, clips: Sequence[Clip], seed: int, labels: str, prompts: str | Path | None
) -> list[Question]:
    """Returns a question a labelled clip, by a prompt of this kind; `plan` says the rest.

    Raises:
        UserError: If the prompts can't be read, or none is of this kind.
    """
    asked = [prompt for prompt in read_prompts(Path(prompts)) if prompt.kind == kind] if prompts else prompts_of(kind)
    if not asked:
        raise UserError(f"{task}.prompts: {prompts}: none is of the kind {kind}")
    known = {label for clip in clips for label in labels_of(clip)}
    if labels == "lexicon":
        known |= set(lexicon().labels)
    choices = tuple(sorted(known))
    out = []
    for clip in clips:
        if present := labels_of(clip):
            prompt = pick(seed, (task, clip["id"]), asked)
            name = stable_hash(task, clip["id"], prompt.text)
            out.append(Question(name, "all", (clip,), prompt.text, present, choices=choices))
    return out


def parse(answer: Answer) -> list[str]:
    """Returns the labels that a reply names, in its order, repeats included; `labels_to_find` says what it raises."""
    return extract_labels(answer.response, labels_to_find(answer))


def labels_to_find(answer: Answer) -> tuple[str, ...]:
    """Returns the labels that a reply may name.

    Raises:
        UserError: If it isn't known what to look for (a predictions file without `choices` and without a manifest).
    """
    if not answer.question.choices:
        raise UserError(f"{answer.question.id}: choices: missing; a list of all labels, or set data_root")
    return answer.question.choices


def correct(answer: Answer, parsed: list[str]) -> bool:
    """Whether a reply names exactly the clip's labels."""
    return set(parsed) == set(answer.question.reference)


def judge_prompt(_: Answer) -> None:
    """No judge is needed."""


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns micro precision, recall and F1, exact matches, replies with a repeat and replies without a label."""
    rows = []
    for answer in answers:
        said, true = parse(answer), set(answer.question.reference)
        named = set(said)
        rows.append([1, len(named), len(true), len(named & true), named == true, len(said) > len(named), not named])
    counts = np.asarray(rows, dtype=np.float64).reshape(-1, 7)
    summed = metrics.per_cluster([a.question.cluster for a in answers], counts)
    return {"strict": metrics.bootstrap(summed, _statistic, len(answers), generator, resamples)}


def _statistic(counts: metrics.Counts) -> dict[str, metrics.Counts]:
    n, named, true, right, exact, repeated, without = np.moveaxis(counts, -1, 0)
    precision, recall = metrics.ratio(right, named), metrics.ratio(right, true)
    return {
        "f1_score": metrics.f1(precision, recall),
        "precision": precision,
        "recall": recall,
        "exact": metrics.ratio(exact, n),
        "repeated": metrics.ratio(repeated, n),
        "unparsed": metrics.ratio(without, n),
    }
