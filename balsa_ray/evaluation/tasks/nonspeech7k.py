"""`nonspeech7k`: which sound does a person make who isn't speaking? Questions of ours about Nonspeech7k.

Rashid et al., Nonspeech7k dataset (IET Signal Processing 2023), from zenodo.org/records/6967442; its record says CC BY
4.0 and its description CC BY-NC-SA 4.0. It has recordings of half a second to four seconds of breath, cough, crying,
laugh, screaming, sneeze and yawn, and is made for classification: there are neither published questions nor an official
scorer. How BALSa's "NonSpeech AQA" asks is not known either, so these figures are not comparable with it.

Read is the test set alone, `metadata of test set.csv`, of whose columns `Filename` and `Classname` are used (one class
is also spelt "yawm"), and the recordings below `test/`, or anywhere below the folder, by their names. Train and test
set share source recordings (the same `source` and file id): training on the one makes the other easier.

Both splits are ours: `multiple_choice` has all seven sounds as options, their order drawn for each recording;
`yes_no` asks for the sound and for a drawn other one, in the words of the benchmark of object hallucination, so that
half of the answers are no. `balanced_accuracy` is the mean over the classes, which are not equally frequent.
"""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import files, metrics, multiple_choice, parsers
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import pick, shuffled, stable_hash
from balsa_ray.prompts.render import questions

PARSERS = {"strict": f"{parsers.STRICT_OPTION}, {parsers.STRICT_YES_NO}"}
NEEDS = "metadata of test set.csv"
SOUNDS = {
    "breath": "breathing",
    "cough": "coughing",
    "crying": "crying",
    "laugh": "laughter",
    "screaming": "screaming",
    "sneeze": "sneezing",
    "yawn": "yawning",
}
"""Name of a class to the words that are asked for."""
_MISSPELT = {"yawm": "yawn"}


def templates_hash() -> str:
    """Returns the hash of all wordings and of the sounds' names."""
    return stable_hash(questions()["nonspeech7k"], questions()["existence"], SOUNDS)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the clips of the test set, each with its sound as a tag.

    Raises:
        UserError: If the table isn't there, a class is unknown, or a recording stands twice.
    """
    table = path / NEEDS
    folder = path / "test"
    recordings = files.AudioFolder(folder if folder.is_dir() else path)
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(files.rows(table, {"Filename": str, "Classname": str}), 1):
        name, label = row["Filename"].strip(), row["Classname"].strip().lower()
        label = _MISSPELT.get(label, label)
        where = f"{table}: row {number}"
        if label not in SOUNDS:
            raise UserError(f"{where}: Classname: must be one of {', '.join(SOUNDS)}, not {row['Classname']!r}")
        if name in found:
            raise UserError(f"{where}: Filename: {name!r} stands in an earlier row already")
        found[name] = {"id": name, "audio": recordings.find(name), "tags": [SOUNDS[label]]}
    return list(found.values())


def plan(clips: Sequence[dict[str, Any]], seed: int) -> list[Question]:
    """Returns three questions a clip.

    Args:
        clips: What `read` returned.
        seed: Key of the order of the options, the absent sound and the wording, together with the clip's id.
    """
    return [question for clip in clips for question in (_options(clip, seed), *_yes_no(clip, seed))]


def _options(clip: dict[str, Any], seed: int) -> Question:
    choices = shuffled(seed, ("nonspeech7k", clip["id"], "options"), list(SOUNDS.values()))
    lines = [f"({letter}) {choice}" for letter, choice in zip(ascii_lowercase, choices, strict=False)]
    (right,) = clip["tags"]
    return Question(
        id=stable_hash("nonspeech7k", clip["id"], choices),
        split="multiple_choice",
        clips=(clip,),
        prompt=questions()["nonspeech7k"][0].format(options="\n".join(lines)),
        reference=right,
        object=right,
        choices=tuple(choices),
        extra={"choices": choices},
    )


def _yes_no(clip: dict[str, Any], seed: int) -> list[Question]:
    key = ("nonspeech7k", clip["id"])
    (right,) = clip["tags"]
    other = pick(seed, (*key, "absent"), [sound for sound in SOUNDS.values() if sound != right])
    wording = pick(seed, (*key, "wording"), questions()["existence"])
    return [
        Question(
            id=stable_hash("nonspeech7k", clip["id"], sound, wording),
            split="yes_no",
            clips=(clip,),
            prompt=wording.format(label=sound),
            reference=reference,
            object=sound,
        )
        for sound, reference in ((right, "yes"), (other, "no"))
    ]


def parse(answer: Answer) -> str:
    """Returns the option that a reply decides for, `yes`, `no`, or "".

    Raises:
        UserError: If a predictions file has no column `choices` for a question with options.
    """
    if answer.question.split == "yes_no":
        return parsers.strict_yes_no(answer.response)
    return parsers.strict_option(answer.response, multiple_choice.options(answer))


def correct(answer: Answer, parsed: str) -> bool:
    """Whether a parsed reply is right."""
    return parsed == answer.question.reference


def judge_prompt(_: Answer) -> None:
    """No judge is needed."""


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the metrics of one split."""
    clusters = [answer.question.cluster for answer in answers]
    said = [parse(answer) for answer in answers]
    truth = [str(answer.question.reference) for answer in answers]
    if answers and answers[0].question.split == "yes_no":
        return {"strict": metrics.yes_no_scores(clusters, truth, said, generator, resamples)}
    summed = metrics.per_cluster(clusters, metrics.class_counts(truth, said))
    return {"strict": metrics.bootstrap(summed, metrics.class_metrics, len(answers), generator, resamples)}
