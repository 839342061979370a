"""`synonym_hypernym`: does a model know a sound by another name too? Made from any labelled manifest, ours.

BALSa names a synonym and hypernym test with an F1 (arXiv 2505.20166); its data and its rules are not known, so this
is a construction of ours and not comparable. The idea may be that of Çoban et al., What do MLLMs hear? (arXiv
2406.04615).

Each clip is asked about labels that it has and about as many that it has not, and about each in three forms, which are
the splits: by its `label`, by a `synonym` of it and by a `hypernym`, all in the same wording, one of the five of the
benchmark of object hallucination. A label is asked if it has both other words: from the packaged `words.yaml` (for
labels of the packaged lexicon), from the file `words`, and with `ontology` (AudioSet's `ontology.json`) also from
there: a label's parents are hypernyms, alternatives in its name and the packaged synonyms are synonyms. An absent label
is one whose other words are absent too: beside a church bell nobody is asked about a bicycle bell, as its hypernym
"bell" is there.

Each split has the figures of yes/no questions; `f1_score` is of the answer no, `weighted_f1` of both. In `all` stand
`consistency`, the share of labels (in clips) to which label and synonym get the same answer, right or wrong, unread
replies being no answer; and `entailment`, how often the hypernym is affirmed where the label was.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import metrics, parsers
from balsa_ray.evaluation.questions import Answer, Clip, Question
from balsa_ray.evaluation.words import packaged, vocabulary
from balsa_ray.identity import pick, rng, stable_hash
from balsa_ray.prompts.render import labels_of, questions
from balsa_ray.schema import read_manifest

PARSERS = {"strict": parsers.STRICT_YES_NO}
NEEDS = "a manifest with labels (tags or events), some of which have synonyms and hypernyms"
read = read_manifest
FORMS = ("label", "synonym", "hypernym")


def templates_hash() -> str:
    """Returns the hash of the wordings and of the packaged words."""
    words = {label: [of.synonyms, of.hypernyms, of.near] for label, of in packaged().items()}
    return stable_hash(questions()["existence"], words)


def plan(clips: Sequence[Clip], seed: int, words: str | None = None, ontology: str | None = None) -> list[Question]:
    """Returns the questions about every clip, clip by clip.

    Args:
        clips: Rows of a labelled manifest.
        seed: Key of every choice, together with the clip's id.
        words: A file of words by label, in place of the packaged one.
        ontology: AudioSet's `ontology.json`, for further ones.

    Raises:
        UserError: If a file can't be read.
    """
    known = vocabulary(sorted({label for clip in clips for label in labels_of(clip)}), words, ontology)
    everything, out = known.asked(), []
    for clip in clips:
        draw = rng(seed, "synonym_hypernym", clip["id"])
        heard = labels_of(clip)
        present = [(label, known.words(label).hypernyms) for label in heard if label in everything]
        absent = [(label, left) for label in everything if (left := known.deniable(heard, label))]
        number = min(len(present), len(absent))
        chosen = [(*present[i], "yes") for i in sorted(draw.permutation(len(present))[:number])]
        chosen += [(*absent[i], "no") for i in draw.permutation(len(absent))[:number]]
        for label, hypernyms, reference in chosen:
            key = ("synonym_hypernym", clip["id"], label)
            names = (
                label,
                pick(seed, (*key, "synonym"), known.words(label).synonyms),
                pick(seed, (*key, "hypernym"), hypernyms),
            )
            wording = pick(seed, (*key, "wording"), questions()["existence"])
            out += [
                _question(clip, label, form, name, wording, reference) for form, name in zip(FORMS, names, strict=True)
            ]
    return out


def _question(clip: Clip, label: str, form: str, name: str, wording: str, reference: str) -> Question:
    return Question(
        id=stable_hash("synonym_hypernym", clip["id"], label, form, name, wording),
        split=form,
        clips=(clip,),
        prompt=wording.format(label=name),
        reference=reference,
        object=name,
        extra={"label": label},
        also=("all",),
    )


def parse(answer: Answer) -> str:
    """Returns the strict reading of a reply: `yes`, `no` or ""."""
    return parsers.strict_yes_no(answer.response)


def correct(answer: Answer, parsed: str) -> bool:
    """Whether a parsed reply is right."""
    return parsed == answer.question.reference


def judge_prompt(_: Answer) -> None:
    """No judge is needed."""


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the metrics of one form, or of `all` how the forms go together."""
    if len({answer.question.split for answer in answers}) > 1:
        return {"strict": _together(answers, generator, resamples)}
    clusters, said = [answer.question.cluster for answer in answers], [parse(answer) for answer in answers]
    references = [str(answer.question.reference) for answer in answers]
    return {"strict": metrics.yes_no_scores(clusters, references, said, generator, resamples)}


def _together(answers: Sequence[Answer], generator: np.random.Generator, resamples: int) -> dict[str, metrics.Metric]:
    """Returns consistency and entailment, over the labels that were asked in both forms.

    Raises:
        UserError: If a predictions file has no column `label`.
    """
    said: dict[tuple[tuple[str, ...], str], dict[str, str]] = defaultdict(dict)
    for answer in answers:
        label = answer.question.extra.get("label")
        if not isinstance(label, str):
            raise UserError(f"{answer.question.id}: label: missing; which label was asked for, or set data_root")
        said[answer.question.cluster, label][answer.question.split] = parse(answer)
    pairs = list(said.values())
    figures = {
        "consistency": (
            [bool(of.get("label")) and of.get("label") == of.get("synonym") for of in pairs],
            ["label" in of and "synonym" in of for of in pairs],
        ),
        "entailment": (
            [of.get("hypernym") == "yes" for of in pairs],
            ["hypernym" in of and of.get("label") == "yes" for of in pairs],
        ),
        "unparsed": ([not all(of.values()) for of in pairs], [True] * len(pairs)),
    }
    return metrics.shares([cluster for cluster, _ in said], figures, generator, resamples)
