"""How long does a synthesis of millions of clips take, what does it cost, and what gives way first?

    python benchmarks/scale_plan.py [--tokens-per-second 2500] [--gpus 8 64 256] [--price-per-gpu-hour 2.5]
        [--prompt-tokens 150] [--reply-tokens 120] [--clips N --samples-per-clip 4] [--samples-per-second N]

Two sizes by default: AudioSet-2M by the default recipe, and 100 million clips with five prompts each. Nothing is run on
a cluster. Speeds are given on the command line; a default among them is an assumption and printed as one. What a row
costs in files and memory is measured here, with the project's own code on some thousand rows, and multiplied: the
baseline is the limit that stands beside each figure.
"""

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from balsa_ray.engine import BATCHES_IN_FLIGHT, EngineConfig, rows_per_block
from balsa_ray.identity import rng, stable_hash
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.prompts.render import prompts
from balsa_ray.schema import SAMPLE
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.gates import PASSED
from balsa_ray.synthesis.joining import FILE_BYTES
from balsa_ray.synthesis.manifest import LINES_PER_PIECE
from balsa_ray.synthesis.output import write_rows
from balsa_ray.synthesis.pipeline import ROWS_PER_FILE
from balsa_ray.synthesis.plan import Clip, Planned, Recipe, plan_clip
from balsa_ray.synthesis.resume import look_into, take_stock
from balsa_ray.training.data import read_samples

MIB, GIB = 2**20, 2**30
AUDIOSET_CLIPS = 2_084_320
KEYS_PER_LISTING = 1000
"""Of S3 and Google's storage."""
DRIVER_BYTES_PER_BLOCK = 70_000
"""What Ray Data remembers of a block until the end: by synthesis_scale.py, see README.md."""
BLOCKS_WAITING = 2
"""Before an engine, beside the batches that it works on."""
ASSUMED = {
    "tokens_per_second": 2500.0,
    "price_per_gpu_hour": 2.5,
    "prompt_tokens": 150,
    "reply_tokens": 120,
    "driver_memory_gb": 32.0,
    "seconds_per_request": 0.05,
    "epochs": 1.0,
}
SHARES: dict[Any, float] = SynthesizeConfig.model_fields["kinds"].default


@dataclass(frozen=True)
class Work:
    """How much there is to make.

    Attributes:
        name: What it is called.
        clips: Recordings.
        samples_per_clip: Rows that a clip begins.
    """

    name: str
    clips: int
    samples_per_clip: float

    @property
    def rows(self) -> int:
        """Rows to make."""
        return round(self.clips * self.samples_per_clip)


@dataclass(frozen=True)
class Measured:
    """What a row or a file costs here.

    Attributes:
        file_bytes: Of a row in a Parquet file.
        flight_bytes: Of a row as a request between two stages.
        stock_bytes: At the driver's peak, of an id that stands, when a run is taken up.
        training_bytes: At the driver's peak, of a sample, when training reads and sorts samples, before tokens.
        look_seconds: Of reading the ids of one file.
        planned_per_second: Rows that a core plans.
    """

    file_bytes: float
    flight_bytes: float
    stock_bytes: float
    training_bytes: float
    look_seconds: float
    planned_per_second: float


@dataclass(frozen=True)
class Load:
    """What a piece of work asks of one part of the system.

    Attributes:
        part: Which.
        amount: How much, in `unit`.
        limit: From where on it gives way.
        unit: Of both.
    """

    part: str
    amount: float
    limit: float
    unit: str

    def most_clips(self, work: Work) -> float:
        """Returns with how many clips the limit is reached."""
        return work.clips * self.limit / self.amount


def gpu_hours(work: Work, reply_tokens: float, tokens_per_second: float) -> float:
    """Returns the hours of one GPU that writes so many tokens of replies a second, reading prompts on the side."""
    return work.rows * reply_tokens / tokens_per_second / 3600


