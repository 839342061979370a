"""`audio_hallucination_generative`: what do you hear? How much of what a description names is there (ECHO, Cover)?

The generative task of Kuan et al., Interspeech 2024 (arXiv 2406.08402), from github.com/kuan2jiu99/audio-hallucination.
Read is the Hugging Face set audiocaps_hallucination, whose licence is not known here: Parquet files, whatever their
names, with columns `youtube_id, audiocaps_id, audio, caption, label, hallucination_label`, of which `audiocaps_id` is
not needed. Recordings stand inside; where one doesn't, it is looked up below the folder by `youtube_id`. Each clip is
described in answer to five prompts. Of the objects that a description names:

- `echo_i` (the published scorer's "CHAIR"): the share that is not among the clip's labels, the mean over descriptions;
- `echo_s` ("Hal"): the share of descriptions with such an object;
- `cover`: the share of the clip's labels that are named, the mean over descriptions.

Official: the published scorer's three figures, over all descriptions. One without objects counts as -1 in the first
two, which makes them smaller, below 0 if need be: kept as published. That scorer wants the objects as lists. The paper
finds them as nouns, by an NLP toolkit that isn't known here. The usual toolkits don't publish their English models on
the package index, so a judge lists the nouns, by a prompt in our own words: how close its figures come to the paper's
was not measured. A file of answers may bring lists of its own, in a column `prediction`, which no judge is asked
for; with these the figures are the published scorer's. Without either there are none. `corrected`, ours: the same
lists, but `echo_i` and `echo_s` are of the descriptions with objects; `unparsed` is the share of those without.

Strict, ours: objects are the labels that a description names, of all labels and hallucination labels of the set, found
as `describe` finds them, and corrected likewise. Matching knows no synonyms and no negation: "no siren" names a siren.

`echo_i_std` and so on are what the paper puts beside its figures, the standard deviation over the five prompts; that of
a population (divided by five) is our choice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import metrics, parsers
from balsa_ray.evaluation.files import AudioFolder, references, rows, with_columns
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import stable_hash
from balsa_ray.prompts.labels import extract_labels
from balsa_ray.prompts.render import questions

PARSERS = {"official": parsers.LISTED, "corrected": parsers.LISTED, "strict": parsers.LABELS}
NEEDS = "Parquet files with youtube_id, label and hallucination_label"

_COLUMNS = {"youtube_id": str, "caption": list, "label": list, "hallucination_label": list}
_FIGURES = ("echo_i", "echo_s", "cover")
_JUDGE = """Below is what somebody wrote about a recording. List the nouns in it that name what is heard or what \
makes a sound: things, animals, people, places, events. Take them as they are written, compound nouns as one, but in \
lower case and in the singular, and each once. Leave out words for the recording itself (audio, clip, sound, \
background). Add nothing that isn't written there.
Answer with the list alone, a noun a line, or with the word none.

{response}"""


def templates_hash() -> str:
    """Returns the hash of the five prompts and of the judge's."""
    return stable_hash(questions()["audio_hallucination_generative"], _JUDGE)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the published rows, with a path or a reference in place of the recording in `audio`.

    Raises:
        UserError: If there is no file, or a row isn't as published.
    """
    tables = with_columns(path, ("youtube_id", "hallucination_label"))
    if not tables:
        raise UserError(f"data_root: {path}: no {NEEDS}")
    recordings = AudioFolder(path if path.is_dir() else path.parent)
    first_seen: dict[str, str] = {}
    out = []
    for table in tables:
        found = rows(table, _COLUMNS)
        inside = references(table) if table.suffix.lower() == ".parquet" else [None] * len(found)
        for number, (row, reference) in enumerate(zip(found, inside, strict=True), 1):
            where, name = f"{table}: row {number}", row["youtube_id"]
            earlier = first_seen.setdefault(name, where)
            if earlier != where:
                raise UserError(f"{where}: youtube_id: {name!r} stands in {earlier} already")
            out.append(row | {"audio": reference or recordings.find(name)})
    return out


def plan(rows: Sequence[dict[str, Any]], seed: int) -> list[Question]:
    """Returns five questions a clip.

    Args:
        rows: What `read` returned.
        seed: Not used: nothing is drawn.
    """
    choices = sorted({label for row in rows for label in [*row["label"], *row["hallucination_label"]]})
    out = []
    for row in rows:
        clip = {"id": row["youtube_id"], "audio": row["audio"], "tags": row["label"], "caption": row["caption"][0]}
        for number, prompt in enumerate(questions()["audio_hallucination_generative"], 1):
            question = Question(
                id=f"{row['youtube_id']}/{number}",
                split="all",
                clips=(clip,),
                prompt=prompt,
                reference=row["label"],
                choices=tuple(choices),
                extra={"choices": choices},
            )
            out.append(question)
    return out


def parse(answer: Answer) -> list[str]:
    """Returns the labels that a reply names; of a file that doesn't say which there are, its lists of objects.

    Raises:
        UserError: If the file has neither.
    """
    if labels := _labels(answer):
        return extract_labels(answer.response, labels)
    objects = _objects(answer)
    if objects is None:
        raise UserError(f"{answer.question.id}: choices: missing; a list of all labels, or set data_root")
    return objects


def _labels(answer: Answer) -> Sequence[str]:
    return answer.question.choices or answer.question.extra.get("choices") or ()


def correct(answer: Answer, parsed: list[str]) -> bool:
    """Whether a reply names something, and nothing that isn't there."""
    return bool(parsed) and set(parsed) <= set(answer.question.reference)


