"""Inputs that tests of the synthesis write, and what they read of its outputs."""

import json
from pathlib import Path

from pyarrow import parquet

from balsa_ray.synthesis.output import row_files


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
