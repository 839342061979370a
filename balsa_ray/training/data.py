"""Samples on their way to the workers: read from synthesis output, checked, tokenised once.

The driver does this before anything starts, so that a sample without audio or too long for the model is known at once.
Workers get the token ids as one Arrow table out of Ray's object store: shared memory, not a copy a worker.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from balsa_ray.audio.decode import AudioError, seconds_of
from balsa_ray.audio.features import num_windows
from balsa_ray.config import UserError
from balsa_ray.identity import hash_of_lists
from balsa_ray.model.configuration import IGNORED

T = TypeVar("T")

# Of large strings and lists: those of a table would end at 2 GiB, which is less than the replies about AudioSet.
SAMPLES = pa.schema(
    [
        ("id", pa.large_string()),
        ("kind", pa.large_string()),
        ("audio", pa.large_list(pa.large_string())),
        ("prompt", pa.large_string()),
        ("response", pa.large_string()),
    ]
)
ENCODED = pa.schema(
    [
        ("id", pa.large_string()),
        ("kind", pa.large_string()),
        ("source", pa.int32()),
        ("audio", pa.large_list(pa.large_string())),
        ("windows", pa.int32()),
        ("input_ids", pa.large_list(pa.int32())),
        ("prompt_tokens", pa.int32()),
        ("audio_seconds", pa.float64()),
    ]
)
ROWS_AT_ONCE = 8192  # that are Python's objects, ten times as large as Arrow's
PARALLEL_FROM = 100_000  # rows, from which on tokenising takes longer than starting processes for it
SKIPPED = "skipped.jsonl"
HEADER_THREADS = 16  # reading a header waits for the disk, not for a core


def read_samples(folders: Sequence[Path] | Mapping[Path, float]) -> pa.Table:
    """Reads the samples of one or many synthesis outputs, sorted by id, each id once.

    Args:
        folders: OUTPUT folders of `jobs/synthesize.py`; if they have weights, the column `source` counts them, else it
            is 0.

    Raises:
        UserError: If a folder has no samples, or is of a run that was cut.
    """
    tables = []
    for number, folder in enumerate(folders):
        files = sorted((folder / "samples").glob("*.parquet"))
        if not files:
            there = "no samples/*.parquet there" if folder.is_dir() else "no such folder"
            raise UserError(f"data: {folder}: {there}; it should be an OUTPUT of jobs/synthesize.py")
        if (folder / "identity.json").is_file() and not (folder / "report.json").is_file():
            raise UserError(f"{folder}: jobs/synthesize.py was cut before its end; the same command goes on with it")
        for file in files:
            table = read_columns(file, SAMPLES.names)
            source = number if isinstance(folders, Mapping) else 0
            tables.append(table.append_column("source", pa.array(np.full(len(table), source, np.int32))))
    table = pa.concat_tables(tables).sort_by([("id", "ascending"), ("source", "ascending")])
    del tables  # Sorted, they are there twice.
    # Equal ids are equal samples: the id is the hash of recipe, clips and prompt.
    ids = table["id"]
    new = pc.not_equal(ids.slice(1), ids.slice(0, max(len(ids) - 1, 0)))
    if pc.all(new).as_py():
        return table
    return table.filter(pa.chunked_array([pa.array([True]), *new.chunks]))


def read_columns(file: Path, names: Sequence[str]) -> pa.Table:
    """Reads some columns of a file of samples, in this order, with the types of `SAMPLES`."""
    table = pq.read_table(file, columns=list(names), partitioning=None).select(names)
    types = [SAMPLES.field(field.name) if field.name in SAMPLES.names else field for field in table.schema]
    return table.cast(pa.schema(types))


def samples_hash(samples: pa.Table) -> str:
    """Returns the hash of what is trained on: ids, kinds, words and weighted sources, not where the audio lies."""
    columns = ["id", "kind", "prompt", "response"]
    if pc.max(samples["source"]).as_py():
        columns.append("source")
    return hash_of_lists(*((part[column].to_pylist() for part in _parts(samples)) for column in columns))


def clip_seconds(samples: pa.Table) -> dict[str, float]:
    """Returns the length of every clip, from its header.

    Raises:
        UserError: If a recording is gone or can't be read; the line names how many and the first.
    """
    owner: dict[str, int] = {}
    clips = (clips for part in _parts(samples) for clips in part["audio"].to_pylist())
    for row, of_sample in enumerate(clips):
        for audio in of_sample:
            owner.setdefault(audio, row)
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        seconds = dict(zip(owner, pool.map(_seconds, owner), strict=True))
    broken = [audio for audio, length in seconds.items() if isinstance(length, str)]
    if broken:
        sample = samples["id"][owner[broken[0]]]
        raise UserError(
            f"{len(broken)} of {len(seconds)} recordings can't be used, the first: {broken[0]} "
            f"(sample {sample}): {seconds[broken[0]]}"
        )
    return {audio: length for audio, length in seconds.items() if not isinstance(length, str)}


def _seconds(audio: str) -> float | str:
    """The clip's length, or what is wrong with it."""
    try:
        return seconds_of(audio)
    except AudioError as error:
        return str(error).removeprefix(f"{audio}: ")


