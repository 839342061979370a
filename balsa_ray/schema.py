"""The file formats that pass between stages: manifest of clips, synthetic samples, rows that could not be made."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa

from balsa_ray.config import UserError
from balsa_ray.storage import is_uri

_TEXTS = pa.list_(pa.string())

PROVENANCE = pa.struct(
    [
        ("recipe", pa.string()),  # fingerprint of the configuration
        ("model", pa.string()),
        ("model_hash", pa.string()),
        ("template_hash", pa.string()),
        ("sampling", pa.string()),  # JSON
        ("seed", pa.int64()),
        ("packages", pa.string()),  # JSON: name to version
    ]
)

SAMPLE = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("clip_ids", _TEXTS),
        ("audio", _TEXTS),
        ("metadata", _TEXTS),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("present", _TEXTS),
        ("absent", _TEXTS),
        ("strategy", pa.string()),  # how clips or absent sounds were chosen; `a>b`: a found none, b took over
        ("gate", pa.string()),  # `passed`; in rejected rows the reason
        ("prompt_tokens", pa.int64()),
        ("response_tokens", pa.int64()),
        ("finish_reason", pa.string()),
        ("provenance", PROVENANCE),
    ]
)

SOURCE = "source_"
"""In front of the names of the manifest's other columns, where samples carry them: a text, or JSON, for each clip."""

ERROR = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("clip_ids", _TEXTS),
        ("audio", _TEXTS),
        ("prompt_id", pa.string()),
        ("strategy", pa.string()),
        ("error", pa.string()),
    ]
)

# What a row may hold; any other column is carried through to the samples.
MANIFEST_COLUMNS = {
    "id": "a non-empty text",
    "audio": "a path, a URI or {bytes, path}",
    "start": "a number of seconds, 0 or more",
    "duration": "a number of seconds above 0",
    "tags": "a list of non-empty texts",
    "events": "a list of {label, start, end} with 0 <= start < end in seconds",
    "caption": "a text",
    "text": "a text",
}
DESCRIPTIONS = ("tags", "events", "caption", "text")


def with_sources(schema: pa.Schema, columns: Iterable[str]) -> pa.Schema:
    """Returns a schema of samples with the columns that are carried from the manifest."""
    return pa.schema([*schema, *(pa.field(name, _TEXTS) for name in columns)])


def source_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a row of a manifest holds beside the manifest's own columns, as samples carry it.

    Args:
        row: As it stands in the manifest; a name that begins with `source_` already keeps it.

    Returns:
        Texts as they are, anything else as JSON; bytes and what is None are left out.
    """
    others = {name: value for name, value in row.items() if name not in MANIFEST_COLUMNS}
    return {
        f"{SOURCE}{name.removeprefix(SOURCE)}": _as_text(value)
        for name, value in others.items()
        if value is not None and not isinstance(value, bytes)
    }


_SURROGATE = re.compile("[\\ud800-\\udfff]")


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=_plain)
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _plain(value: Any) -> str | None:
    return None if isinstance(value, bytes) else str(value)


def validate_clip(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Check one row of a manifest.

    Args:
        row: a mapping of columns to values; a value of None counts as absent.
        where: what to call the row in an error, for example `clips.jsonl: row 3`.

    Returns:
        The row without its absent columns; columns that the manifest's format doesn't know are kept as they are.

    Raises:
        UserError: (a ValueError) a column is missing or has a wrong value; names the row, the key and what is right.
    """
    clip = {key: value for key, value in row.items() if value is not None}
    for key in ("id", "audio"):
        if key not in clip:
            near = get_close_matches(key, set(clip) - set(MANIFEST_COLUMNS), n=1)
            raise UserError(f"{where}: {key}: missing{f' (is it {near[0]!r}?)' if near else ''}")
    for key, check in _CHECKS.items():
        if key in clip and not _is_utf8(clip[key]):
            raise UserError(f"{where}: {key}: holds half of a character (a lone surrogate)")
        if key in clip and not check(clip[key]):
            raise UserError(f"{where}: {key}: should be {MANIFEST_COLUMNS[key]}, not {_shorten(clip[key])}")
    if not any(clip.get(key) for key in DESCRIPTIONS):
        raise UserError(f"{where}: has none of {', '.join(DESCRIPTIONS)}: at least one has to say what is heard")
    return clip


