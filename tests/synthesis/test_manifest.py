import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from balsa_ray.config import UserError
from balsa_ray.synthesis import manifest
from balsa_ray.synthesis.manifest import read_piece, scan


def rows_of(path: Path, limit: int | None = None) -> list[tuple[int, object]]:
    return [row for piece in scan(path, limit).pieces for row in read_piece(piece)]


def lines(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"id": f"é{i}"}) + "\n" for i in range(count)), "utf-8")
    return path


@pytest.mark.parametrize("rows_per_piece", [1, 3, 7, 100])
@pytest.mark.parametrize("limit", [None, 1, 4, 6, 50])
def test_pieces_hold_every_row_once_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_piece: int, limit: int | None
) -> None:
    monkeypatch.setattr(manifest, "LINES_PER_PIECE", rows_per_piece)
    path = lines(tmp_path / "clips.jsonl", 7)
    expected = [(i + 1, {"id": f"é{i}"}) for i in range(min(7, limit or 7))]
    assert rows_of(path, limit) == expected
    assert scan(path, limit).rows == len(expected)


@pytest.mark.parametrize("rows_per_piece", [1, 2, 3, 100])
@pytest.mark.parametrize("limit", [None, 2, 3, 5])
def test_parquet_is_read_by_row_groups_and_parts_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_piece: int, limit: int | None
) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_PIECE", rows_per_piece)
    monkeypatch.setattr(manifest, "LINES_PER_PIECE", 2)
    path = tmp_path / "clips.parquet"
    parquet.write_table(pa.table({"id": list("abcdefgh")}), path, row_group_size=5)
    assert rows_of(path, limit) == [(i + 1, {"id": x}) for i, x in enumerate("abcdefgh"[: limit or 8])]


def test_hash_is_of_the_bytes(tmp_path: Path) -> None:
    path = lines(tmp_path / "clips.jsonl", 3)
    assert scan(path).digest == scan(path, 1).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_row_that_cannot_be_read_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_bytes(b'{"id": "a"}\n\n{"id": \n\xff\n[1]\n{"id": "b"}')
    found = rows_of(path)
    assert found[0] == (1, {"id": "a"})
    assert found[-1] == (6, {"id": "b"})
    assert [number for number, _ in found] == [1, 3, 4, 5, 6]
    for (number, error), reason in zip(found[1:4], ("not valid JSON", "UTF-8", "mapping of columns"), strict=True):
        assert isinstance(error, UserError)
        assert str(error).startswith(f"{path}: row {number}: ")
        assert reason in str(error)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("clips.jsonl", None, "no such file"),
        ("clips.jsonl", b"", "holds no rows"),
        ("clips.csv", b"id\na\n", r"end in \.jsonl or"),
        ("clips.parquet", b"no parquet", "not a Parquet file"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        scan(tmp_path / name)