def encode(
    samples: pa.Table, processor: Any, seconds: dict[str, float], max_length: int, max_audio_seconds: float
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Tokenises the samples and sorts out those that don't fit the model.

    Args:
        samples: As `read_samples` returns them.
        processor: A `BalsaProcessor`.
        seconds: Length of every clip.
        max_length: Most tokens of a sample, the embeddings of its clips included.
        max_audio_seconds: Longest clip.

    Returns:
        The table for `EncodedSamples`, and a line for every sample left out: id, kind and reason.
    """
    fit = partial(_encode, processor, max_length, max_audio_seconds)
    parts = (part.to_pylist() for part in _parts(samples))
    work = ((rows, [[seconds[audio] for audio in row["audio"]] for row in rows]) for rows in parts)
    found = [fit(*part) for part in work] if len(samples) < PARALLEL_FROM else _in_processes(fit, work)
    # One piece: of several, each worker would make a copy of its own.
    table = pa.concat_tables([ENCODED.empty_table(), *(rows for rows, _ in found)]).combine_chunks()
    return table, [line for _, lines in found for line in lines]


def _in_processes(function: Callable[..., T], work: Iterable[tuple[Any, ...]]) -> list[T]:
    """Returns the function's values in order; no more of the work is in memory than keeps the processes busy."""
    number = len(os.sched_getaffinity(0))
    found, pending = [], deque[Future[T]]()
    with ProcessPoolExecutor(number, get_context("spawn")) as pool:
        for arguments in work:
            pending.append(pool.submit(function, *arguments))
            if len(pending) > 2 * number:
                found.append(pending.popleft().result())
        return [*found, *(one.result() for one in pending)]


def _encode(
    processor: Any, max_length: int, max_audio_seconds: float, samples: list[dict[str, Any]],
    seconds: list[list[float]],
) -> tuple[pa.Table, list[dict[str, Any]]]:  # fmt: skip
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for row, lengths in zip(samples, seconds, strict=True):
        windows = [num_windows(length, processor.feature_extractor) for length in lengths]
        input_ids, labels = processor.encode_example(row["prompt"], windows, row["response"])
        reason = None
        if len(input_ids) > max_length:
            reason = f"{len(input_ids)} tokens, the limit is {max_length}"
        elif max(lengths) > max_audio_seconds:
            reason = f"a clip of {max(lengths):.2f} s, the limit is {max_audio_seconds:g} s"
        if reason:
            skipped.append({"id": row["id"], "kind": row["kind"], "reason": reason})
        else:
            rows.append(
                {key: row[key] for key in ("id", "kind", "source", "audio")}
                | {
                    "windows": sum(windows),
                    "input_ids": input_ids,
                    "prompt_tokens": sum(label == IGNORED for label in labels),
                    "audio_seconds": sum(lengths),
                }
            )
    return pa.Table.from_pylist(rows, schema=ENCODED), skipped


def _parts(samples: pa.Table) -> Iterator[pa.Table]:
    return (samples.slice(first, ROWS_AT_ONCE) for first in range(0, len(samples), ROWS_AT_ONCE))


def write_skipped(path: Path, skipped: Sequence[dict[str, Any]]) -> None:
    """Writes `OUTPUT/skipped.jsonl`, a line a sample; removes it if nothing was left out."""
    path.unlink(missing_ok=True)
    if skipped:
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in skipped), "utf-8")


@dataclass(frozen=True)
class EncodedSamples:
    """Tokenised samples as arrays, views into the Arrow table where that is possible.

    Attributes:
        ids: Of the samples.
        kinds: Of the samples.
        sources: Number of the folder that each comes from, among those that have weights.
        audio: Recordings of each sample, in the order in which the prompt names them.
        windows: How many windows of the encoder the recordings of each sample fill.
        prompt_tokens: Where each reply starts.
        tokens: Length of each sample, the embeddings of its clips included.
        audio_seconds: Of all clips of each sample.
    """

    ids: list[str]
    kinds: list[str]
    sources: np.ndarray
    audio: list[list[str]]
    windows: np.ndarray
    prompt_tokens: np.ndarray
    tokens: np.ndarray
    audio_seconds: np.ndarray
    _values: np.ndarray
    _offsets: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "EncodedSamples":
        """Wraps the table that `encode` returns."""
        table = table.combine_chunks()
        lists = table["input_ids"].chunk(0) if len(table) else pa.array([], ENCODED.field("input_ids").type)
        offsets = lists.offsets.to_numpy()
        return cls(
            ids=table["id"].to_pylist(),
            kinds=table["kind"].to_pylist(),
            sources=table["source"].to_numpy(),
            audio=table["audio"].to_pylist(),
            windows=table["windows"].to_numpy(),
            prompt_tokens=table["prompt_tokens"].to_numpy(),
            tokens=np.diff(offsets),
            audio_seconds=table["audio_seconds"].to_numpy(),
            _values=lists.values.to_numpy(),
            _offsets=offsets,
        )

    def input_ids(self, row: int) -> np.ndarray:
        """Returns the token ids of one sample, prompt and reply."""
        return self._values[self._offsets[row] : self._offsets[row + 1]]

    def reply_tokens(self, rows: np.ndarray) -> int:
        """Returns how many tokens of these samples have a loss."""
        return int((self.tokens[rows] - self.prompt_tokens[rows]).sum())

    def clips(self, rows: np.ndarray) -> list[str]:
        """Returns the recordings of these samples in reading order."""
        return [audio for row in rows for audio in self.audio[row]]
