"""`sakura`: what is heard, and what follows from it: single-hop and multi-hop questions about the same clips.

SAKURA (Yang et al., Interspeech 2025, arXiv 2505.13237), from github.com/ckyang1124/SAKURA; its licence is not known
here. A track (`Gender`, `Language`, `Emotion`, `Animal`) is a folder with `metadata.csv`, columns `file,
attribute_label, single_instruction, single_answer, multi_instruction, multi_answer`, and recordings in `audio/`. The
tracks that are there are read. Instructions hold their options, "(a) cat (b) dog", and are asked as they stand.

Official: a judge (the paper's is gpt-4o-2024-11-20 at temperature 0) says whether a reply chooses exactly one option,
and the right one; without a judge there are no such figures. A judgement that can't be read counts as wrong, as
`unparsed`. The judge's prompt is in our own words: the figures come close to the published ones and are not the same.
Strict, ours: the option is read by a parser. Splits are track and hop. Those of a whole track, and `all`, have as ours
`multi_given_single`: of the clips whose single-hop question was answered rightly, how often the multi-hop one was too.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import metrics, multiple_choice, parsers
from balsa_ray.evaluation.files import AudioFolder, named, rows
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import stable_hash

PARSERS = {"official": parsers.JUDGEMENT, "strict": parsers.STRICT_OPTION}
NEEDS = "folders Gender, Language, Emotion or Animal with metadata.csv and audio"
TRACKS = ("gender", "language", "emotion", "animal")
HOPS = ("single", "multi")

_TEXTS = ("file", "single_instruction", "single_answer", "multi_instruction", "multi_answer")
_COLUMNS = dict.fromkeys(_TEXTS, str) | {"attribute_label": object}
_JUDGE = """A model heard a recording and was asked a question with options. Decide whether its reply is right.

Question: {question}
Right option: {reference}
Reply: {response}

The reply is right if it settles on exactly one option, by its letter or words, and that is the right option. It is \
wrong if it settles on another one, on several, or on none. How it is put, and how it is reasoned, does not matter.
Answer in two lines of this form:
Explanation: why, in a sentence
Judgement: correct or incorrect"""

correct = multiple_choice.correct


def templates_hash() -> str:
    """Returns the hash of the judge's prompt; the questions are asked as published."""
    return stable_hash(_JUDGE)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of all tracks, with `track` and the path `audio` beside the published columns.

    Raises:
        UserError: If there is no track, or a row isn't as published.
    """
    tables = [file for file in named(path, r"metadata\.csv") if file.parent.name.lower() in TRACKS]
    if not tables:
        raise UserError(f"data_root: {path}: no {NEEDS}")
    first_seen: dict[tuple[str, str], str] = {}
    out = []
    for table in sorted(tables, key=lambda table: TRACKS.index(table.parent.name.lower())):
        track, recordings = table.parent.name.lower(), AudioFolder(table.parent)
        for number, row in enumerate(rows(table, _COLUMNS), 1):
            where = f"{table}: row {number}"
            earlier = first_seen.setdefault((track, row["file"]), where)
            if earlier != where:
                raise UserError(f"{where}: file: {row['file']!r} stands in {earlier} already")
            for hop in HOPS:
                if _reference(row[f"{hop}_answer"], inline_options(row[f"{hop}_instruction"])) is None:
                    answer = row[f"{hop}_answer"]
                    raise UserError(f"{where}: {hop}_answer: {answer!r} is none of the options of {hop}_instruction")
            out.append(row | {"track": track, "audio": recordings.find(row["file"])})
    return out


def inline_options(instruction: str) -> list[str]:
    """Returns the options that stand in a question, letters included: `(a) cat`, `(b) dog`."""
    begins: list[re.Match[str]] = []
    for match in re.finditer(r"\(([a-z])\)", instruction, re.IGNORECASE):
        if match[1].lower() == ascii_lowercase[len(begins)]:  # not the "(s)" of "animal(s)"
            begins.append(match)
    ends = [*(match.start() for match in begins[1:]), len(instruction)]
    options = []
    for match, end in zip(begins, ends, strict=False):
        words = instruction[match.end() : end].strip().partition("\n")[0]  # what follows the last one isn't of it
        options.append(f"({match[1].lower()}) {words.strip(' ,;')}")
    return options


def _reference(answer: str, options: Sequence[str]) -> str | None:
    """Returns the option that a published answer means: by its letter, or by its words if it has none."""
    letter = re.match(r"\s*(\([a-z]\))", answer, re.IGNORECASE)
    for option in options:
        if option.startswith(letter[1].lower()) if letter else option[4:].lower() == answer.strip().lower():
            return option
    return None


def plan(rows: Sequence[dict[str, Any]], seed: int, tracks: Sequence[str] = ()) -> list[Question]:
    """Returns the two questions about each clip.

    Args:
        rows: What `read` returned.
        seed: Not used: nothing is drawn.
        tracks: Those to ask; none: all that are there.
    """
    out = []
    for row in rows:
        if tracks and row["track"] not in tracks:
            continue
        name = f"{row['track']}/{row['file']}"
        for hop in HOPS:
            asked = row[f"{hop}_instruction"]
            options = inline_options(asked)
            question = Question(
                id=f"{name}/{hop}",
                split=f"{row['track']} {hop}",
                clips=({"id": name, "audio": row["audio"]},),
                prompt=asked,
                reference=_reference(row[f"{hop}_answer"], options) or "",
                object=str(row["attribute_label"] or ""),
                choices=tuple(options),
                extra={"hop": hop, "choices": options},
                also=(row["track"], f"all {hop}", "all"),
            )
            out.append(question)
    return out


def parse(answer: Answer) -> str:
    """Returns the option that a reply decides for, or ""."""
    question = answer.question
    found = question.choices or question.extra.get("choices") or inline_options(question.prompt)
    return parsers.strict_option(answer.response, found)


def judge_prompt(answer: Answer) -> str:
    """Returns what the judge is asked about a reply."""
    question = answer.question
    return _JUDGE.format(question=question.prompt, reference=question.reference, response=answer.response)


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the accuracy by the judge, of what was judged, and the strict one; of both hops how they go together."""
    chosen = [parse(answer) for answer in answers]
    right = [correct(answer, option) for answer, option in zip(answers, chosen, strict=True)]
    found = {"strict": _figures(answers, right, chosen, generator, resamples)}
    judged = [answer for answer in answers if answer.judgement is not None]
    if judged:
        said = [parsers.judgement(answer.judgement or "") for answer in judged]
        right = [judgement == "correct" for judgement in said]
        found["official"] = _figures(judged, right, said, generator, resamples)
    return found


def _figures(
    answers: Sequence[Answer],
    right: Sequence[bool],
    said: Sequence[str],
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, metrics.Metric]:
    hops = np.array([answer.question.extra.get("hop", "single") for answer in answers])
    clips = [answer.question.cluster for answer in answers]
    heard = {clip for clip, hop, hit in zip(clips, hops, right, strict=True) if hit and hop == "single"}
    after = np.array([clip in heard for clip in clips]) & (hops == "multi")
    figures = {
        "accuracy": (right, True),
        "multi_given_single": (right, after),
        "unparsed": ([not s for s in said], True),
    }
    return metrics.shares(clips, figures, generator, resamples)
