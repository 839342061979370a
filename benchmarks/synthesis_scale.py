"""Does the memory of a synthesis's driver, and of Ray's object store, grow with the rows that are planned?

    python benchmarks/synthesis_scale.py [--rows 10000 100000 1000000]

Each size runs in a process of its own, from a manifest of labels to Parquet files, with an engine in place of vLLM
that names the labels it reads at once: what is measured is all the rest. The baseline is the smallest size.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray._private.internal_api import memory_summary

from balsa_ray.engine import EngineConfig, Share, light_task, rows_per_block
from balsa_ray.identity import rng
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.synthesis import pipeline
from balsa_ray.synthesis.config import SynthesizeConfig

ROWS_PER_CLIP = 4
_STORE = re.compile(r"Plasma memory usage (\d+) MiB")


def main() -> None:
    """Prints a line a size and how much the largest needs against the smallest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # one size, in its own process
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_run(arguments.one)))
        return
    found = []
    for rows in arguments.rows:
        command = [sys.executable, __file__, "--one", str(rows)]
        process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(process.stdout.splitlines()[-1]))
        print("{rows:,} rows: driver {driver:,.0f} MiB, object store {store:,.0f} MiB, {seconds:.0f} s, "
              "{speed:,.0f} rows/s".format(**found[-1]), flush=True)  # fmt: skip
    print(
        f"driver: {found[-1]['driver'] / found[0]['driver'] - 1:+.1%} from the smallest to the largest (target: 10 %)"
    )


def _run(rows: int) -> dict[str, float]:
    pipeline.vllm_chain = _trivial_engine  # type: ignore[assignment]
    store, done = [0], threading.Event()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _manifest(folder / "clips.jsonl", rows // ROWS_PER_CLIP)
        config = SynthesizeConfig(
            output=folder / "data", input=str(folder / "clips.jsonl"), model="miniature:backbone", labels="lexicon",
            audio_check="none",
        )  # fmt: skip
        watch = threading.Thread(target=_watch, args=(store, done))
        watch.start()
        start = time.monotonic()
        report = pipeline.synthesize(config)
        seconds = time.monotonic() - start
        done.set()
        watch.join()
    made = report["samples"] + report["rejected"]
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": made, "driver": driver, "store": store[0], "seconds": seconds, "speed": made / seconds}


def _watch(peak: list[int], done: threading.Event) -> None:
    import ray

    while not done.wait(1.0):
        if ray.is_initialized():
            found = _STORE.search(memory_summary(ray.get_runtime_context().gcs_address, stats_only=True))
            peak[0] = max(peak[0], int(found[1]) if found else 0)


def _trivial_engine(
    model: Path, engine: EngineConfig, share: Share, *, rows: int, request: Callable[[dict[str, Any]], dict[str, Any]]
) -> Callable[[Any], Any]:
    def answer(row: dict[str, Any]) -> dict[str, Any]:
        tokens = request(row)["tokenized_prompt"]
        sample = json.loads(row["planned"])
        reply = "I hear no sound." if sample["kind"] == "absent" else f"I hear {', '.join(sample['present'])}."
        return {
            "row": json.dumps(row), "response": reply, "prompt_tokens": len(tokens), "response_tokens": 8,
            "finish_reason": "stop", "error": "",
        }  # fmt: skip

    per_block = rows_per_block(rows, engine.max_num_seqs)
    return lambda dataset: dataset.repartition(target_num_rows_per_block=per_block).map(answer, **light_task(share))


def _manifest(path: Path, clips: int) -> None:
    labels = lexicon().labels
    draw = rng(0, "clips")
    with path.open("w") as file:
        for i in range(clips):
            tags = [labels[n] for n in sorted({*draw.integers(len(labels), size=int(draw.integers(1, 4))).tolist()})]
            file.write(json.dumps({"id": f"clip-{i}", "audio": f"{i}.flac", "tags": tags}) + "\n")


if __name__ == "__main__":
    main()
