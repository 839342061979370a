"""The input in pieces that any worker can read alone, with the number of every row.

One pass over the files finds where the pieces begin; of Parquet and tar it reads the headers alone, and recordings
inside a file are left where they are. The pieces are a property of the files, not of the cluster, so a row has the same
number whoever reads it.
"""

import csv
import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from balsa_ray.audio.decode import AudioCheck
from balsa_ray.config import UserError
from balsa_ray.identity import file_hash, stable_hash
from balsa_ray.schema import parse_line
from balsa_ray.storage import absolute, find, is_uri, open_file, stamp
from balsa_ray.synthesis.layouts import LAYOUTS, Format, Layout, Row, clip_of

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

LINES_PER_PIECE = 500
ROWS_PER_PIECE = 2_000
"""Of Parquet and JSON. To begin in the middle a reader passes what stands before, so pieces are larger; but a pool of
clips that are paired with each other has to hold several pieces (`pairing.CLIPS_PER_POOL`)."""
FILES_AT_ONCE = 16  # looking at a file waits for the disk or the network, not for a core

# A cell of ten thousand tags is one; a quotation mark that is never closed makes one of the rest of the file.
csv.field_size_limit(1 << 20)

RECORDINGS = frozenset(["aac", "aif", "aiff", "flac", "m4a", "mp3", "mp4", "oga", "ogg", "opus", "wav", "webm"])


@dataclass(frozen=True)
class Source:
    """How the input is read.

    Attributes:
        format: The layout of its files.
        audio_root: Folder or URI where relative names of recordings start; empty: the folder of each file.
        columns: Manifest fields and their columns or patterns, where they differ from the layout's.
        class_labels: Label by AudioSet's id.
        audio_check: How the recordings are looked at before anything is made of them.
        max_audio_seconds: Longest recording, or slice.
    """

    format: Format = "manifest"
    audio_root: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    class_labels: Mapping[str, str] = field(default_factory=dict)
    audio_check: AudioCheck = "none"
    max_audio_seconds: float = 30.0

    @property
    def layout(self) -> Layout:
        """The layout's declaration."""
        return LAYOUTS[self.format]


@dataclass(frozen=True)
class Piece:
    """Some consecutive rows of a file.

    Attributes:
        path: The file.
        name: What the file is called among those of the input, without its suffix.
        start: First byte of lines, tables and tar; number of the row group in Parquet; 0 in JSON.
        skip: Rows to pass over from there, in Parquet and JSON.
        first_row: Number of the first row, from 1, as error messages name it; a table's header counts.
        rows: How many rows to read; blank lines count.
        unusable: Numbers of rows that have been found unusable, as the bytes of a uint32 array.
    """

    path: str
    start: int
    skip: int
    first_row: int
    rows: int
    unusable: bytes = b""
    name: str = ""


@dataclass(frozen=True)
class Manifest:
    """An input's name, its pieces, its rows in all, a hash, and the rows that `limit` leaves out.

    The hash is the SHA-256 of its file; of files that hold recordings, or lie elsewhere, it is over size and date.
    """

    path: str
    digest: str
    rows: int
    pieces: tuple[Piece, ...]
    left_out: int = 0


def scan(paths: str | Path | Sequence[str], limit: int | None = None, source: Source | None = None) -> Manifest:
    """Finds the pieces of an input, keeping nothing else of it.

    Args:
        paths: A file, a folder, a pattern with `*`, or several of them; paths or URIs.
        limit: Leave out what follows this many rows.
        source: How to read it; a manifest in JSON Lines or Parquet by default.

    Raises:
        UserError: A file is missing or in another format, or there are no rows.
    """
    layout = (source or Source()).layout
    names = [str(paths)] if isinstance(paths, str | Path) else list(paths)
    files = list(dict.fromkeys(file for name in names for file in _files(name, layout)))
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        cuts = list(pool.map(lambda file: _cut(file, layout), files))
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    called = _names(files)
    pieces = [replace(piece, name=called[piece.path]) for _, of_file in cuts for piece in of_file]
    if not pieces:
        raise UserError(f"input: {name}: holds no rows")
    in_all = sum(piece.rows for piece in pieces)
    kept, left = [], limit or in_all
    for piece in pieces:
        if left > 0:
            kept.append(replace(piece, rows=min(piece.rows, left)))
        left -= piece.rows
    digest = cuts[0][0] if len(files) == 1 else stable_hash([digest for digest, _ in cuts], length=64)
    rows = sum(piece.rows for piece in kept)
    return Manifest(name, digest, rows, tuple(kept), in_all - rows)


