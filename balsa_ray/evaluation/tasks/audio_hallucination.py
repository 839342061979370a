"""`audio_hallucination`: is there a sound of X in the audio? The published questions about AudioCaps' test clips.

The discriminative task of Kuan et al., Interspeech 2024 (arXiv 2406.08402), from
github.com/kuan2jiu99/audio-hallucination and the three Hugging Face sets AudioHallucination_AudioCaps-Random, -Popular
and -Adversarial, whose licence is not known here. Read are the Parquet, CSV and TSV files below the folder, whatever
their names, that have columns `entry_id, audio_index, prompt_text, object, attribute, label, sampling`. Recordings are
looked up by `audio_index`, which is "Y" and the id at YouTube, also without the "Y". Splits are `random`, `popular` and
`adversarial`, as `sampling` says.

The popular and adversarial sets are flawed (a copy that others have published was examined, not the sets themselves):

- with templates 2 to 5, nine in ten of the sounds that should be present are those of another clip;
- of the popular set's absent sounds a quarter are present ("speech" is asked as absent of every clip).

They are asked as published. Ours: `contradictory` in the strict block is the share of the questions that call a sound
absent which another question of the split calls present in the same clip, whichever of the two is right; and
`templates: 1` asks only those of template 1 ("Is there a sound of …"), the only ones whose present sounds are the
clip's. `existence` makes questions without these flaws from any labelled manifest.

Official: the published parser and figures, of the answer "no"; the paper prints their mean over the five templates,
the published scorer figures of all rows together, and so do we. `prefix: P1` to `P8` puts a sentence of the paper's
study of prompts before each question, with a space between. The sentences are as others report them, not checked
against the paper; how it joined them isn't known here.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import metrics, yes_no
from balsa_ray.evaluation.files import AudioFolder, rows, with_columns
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import stable_hash
from balsa_ray.prompts.render import questions

SPLITS = ("random", "popular", "adversarial")
PARSERS = yes_no.PARSERS
NEEDS = "Parquet or CSV files with audio_index, prompt_text and sampling"

_TEXTS = ("audio_index", "prompt_text", "object", "attribute", "label", "sampling")
_COLUMNS = {"entry_id": object} | dict.fromkeys(_TEXTS, str)

parse, correct, judge_prompt = yes_no.parse, yes_no.correct, yes_no.judge_prompt


def templates_hash() -> str:
    """Returns the hash of the eight prefixes; the published questions are asked word for word."""
    return stable_hash("as published", questions()["prefixes"])


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of all files, with the path `audio` beside the published columns.

    Raises:
        UserError: If there is no file, or a row isn't as published.
    """
    tables = with_columns(path, ("audio_index", "prompt_text", "sampling"))
    if not tables:
        raise UserError(f"data_root: {path}: no {NEEDS}")
    recordings = AudioFolder(path if path.is_dir() else path.parent)
    first_seen: dict[tuple[str, str], str] = {}
    audio: dict[str, str] = {}
    out = []
    for table in tables:
        for number, row in enumerate(rows(table, _COLUMNS), 1):
            where = f"{table}: row {number}"
            split, label = row["sampling"].strip().lower(), row["label"].strip().lower()
            if split not in SPLITS:
                raise UserError(f"{where}: sampling: should be one of {', '.join(SPLITS)}, is {row['sampling']!r:.80}")
            if label not in ("yes", "no"):
                raise UserError(f"{where}: label: should be Yes or No, is {row['label']!r:.80}")
            earlier = first_seen.setdefault((split, str(row["entry_id"])), where)
            if earlier != where:
                raise UserError(f"{where}: entry_id: {row['entry_id']!r} stands in {earlier} already ({split})")
            index = row["audio_index"]
            if index not in audio:
                audio[index] = _recording(recordings, index)
            out.append(row | {"sampling": split, "label": label, "audio": audio[index]})
    return out


def _recording(recordings: AudioFolder, index: str) -> str:
    found = recordings.find(index)
    without = recordings.find(index.removeprefix("Y"))
    return without if Path(without).exists() and not Path(found).exists() else found


def plan(rows: Sequence[dict[str, Any]], seed: int, templates: int = 5, prefix: str | None = None) -> list[Question]:
    """Returns the published questions, clip by clip.

    Args:
        rows: What `read` returned.
        seed: Not used: nothing is drawn.
        templates: How many of the five templates are asked, from the first on.
        prefix: Which sentence stands before each question, `P1` to `P8`; None: none.

    Raises:
        UserError: If only some templates are asked, and a row's is none of the five.
    """
    kinds = [_template(row) for row in rows]
    for row, kind in zip(rows, kinds, strict=True):
        if kind is None and templates < 5:
            raise UserError(f"audio_hallucination.templates: {_name(row)}: {row['prompt_text']!r} is none of the five")
    present: defaultdict[str, list[str]] = defaultdict(list)
    for row, kind in zip(rows, kinds, strict=True):
        if kind == 1 and row["label"] == "yes":
            present[row["audio_index"]].append(row["object"])
    asked = [row for row, kind in zip(rows, kinds, strict=True) if templates == 5 or (kind or 0) <= templates]
    place = {index: number for number, index in enumerate(dict.fromkeys(row["audio_index"] for row in asked))}
    asked.sort(key=lambda row: (place[row["audio_index"]], SPLITS.index(row["sampling"])))
    out = [
        Question(
            id=_name(row),
            split=row["sampling"],
            clips=(_clip(row, present),),
            prompt=row["prompt_text"],
            reference=row["label"],
            object=row["object"],
        )
        for row in asked
    ]
    return yes_no.prefixed(out, prefix)


def _name(row: dict[str, Any]) -> str:
    return f"{row['sampling']}/{row['entry_id']}"


def _template(row: dict[str, Any]) -> int | None:
    """Returns which of the five templates a row is asked with, from 1, if any."""
    for number, wording in enumerate(questions()["existence"], 1):
        if row["prompt_text"].startswith(wording.partition("{label}")[0]):
            return number
    return None


def _clip(row: dict[str, Any], present: dict[str, list[str]]) -> dict[str, Any]:
    """Returns a clip; its tags, for a model that reads labels, are the present sounds of template 1."""
    clip = {"id": row["audio_index"], "audio": row["audio"]}
    tags = list(dict.fromkeys(present.get(row["audio_index"], ())))
    return clip | {"tags": tags} if tags else clip


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the published figures of a split, and the strict ones with the share of contradictory questions."""
    found = yes_no.score(answers, generator, resamples)
    sounds = [(answer.question.cluster, answer.question.object) for answer in answers]
    right = [yes_no.right_answer(answer) for answer in answers]
    present = {sound for sound, label in zip(sounds, right, strict=True) if label == "yes"}
    contradictory = [label == "no" and sound in present for sound, label in zip(sounds, right, strict=True)]
    named = [bool(sound) for _, sound in sounds]  # others' files may not say what was asked for
    clips = [answer.question.cluster for answer in answers]
    found["strict"] |= metrics.shares(clips, {"contradictory": (contradictory, named)}, generator, resamples)
    return found
