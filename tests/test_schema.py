import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from balsa_ray import schema
from balsa_ray.schema import read_manifest, validate_clip

CLIP: dict[str, Any] = {"id": "a", "audio": "clips/a.flac", "tags": ["dog barking"]}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_sample_schema_holds_a_sample_and_survives_parquet(tmp_path: Path) -> None:
    sample: dict[str, Any] = {
        "id": "x",
        "kind": "difference",
        "clip_ids": ["a", "b"],
        "audio": ["/a.flac", "/b.flac"],
        "metadata": ["dog barking", ""],
        "prompt_id": "difference-1",
        "prompt": "What differs?",
        "response": "The first has a dog.",
        "present": ["dog barking"],
        "absent": [],
        "strategy": "random",
        "gate": "passed",
        "prompt_tokens": 12,
        "response_tokens": 6,
        "finish_reason": "stop",
        "provenance": {field.name: None for field in schema.PROVENANCE} | {"seed": 3, "packages": "{}"},
    }
    assert set(sample) == set(schema.SAMPLE.names)
    parquet.write_table(pa.Table.from_pylist([sample], schema=schema.SAMPLE), tmp_path / "x.parquet")
    assert parquet.read_table(tmp_path / "x.parquet", schema=schema.SAMPLE).to_pylist() == [sample]


def test_absent_columns_are_dropped_and_unknown_ones_kept() -> None:
    row = CLIP | {"start": None, "caption": None, "speaker": 7}
    assert validate_clip(row, "row 1") == CLIP | {"speaker": 7}


@pytest.mark.parametrize(
    "change",
    [
        {"audio": {"bytes": b"RIFF", "path": None}},
        {"audio": "s3://bucket/a.flac", "start": 0, "duration": 0.5},
        {"tags": None, "events": [{"label": "bell", "start": 0.5, "end": 2}]},
        {"tags": None, "caption": "A bell rings."},
        {"tags": [], "text": "hello"},
    ],
)
def test_every_form_of_the_contract_is_accepted(change: dict[str, Any]) -> None:
    validate_clip(CLIP | change, "row 1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "row 4: id: missing"),
        ({"id": 5}, "row 4: id: should be a non-empty text, not 5"),
        ({"audio": None, "audio_path": "x"}, "row 4: audio: missing (is it 'audio_path'?)"),
        ({"audio": {"bytes": None, "path": None}}, "row 4: audio: should be a path, a URI or {bytes, path}, not {"),
        ({"start": -1.0}, "row 4: start: should be a number of seconds, 0 or more, not -1.0"),
        ({"duration": 0}, "row 4: duration: should be a number of seconds above 0, not 0"),
        ({"duration": float("nan")}, "row 4: duration: should be a number of seconds above 0, not nan"),
        ({"tags": "dog"}, "row 4: tags: should be a list of non-empty texts, not 'dog'"),
        ({"tags": ["dog", " "]}, "row 4: tags: should be a list of non-empty texts, not ['dog', ' ']"),
        ({"events": [{"label": "a", "start": 2, "end": 1}]}, "row 4: events: should be a list of {label, start, end}"),
        ({"caption": 3}, "row 4: caption: should be a text, not 3"),
        ({"tags": None}, "row 4: has none of tags, events, caption, text"),
        ({"tags": []}, "row 4: has none of tags, events, caption, text"),
    ],
)
def test_wrong_row_is_refused_with_its_place_and_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the message is compared below)
        validate_clip(CLIP | change, "row 4")
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("name", ["clips.jsonl", "clips.parquet"])
def test_paths_are_relative_to_the_manifest(name: str, tmp_path: Path) -> None:
    rows = [CLIP, CLIP | {"id": "b", "audio": "https://host/b.flac"}, CLIP | {"id": "c", "audio": "/data/c.flac"}]
    if name.endswith("parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        write_jsonl(tmp_path / name, rows)
    clips = read_manifest(tmp_path / name)
    assert [clip["audio"] for clip in clips] == [f"{tmp_path}/clips/a.flac", "https://host/b.flac", "/data/c.flac"]


def test_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "clips.jsonl", [CLIP, CLIP | {"id": "b"}, CLIP])
    with pytest.raises(ValueError, match="row 3: id: 'a' stands in row 1 already"):
        read_manifest(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clips.jsonl", '{"id": "a"', "row 1: not valid JSON: Expecting"),
        ("clips.jsonl", "\n[1]\n", "row 2: should be a mapping of columns to values"),
        ("clips.jsonl", "\n", "holds no clips"),
        ("clips.parquet", "text", "not a Parquet file"),
        ("clips.csv", "id,audio", "a manifest is JSON Lines"),
    ],
)
def test_file_that_is_no_manifest_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        read_manifest(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value)


def test_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_manifest(tmp_path / "none.jsonl")


def test_line_that_is_not_utf8_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "clips.jsonl"
    file.write_bytes(json.dumps(CLIP).encode() + b'\n{"id": "caf\xe9"}\n')
    with pytest.raises(ValueError, match="row 2: not UTF-8 at byte 12"):
        read_manifest(file)