def _names(files: Sequence[str]) -> dict[str, str]:
    """Returns what to call each file: its name, behind as many of its folders as tell all of them apart."""
    parts = {file: PurePosixPath(file).with_suffix("").parts for file in files}
    depth = next(
        depth
        for depth in range(1, max(map(len, parts.values())) + 2)
        if len({of_file[-depth:] for of_file in parts.values()}) == len(parts) or depth > max(map(len, parts.values()))
    )
    return {file: "/".join(of_file[-depth:]) for file, of_file in parts.items()}


def read_piece(piece: Piece, source: Source | None = None) -> Iterator[tuple[int, Row | UserError]]:
    """Yields the rows of a piece as rows of a manifest, with their numbers; a row that can't be read is the error."""
    source = source or Source()
    for number, found in _rows(piece, source.layout):
        if isinstance(found, UserError):
            yield number, found
            continue
        try:
            where = f"{piece.path}: row {number}"
            yield number, clip_of(found, source.layout, source.columns, source.class_labels, where)
        except UserError as error:
            yield number, error


def read_class_labels(path: str) -> dict[str, str]:
    """Reads AudioSet's names of labels by id.

    Args:
        path: `class_labels_indices.csv` (index, mid, display_name), `ontology.json` (id, name), or the
            `mid_to_display_name.tsv` of the strong labels (id, name).

    Raises:
        UserError: The file is none of them.
    """
    try:
        with open_file(path) as file:
            text = file.read().decode("utf-8")
        if path.endswith(".json"):
            return {str(label["id"]): str(label["name"]) for label in json.loads(text)}
        rows = csv.reader(text.splitlines(), delimiter="\t" if path.endswith(".tsv") else ",")
        return {row[-2]: row[-1] for row in rows if row and row[-2] != "mid"}
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(
            f"class_labels: {path}: neither class_labels_indices.csv nor ontology.json of AudioSet: {error}"
        ) from error


def _files(name: str, layout: Layout) -> list[str]:
    try:
        files = find(name, layout.suffixes)
    except OSError as error:
        raise UserError(f"input: {name}: {str(error).splitlines()[0]}") from error
    for file in files:
        if not file.endswith(layout.suffixes):
            raise UserError(
                f"input: {file}: files of this input_format end in {' or '.join(layout.suffixes)}; "
                "published tables need theirs, such as input_format=audiocaps"
            )
    return files


def _cut(path: str, layout: Layout) -> tuple[str, list[Piece]]:
    import pyarrow as pa

    try:
        if path.endswith(".parquet"):
            return _cut_parquet(path)
        if path.endswith(".tar"):
            return _cut_tar(path)
        if layout.records:
            return _cut_document(path, layout)
        return _cut_table(path, layout) if path.endswith((".csv", ".tsv")) else _cut_lines(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"input: {path}: not a Parquet file: {error}") from error
    except csv.Error as error:
        raise UserError(f"input: {path}: not readable as a table: {error}") from error
    except tarfile.TarError as error:
        raise UserError(f"input: {path}: not a tar file, or cut off, or compressed: {error}") from error
    except OSError as error:
        raise UserError(f"input: {path}: {error}") from error


def _rows(piece: Piece, layout: Layout) -> Iterator[tuple[int, list[Row] | UserError]]:
    """Yields what a piece holds: rows one by one, or together where they make up one clip."""
    if piece.path.endswith(".parquet"):
        return _read_parquet(piece)
    if piece.path.endswith(".tar"):
        return _read_tar(piece)
    if layout.records:
        return _read_document(piece, layout)
    return _read_table(piece, layout) if piece.path.endswith((".csv", ".tsv")) else _read_lines(piece)


def _content_hash(path: str) -> str:
    return stable_hash(path, stamp(path), length=64) if is_uri(path) else file_hash(path)


def _cut_lines(path: str) -> tuple[str, list[Piece]]:
    digest, lines, offset = hashlib.sha256(), 0, 0
    starts = []
    with open_file(path) as file:
        for line in file:
            if lines % LINES_PER_PIECE == 0:
                starts.append(offset)
            digest.update(line)
            lines, offset = lines + 1, offset + len(line)
    runs = zip(starts, range(0, lines, LINES_PER_PIECE), strict=True)
    pieces = [Piece(path, start, 0, first + 1, min(LINES_PER_PIECE, lines - first)) for start, first in runs]
    return digest.hexdigest(), pieces


