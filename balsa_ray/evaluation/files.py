"""The files that a benchmark is published in: rows of tables, and the recordings that they name."""

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from balsa_ray.config import UserError

_AUDIO = {
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff"),
    *(".webm", ".mp4", ".mkv", ".amr", ".au"),
}
_WORDS = {str: "text", list: "a list of texts", int: "a whole number", dict: "a mapping"}


def rows(path: Path, columns: Mapping[str, type] | None = None) -> list[dict[str, Any]]:
    """Reads a table: CSV, TSV, JSON (a list of rows), JSON Lines or Parquet.

    Recordings inside Parquet (columns of bytes) are left out: `references` says how they are found.

    Args:
        path: The file; its ending says what it is.
        columns: What every row must have, with the type of the value: `str` (not blank), `list` (of texts), another,
            or `object` for anything at all.

    Raises:
        UserError: If the file isn't there or can't be read, or a row lacks a column or has another type there; the
            file, the row (counted from 1) and the column are named.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: not one of {', '.join(_READERS)}")
    try:
        table = reader(path)
        json.dumps(table, ensure_ascii=False, default=str).encode()  # text may hold halves of characters
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: can't be read: {error}") from error
    if not isinstance(table, list):
        raise UserError(f"{path}: should be a list of rows, is {type(table).__name__}")
    if not table:
        raise UserError(f"{path}: holds no rows")
    for number, row in enumerate(table, 1):
        _check(row, columns or {}, f"{path}: row {number}")
    return table


def _check(row: dict[Any, Any], columns: Mapping[str, Any], where: str) -> None:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: should be a mapping of columns to values, is {type(row).__name__}")
    if None in row:  # where csv puts what stands behind the last column
        raise UserError(f"{where}: has more cells than the header")
    for column, kind in columns.items():
        if column not in row or (row[column] is None and kind is not object):
            raise UserError(f"{where}: {column}: missing")
        value = row[column]
        if not isinstance(value, kind) or (kind is list and not (value and all(isinstance(v, str) for v in value))):
            raise UserError(f"{where}: {column}: should be {_WORDS.get(kind, kind.__name__)}, is {value!r:.80}")
        if kind is str and not value.strip():
            raise UserError(f"{where}: {column}: empty")


def _csv(path: Path) -> Any:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8-sig"))


def _json_lines(path: Path) -> Any:
    found = []
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"{path}: line {number}: not JSON ({error})") from error
    return found


def _parquet(path: Path) -> Any:
    from pyarrow import parquet

    table = parquet.ParquetFile(path)
    bare = ("BYTE_ARRAY", "NONE")  # no text
    columns = [column.path for column in table.schema if (column.physical_type, column.logical_type.type) != bare]
    return table.read(columns=columns).to_pylist()


_READERS = {".csv": _csv, ".tsv": _csv, ".json": _json, ".jsonl": _json_lines, ".parquet": _parquet}


def named(path: Path, pattern: str) -> list[Path]:
    """Returns the files below a folder whose whole name fits a regular expression, sorted, links followed.

    Args:
        path: The folder; a file is returned as it is, whatever its name.
        pattern: Upper and lower case are the same.
    """
    if path.is_file():
        return [path]
    return sorted(file for file in walk(path) if re.fullmatch(pattern, file.name, re.IGNORECASE))


def only(path: Path, pattern: str, what: str) -> Path:
    """Returns the one file below a folder whose name fits.

    Raises:
        UserError: If there is none, or several.
    """
    found = named(path, pattern)
    if not found:
        raise UserError(f"data_root: {path}: no {what} there")
    if len(found) > 1:
        raise UserError(f"data_root: {path}: which of {', '.join(map(str, found))}? Name the file itself")
    return found[0]


def with_columns(path: Path, columns: Collection[str]) -> list[Path]:
    """Returns the CSV, TSV and Parquet files below a folder that have any of some columns, whatever their names.

    Args:
        path: The folder; a file is returned as it is.
        columns: Names that tables of something else don't have.

    Raises:
        UserError: If a file's header can't be read.
    """
    if path.is_file():
        return [path]
    return [file for file in named(path, r".*\.(csv|tsv|parquet)") if not set(columns).isdisjoint(_header(file))]


def _header(file: Path) -> list[str]:
    try:
        if file.suffix.lower() == ".parquet":
            from pyarrow import parquet

            return list(parquet.read_schema(file).names)
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return next(csv.reader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ","), [])
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file}: can't be read: {error}") from error


def references(file: Path) -> list[str | None]:
    """Returns what refers to the recording in each row of a Parquet file (`clips.parquet#row=1`); None: it has none.

    Recordings stand there as Hugging Face stores them, in a column `audio` of `{bytes, path}`.
    """
    from pyarrow import compute, parquet

    table = parquet.ParquetFile(file)
    if not any(column.path == "audio.bytes" for column in table.schema):
        return [None] * table.metadata.num_rows
    found: list[str | None] = []
    for group in range(table.num_row_groups):  # one at a time in memory
        audio = table.read_row_group(group, columns=["audio.bytes"])["audio"]
        for there in compute.is_valid(compute.struct_field(audio, "bytes")).to_pylist():
            found.append(f"{file}#row={len(found) + 1}" if there else None)
    return found


class AudioFolder:
    """The recordings below a folder, found by what a table calls them. The folder is walked once, links followed.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_stem: defaultdict[str, list[Path]] = defaultdict(list)
        for file in walk(path):
            if file.suffix.lower() in _AUDIO:
                self._by_stem[file.stem].append(file)

    def find(self, name: str, folders: int = 0) -> str:
        """Returns the path of the recording whose path ends most like the name; its format may be another.

        Args:
            name: A file name, with or without its ending; folders before it may be another machine's.
            folders: How many folders before the file name have to fit too, where a name stands for several recordings.

        Returns:
            The path; if no recording fits, that of a file that isn't there, so that the question becomes an error row.

        Raises:
            UserError: If several fit equally well.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        file = PurePosixPath(parts[-1]) if parts else PurePosixPath(name)
        stem = file.stem if file.suffix.lower() in _AUDIO else file.name
        fits: list[tuple[tuple[int, bool], Path]] = []
        for found in self._by_stem.get(stem, ()):
            common = _common_end(found.parts[:-1], parts[:-1])
            if common >= folders:
                fits.append(((common, found.suffix == file.suffix), found))
        if not fits:
            return str(self._path.joinpath(*parts[-1 - folders :]))
        best = max(rank for rank, _ in fits)
        chosen = [found for rank, found in fits if rank == best]
        if len(chosen) > 1:
            raise UserError(f"{name}: which recording is it, {' or '.join(map(str, sorted(chosen)))}?")
        return str(chosen[0])


def _common_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def walk(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder in a fixed order; a link back to a folder above ends there."""
    seen = set()
    for root, below, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(root))
        below.sort()
        yield from (Path(root, name) for name in sorted(names))
