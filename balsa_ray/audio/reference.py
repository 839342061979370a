"""How a sample names a recording: a path or URI, and behind `#` where in that file it stands and which slice is meant.

| reference | the recording |
|---|---|
| `audio/a.flac`, `s3://bucket/a.flac` | a file |
| `shard.tar#bytes=1536+20480` | 20480 bytes from byte 1536 on: a member of a tar file, read without its neighbours |
| `clips.parquet#row=17` | the column `audio`, `{bytes, path}`, of the 17th row, as Hugging Face stores recordings |
| `a.flac#t=1.5,3.5`, `shard.tar#bytes=1536+20480&t=1.5,3.5` | from second 1.5 to 3.5 of it (W3C Media Fragments 1.0) |

Parquet can't give a row without what stands before it in its row group, so the last few row groups are kept in memory
(Hugging Face writes 100 recordings a group); where the same clips are read in every epoch, tar or plain files are
cheaper.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import IO, Any

from balsa_ray.storage import is_uri, open_file, read_range

_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_FRAGMENT = re.compile(
    r"#(?:row=(?P<row>\d+)|bytes=(?P<offset>\d+)\+(?P<size>\d+))?"
    rf"(?:(?<!#)&)?(?:t=(?P<start>{_NUMBER})(?:,(?P<end>{_NUMBER}))?)?$"
)
_ROW_GROUPS_KEPT = 2
_reading = Lock()


@dataclass(frozen=True)
class Reference:
    """A recording, taken apart.

    Attributes:
        path: Path or URI of the file.
        row: Number of the Parquet row, from 1.
        place: Offset and size in bytes inside the file.
        start: Seconds to skip.
        duration: Seconds to keep.
    """

    path: str
    row: int | None = None
    place: tuple[int, int] | None = None
    start: float | None = None
    duration: float | None = None


def parse(reference: str) -> Reference:
    """Takes a reference apart; what is no such fragment belongs to the file's name."""
    found = _FRAGMENT.search(reference)
    if not found or found[0] == "#":
        return Reference(reference)
    start = float(found["start"]) if found["start"] else None
    return Reference(
        path=reference[: found.start()],
        row=int(found["row"]) if found["row"] else None,
        place=(int(found["offset"]), int(found["size"])) if found["size"] else None,
        start=start,
        duration=float(found["end"]) - (start or 0.0) if found["end"] else None,
    )


def with_slice(reference: str, start: float | None, duration: float | None) -> str:
    """Returns the reference to a slice of a recording.

    Args:
        reference: A path, a URI or a reference without a slice.
        start: Seconds to skip, if any.
        duration: Seconds to keep; to the end if None.
    """
    if not start and duration is None:
        return reference
    begin = float(start or 0.0)
    time = f"t={begin}" if duration is None else f"t={begin},{begin + duration}"
    return f"{reference}{'&' if parse(reference) != Reference(reference) else '#'}{time}"


@contextmanager
def opened(reference: Reference) -> Iterator[str | IO[bytes]]:
    """Gives what a decoder can open: the path of a local file, else something to read and to seek in.

    Raises:
        OSError: The file is not there, or has no such row or bytes.
    """
    if reference.row is not None:
        yield io.BytesIO(_parquet_bytes(reference.path, reference.row))
    elif reference.place is not None:
        yield read_range(reference.path, *reference.place)
    elif is_uri(reference.path):
        with open_file(reference.path) as file:
            yield file
    else:
        yield reference.path


def _parquet_bytes(path: str, row: int) -> bytes:
    import pyarrow as pa

    place = row - 1
    # One at a time: threads that ask for neighbours would otherwise each read the row group.
    with _reading:
        try:
            for group, rows in enumerate(_row_groups(path)):
                if place < rows:
                    data = _audio_column(path, group)[place].as_py()
                    break
                place -= rows
            else:
                raise OSError("the file has no such row")
        except (pa.ArrowInvalid, KeyError) as error:
            raise OSError(f"not a Parquet file with a column audio of bytes: {error}") from error
    if data is None:
        raise OSError("the row has no bytes")
    return bytes(data)


@lru_cache(64)
def _row_groups(path: str) -> list[int]:
    from pyarrow import parquet

    with open_file(path) as file:
        metadata = parquet.read_metadata(file)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@lru_cache(_ROW_GROUPS_KEPT)
def _audio_column(path: str, group: int) -> Any:
    from pyarrow import parquet

    with open_file(path) as file:
        table = parquet.ParquetFile(file).read_row_group(group, columns=["audio.bytes"])
        return table["audio"].combine_chunks().field("bytes")