def _read_lines(piece: Piece) -> Iterator[tuple[int, list[Row] | UserError]]:
    with open_file(piece.path) as file:
        file.seek(piece.start)
        for number in range(piece.first_row, piece.first_row + piece.rows):
            line = file.readline()
            if not line.strip():
                continue
            try:
                yield number, [parse_line(line, f"{piece.path}: row {number}")]
            except UserError as error:
                yield number, error


def _cut_table(path: str, layout: Layout) -> tuple[str, list[Piece]]:
    pieces: list[Piece] = []
    header, key = list(layout.header), None
    with open_file(path) as file:
        for number, (offset, cells) in enumerate(_records(file, path), start=1):
            if not header:
                header = cells
                continue
            if layout.header and not pieces and cells[:1] and cells[0].startswith("#"):
                continue
            group = dict(zip(header, cells, strict=False)).get(layout.group_by)
            full = not pieces or pieces[-1].rows >= LINES_PER_PIECE
            if full and (not pieces or not layout.group_by or group != key):
                pieces.append(Piece(path, offset, 0, number, 0))
            pieces[-1] = replace(pieces[-1], rows=pieces[-1].rows + 1)
            key = group
    return _content_hash(path), pieces


def _read_table(piece: Piece, layout: Layout) -> Iterator[tuple[int, list[Row] | UserError]]:
    end, group, first = piece.first_row + piece.rows, list[Row](), 0
    broken = 0  # a row that can't be read, whose clip may be the one before or the one after
    with open_file(piece.path) as file:
        header = layout.header or next(_records(file, piece.path))[1]
        file.seek(piece.start)
        for number, (_, cells) in enumerate(_records(file, piece.path), start=piece.first_row):
            row = _table_row(header, cells, f"{piece.path}: row {number}") if cells else {}
            same = bool(layout.group_by) and isinstance(row, dict) and group \
                and row.get(layout.group_by) == group[0].get(layout.group_by)  # fmt: skip
            if group and not same:
                if layout.group_by and isinstance(row, UserError):
                    broken = number
                yield first, _doubtful(piece, first, broken) if broken else group
                group, broken = [], 0
            if number >= end and not group:
                return
            if isinstance(row, UserError):
                broken = number if layout.group_by else 0
                yield number, row
            elif row:
                first = first if group else number
                group.append(row)
    if group:
        yield first, _doubtful(piece, first, broken) if broken else group


def _doubtful(piece: Piece, first: int, broken: int) -> UserError:
    return UserError(f"{piece.path}: row {first}: events: row {broken}, which can't be read, may be of this clip too")


