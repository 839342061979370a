"""`edansa`: is it in this soundscape? Questions of ours about Arctic soundscapes (EDANSA-2019).

Çoban et al., EDANSA-2019: the Ecoacoustic Dataset from Arctic North Slope Alaska (DCASE 2022), from
zenodo.org/records/6824272; its code and labels are MIT-licensed. It has clips of ten seconds, or less, tagged with what
is heard, from human activity, animals, weather and water down to kinds of birds, and is made for tagging: there are
neither published questions nor an official scorer. How BALSa's "EDANSA AQA" asks is not known either, so these figures
are not comparable with it.

Read is `labels.csv`: the columns `Clip Path` and `set` (`train`, `valid`, `test`), and from the tenth column on a label
each, 0 or 1; the recordings are found by `Clip Path` below the same folder (as published: below `data/`). Only the test
set is asked unless `sets` says otherwise: the sets are of different sites.

Ours: each clip is asked whether its labels are there, and as many absent ones, drawn, among the labels that any asked
clip has; so half of the answers are no. The words for the labels are in `edansa.yaml`. A clip with "bird" and no kind
of bird is not asked about kinds: which one it is was not written down. Nor is anybody asked about silence (`Sil`), and
a clip with nothing else gives no question.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files as packaged
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from balsa_ray.config import UserError
from balsa_ray.evaluation import files, metrics, parsers
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import pick, rng, stable_hash
from balsa_ray.prompts.render import questions

PARSERS = {"strict": parsers.STRICT_YES_NO}
NEEDS = "labels.csv"
Set = Literal["train", "valid", "test"]

_SETS = ("train", "valid", "test")
_FIRST_LABEL = 9
_NOT_ASKED = "Sil"


@cache
def labels() -> dict[str, dict[str, str]]:
    """Returns the packaged labels: column to its `words`, and to the next `wider` column."""
    text = packaged("balsa_ray.evaluation.tasks").joinpath("edansa.yaml").read_text("utf-8")
    return dict(yaml.safe_load(text))


def templates_hash() -> str:
    """Returns the hash of the wordings and of the labels' words."""
    return stable_hash(questions()["existence"], labels())


def read(path: Path) -> list[dict[str, Any]]:
    """Returns all clips, with the columns of their labels as `present` and the words of these as tags.

    Raises:
        UserError: If the table isn't there, has a label that isn't known, or a clip stands twice.
    """
    table = path / NEEDS
    found = files.rows(table, {"Clip Path": str, "set": str})
    columns = [column for column in list(found[0])[_FIRST_LABEL:] if column != _NOT_ASKED]
    unknown = next((column for column in columns if column not in labels()), None)
    if unknown or not columns:
        told = f"{unknown}: not a label of EDANSA-2019" if unknown else "no labels from the tenth column on"
        raise UserError(f"{table}: {told}")
    recordings = files.AudioFolder(path)
    clips: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(found, 1):
        where, name = f"{table}: row {number}", row["Clip Path"].strip()
        if row["set"] not in _SETS:
            raise UserError(f"{where}: set: must be one of {', '.join(_SETS)}, not {row['set']!r}")
        if name in clips:
            raise UserError(f"{where}: Clip Path: {name!r} stands in an earlier row already")
        present = [column for column in columns if _is_there(row.get(column), f"{where}: {column}")]
        clips[name] = {
            "id": name,
            "audio": recordings.find(name, name.count("/")),
            "tags": [labels()[one]["words"] for one in present],
            "set": row["set"],
            "present": present,
        }
    return list(clips.values())


def _is_there(cell: Any, where: str) -> bool:
    try:
        return {0.0: False, 1.0: True}[float(cell)]
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{where}: must be 0 or 1, not {cell!r}") from error


def plan(clips: Sequence[dict[str, Any]], seed: int, sets: Sequence[Set] = ("test",)) -> list[Question]:
    """Returns the questions about every clip of the sets, clip by clip.

    Args:
        clips: What `read` returned.
        seed: Key of every choice, together with the clip's id.
        sets: Which sets are asked.
    """
    asked = [clip for clip in clips if clip["set"] in sets]
    everything = sorted({label for clip in asked for label in clip["present"]})
    return [question for clip in asked for question in _about(clip, everything, seed)]


def _about(clip: dict[str, Any], everything: Sequence[str], seed: int) -> list[Question]:
    draw = rng(seed, "edansa", clip["id"])
    present, absent = clip["present"], _absent(clip["present"], everything)
    number = min(len(present), len(absent))
    chosen = [(present[i], "yes") for i in sorted(draw.permutation(len(present))[:number])]
    chosen += [(absent[i], "no") for i in draw.permutation(len(absent))[:number]]
    out = []
    for label, reference in chosen:
        words = labels()[label]["words"]
        wording = pick(seed, ("edansa", clip["id"], label), questions()["existence"])
        out.append(
            Question(
                id=stable_hash("edansa", clip["id"], label, wording),
                split="all",
                clips=(clip,),
                prompt=wording.format(label=words),
                reference=reference,
                object=words,
            )
        )
    return out


def _absent(present: Sequence[str], everything: Sequence[str]) -> list[str]:
    """Returns the labels that a clip can be said to lack: no wider ones of what it has, no kinds that nobody named."""
    wider = {one for label in present for one in _wider(label)}
    unnamed = {label for label in present if label not in wider}
    return [one for one in everything if one not in wider.union(present) and unnamed.isdisjoint(_wider(one))]


def _wider(label: str) -> list[str]:
    """Returns all wider labels, the next one first."""
    found = labels()[label].get("wider")
    return [found, *_wider(found)] if found else []


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
    """Returns the metrics of yes/no questions, ours."""
    clusters, said = [answer.question.cluster for answer in answers], [parse(answer) for answer in answers]
    references = [str(answer.question.reference) for answer in answers]
    return {"strict": metrics.yes_no_scores(clusters, references, said, generator, resamples)}
