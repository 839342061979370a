"""Large files of the small ones that a run leaves: one of each batch of replies, a few hundred kilobytes.

A reader of a million small files, be it on a network's disk or in a bucket, is slower than the disk. A joined file is
there, whole, before those that it is made of go: a kill between leaves rows that stand twice, as `take_stock` expects.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from balsa_ray.identity import stable_hash
from balsa_ray.synthesis.output import FOLDERS, ROWS_AT_ONCE, write_whole
from balsa_ray.synthesis.resume import Over, here

FILE_BYTES = 128 * 2**20
"""That a file has at least, but for the last one of a folder."""


def join_files(output: Path, over: Over = here, size: int = FILE_BYTES) -> None:
    """Joins the files of samples and of rejected rows, each with those that follow it by name.

    Args:
        output: The output folder.
        over: Applies a function to names: here to lists of files as JSON.
        size: Bytes of a file. What is half as large stays as it is.
    """
    for folder in FOLDERS[:2]:
        files = sorted((output / folder).glob("*.parquet"))
        over(_join, [json.dumps(group) for group in _groups(files, size) if len(group) > 1])


def _groups(files: Sequence[Path], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    total = 0
    for file in files:
        bytes_of_file = file.stat().st_size
        if bytes_of_file >= size / 2:
            continue
        group.append(str(file))
        total += bytes_of_file
        if total >= size:
            yield group
            group, total = [], 0
    yield group


def _join(group: str) -> dict[str, Any]:
    """Puts one file in the place of several; what a task that Ray repeats finds done is done."""
    import pyarrow as pa
    from pyarrow import parquet

    files = [Path(name) for name in json.loads(group)]
    joined = files[0].with_name(f"{stable_hash([file.name for file in files])}.parquet")
    if not joined.exists():
        tables = [parquet.read_table(file, partitioning=None) for file in files]
        table = pa.concat_tables(tables, promote_options="default")  # A changed recipe may carry other columns.
        write_whole(joined, lambda path: parquet.write_table(table, path, row_group_size=ROWS_AT_ONCE))
    for file in files:
        file.unlink(missing_ok=True)
    return {"file": str(joined)}
