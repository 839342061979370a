import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from balsa_ray.config import UserError
from balsa_ray.synthesis.output import finished, partial_folder, write_rows

IDENTITY = {"recipe": "r", "input": "i", "limit": None}
SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64())])


def complete(output: Path, engine_errors: int = 0) -> dict[str, object]:
    report = {"identity": IDENTITY, "errors": {"manifest": 3, "engine": engine_errors}}
    with partial_folder(output) as folder:
        (folder / "report.json").write_text(json.dumps(report))
    return report


def test_nothing_there_is_nothing_finished(tmp_path: Path) -> None:
    assert finished(tmp_path / "out", IDENTITY) is None
    (tmp_path / "out").mkdir()
    assert finished(tmp_path / "out", IDENTITY) is None


def test_the_same_run_is_found_complete_unless_the_engine_failed_on_rows(tmp_path: Path) -> None:
    report = complete(tmp_path / "out")
    assert finished(tmp_path / "out", IDENTITY) == report
    complete(tmp_path / "out", engine_errors=1)
    assert finished(tmp_path / "out", IDENTITY) is None


def test_another_run_is_refused_and_the_line_says_what_changed(tmp_path: Path) -> None:
    complete(tmp_path / "out")
    with pytest.raises(UserError) as refused:
        finished(tmp_path / "out", IDENTITY | {"limit": 5, "kinds.joint": 1})
    assert "changed: kinds.joint (null -> 1), limit (null -> 5)" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no result"):
        finished(tmp_path, IDENTITY)


def test_an_interrupted_run_leaves_the_output_alone_and_is_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        with partial_folder(tmp_path / "out") as folder:
            write_rows(folder / "samples", [{"id": "a", "n": 1}], SCHEMA)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / "out").exists()
    complete(tmp_path / "out")
    assert "starting again" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "errors",
        "rejected",
        "report.json",
        "samples",
    ]
    assert not list((tmp_path / "out" / "samples").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_repeated_task_writes_the_same_file(tmp_path: Path) -> None:
    rows = [{"id": "a", "n": 1}, {"id": "b", "n": 2, "more": "dropped"}]
    write_rows(tmp_path, rows, SCHEMA)
    write_rows(tmp_path, rows[::-1], SCHEMA)
    write_rows(tmp_path, [], SCHEMA)
    assert len(list(tmp_path.iterdir())) == 1
    assert sorted(parquet.read_table(tmp_path)["n"].to_pylist()) == [1, 2]
