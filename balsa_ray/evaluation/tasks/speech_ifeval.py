"""`speech_ifeval`: does a model that hears still do as it is told? The benchmark Speech-IFEval.

Lu, Kuan and Lee (Interspeech 2025, arXiv 2505.19037), from github.com/kehanlu/Speech-IFEval, which names no licence;
the recordings keep those of LibriSpeech, IEMOCAP, MELD, Common Voice and MMAU. Read are, anywhere below the folder,
`closed_ended_questions.jsonl` (933 rows), `creative_writing.jsonl` (400) and `chain-of-thought.jsonl` (200) with
`audio_filepath, textual_audio, instruction, dataset, metric`, where there is one `label` and `id`, and in the first two
`instruction_id_list` and `kwargs`; the recordings by `audio_filepath` (as published: below `audios/`). Its questions
without an instruction, and whether closed ones are answered rightly, are not part of it here.

A question is asked as the authors do, with their system turn; they decode greedily, up to 2,048 tokens
(`sampling.max_tokens=2048`). `modality=metadata` asks it of a text model with `textual_audio` in place of the
recording, in the authors' form: so is the reference run made.

Official: `prompt_level` (all instructions followed), `instruction_level` and the groups of the published report, by its
rules, as far as they can be known (`evaluation/instructions.py` says which), and `cot_acc`, how often a judge says that
a reply to "think step by step" reasons. Theirs is GPT-4o with words of theirs; the judge's words here are ours, so
`cot_acc` depends on both, and stands only where a `judge` is set. A judgement that can't be read, at which their script
stops, counts as a no. `strict` is ours: the same figures by the careful rules.

In the split `all`: `if_rate`, the mean of the three rates (the published table's 89.23 for DeSTA2 is not the mean of
its row, 88.99), and `delta` = (if_rate − reference) / reference in percent, with `reference`: the `scores.json` of a
run of the text backbone, or its `predictions.jsonl`. The reference is taken as exact: the interval is that of this run
alone. It is read when questions are planned, and stands in the predictions.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.evaluation import files, metrics
from balsa_ray.evaluation.answers import read_predictions
from balsa_ray.evaluation.instructions import GROUPS, OFFICIAL, STRICT, follows, problem
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.identity import rng, stable_hash

PARSERS = {"official": "speech-ifeval-2025/1", "strict": "instructions/1"}
NEEDS = "closed_ended_questions.jsonl, creative_writing.jsonl and chain-of-thought.jsonl"
SPLITS = {
    "closed_ended": "closed_ended_questions",
    "creative_writing": "creative_writing",
    "cot": "chain-of-thought",
}
"""Split to the name of its file."""

_RULES = {"official": OFFICIAL, "strict": STRICT}
_SYSTEM = "Follow the given instructions."
_IN_WORDS = "Speech Input: {text}\n"
_JUDGE = """\
Somebody asked a language model something about a recording, and told it to reason. Does its reply reason? It does if it
does more than answer: if it takes the question apart, goes through steps, or says what speaks for the answer, whether
that is right or not. It does not if it only answers.

What was asked: {question}

The reply: {reply}

