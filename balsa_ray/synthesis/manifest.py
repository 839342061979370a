"""The input manifest in pieces that any worker can read alone, with the number of every row.

One pass over the file hashes it and finds where the pieces begin. The pieces are a property of the file, not of the
cluster, so a row has the same number whoever reads it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from balsa_ray.config import UserError
from balsa_ray.identity import file_hash
from balsa_ray.schema import parse_line

ROWS_PER_PIECE = 500
"""Lines of a piece: few enough to show progress, enough that a task's overhead does not count."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Some consecutive rows of a manifest.

    Attributes:
        path: The manifest.
        start: First byte in JSON Lines; number of the row group in Parquet.
        first_row: Number of the first row, from 1, as error messages name it.
        rows: How many rows to read; blank lines of JSON Lines count.
    """

    path: str
    start: int
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
    digest, rows, offset = hashlib.sha256(), 0, 0
    starts = []
    with path.open("rb") as lines:
        for line in lines:
            if rows % ROWS_PER_PIECE == 0:
                starts.append(offset)
            digest.update(line)
            rows, offset = rows + 1, offset + len(line)
    firsts = range(0, rows, ROWS_PER_PIECE)
    pieces = [
        Piece(str(path), start, first + 1, min(ROWS_PER_PIECE, rows - first))
        for start, first in zip(starts, firsts, strict=True)
    ]
    return digest.hexdigest(), pieces


def _row_groups(path: Path) -> list[Piece]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"input: {path}: not a Parquet file: {error}") from error
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    firsts = accumulate(sizes, initial=1)
    return [
        Piece(str(path), group, first, rows) for group, (first, rows) in enumerate(zip(firsts, sizes, strict=False))
    ]


def _read_row_group(piece: Piece) -> Iterator[tuple[int, Row]]:
    from pyarrow import parquet

    with parquet.ParquetFile(piece.path) as file:
        batches = file.iter_batches(ROWS_PER_PIECE, row_groups=[piece.start])
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(islice(rows, piece.rows), start=piece.first_row)
