"""The input manifest in pieces that any worker can read alone, with the number of every row.

One pass over the file hashes it and finds where the pieces begin. The pieces are a property of the file, not of the
cluster, so a row has the same number whoever reads it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from balsa_ray.config import UserError
from balsa_ray.identity import file_hash
from balsa_ray.schema import parse_line

LINES_PER_PIECE = 500
ROWS_PER_PIECE = 10_000
"""Of Parquet. To begin in the middle of a row group a reader passes what stands before it, so pieces are larger."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Some consecutive rows of a manifest.

    Attributes:
        path: The manifest.
        start: First byte in JSON Lines; number of the row group in Parquet.
        skip: Rows of the row group to pass over.
        first_row: Number of the first row, from 1, as error messages name it.
        rows: How many rows to read; blank lines of JSON Lines count.
    """

    path: str
    start: int
    skip: int
    first_row: int
    rows: int


@dataclass(frozen=True)
class Manifest:
    """A manifest's pieces, its rows in all and the SHA-256 of the file."""

    path: Path
    digest: str
    rows: int
    pieces: tuple[Piece, ...]


def scan(path: Path, limit: int | None = None) -> Manifest:
    """Finds the pieces of a manifest, reading it once and keeping nothing of it.

    Args:
        path: JSON Lines (`.jsonl`, `.json`) or Parquet (`.parquet`).
        limit: Leave out what follows this many rows.

    Raises:
        UserError: The file is missing, empty or in another format.
    """
    if not path.is_file():
        raise UserError(f"input: {path}: no such manifest")
    if path.suffix == ".parquet":
        digest, pieces = file_hash(path), _row_groups(path)
    elif path.suffix in (".jsonl", ".json"):
        digest, pieces = _runs_of_lines(path)
    else:
        raise UserError(f"input: {path}: a manifest is JSON Lines (.jsonl) or Parquet (.parquet)")
    total = sum(piece.rows for piece in pieces)
    if not total:
        raise UserError(f"input: {path}: holds no rows")
    wanted = min(total, limit or total)
    kept = (replace(piece, rows=min(piece.rows, wanted + 1 - piece.first_row)) for piece in pieces)
    return Manifest(path, digest, wanted, tuple(piece for piece in kept if piece.rows > 0))


def read_piece(piece: Piece) -> Iterator[tuple[int, Row | UserError]]:
    """Yields the rows of a piece with their numbers; a row that can't be read is the error that says why."""
    if piece.path.endswith(".parquet"):
        yield from _read_row_group(piece)
        return
    with open(piece.path, "rb") as file:
        file.seek(piece.start)
        for number in range(piece.first_row, piece.first_row + piece.rows):
            line = file.readline()
            if not line.strip():
                continue
            try:
                yield number, parse_line(line, f"{piece.path}: row {number}")
            except UserError as error:
                yield number, error


def _runs_of_lines(path: Path) -> tuple[str, list[Piece]]:
    digest, lines, offset = hashlib.sha256(), 0, 0
    starts = []
    with path.open("rb") as file:
        for line in file:
            if lines % LINES_PER_PIECE == 0:
                starts.append(offset)
            digest.update(line)
            lines, offset = lines + 1, offset + len(line)
    runs = zip(starts, range(0, lines, LINES_PER_PIECE), strict=True)
    pieces = [Piece(str(path), start, 0, first + 1, min(LINES_PER_PIECE, lines - first)) for start, first in runs]
    return digest.hexdigest(), pieces


def _row_groups(path: Path) -> list[Piece]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"input: {path}: not a Parquet file: {error}") from error
    pieces, before = [], 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        for skip in range(0, rows, ROWS_PER_PIECE):
            pieces.append(Piece(str(path), group, skip, before + skip + 1, min(ROWS_PER_PIECE, rows - skip)))
        before += rows
    return pieces


def _read_row_group(piece: Piece) -> Iterator[tuple[int, Row]]:
    from pyarrow import parquet

    with parquet.ParquetFile(piece.path) as file:
        before = 0
        for batch in file.iter_batches(LINES_PER_PIECE, row_groups=[piece.start]):
            first, last = max(piece.skip, before), min(piece.skip + piece.rows, before + batch.num_rows)
            if first < last:
                rows = batch.slice(first - before, last - first).to_pylist()
                yield from enumerate(rows, start=piece.first_row + first - piece.skip)
            before += batch.num_rows
