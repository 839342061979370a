"""`aqua_bench`: questions about a recording that can't all be answered: does the model say so?

AQUA-Bench (Kuan and Lee, ICASSP 2026, arXiv 2601.12248), from github.com/kuan2jiu99/aqua-bench; its repository names no
licence. Read are the files `AQUA-Bench-*-Sounds-Track*.json` (some are published as `AUQA-…`), found anywhere below the
folder: three tracks (animals from ESC-50, vocal sounds from VocalSound, instruments from a Kaggle set), each as
published and in three variants of its abstaining options. A file is a list of rows with `id, type, question, options,
answer, audio_filename`, in groups of four about one clip:

- `Solvable`: one of the options is right;
- `AAD` (absent answer detection): the right answer is not among the options;
- `IASD` (incompatible answer set detection): the options are of another kind than what is asked;
- `IAQD` (incompatible audio question detection): the audio can't tell.

Of the last three the right option is (e), "None of the above" or "Unanswerable". `question` holds the options and is
asked as it stands. Recordings are looked up by file name, those of instruments by their folder too (`Piano/302.wav`):
the same numbers name clips of all instruments.

Official: the accuracy of each type, and, as `conditional_*`, that of the three unanswerable types in groups whose
solvable question was answered rightly (the figures of the paper's table). Its extractor takes the first a to e at the
end of a word: verbose replies become abstentions. A question without an answer, which stops the published scorer,
leaves its group incomplete here: it counts in nothing, and where it is the solvable one its group isn't conditional.
Ours, beside the strict parser: `accuracy` of all types.
"""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import metrics, multiple_choice, parsers
from balsa_ray.evaluation.files import AudioFolder, named, rows
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import stable_hash

PARSERS = {"official": parsers.AQUA_BENCH, "strict": parsers.STRICT_OPTION}
NEEDS = "files AQUA-Bench-*-Sounds-Track*.json of the tracks and variants that are set"
TRACKS = {"Animal": "animal", "Vocal": "vocal", "Music-Instruments": "instrument"}
VARIANTS = {"": "published", "Option-Design1": "design1", "Option-Design2": "design2", "Uncertainty": "uncertainty"}
TYPES = ("Solvable", "AAD", "IASD", "IAQD")

_NAME = rf"A[QU]{{2}}A-Bench-({'|'.join(TRACKS)})-Sounds-Track(?:-({'|'.join(filter(None, VARIANTS))}))?\.json"
_COLUMNS = {"id": object, "type": str, "question": str, "options": list, "answer": str, "audio_filename": str}

parse, correct, judge_prompt = multiple_choice.parse, multiple_choice.correct, multiple_choice.judge_prompt