End with a line of its own: "Result: YES" if the reply reasons, or "Result: NO"."""
_RESULT = re.compile(r"(?<=result:\s)(yes|no)", re.IGNORECASE)
_LAST_RESULT = re.compile(r"\bresult\W*(yes|no)\b", re.IGNORECASE)
_COLUMNS: dict[str, type] = {"audio_filepath": str, "textual_audio": str, "instruction": str}


def templates_hash() -> str:
    """Returns the hash of the system turn, of what stands for a recording, and of the judge's question."""
    return stable_hash(_SYSTEM, _IN_WORDS, _JUDGE)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of all three files, each with its `split` and the path `audio`.

    Raises:
        UserError: If a file isn't there, a row isn't as published, or there is no rule for an instruction.
    """
    recordings = files.AudioFolder(path)
    out = []
    for split, name in SPLITS.items():
        table = files.only(path, re.escape(f"{name}.jsonl"), f"{name}.jsonl")
        seen: dict[str, int] = {}
        for number, row in enumerate(files.rows(table, _COLUMNS), 1):
            where = f"{table}: row {number}"
            # The published reasoning questions have no id.
            key = str(row.get("id", number))
            if seen.setdefault(key, number) != number:
                raise UserError(f"{where}: id: {key!r} stands in row {seen[key]} already")
            if split != "cot":
                _check(row, where)
            row |= {"id": key, "split": split, "audio": recordings.find(row["audio_filepath"], folders=1)}
            out.append(row)
    return out


def _check(row: Mapping[str, Any], where: str) -> None:
    ids, given = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(ids, list) or not ids:
        raise UserError(f"{where}: instruction_id_list: must be a list of instructions, not {ids!r}")
    if not isinstance(given, list) or len(given) != len(ids):
        raise UserError(f"{where}: kwargs: must be a list of {len(ids)}, as instruction_id_list is, not {given!r}")
    for name, arguments in zip(ids, given, strict=True):
        if wrong := problem(name, arguments):
            raise UserError(f"{where}: instruction_id_list: {wrong}")


def plan(rows: Sequence[dict[str, Any]], seed: int, reference: str | None = None) -> list[Question]:
    """Returns a question a row, those about a recording together.

    Args:
        rows: What `read` returned.
        seed: Not used: nothing is drawn.
        reference: `scores.json` or `predictions.jsonl` of the text backbone's run.

    Raises:
        UserError: If the reference can't be read, or no judge was asked there.
    """
    rates = _reference_rates(Path(reference)) if reference else {}
    together: dict[str, list[Question]] = {}
    for row in rows:
        # What is said of a recording differs between some rows.
        words = _IN_WORDS.format(text=row["textual_audio"])
        name = row["audio_filepath"]
        question = Question(
            id=f"{row['split']}-{row['id']}",
            split=row["split"],
            clips=({"id": name, "audio": row["audio"], "in_words": words},),
            prompt=row["instruction"],
            reference=str(row.get("label") or ""),
            system=_SYSTEM,
            extra={
                "instruction_id_list": row["instruction_id_list"] if row["split"] != "cot" else [],
                "kwargs": row["kwargs"] if row["split"] != "cot" else [],
                **({"reference_if_rate": rates} if rates else {}),
            },
            also=("all",),
        )
        together.setdefault(question.clips[0]["id"], []).append(question)
    return [question for group in together.values() for question in group]


def _reference_rates(path: Path) -> dict[str, float]:
    """Returns the reference's `if_rate` by block."""
    if path.suffix == ".json":
        try:
            splits = json.loads(path.read_text("utf-8"))["speech_ifeval"]["splits"]
            found = {name: float(splits["all"][name]["if_rate"]["value"]) for name in PARSERS}
        except OSError as error:
            raise UserError(f"speech_ifeval.reference: {path}: {(error.strerror or str(error)).lower()}") from error
        except (ValueError, KeyError, TypeError) as error:
            told = "no if_rate of speech_ifeval in split all: it takes all three splits and a judge"
            raise UserError(f"speech_ifeval.reference: {path}: {told}") from error
    else:
        answers = read_predictions(path)
        rates = {block: _together(block, answers, rng(0, "reference"), 1).get("if_rate") for block in PARSERS}
        found = {block: rate["value"] for block, rate in rates.items() if rate}
        if not found:
            raise UserError(f"speech_ifeval.reference: {path}: has to have all three splits and judgements of cot")
    if min(found.values()) <= 0:
        raise UserError(f"speech_ifeval.reference: {path}: nothing was followed there: there is no delta to 0")
    return found


def _flags(block: str, reply: str, given: Mapping[str, Any]) -> list[bool]:
    return follows(reply, given["instruction_id_list"], given["kwargs"], _RULES[block])


def _all_followed(block: str, reply: str, given: Mapping[str, Any], judgement: str | None) -> bool:
    flags = _flags(block, reply, given)
    return all(flags) if flags else _verdict(block, judgement or "") == "yes"


def _verdict(block: str, judgement: str) -> str:
    """Returns what a judge said, `yes`, `no` or "": the first time for the official rule, the last one for ours."""
    found = (_RESULT if block == "official" else _LAST_RESULT).findall(judgement)
    return (found[0] if block == "official" else found[-1]).lower() if found else ""


def parse(answer: Answer) -> list[str]:
    """Returns the instructions that a reply follows, by the strict rules; `cot`, if the judge says that it reasons."""
    given = _given(answer)
    if answer.question.split == "cot":
        return ["cot"] if _verdict("strict", answer.judgement or "") == "yes" else []
    flags = _flags("strict", answer.response, given)
    return [name for name, follow in zip(given["instruction_id_list"], flags, strict=True) if follow]


def correct(answer: Answer, parsed: list[str]) -> bool | None:
    """Whether all instructions are followed; None of a reply that should have been judged and wasn't."""
    if answer.question.split == "cot" and answer.judgement is None:
        return None
    return len(parsed) == max(1, len(_given(answer)["instruction_id_list"]))


def judge_prompt(answer: Answer) -> str | None:
    """Returns what a judge is asked about a reply to a question for reasoning."""
    if answer.question.split != "cot":
        return None
    return _JUDGE.format(question=answer.question.prompt, reply=answer.response)


def _given(answer: Answer) -> Mapping[str, Any]:
    """Returns the instructions of a question.

    Raises:
        UserError: If a predictions file lacks them, or there is no rule for one.
    """
    extra, question = answer.question.extra, answer.question
    if question.split == "cot":
        return {"instruction_id_list": [], "kwargs": []}
    _check(extra, question.id)
    return extra


