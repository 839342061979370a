"""Large files of the small ones that a run leaves: one of each batch of replies, a few hundred kilobytes.

A reader of a million small files, be it on a network's disk or in a bucket, is slower than the disk. A joined file is
on the disk, whole, before those that it is made of go: a kill between leaves rows that stand twice, as `take_stock`
expects, and what another process may have removed meanwhile is missing when stock is taken at a run's end.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsa_ray.identity import stable_hash
from balsa_ray.storage import to_disk
from balsa_ray.synthesis.output import FOLDERS, ROWS_AT_ONCE, write_whole
from balsa_ray.synthesis.resume import Over, here

if TYPE_CHECKING:
    import pyarrow as pa

FILE_BYTES = 128 * 2**20
"""That the files which become one had together, at least, but for the last ones of a folder."""
THREADS = 16


def join_files(output: Path, over: Over = here) -> None:
    """Joins the files of samples and of rejected rows, each with those that follow it by name.

    Args:
        output: The output folder.
        over: Applies a function to names: here to lists of files as JSON.
    """
    for folder in FOLDERS[:2]:
        groups = [group for group in _groups(sorted((output / folder).glob("*.parquet"))) if len(group) > 1]
        over(_join, [json.dumps(group) for group in groups])


def _groups(files: Sequence[Path]) -> Iterator[list[str]]:
    """Yields files that become one; those that are half as large as is wanted stay as they are."""
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(lambda file: file.stat().st_size, files))
    group: list[str] = []
    total = 0
    for file, size in zip(files, sizes, strict=True):
        if size >= FILE_BYTES / 2:
            continue
        group.append(str(file))
        total += size
        if total >= FILE_BYTES:
            yield group
            group, total = [], 0
    yield group


def _join(group: str) -> dict[str, Any]:
    """Puts one file in the place of several."""
    import pyarrow as pa
    from pyarrow import parquet

    files = [Path(name) for name in json.loads(group)]
    joined = files[0].with_name(f"{stable_hash([file.name for file in files])}.parquet")
    try:
        tables = [parquet.read_table(file, partitioning=None) for file in files]
    except FileNotFoundError:
        # Ray repeats tasks that it can't be sure of: another one of this group was here.
        if not joined.exists():
            raise
    else:
        table = pa.concat_tables(tables, promote_options="default")  # A changed recipe may carry other columns.
        write_whole(joined, lambda path: _write(table, path))
        to_disk(joined.parent)
    for file in files:
        file.unlink(missing_ok=True)
    return {"file": str(joined)}


def _write(table: "pa.Table", path: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(table, path, row_group_size=ROWS_AT_ONCE)
    to_disk(path)
