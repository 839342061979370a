"""`choice`: which of these sounds is in the audio, or none of them? Made from any labelled manifest, ours.

After AQUA-Bench (arXiv 2601.12248), whose recordings are not at hand where this is used. Each clip is asked twice, with
three sounds and "none of these" as options: in `solvable` one of the sounds is the clip's, in `absent_answer` none is.
The sounds that are not there are drawn from the manifest's labels, a neighbour in the packaged lexicon first.

`conditional_accuracy`, in the split `all`, is that of `absent_answer` where the same clip's `solvable` question was
answered rightly, as the paper's main table has it; `abstained` is how often "none of these" was chosen.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from balsa_ray.evaluation import metrics, multiple_choice, parsers
from balsa_ray.evaluation.questions import Answer, Clip, Question
from balsa_ray.identity import pick, rng, stable_hash
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.miniature.text_world import NONE_OF_THESE
from balsa_ray.prompts.labels import normal
from balsa_ray.prompts.render import labels_of, questions
from balsa_ray.schema import read_manifest

PARSERS = {"strict": parsers.STRICT_OPTION}
NEEDS = "a manifest with labels: tags or events"
SOUNDS = 3
"""Options beside `NONE_OF_THESE`."""

read = read_manifest
parse, correct, judge_prompt = multiple_choice.parse, multiple_choice.correct, multiple_choice.judge_prompt


def templates_hash() -> str:
    """Returns the hash of the templates and of the last option."""
    return stable_hash(questions()["choice"], NONE_OF_THESE)


def plan(clips: Sequence[Clip], seed: int) -> list[Question]:
    """Returns two questions a clip; none where fewer than three of the manifest's labels are absent.

    Args:
        clips: Rows of a labelled manifest.
        seed: Key of every choice, together with the clip's id.
    """
    everything = sorted({label for clip in clips for label in labels_of(clip)})
    out: list[Question] = []
    for clip in clips:
        present = labels_of(clip)
        there = {normal(label) for label in [*present, *(event["label"] for event in clip.get("events") or [])]}
        absent = [label for label in everything if normal(label) not in there]
        if not present or len(absent) < SOUNDS:
            continue
        near = {other for label in present for other in lexicon().neighbours(label)}
        for split in ("solvable", "absent_answer"):
            draw = rng(seed, "choice", split, clip["id"])
            drawn = [absent[i] for i in draw.permutation(len(absent))]
            drawn = [*[label for label in drawn if label in near][:1], *drawn]
            right = present[int(draw.integers(len(present)))] if split == "solvable" else NONE_OF_THESE
            sounds = list(dict.fromkeys([*([right] if right != NONE_OF_THESE else []), *drawn]))[:SOUNDS]
            options = [*(sounds[i] for i in draw.permutation(SOUNDS)), NONE_OF_THESE]
            marked = " ".join(f"({letter}) {option}" for letter, option in zip("abcd", options, strict=True))
            out.append(
                Question(
                    id=stable_hash("choice", split, clip["id"], options),
                    split=split,
                    clips=(clip,),
                    prompt=pick(seed, ("choice", split, clip["id"]), questions()["choice"]).format(options=marked),
                    reference=right,
                    choices=tuple(options),
                    extra={"choices": options},
                    also=("all",),
                )
            )
    return out


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns accuracy, abstentions and unparsed replies, and for both kinds together the conditional accuracy."""
    clips = [answer.question.cluster for answer in answers]
    said = [parse(answer) for answer in answers]
    right = np.array([correct(answer, option) for answer, option in zip(answers, said, strict=True)], dtype=bool)
    solvable = np.array([answer.question.split == "solvable" for answer in answers], dtype=bool)
    solved = {clip for clip, ok in zip(clips, right & solvable, strict=True) if ok}
    figures: dict[str, tuple[npt.ArrayLike, npt.ArrayLike]] = {
        "accuracy": (right, True),
        "abstained": ([option == NONE_OF_THESE for option in said], True),
        "unparsed": ([not option for option in said], True),
    }
    if solvable.any() and not solvable.all():
        figures["conditional_accuracy"] = (right, ~solvable & np.array([clip in solved for clip in clips]))
    return {"strict": metrics.shares(clips, figures, generator, resamples)}
