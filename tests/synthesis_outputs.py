"""Inputs that tests of the synthesis write, runs of their own, and what they read of the outputs."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pyarrow import parquet

from balsa_ray.synthesis.output import row_files

SMALL_FILES = """
from balsa_ray.config import main
from balsa_ray.synthesis import pipeline
from balsa_ray.synthesis.config import SynthesizeConfig
pipeline.ROWS_PER_FILE = 8
main(SynthesizeConfig, pipeline.synthesize)
"""


def write_recipe(folder: Path, model: str) -> Path:
    """Writes the recipe of a run of some 400 rows, sampled, so that replies hang on the seeds of their rows."""
    write_clips(folder / "clips.jsonl", 120)
    values = {
        "input": str(folder / "clips.jsonl"),
        "model": model,
        "output": str(folder / "undisturbed"),
        "audio_check": "none",
        "sampling": {"temperature": 0.8, "max_tokens": 48},
        "engine": {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def start(recipe: Path, environment: Mapping[str, str], *overrides: str) -> subprocess.Popen[bytes]:
    """Starts a run that writes many small files."""
    # Where tests run in the background, the shell has them ignore SIGINT, and so would the run.
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_FILES, str(recipe), *overrides],
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def write_clips(path: Path, number: int) -> None:
    labels = ("rain", "wind", "siren", "dog barking")
    rows = ({"id": f"clip-{i}", "audio": f"{i}.wav", "tags": [labels[i % 4]]} for i in range(number))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(output: Path) -> int:
    """How many rows stand."""
    return sum(parquet.read_metadata(file).num_rows for file in row_files(output))


def replies(output: Path) -> dict[str, tuple[str, str, str]]:
    """Each row's folder, gate and reply; an id that stands twice, or a file that is not whole, fails the test."""
    found = [
        (row["id"], (file.parent.name, row.get("gate", ""), row.get("response", "")))
        for file in row_files(output)
        for row in parquet.read_table(file).to_pylist()
    ]
    assert len({name for name, _ in found}) == len(found)
    return dict(found)