def templates_hash() -> str:
    """Returns the hash of nothing: the published questions are asked word for word."""
    return stable_hash("as published")


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of all files, with `track`, `variant`, `group` and the path `audio` beside their columns.

    Raises:
        UserError: If there is no file, one stands there twice, or a row isn't as published.
    """
    found: dict[tuple[str, str], Path] = {}
    for file in named(path, _NAME):
        match = re.fullmatch(_NAME, file.name, re.IGNORECASE)
        if not match:
            raise UserError(f"{file}: the name doesn't say which track it is: AQUA-Bench-Animal-Sounds-Track.json, say")
        key = _known(TRACKS, match[1]), _known(VARIANTS, match[2] or "")
        if key in found:
            raise UserError(f"{file}: the same track and variant as {found[key]}: remove one")
        found[key] = file
    if not found:
        raise UserError(f"data_root: {path}: no {NEEDS}")
    recordings = AudioFolder(path if path.is_dir() else path.parent)
    keys = [key for key in product(TRACKS.values(), VARIANTS.values()) if key in found]
    return [row for key in keys for row in _rows(found[key], *key, recordings)]


def _known(names: dict[str, str], name: str) -> str:
    return next(value for key, value in names.items() if key.lower() == name.lower())


def _rows(file: Path, track: str, variant: str, recordings: AudioFolder) -> list[dict[str, Any]]:
    table = rows(file, _COLUMNS)
    if len(table) % len(TYPES):
        raise UserError(f"{file}: {len(table)} rows are no groups of {len(TYPES)}")
    first_seen: dict[Any, int] = {}
    out = []
    for number, row in enumerate(table, 1):
        where, kind = f"{file}: row {number}", TYPES[(number - 1) % len(TYPES)]
        if row["type"].lower() != kind.lower():
            raise UserError(f"{where}: type: should be {kind}, is {row['type']!r}: groups are {', '.join(TYPES)}")
        if row["answer"] not in row["options"]:
            raise UserError(f"{where}: answer: {row['answer']!r} is none of the options")
        earlier = first_seen.setdefault(str(row["id"]), number)
        if earlier != number:
            raise UserError(f"{where}: id: {row['id']!r} stands in row {earlier} already")
        audio = recordings.find(row["audio_filename"], folders=1 if track == "instrument" else 0)
        group = f"{track}/{variant}/{(number - 1) // len(TYPES)}"
        out.append(row | {"type": kind, "track": track, "variant": variant, "group": group, "audio": audio})
    return out


def plan(
    rows: Sequence[dict[str, Any]], seed: int, tracks: Sequence[str] = (), variants: Sequence[str] = ("published",)
) -> list[Question]:
    """Returns the published questions, in their order.

    Args:
        rows: What `read` returned.
        seed: Not used: nothing is drawn.
        tracks: Those to ask; none: all that are there.
        variants: Those to ask.
    """
    return [
        Question(
            id=f"{_split(row)}/{row['id']}",
            split=_split(row),
            clips=({"id": "/".join(PurePosixPath(row["audio_filename"]).parts[-2:]), "audio": row["audio"]},),
            prompt=row["question"],
            reference=row["answer"],
            choices=tuple(row["options"]),
            extra={"type": row["type"], "group": row["group"], "choices": row["options"]},
        )
        for row in rows
        if (not tracks or row["track"] in tracks) and row["variant"] in variants
    ]


def _split(row: dict[str, Any]) -> str:
    return row["track"] if row["variant"] == "published" else f"{row['track']} {row['variant']}"


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the published accuracies and the strict ones of a track."""
    kinds = np.array([_type(answer) for answer in answers])
    groups = [answer.question.extra.get("group") or answer.question.cluster for answer in answers]
    letters = [parsers.aqua_bench_letter(a.response, multiple_choice.options(a)) for a in answers]
    chosen = [parse(answer) for answer in answers]
    found = {}
    for block, read_as, right in (
        ("official", letters, [letter == _letter(a) for a, letter in zip(answers, letters, strict=True)]),
        ("strict", chosen, [correct(a, option) for a, option in zip(answers, chosen, strict=True)]),
    ):
        solved = {group for group, kind, hit in zip(groups, kinds, right, strict=True) if hit and kind == "Solvable"}
        after = np.array([group in solved for group in groups])
        figures = {"accuracy": (right, True)} if block == "strict" else {}
        figures |= {kind.lower(): (right, kinds == kind) for kind in TYPES}
        figures |= {f"conditional_{kind.lower()}": (right, after & (kinds == kind)) for kind in TYPES[1:]}
        figures["unparsed"] = ([not said for said in read_as], True)
        clusters = [answer.question.cluster for answer in answers]
        found[block] = metrics.shares(clusters, figures, generator, resamples)
    return found


def _type(answer: Answer) -> str:
    said = str(answer.question.extra.get("type", "")).lower()
    for kind in TYPES:
        if kind.lower() == said:
            return kind
    raise UserError(f"aqua_bench: {answer.question.id}: type: must be one of {', '.join(TYPES)}, not {said!r}")


def _letter(answer: Answer) -> str:
    """Returns the letter of the right option; "" without one, which the published scorer takes for a match of none."""
    options = list(multiple_choice.options(answer))
    reference = answer.question.reference
    return chr(ord("A") + options.index(str(reference))) if reference in options else ""
