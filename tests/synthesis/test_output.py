import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from balsa_ray.config import UserError
from balsa_ray.synthesis.output import (
    REPORT,
    Held,
    keep_rows,
    read,
    reopen,
    row_files,
    sign,
    write_rows,
    write_whole,
)

IDENTITY = {"recipe": "r", "input": "i", "limit": None}
SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64())])


def test_nothing_there_is_nothing_held(tmp_path: Path) -> None:
    assert read(tmp_path / "out") is None
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".identity.json.1-0.partial").write_text('{"iden')
    assert read(tmp_path / "out") is None


def test_what_was_signed_is_held_and_its_report_once_it_is_there(tmp_path: Path) -> None:
    sign(tmp_path / "out", IDENTITY, "labels")
    assert read(tmp_path / "out") == Held(IDENTITY, "labels", None)
    (tmp_path / "out" / REPORT).write_text(json.dumps({"samples": 1}))
    assert read(tmp_path / "out") == Held(IDENTITY, "labels", {"samples": 1})


@pytest.mark.parametrize("name", ["notes.txt", "report.json"])
def test_a_foreign_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="is not empty and holds no result"):
        read(tmp_path)


def test_a_reopened_output_keeps_its_rows_and_forgets_errors_report_and_what_was_cut(tmp_path: Path) -> None:
    for name in ("samples", "rejected", "errors"):
        write_rows(tmp_path / name, [{"id": name, "n": 1}], SCHEMA)
        (tmp_path / name / ".x.parquet.1-0.partial").write_text("PAR")
    (tmp_path / REPORT).write_text("{}")
    reopen(tmp_path)
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.parent.name for path in left) == ["rejected", "samples"]
    assert row_files(tmp_path) == [tmp_path / path for path in sorted(left, key=lambda path: path.parts, reverse=True)]


def test_a_repeated_task_writes_the_same_file(tmp_path: Path) -> None:
    rows = [{"id": "a", "n": 1}, {"id": "b", "n": 2, "more": "dropped"}]
    write_rows(tmp_path, rows, SCHEMA)
    write_rows(tmp_path, rows[::-1], SCHEMA)
    write_rows(tmp_path, [], SCHEMA)
    assert len(list(tmp_path.iterdir())) == 1
    assert sorted(parquet.read_table(tmp_path)["n"].to_pylist()) == [1, 2]


def test_a_file_that_is_cut_while_written_is_not_there(tmp_path: Path) -> None:
    def cut(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    (tmp_path / "a").write_text("before")
    for name in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            write_whole(tmp_path / name, cut)
    assert (tmp_path / "a").read_text() == "before"
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("mask", "left"), [([True, True], [1, 2]), ([False, True], [2]), ([False, False], None)])
def test_rows_go_from_a_file_and_the_file_with_its_last(tmp_path: Path, mask: list[bool], left: list[int]) -> None:
    write_rows(tmp_path, [{"id": "a", "n": 1}, {"id": "b", "n": 2}], SCHEMA)
    (file,) = tmp_path.iterdir()
    keep_rows(file, mask)
    assert (parquet.read_table(file)["n"].to_pylist() if file.exists() else None) == left
    assert len(list(tmp_path.iterdir())) == (left is not None)
