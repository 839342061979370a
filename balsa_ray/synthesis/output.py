"""The output folder: Parquet files that appear whole, and a folder that is either complete or not there.

A run writes beside its output, to `OUTPUT.partial`, and renames at the end. So OUTPUT never holds half a run, and what
an interrupted one left is thrown away by the next. (Taking up such a run where it stopped is not done yet.)
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsa_ray.config import UserError
from balsa_ray.identity import stable_hash

if TYPE_CHECKING:
    import pyarrow as pa

FOLDERS = ("samples", "rejected", "errors")


def finished(output: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Looks for a complete result of the same run.

    Args:
        output: The output folder.
        identity: What decides the rows, by name.

    Returns:
        The report of the complete result, or None if there is nothing, or only a result in which the engine failed
        on some rows and which is to be made again.

    Raises:
        UserError: The folder holds something else; the line says in what it differs.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    file = output / "report.json"
    if not file.is_file():
        raise UserError(f"output: {output}: is not empty and holds no result of jobs/synthesize.py; choose another")
    report: dict[str, Any] = json.loads(file.read_text("utf-8"))
    was = report["identity"]
    changes = [f"{name} ({_show(was.get(name))} -> {_show(identity.get(name))})" for name in sorted({*was, *identity})
               if was.get(name) != identity.get(name)]  # fmt: skip
    if changes:
        raise UserError(
            f"output: {output}: holds the result of another run; changed: {', '.join(changes)}. "
            "Choose another output, or delete this one"
        )
    return None if report["errors"]["engine"] else report


@contextmanager
def partial_folder(output: Path) -> Iterator[Path]:
    """Gives a fresh folder to write to, which takes the place of `output` when the block ends without an error."""
    partial = output.with_name(output.name + ".partial")
    if partial.exists():
        print(f"synthesis: an earlier run was interrupted; starting again ({partial} is thrown away)", flush=True)
        shutil.rmtree(partial)
    for name in FOLDERS:
        (partial / name).mkdir(parents=True)
    yield partial
    if output.exists():
        shutil.rmtree(output)
    partial.rename(output)


def write_rows(folder: Path, rows: list[dict[str, Any]], schema: "pa.Schema") -> None:
    """Writes rows to a file named after their ids: a task that Ray repeats writes the same file again."""
    import pyarrow as pa
    from pyarrow import parquet

    if not rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stable_hash(sorted(row['id'] for row in rows))}.parquet"
    partial = file.with_suffix(".partial")
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), partial)
    partial.replace(file)


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"
