"""`existence`: is there a sound of X in the audio? Made from any labelled manifest.

The discriminative task of the audio object-hallucination benchmark (Kuan et al., Interspeech 2024, arXiv 2406.08402),
rebuilt with the ground truth excluded: the published popular and adversarial sets (`audio_hallucination`) are flawed.
Each clip gives its labels as positives and as many absent labels, each asked with up to five templates. Splits, by
how the absent labels are chosen from all labels of the manifest that the clip does not have, whatever their case and
hyphens, neither among its tags nor among its events:

- `random`: any of them;
- `popular`: those that most clips have;
- `adversarial`: those that occur most with the clip's labels in other clips. Ours, with `confusable: lexicon`: the
  neighbours of a present label in the packaged lexicon come first (two bells, two engines), then co-occurrence.

With `prefix` a sentence of the paper's study of prompts stands before each question (`audio_hallucination`).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from balsa_ray.evaluation import yes_no
from balsa_ray.evaluation.questions import Clip, Question
from balsa_ray.identity import rng, stable_hash
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.prompts.labels import normal
from balsa_ray.prompts.render import labels_of, questions
from balsa_ray.schema import read_manifest

SPLITS = ("random", "popular", "adversarial")
PARSERS = yes_no.PARSERS
NEEDS = "a manifest with labels: tags or events"
read = read_manifest
parse, correct, judge_prompt, score = yes_no.parse, yes_no.correct, yes_no.judge_prompt, yes_no.score


def templates_hash() -> str:
    """Returns the hash of the five templates and the eight prefixes."""
    return stable_hash(questions()["existence"], questions()["prefixes"])


def plan(
    clips: Sequence[Clip],
    seed: int,
    templates: int = 5,
    confusable: Literal["lexicon"] | None = None,
    prefix: str | None = None,
) -> list[Question]:
    """Returns the questions about every clip, clip by clip.

    Args:
        clips: Rows of a labelled manifest.
        seed: Key of every choice, together with the clip's id.
        templates: How many of the five templates each label is asked with, starting at a keyed one.
        confusable: Where the groups of confusable labels come from, if anywhere.
        prefix: Which sentence stands before each question, `P1` to `P8`; None: none.
    """
    present_in = {clip["id"]: labels_of(clip) for clip in clips}
    frequency = Counter(label for labels in present_in.values() for label in labels)
    together: dict[str, Counter[str]] = {label: Counter() for label in frequency}
    for labels in present_in.values():
        for label in labels:
            together[label].update(labels)
    everything, wordings = sorted(frequency), questions()["existence"]
    out: list[Question] = []
    for clip in clips:
        present = present_in[clip["id"]]
        there = {normal(label) for label in [*present, *(event["label"] for event in clip.get("events") or [])]}
        absent = [label for label in everything if normal(label) not in there]
        near = {n for label in present for n in lexicon().neighbours(label)} if confusable else set()
        for split in SPLITS:
            draw = rng(seed, "existence", split, clip["id"])
            pool = [absent[i] for i in draw.permutation(len(absent))]
            if split == "popular":
                pool.sort(key=lambda label: -frequency[label])
            elif split == "adversarial":
                pool.sort(key=lambda label: (label not in near, -sum(together[p][label] for p in present)))
            # A clip with more labels than there are absent ones asks only as many positives: half of all answers is no.
            number = min(len(present), len(absent))
            positives = [present[i] for i in sorted(draw.permutation(len(present))[:number])]
            pairs = [(label, "yes") for label in positives] + [(label, "no") for label in pool[:number]]
            for label, reference in pairs:
                out += _ask(clip, split, label, reference, wordings, templates, draw)
    return yes_no.prefixed(out, prefix)


def _ask(
    clip: Clip, split: str, label: str, reference: str, wordings: list[str], templates: int, draw: np.random.Generator
) -> list[Question]:
    """Returns the questions about one label of one clip: so many wordings, from a drawn one on."""
    first = int(draw.integers(len(wordings)))
    chosen = [wordings[(first + offset) % len(wordings)] for offset in range(min(templates, len(wordings)))]
    return [
        Question(
            id=stable_hash("existence", split, clip["id"], label, wording),
            split=split,
            clips=(clip,),
            prompt=wording.format(label=label),
            reference=reference,
            object=label,
        )
        for wording in chosen
    ]