def judge_prompt(answer: Answer) -> str | None:
    """Returns what the judge is asked, the same for equal replies; None where the objects are known."""
    return None if "prediction" in answer.question.extra else _JUDGE.format(response=answer.response)


def _objects(answer: Answer) -> list[str] | None:
    """Returns the objects of a description, as the file of answers or the judge lists them, if either does."""
    given = answer.question.extra.get("prediction")
    if given is None:
        return None if answer.judgement is None else parsers.listed(answer.judgement)
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise UserError(f"{answer.question.id}: prediction: should be a list of texts, is {given!r:.80}")
    return given


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the published figures, the same corrected, where objects are listed, and the strict ones."""
    found = {}
    if listed := [(answer, set(objects)) for answer in answers if (objects := _objects(answer)) is not None]:
        found["official"] = _figures(listed, generator, resamples, empty=-1)
        found["corrected"] = _figures(listed, generator, resamples)
    if named := [(answer, set(parse(answer))) for answer in answers if _labels(answer)]:
        found["strict"] = _figures(named, generator, resamples)
    return found


def _figures(
    described: Sequence[tuple[Answer, set[str]]], generator: np.random.Generator, resamples: int, empty: int = 0
) -> dict[str, metrics.Metric]:
    """Returns the figures of descriptions and the objects that they name.

    Args:
        described: Each answer with its objects.
        generator: Source of the resamples.
        resamples: Number of bootstrap resamples.
        empty: What a description without objects adds to `echo_i` and `echo_s`; 0: it isn't one of those counted.
    """
    prompts = list(dict.fromkeys(answer.question.prompt for answer, _ in described))
    values = np.array([_values(answer, objects, empty) for answer, objects in described])
    # By prompt: descriptions, those that ECHO is a mean of, and the sums of the three figures.
    counts = np.zeros((len(described), len(prompts), 5))
    for row, ((answer, objects), figures) in enumerate(zip(described, values, strict=True)):
        counts[row, prompts.index(answer.question.prompt)] = [1, bool(objects) or empty != 0, *figures]

    def statistic(sums: metrics.Counts) -> dict[str, metrics.Counts]:
        by_prompt = sums.reshape(*sums.shape[:-1], len(prompts), 5)
        whole = _means(by_prompt.sum(-2))
        spread = {f"{name}_std": value.std(-1) for name, value in _means(by_prompt).items()}
        return whole | (spread if len(prompts) > 1 else {})

    clips = [answer.question.cluster for answer, _ in described]
    summed = metrics.per_cluster(clips, counts.reshape(len(described), -1))
    found = metrics.bootstrap(summed, statistic, len(described), generator, resamples)
    if empty:
        for name, column in zip(_FIGURES, values.T.tolist(), strict=True):
            # The published scorer's own way: summed in the order of the descriptions, and rounded.
            found[name]["value"] = round(sum(column) / len(column) * 100, 2)
    without = [not objects for _, objects in described]
    return found | metrics.shares(clips, {"unparsed": (without, True)}, generator, resamples)


def _means(sums: metrics.Counts) -> dict[str, metrics.Counts]:
    n, named, echo_i, echo_s, cover = np.moveaxis(sums, -1, 0)
    return {
        "echo_i": metrics.ratio(echo_i, named),
        "echo_s": metrics.ratio(echo_s, named),
        "cover": metrics.ratio(cover, n),
    }


def _values(answer: Answer, objects: set[str], empty: int) -> tuple[float, float, float]:
    """Returns what a description adds to the three figures.

    Raises:
        UserError: If its reference is no list of labels.
    """
    labels = answer.question.reference
    if not isinstance(labels, list) or not labels:
        raise UserError(f"{answer.question.id}: reference: should be a list of labels, is {labels!r:.80}")
    there = len(objects & set(labels))
    cover = there / len(set(labels))
    if not objects:
        return empty, empty, cover
    echo_i = 1 - there / len(objects)
    return echo_i, float(echo_i != 0), cover
