"""Samples that are held out of training: which they are, and what the model says about them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from balsa_ray.audio.reference import parse
from balsa_ray.identity import stable_hash, unit
from balsa_ray.training.metrics import rewind

REPLIES = "replies.jsonl"


def split(samples: pa.Table, seed: int, share: float, most: int) -> tuple[pa.Table, pa.Table]:
    """Parts samples by their recordings: none that is heard in validation is heard in training.

    Args:
        samples: With the columns `id` and `audio`.
        seed: Of the run.
        share: Of the recordings that are held out, keyed by their names; slices of a recording go together.
        most: Of the samples about them, so many are kept for validation, drawn by id; the others are not used.

    Returns:
        The samples to train on, and those to validate on, both in the order of `samples`.
    """
    if not share:
        return samples, samples.slice(0, 0)
    held_out = np.array([any(unit(seed, "validation", _recording(audio)) < share for audio in clips)
                         for clips in samples["audio"].to_pylist()], dtype=bool)  # fmt: skip
    validation = samples.filter(pa.array(held_out))
    return samples.filter(pa.array(~held_out)), validation.take(
        np.sort(drawn(validation["id"].to_pylist(), seed, most))
    )


def drawn(ids: Sequence[str], seed: int, number: int) -> np.ndarray:
    """Returns the places of so many of the ids, drawn by the seed and the ids alone, in the order drawn."""
    order = sorted(range(len(ids)), key=lambda place: stable_hash("validation", seed, ids[place]))
    return np.array(order[:number], np.int64)


class RepliesWriter:
    """Writes what the model says to `OUTPUT/replies.jsonl`, a line a reply. Only rank 0 has one."""

    def __init__(self, output: Path, step: int) -> None:
        """Drops what was said after `step`, from which the run goes on."""
        self._path = output / REPLIES
        rewind(self._path, step)

    def write(self, step: int, said: Sequence[dict[str, Any]]) -> None:
        """Adds the replies of a step."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": step} | reply, ensure_ascii=False) + "\n" for reply in said)


def _recording(audio: str) -> str:
    reference = parse(audio)
    return f"{reference.path}#{reference.row}#{reference.place}"
