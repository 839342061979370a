"""What an output holds, counted file by file, in the workers of a cluster or right here.

A pure function of the files: an output that was killed and taken up has the same statistics as one that was not. What
a file returns, and what the driver holds, does not grow with the number of rows.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np

from balsa_ray.audio.reference import parse
from balsa_ray.identity import unit
from balsa_ray.storage import parent
from balsa_ray.synthesis.gates import PASSED
from balsa_ray.synthesis.output import rows_in
from balsa_ray.synthesis.resume import Over, here

EXAMPLES = 40
"""Rows that the page shows of the samples, and at most of the rejected ones."""
LABELS = 50
"""The most frequent labels that are reported."""
LABELS_TOGETHER = 15
"""Those for which it is counted how often two stand together."""
EDGES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Where the bins of the histograms begin; the last has no end."""
HISTOGRAMS = ("prompt_tokens", "response_tokens", "response_words")


@dataclass
class Statistics:
    """What is known of the rows of an output.

    Attributes:
        corpora: Rows by (corpus, gate). A corpus is the folder of a row's first recording, or the tar or Parquet file.
        present: Samples by label that their metadata states.
        absent: Samples by label that their reply calls absent.
        together: Samples by pair of the most frequent labels in `present`, a label with itself included.
        histograms: Samples by bin of `EDGES`, for each of `HISTOGRAMS`.
        examples: Rows to show: a drawn number, file and place in it.
    """

    corpora: Counter[tuple[str, str]] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)
    absent: Counter[str] = field(default_factory=Counter)
    together: Counter[tuple[str, str]] = field(default_factory=Counter)
    histograms: dict[str, list[int]] = field(default_factory=lambda: {name: [0] * len(EDGES) for name in HISTOGRAMS})
    examples: list[tuple[float, str, int]] = field(default_factory=list)


def statistics(files: Sequence[Path], seed: int, over: Over = here) -> Statistics:
    """Counts the rows of files of samples or of rejected replies.

    Args:
        files: Parquet files as the contracts say.
        seed: Keys the choice of examples.
        over: Applies a function to files.
    """
    found = Statistics()
    for one in map(_content, over(partial(_count, seed), files)):
        found.corpora.update({(corpus, gate): rows for corpus, gate, rows in one["corpora"]})
        found.present.update(one["present"])
        found.absent.update(one["absent"])
        for name, bins in one["histograms"].items():
            found.histograms[name] = [a + b for a, b in zip(found.histograms[name], bins, strict=True)]
        found.examples = heapq.nsmallest(EXAMPLES, [*found.examples, *map(tuple, one["examples"])])
    frequent = frozenset(label for label, _ in _first(found.present, LABELS_TOGETHER))
    if frequent:
        for one in map(_content, over(partial(_count_together, frequent), files)):
            found.together.update({(a, b): rows for a, b, rows in one})
    return found


def most_frequent(counted: Counter[str], number: int = LABELS) -> dict[str, int]:
    """Returns the most frequent labels and their rows; of equally frequent ones the first in the alphabet."""
    return dict(_first(counted, number))


def rows_at(places: Iterable[tuple[float, str, int]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the rows at some places of files, in that order."""
    return [_row_at(file, place, columns) for _, file, place in places]


def _row_at(file: str, place: int, columns: Sequence[str]) -> dict[str, Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            if place < (rows := opened.metadata.row_group(group).num_rows):
                return dict(opened.read_row_group(group, columns=list(columns)).slice(place, 1).to_pylist()[0])
            place -= rows
    raise IndexError(f"{file}: has no row {place} more")


def corpus_of(audio: str) -> str:
    """Returns what a recording belongs to: its folder, or the file that holds it with others."""
    reference = parse(audio)
    inside = reference.row is not None or reference.place is not None
    return reference.path if inside else parent(reference.path)


def _first(counted: Counter[str], number: int) -> list[tuple[str, int]]:
    return heapq.nsmallest(number, counted.items(), key=lambda item: (-item[1], item[0]))


def _content(row: dict[str, Any]) -> Any:
    return json.loads(row["statistics"])


def _count(seed: int, file: str) -> dict[str, Any]:
    corpora, present, absent = (Counter[Any]() for _ in range(3))
    lengths: dict[str, list[int]] = {name: [] for name in HISTOGRAMS}
    draws: list[float] = []
    columns = ["id", "audio", "gate", "present", "absent", "prompt_tokens", "response_tokens", "response"]
    for row in rows_in(file, columns):
        draws.append(unit(seed, "example", row["id"]))
        if row["audio"]:
            corpora[corpus_of(row["audio"][0]), row["gate"]] += 1
        if row["gate"] == PASSED:
            present.update(row["present"] or ())
            absent.update(row["absent"] or ())
        of_row = row["prompt_tokens"] or 0, row["response_tokens"] or 0, len(row["response"].split())
        for name, length in zip(HISTOGRAMS, of_row, strict=True):
            lengths[name].append(length)
    content = {
        "corpora": [[*key, number] for key, number in corpora.items()],
        "present": present,
        "absent": absent,
        "histograms": {name: _bins(values) for name, values in lengths.items()},
        "examples": heapq.nsmallest(EXAMPLES, ((drawn, file, place) for place, drawn in enumerate(draws))),
    }
    return {"statistics": json.dumps(content)}


def _count_together(labels: frozenset[str], file: str) -> dict[str, Any]:
    pairs: Counter[tuple[str, str]] = Counter()
    for row in rows_in(file, ["gate", "present"]):
        if row["gate"] == PASSED:
            pairs.update(combinations_with_replacement(sorted(labels.intersection(row["present"] or ())), 2))
    return {"statistics": json.dumps([[*pair, number] for pair, number in pairs.items()])}


def _bins(values: Sequence[int]) -> list[int]:
    bins = np.searchsorted(EDGES, np.asarray(values, int), side="right") - 1
    return [int(number) for number in np.bincount(bins, minlength=len(EDGES))]
