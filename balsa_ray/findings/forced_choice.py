"""Yes or no, if there is nothing else to say: how much likelier the model finds "Yes" than "No" as a reply's beginning.

A free reply may be neither. The margin between the two words always is something, its sign is a forced choice, and how
well it ranks questions (AUC) does not depend on where the model draws the line.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balsa_ray.audio.decode import decode
from balsa_ray.evaluation.answers import write_rows
from balsa_ray.evaluation.metrics import Metric, from_spread
from balsa_ray.evaluation.questions import Question
from balsa_ray.identity import rng

Floats = npt.NDArray[np.float64]
BATCH = 64


def write_margins(model: Path, questions: Sequence[Question], path: Path) -> None:
    """Writes log P("Yes") − log P("No"), in nats, of the first token of a reply to each question.

    Args:
        model: Directory of a trained model.
        questions: Yes/no questions about one clip each, those about a clip together.
        path: JSON Lines with `id`, `split`, `clip`, `reference` and `margin`.
    """
    import torch

    from balsa_ray.model.modeling import BalsaForConditionalGeneration
    from balsa_ray.model.processing import BalsaProcessor

    processor = BalsaProcessor.from_pretrained(model)
    loaded = BalsaForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    yes, no = (processor.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("Yes", "No"))
    rate = processor.feature_extractor.sampling_rate
    clips: dict[str, Any] = {}
    rows = []
    for _, group in groupby(enumerate(questions), key=lambda item: item[0] // BATCH):
        asked = [question for _, question in group]
        for question in asked:
            clip = question.clips[0]
            if clip["id"] not in clips:
                clips[clip["id"]] = decode(clip["audio"], sampling_rate=rate)
        prompts = [processor.prompt_text(question.prompt, 1) for question in asked]
        inputs = processor(prompts, [clips[question.clips[0]["id"]] for question in asked])
        with torch.inference_mode():
            logits = loaded(**inputs, logits_to_keep=1).logits[:, -1]
        margins = (logits[:, yes] - logits[:, no]).tolist()
        for question, margin in zip(asked, margins, strict=True):
            known = {"id": question.id, "split": question.split, "clip": question.clips[0]["id"]}
            rows.append(known | {"reference": question.reference, "margin": round(margin, 4)})
    write_rows(path, rows)


def read_margins(path: Path) -> list[dict[str, Any]]:
    """Returns what `write_margins` wrote."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def scores(rows: Sequence[dict[str, Any]], seed: int, resamples: int) -> dict[str, dict[str, Metric]]:
    """Returns accuracy, yes-rate and AUC in percent by split, with the resamples over clips.

    The resamples depend on the clips alone: those of two models, and of splits about the same clips, can be paired.
    """
    out = {}
    for split in dict.fromkeys(row["split"] for row in rows):
        of = [row for row in rows if row["split"] == split]
        names = {name: place for place, name in enumerate(dict.fromkeys(row["clip"] for row in of))}
        clip = np.array([names[row["clip"]] for row in of])
        truth = np.array([row["reference"] == "yes" for row in of])
        margin = np.array([row["margin"] for row in of])
        draw = rng(seed, "bootstrap", "forced_choice")
        drawn = draw.integers(0, len(names), size=(resamples, len(names)))
        times = np.stack([np.bincount(row, minlength=len(names)) for row in drawn])[:, clip].astype(float)
        whole, spread = (_figures(weights, truth, margin) for weights in (np.ones((1, len(of))), times))
        out[split] = {name: from_spread(float(value[0]), spread[name], len(of)) for name, value in whole.items()}
    return out


def _figures(weights: Floats, truth: npt.NDArray[np.bool_], margin: Floats) -> dict[str, Floats]:
    """Returns the figures `[R]` of questions that stand `weights` `[R, N]` times in a sample."""
    said = margin > 0
    whole = weights.sum(1)
    return {
        "accuracy": 100 * (weights * (said == truth)).sum(1) / whole,
        "yes_rate": 100 * (weights * said).sum(1) / whole,
        "auc": 100 * _auc(weights, truth, margin),
    }


def _auc(weights: Floats, truth: npt.NDArray[np.bool_], margin: Floats) -> Floats:
    """Returns how often a question with the answer yes has the greater margin than one with no; ties are a half."""
    order = np.argsort(margin, kind="stable")
    weights, truth, margin = weights[:, order], truth[order], margin[order]
    positive, negative = weights * truth, weights * ~truth
    below = np.cumsum(negative, axis=1) - negative
    starts = np.flatnonzero(np.append(True, np.diff(margin) > 0))
    sizes = np.diff(np.append(starts, len(margin)))
    tied = np.repeat(np.add.reduceat(negative, starts, axis=1), sizes, axis=1)
    below = np.repeat(below[:, starts], sizes, axis=1)
    pairs = positive.sum(1) * negative.sum(1)
    return (positive * (below + tied / 2)).sum(1) / np.maximum(pairs, 1)
