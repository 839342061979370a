"""The output folder: files that appear whole, and what says by which recipe they were made.

`identity.json` is written first and `report.json` last; a folder without the second is of a run that was cut, and the
same command goes on with it. Every file is written under another name and renamed, so a process that is killed leaves
whole files and perhaps a `.partial`, which the next run removes.
"""

import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsa_ray.config import UserError
from balsa_ray.identity import stable_hash

if TYPE_CHECKING:
    import pyarrow as pa

FOLDERS = ("samples", "rejected", "errors")
IDENTITY, REPORT = "identity.json", "report.json"
ROWS_AT_ONCE = 8192
"""That are in memory when a file is read row by row."""


@dataclass(frozen=True)
class Held:
    """By what an output folder was made.

    Attributes:
        identity: What decides the rows, by name (`recipe.identity`).
        labels: Hash of the labels that were looked for in replies; empty before they were known.
        report: The report, if the run came to its end.
    """

    identity: dict[str, Any]
    labels: str = ""
    report: dict[str, Any] | None = None


def read(output: Path) -> Held | None:
    """Returns what an output folder holds, or None if there is nothing.

    Raises:
        UserError: It holds something else.
    """
    if not output.exists():
        return None
    if not (output / IDENTITY).is_file():
        if not output.is_dir() or any(not path.name.startswith(".") for path in output.iterdir()):
            raise UserError(f"output: {output}: is not empty and holds no result of jobs/synthesize.py; choose another")
        return None
    report = output / REPORT
    return Held(
        **json.loads((output / IDENTITY).read_text("utf-8")),
        report=json.loads(report.read_text("utf-8")) if report.is_file() else None,
    )


def sign(output: Path, identity: dict[str, Any], labels: str = "") -> None:
    """Writes by what the rows of the folder are made from now on."""
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"identity": identity, "labels": labels}, indent=1) + "\n"
    write_whole(output / IDENTITY, lambda path: path.write_text(text, "utf-8"))


def reopen(output: Path) -> None:
    """Makes of a folder one that is not complete: errors are to be retried, and what was cut is thrown away.

    The report goes first: whenever this is cut, what is left is a run to go on with.
    """
    (output / REPORT).unlink(missing_ok=True)
    for name in FOLDERS:
        (output / name).mkdir(parents=True, exist_ok=True)
        for file in (output / name).iterdir():
            if name == "errors" or file.suffix == ".partial":
                file.unlink(missing_ok=True)


def row_files(output: Path, *, errors: bool = True) -> list[Path]:
    """Returns the files of rows; where a row stands twice, the first of its files counts."""
    names = FOLDERS if errors else FOLDERS[:2]
    return [file for name in names for file in sorted((output / name).glob("*.parquet"))]


def unusable_rows(output: Path, most: int) -> list[str]:
    """Returns why rows of the input could not be used, in the order of the alphabet, and no more than so many."""
    from pyarrow import parquet

    reasons: list[str] = []
    for file in sorted((output / "errors").glob("*.parquet")):
        rows = parquet.read_table(file, columns=["kind", "error"]).to_pylist()
        reasons = sorted([*reasons, *(row["error"] for row in rows if not row["kind"])])[:most]
    return reasons


def rows_in(file: str | Path, columns: Collection[str], prefix: str | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file, of which only a part is in memory at a time.

    Args:
        file: Parquet.
        columns: Those to read, if the file has them; `a.b` of a column of structures.
        prefix: Columns that begin so are read as well.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        wanted = [name for name in columns if name.partition(".")[0] in names]
        wanted += [name for name in names if prefix and name.startswith(prefix)]
        for batch in opened.iter_batches(ROWS_AT_ONCE, columns=wanted):
            yield from batch.to_pylist()


def write_rows(folder: Path, rows: list[dict[str, Any]], schema: "pa.Schema") -> None:
    """Writes rows to a file named after their ids: a task that Ray repeats with the same rows replaces its file."""
    import pyarrow as pa
    from pyarrow import parquet

    if not rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    file = folder / f"{stable_hash(sorted(row['id'] for row in rows))}.parquet"
    write_whole(file, lambda path: parquet.write_table(table, path))


def keep_rows(file: Path, mask: "list[bool]") -> None:
    """Replaces a file by those of its rows that a mask names; without any the file goes."""
    from pyarrow import array, parquet

    if all(mask):
        return
    if not any(mask):
        file.unlink(missing_ok=True)
        return
    table = parquet.read_table(file).filter(array(mask))
    write_whole(file, lambda path: parquet.write_table(table, path, row_group_size=ROWS_AT_ONCE))


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Writes a file so that it is there whole or not at all, also where two processes write it at once."""
    partial = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    write(partial)
    partial.replace(file)