def score(
    answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, dict[str, metrics.Metric]]:
    """Returns the rates of one split, or of `all` the three of them with their mean; none of `cot` without a judge."""
    splits = {answer.question.split for answer in answers}
    if len(splits) > 1:
        return {block: _together(block, answers, generator, resamples) for block in PARSERS}
    clusters = [answer.question.cluster for answer in answers]
    if splits == {"cot"}:
        figures = {block: _reasoning(block, answers) for block in PARSERS}
    else:
        figures = {block: _rules(block, answers) for block in PARSERS}
    return {block: _shares(clusters, of, generator, resamples) for block, of in figures.items()}


Parts = dict[str, list[tuple[float, float]]]
"""Figure to how much each answer adds to its part and to its whole."""


def _rules(block: str, answers: Sequence[Answer]) -> Parts:
    out: Parts = {"prompt_level": [], "instruction_level": []}
    names = [_given(answer)["instruction_id_list"] for answer in answers]
    groups = sorted({GROUPS[name] for of in names for name in of})
    for answer, of in zip(answers, names, strict=True):
        flags = _flags(block, answer.response, _given(answer))
        out["prompt_level"].append((all(flags), 1))
        out["instruction_level"].append((sum(flags), len(flags)))
        asked = Counter(GROUPS[name] for name in of)
        followed = Counter(GROUPS[name] for name, follow in zip(of, flags, strict=True) if follow)
        for group in groups:
            out.setdefault(group, []).append((followed[group], asked[group]))
    # Rules can read every reply; one without a word follows nothing.
    return out | {"unparsed": [(not answer.response.strip(), 1) for answer in answers]}


def _reasoning(block: str, answers: Sequence[Answer]) -> Parts:
    verdicts = [_verdict(block, answer.judgement) for answer in answers if answer.judgement is not None]
    if len(verdicts) < len(answers):
        return {}
    return {
        "cot_acc": [(verdict == "yes", 1) for verdict in verdicts],
        "unparsed": [(not verdict, 1) for verdict in verdicts],
    }


def _shares(
    clusters: Sequence[tuple[str, ...]], figures: Parts, generator: np.random.Generator, resamples: int
) -> dict[str, metrics.Metric]:
    if not figures:
        return {}
    counts = np.asarray([list(row) for row in zip(*figures.values(), strict=True)], float).reshape(len(clusters), -1)

    def statistic(summed: metrics.Counts) -> dict[str, metrics.Counts]:
        return {name: metrics.share(summed[..., 2 * i], summed[..., 2 * i + 1]) for i, name in enumerate(figures)}

    return metrics.bootstrap(metrics.per_cluster(clusters, counts), statistic, len(clusters), generator, resamples)


def _together(
    block: str, answers: Sequence[Answer], generator: np.random.Generator, resamples: int
) -> dict[str, metrics.Metric]:
    """Returns the rate of each split, their mean, and how far that is from the reference's."""
    of_split = {split: [a for a in answers if a.question.split == split] for split in SPLITS}
    judged = of_split["cot"] and all(answer.judgement is not None for answer in of_split["cot"])
    splits = [split for split, of in of_split.items() if of and (split != "cot" or judged)]
    # Answers that no judge has seen count for nothing; but their clips are drawn too, as in a run with a judge.
    counts = np.zeros((len(answers), len(splits), 2))
    for row, answer in zip(counts, answers, strict=True):
        if answer.question.split in splits:
            followed = _all_followed(block, answer.response, _given(answer), answer.judgement)
            row[splits.index(answer.question.split)] = followed, 1
    reference = _reference(answers, block)

    def statistic(summed: metrics.Counts) -> dict[str, metrics.Counts]:
        pairs = summed.reshape(*summed.shape[:-1], len(splits), 2)
        out = {name: metrics.ratio(pairs[..., i, 0], pairs[..., i, 1]) for i, name in enumerate(splits)}
        if len(splits) == len(SPLITS):
            out["if_rate"] = np.mean(list(out.values()), axis=0)
            if reference:
                out["delta"] = 100 * (out["if_rate"] - reference) / reference
        return out

    clusters = [answer.question.cluster for answer in answers]
    summed = metrics.per_cluster(clusters, counts.reshape(len(answers), -1))
    number = int(counts[..., 1].sum())
    return metrics.bootstrap(summed, statistic, number, generator, resamples) if number else {}


def _reference(answers: Iterable[Answer], block: str) -> float | None:
    """Returns the reference's rate, which stands with every question."""
    found = next((answer.question.extra.get("reference_if_rate") for answer in answers), None)
    rate = found.get(block) if isinstance(found, Mapping) else None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None