def read_manifest(path: str | Path) -> list[dict[str, Any]]:
    """Read a whole manifest into memory; paths of audio are made absolute, relative to the manifest's folder.

    Args:
        path: JSON Lines (`.jsonl`, `.json`) or Parquet (`.parquet`), or a folder with one such file.

    Raises:
        UserError: (a ValueError) the file, or a row of it, is not as the format demands; an id that stands twice.
    """
    path = Path(path)
    if path.is_dir():
        there = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".parquet"))
        if len(there) != 1:
            raise UserError(f"{path}: should hold one manifest (.jsonl, .parquet), holds {len(there)}; name the file")
        path = there[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file; it should be a manifest, .jsonl or .parquet")
    clips = []
    first_seen: dict[str, int] = {}
    for number, row in _rows(path):
        where = f"{path}: row {number}"
        clip = validate_clip(row, where)
        earlier = first_seen.setdefault(clip["id"], number)
        if earlier != number:
            raise UserError(f"{where}: id: {clip['id']!r} stands in row {earlier} already; ids have to be unique")
        if isinstance(clip["audio"], str):
            clip["audio"] = absolute_audio(clip["audio"], path.parent)
        clips.append(clip)
    if not clips:
        raise UserError(f"{path}: holds no clips")
    return clips


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """One line of a JSON Lines manifest.

    Raises:
        UserError: (a ValueError) it is not UTF-8, not JSON, or not a mapping.
    """
    try:
        row = json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or very deep
        raise UserError(f"{where}: not readable as JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: should be a mapping of columns to values")
    return row


def absolute_audio(audio: str, folder: str | Path) -> str:
    """A manifest's path of audio, absolute if it was relative to `folder`, a path or a URI; a URI stays as it is."""
    if is_uri(str(folder)) and not is_uri(audio) and not Path(audio).is_absolute():
        return f"{str(folder).rstrip('/')}/{audio}"
    return audio if is_uri(audio) else str((Path(folder) / audio).resolve())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers: the line in JSON Lines, the position from 1 in Parquet."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        try:
            table = parquet.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path}: not a Parquet file: {error}") from error
        yield from enumerate(table.to_pylist(), start=1)
        return
    if path.suffix not in (".jsonl", ".json"):
        raise UserError(f"{path}: a manifest is JSON Lines (.jsonl) or Parquet (.parquet)")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, parse_line(line, f"{path}: row {number}")


def _shorten(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _is_utf8(value: Any) -> bool:
    """Whether all text can be written: JSON may hold halves of characters, as where a text was cut inside an emoji."""
    if isinstance(value, str):
        return value.isascii() or not _SURROGATE.search(value)
    if isinstance(value, dict):
        return all(map(_is_utf8, value)) and all(map(_is_utf8, value.values()))
    return all(map(_is_utf8, value)) if isinstance(value, list) else True


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _is_audio(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("bytes") or value.get("path"))
    return _is_text(value)


def _is_event(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("label"))
        and _is_seconds(value.get("start"))
        and _is_seconds(value.get("end"))
        and value["start"] < value["end"]
    )


_CHECKS = {
    "id": _is_text,
    "audio": _is_audio,
    "start": _is_seconds,
    "duration": lambda value: _is_seconds(value) and value > 0,
    "tags": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "events": lambda value: isinstance(value, list) and all(map(_is_event, value)),
    "caption": lambda value: isinstance(value, str),
    "text": lambda value: isinstance(value, str),
}