def files(work: Work) -> int:
    """Returns the files that a run writes before it joins them: one a batch of rows, if all are samples."""
    return -(-work.rows // ROWS_PER_FILE)


def loads(work: Work, measured: Measured, *, batch: int, driver_bytes: float, seconds_per_request: float) -> list[Load]:
    """Returns what a piece of work asks of the parts whose load grows with it."""
    rows, number = work.rows, files(work)
    pieces = -(-work.clips // LINES_PER_PIECE)
    blocks = -(-rows // rows_per_block(rows, batch)) + pieces
    return [
        Load("driver: ids of rows that stand (resume)", rows * measured.stock_bytes / GIB, driver_bytes / GIB, "GiB"),
        Load("driver: blocks of Ray Data", blocks * DRIVER_BYTES_PER_BLOCK / GIB, driver_bytes / GIB, "GiB"),
        Load("driver: samples read for training", rows * measured.training_bytes / GIB, driver_bytes / GIB, "GiB"),
        Load("listing the output (resume)", -(-number // KEYS_PER_LISTING) * seconds_per_request, 600, "s"),
        Load("reading the ids of all files (resume), a core", number * measured.look_seconds / 3600, 24, "h"),
        Load(
            "opening all files (resume), 3 requests each, one by one", 3 * number * seconds_per_request / 3600, 24, "h"
        ),
        Load("planning twice, a core", 2 * rows / measured.planned_per_second / 3600, 24, "h"),
    ]


def in_flight_bytes(rows: int, batch: int, flight_bytes: float) -> float:
    """Returns what lies in the object store for one engine: what it works on, and blocks that wait before it."""
    return (BATCHES_IN_FLIGHT * batch + BLOCKS_WAITING * rows_per_block(rows, batch)) * flight_bytes


def measure(prompt_tokens: int, reply_tokens: int, ids: int, folder: Path) -> Measured:
    """Measures rows with replies of so many words, which is a little more than so many tokens.

    They are of the default recipe's kinds of one clip; a row of two clips, a quarter of all, holds their names twice.
    """
    began = time.process_time()
    planned = list(islice(_planned(), 4 * ROWS_PER_FILE))
    planned_per_second = len(planned) / (time.process_time() - began)
    rows = [_answered(sample, prompt_tokens, reply_tokens) for sample in planned]
    for first in range(0, len(rows), ROWS_PER_FILE):
        write_rows(folder / "samples", rows[first : first + ROWS_PER_FILE], SAMPLE)
    written = sorted((folder / "samples").glob("*.parquet"))
    training_bytes = arrow_peak(lambda: read_samples([folder]))
    looks = [_seconds(lambda file=file: look_into(str(file))) for file in written for _ in range(3)]
    return Measured(
        file_bytes=sum(file.stat().st_size for file in written) / len(rows),
        flight_bytes=statistics.mean(len(json.dumps({"planned": json.dumps(row)})) for row in planned)
        + prompt_tokens * np.dtype(np.int64).itemsize,
        stock_bytes=stock_bytes(ids, folder / "stock"),
        training_bytes=training_bytes / len(rows),
        look_seconds=statistics.median(looks),
        planned_per_second=planned_per_second,
    )


def arrow_peak(work: Callable[[], Any]) -> int:
    """Returns the most bytes of Arrow that were held at once."""
    usual = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    try:
        work()
        return int(counted.max_memory())
    finally:
        pa.set_memory_pool(usual)


def stock_bytes(ids: int, folder: Path) -> float:
    """Returns the bytes an id at the peak of taking stock of an output, whose files are not read but made up."""
    (folder / "samples").mkdir(parents=True)
    for number in range(-(-ids // ROWS_PER_FILE)):
        (folder / "samples" / f"{number:08x}.parquet").touch()
    draw = np.random.default_rng(0)

    def over(_look: Callable[[str], dict[str, Any]], names: Sequence[Path]) -> list[dict[str, Any]]:
        numbers = (draw.integers(0, 2**64, ROWS_PER_FILE, np.uint64) for _ in names)
        return [
            {"file": str(name), "ids": found.tobytes(), "counts": "[]"}
            for name, found in zip(names, numbers, strict=True)
        ]

    return _peak(lambda: take_stock(folder, over)) / ids


def _planned() -> Any:
    recipe = Recipe("recipe", 0, "tags", {kind: 1 for kind in SHARES if kind in ("present", "absent", "combined")},
                    tuple(sorted(lexicon().labels)))  # fmt: skip
    for number in range(10**9):
        yield from plan_clip(recipe, _clip(number))


def _clip(number: int) -> Clip:
    draw, labels = rng(0, "clip", number), lexicon().labels
    tags = [labels[n] for n in sorted({*draw.integers(len(labels), size=int(draw.integers(1, 6))).tolist()})]
    name = f"{stable_hash('clip', number)[:11]}_{number}"
    return {"id": name, "audio": f"s3://bucket/audioset/unbalanced/{name}.flac", "tags": tags, "sources": {}}


def _answered(sample: Planned, prompt_tokens: int, reply_tokens: int) -> dict[str, Any]:
    words = sorted({word for prompt in prompts() for word in prompt.text.split()})
    draw = rng(0, "reply", sample["id"])
    origin = {
        "recipe": "0" * 16, "model": "model", "model_hash": "0" * 16, "template_hash": "0" * 16, "sampling": "{}",
        "seed": 0, "packages": "{}",
    }  # fmt: skip
    return sample | {
        "response": " ".join(words[n] for n in draw.integers(len(words), size=reply_tokens).tolist()),
        "absent": [], "gate": PASSED, "prompt_tokens": prompt_tokens, "response_tokens": reply_tokens,
        "finish_reason": "stop", "provenance": origin,
    }  # fmt: skip


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _peak(work: Callable[[], Any]) -> float:
    """Returns the most bytes of Python and NumPy that were held at once."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def main() -> None:
    """Prints the assumptions, what was measured, hours and cost, and what gives way first."""
    arguments = _arguments()
    given = vars(arguments)
    assumed = [f"{name}={value:g}" for name, value in ASSUMED.items() if given[name] is None]
    chosen = {name: value if given[name] is None else given[name] for name, value in ASSUMED.items()}
    print(f"assumptions, not measurements: {', '.join(assumed) or 'none'}")
    per_clip = sum(SHARES.values())
    works = [Work("AudioSet-2M", AUDIOSET_CLIPS, per_clip), Work("100 million clips", 100_000_000, 5)]
    if arguments.clips:
        works = [Work(f"{arguments.clips:,} clips", arguments.clips, arguments.samples_per_clip or per_clip)]
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(int(chosen["prompt_tokens"]), int(chosen["reply_tokens"]), arguments.ids, Path(folder))
    print(
        f"measured here, of rows of one clip: a row is {measured.file_bytes:,.0f} bytes of a file and "
        f"{measured.flight_bytes:,.0f} on its way to an engine; the driver holds at its peak "
        f"{measured.stock_bytes:.0f} bytes an id that stands, and "
        f"{measured.training_bytes:,.0f} a sample that training reads; the ids of a file are read in "
        f"{1000 * measured.look_seconds:.1f} ms; a core plans {measured.planned_per_second:,.0f} rows/s\n"
        f"from README.md: {DRIVER_BYTES_PER_BLOCK:,} bytes of the driver a block of Ray Data"
    )
    batch = EngineConfig().max_num_seqs
    for work in works:
        print(f"\n{work.name}: {work.clips:,} clips, {work.rows:,} rows\n{_costs(work, arguments, chosen)}")
        size, each = work.rows * measured.file_bytes, ROWS_PER_FILE * measured.file_bytes
        print(
            f"output: {size / GIB:,.1f} GiB, while it is made in {files(work):,} files of {each / MIB:.2f} MiB and at "
            f"the end in {max(1, round(size / FILE_BYTES)):,} of {FILE_BYTES / MIB:.0f} MiB\n"
            f"object store: {in_flight_bytes(work.rows, batch, measured.flight_bytes) / MIB:,.0f} MiB an engine, "
            "whatever the number of clips"
        )
        found = loads(
            work, measured, batch=batch, driver_bytes=chosen["driver_memory_gb"] * GIB,
            seconds_per_request=chosen["seconds_per_request"],
        )  # fmt: skip
        found.sort(key=lambda load: load.most_clips(work))
        table = [
            [one.part, f"{one.amount:,.2f} {one.unit}", f"{one.limit:,.0f} {one.unit}", f"{one.most_clips(work):,.0f}"]
            for one in found
        ]
        header, sides = ["what", "asked", "limit", "reached at clips"], ["left"] + ["right"] * 3
        print(tabulate(table, header, colalign=sides, disable_numparse=True))
        over = [one.part for one in found if one.amount > one.limit]
        print(
            f"over their limits: {'; '.join(over)}"
            if over
            else f"nothing is over its limit; first would be {found[0].part}"
        )


def _costs(work: Work, arguments: argparse.Namespace, chosen: dict[str, float]) -> str:
    hours = gpu_hours(work, chosen["reply_tokens"], chosen["tokens_per_second"])
    table = [[f"{n:,}", f"{hours / n:,.1f}", f"{hours * chosen['price_per_gpu_hour']:,.0f}"] for n in arguments.gpus]
    text = tabulate(table, ["GPUs", "hours", "cost"], colalign=["right"] * 3, disable_numparse=True)
    tokens = f"{work.rows * chosen['prompt_tokens'] / 1e9:,.2f} billion tokens to read"
    text += f"\n{tokens}, {work.rows * chosen['reply_tokens'] / 1e9:,.2f} to write"
    if arguments.samples_per_second:
        hours = chosen["epochs"] * work.rows / arguments.samples_per_second / 3600
        speed = f"at {arguments.samples_per_second:g} samples/s"
        text += f"\ntraining: {chosen['epochs']:g} epochs over all rows {speed} take {hours:,.1f} h"
    return text


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told = {
        "tokens_per_second": "tokens of replies that one GPU writes a second, prompts read meanwhile",
        "price_per_gpu_hour": "in any currency",
        "prompt_tokens": "of a prompt with its metadata",
        "reply_tokens": "of a reply",
        "driver_memory_gb": "GiB of the node that drives the run",
        "seconds_per_request": "of one request to the store of the output",
        "epochs": "over all rows, for --samples-per-second",
    }
    for name, text in told.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"{text} (assumed: {ASSUMED[name]:g})")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--clips", type=int, help="in place of the two sizes")
    parser.add_argument("--samples-per-clip", type=float, help="with --clips; else the default recipe's")
    parser.add_argument(
        "--samples-per-second", type=float, help="that all trainers learn from, for the hours of training"
    )
    parser.add_argument("--ids", type=int, default=1_000_000, help="with which the memory of a resume is measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