def _records(file: IO[bytes], path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the records of a table from where the file stands, with the offset at which each begins."""
    read = file.tell()

    def lines() -> Iterator[str]:
        nonlocal read
        for line in file:
            read += len(line)
            yield line.decode("utf-8", "surrogateescape").removeprefix("\ufeff")

    start = read
    records = csv.reader(lines(), delimiter="\t" if path.endswith(".tsv") else ",", skipinitialspace=True)
    for cells in records:
        yield start, cells
        start = read


def _table_row(header: Sequence[str], cells: list[str], where: str) -> Row | UserError:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return UserError(f"{where}: not UTF-8")
    if len(cells) != len(header):
        return UserError(f"{where}: has {len(cells)} cells; the columns are {', '.join(header)}")
    return dict(zip(header, cells, strict=True))


def _cut_document(path: str, layout: Layout) -> tuple[str, list[Piece]]:
    rows = len(_document(path, layout))
    skips = range(0, rows, ROWS_PER_PIECE)
    return _content_hash(path), [Piece(path, 0, skip, skip + 1, min(ROWS_PER_PIECE, rows - skip)) for skip in skips]


def _read_document(piece: Piece, layout: Layout) -> Iterator[tuple[int, list[Row] | UserError]]:
    rows = islice(_document(piece.path, layout), piece.skip, piece.skip + piece.rows)
    for number, row in enumerate(rows, start=piece.first_row):
        good = isinstance(row, dict)
        yield number, [row] if good else UserError(f"{piece.path}: row {number}: should be a mapping")


def _document(path: str, layout: Layout) -> list[Any]:
    try:
        with open_file(path) as file:
            rows = json.load(file)[layout.records]
        if isinstance(rows, list):
            return rows
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"input: {path}: should be JSON with a list under {layout.records!r}: {error}") from error
    raise UserError(f"input: {path}: {layout.records!r} should be a list")


def _cut_parquet(path: str) -> tuple[str, list[Piece]]:
    from pyarrow import parquet

    with open_file(path) as opened, parquet.ParquetFile(opened) as file:
        metadata, inside = file.metadata, _holds_recordings(file)
    pieces, before = [], 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        for skip in range(0, rows, ROWS_PER_PIECE):
            pieces.append(Piece(path, group, skip, before + skip + 1, min(ROWS_PER_PIECE, rows - skip)))
        before += rows
    return stable_hash(path, stamp(path), length=64) if inside else _content_hash(path), pieces


def _read_parquet(piece: Piece) -> Iterator[tuple[int, list[Row] | UserError]]:
    import pyarrow as pa

    number = piece.first_row
    try:
        for number, rows in _read_row_group(piece):
            yield number, rows
            number += 1
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())
        for broken in range(number, piece.first_row + piece.rows):
            yield broken, UserError(f"{piece.path}: row {broken}: the file is damaged here: {reason}")


def _read_row_group(piece: Piece) -> Iterator[tuple[int, list[Row]]]:
    from pyarrow import parquet

    with open_file(piece.path) as opened, parquet.ParquetFile(opened) as file:
        inside, classes = _holds_recordings(file), _classes(file)
        wanted = [name for name in file.schema_arrow.names if not (inside and name == "audio")]
        before, number = 0, piece.first_row
        for batch in file.iter_batches(LINES_PER_PIECE, row_groups=[piece.start], columns=wanted):
            first, last = max(piece.skip, before), min(piece.skip + piece.rows, before + batch.num_rows)
            for row in batch.slice(first - before, last - first).to_pylist() if first < last else ():
                if inside:
                    row["audio"] = f"{absolute(piece.path)}#row={number}"
                for name, labels in classes.items():
                    row[name] = labels[row[name]] if row[name] is not None and row[name] >= 0 else None
                yield number, [row | {"__key__": f"{piece.name}-{number}"}]
                number += 1
            before += batch.num_rows


def _holds_recordings(file: "ParquetFile") -> bool:
    """Whether a column `audio` of {bytes, path} holds bytes, by the statistics; without these, yes."""
    for column in range(file.metadata.num_columns):
        groups = [file.metadata.row_group(group).column(column) for group in range(file.metadata.num_row_groups)]
        if file.schema.column(column).path == "audio.bytes":
            known = [group.statistics for group in groups]
            return any(one is None or not one.has_null_count or one.num_values for one in known)
    return False


def _classes(file: "ParquetFile") -> dict[str, list[str]]:
    """Returns the names of classes that are stored as numbers, as Hugging Face's `ClassLabel` does."""
    features = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
    columns = features.get("features", {}).items()
    return {
        name: kind["names"] for name, kind in columns if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
    }


def _cut_tar(path: str) -> tuple[str, list[Piece]]:
    pieces: list[Piece] = []
    with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for count, (_, members) in enumerate(groupby(filter(tarfile.TarInfo.isfile, tar), _key)):
            if count % LINES_PER_PIECE == 0:
                pieces.append(Piece(path, next(members).offset, 0, count + 1, 0))
            pieces[-1] = replace(pieces[-1], rows=pieces[-1].rows + 1)
    return stable_hash(path, stamp(path), length=64), pieces


def _read_tar(piece: Piece) -> Iterator[tuple[int, list[Row] | UserError]]:
    with open_file(piece.path) as file:
        file.seek(piece.start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            clips = groupby(filter(tarfile.TarInfo.isfile, tar), _key)
            for number, (key, members) in enumerate(islice(clips, piece.rows), start=piece.first_row):
                try:
                    row = _tar_row(tar, key, list(members), piece.path, number)
                    yield number, [row | {"__key__": f"{piece.name}/{key}"}]
                except UserError as error:
                    yield number, error


def _tar_row(tar: tarfile.TarFile, key: str, members: list[tarfile.TarInfo], path: str, number: int) -> Row:
    row: Row = {}
    where = f"{path}: row {number}"
    for member in members:
        suffix = member.name.rpartition(".")[2].lower()
        if suffix in RECORDINGS:
            row["audio"] = f"{absolute(path)}#bytes={member.offset_data}+{member.size}"
        elif suffix in ("json", "txt"):
            file = tar.extractfile(member)
            assert file
            data = file.read()
            if suffix == "json":
                row |= parse_line(data, f"{where}: {member.name}")
                continue
            try:
                row["caption"] = data.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: {member.name}: not UTF-8 at byte {error.start + 1}") from error
    return row


def _key(member: tarfile.TarInfo) -> str:
    """What the files of one clip have in common: the name up to its first dot, folders included (WebDataset)."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]
