import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from balsa_ray.schema import SAMPLE
from balsa_ray.synthesis import joining
from balsa_ray.synthesis.joining import join_files
from balsa_ray.synthesis.output import row_files, write_rows
from balsa_ray.synthesis.resume import here, take_stock


def row(number: int) -> dict[str, Any]:
    found = {"id": f"{number:016x}", "kind": "present", "clip_ids": ["a"], "strategy": "", "audio": ["/a.wav"]}
    return found | {"response": f"reply {number}", "gate": "passed", "prompt_tokens": 7, "response_tokens": 3}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Twenty files of five rows."""
    for first in range(0, 100, 5):
        write_rows(tmp_path / "samples", [row(number) for number in range(first, first + 5)], SAMPLE)
    return tmp_path


def rows(output: Path) -> list[dict[str, Any]]:
    found = [row for file in row_files(output) for row in parquet.read_table(file).to_pylist()]
    return sorted(found, key=lambda row: row["id"])


def test_small_files_become_large_ones_with_the_same_rows(output: Path) -> None:
    before = rows(output)
    assert len(before) == 100
    join_files(output)
    assert len(row_files(output)) == 1
    assert rows(output) == before
    (file,) = row_files(output)
    join_files(output)
    assert row_files(output) == [file]


def test_files_become_one_that_have_the_size_together_and_large_ones_stay(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, before = row_files(output), rows(output)
    sizes = [file.stat().st_size for file in files]
    # Of files that are half as large as the aim none is touched.
    monkeypatch.setattr(joining, "FILE_BYTES", max(sizes))
    join_files(output)
    assert row_files(output) == files
    # Four at a time have the size.
    monkeypatch.setattr(joining, "FILE_BYTES", 4 * min(sizes))
    join_files(output)
    assert [parquet.read_metadata(file).num_rows for file in row_files(output)] == [20] * 5
    assert rows(output) == before


def test_columns_that_only_some_files_have_are_empty_in_the_others(output: Path) -> None:
    carried = SAMPLE.append(pa.field("source_fold", pa.string()))
    write_rows(output / "samples", [row(100) | {"source_fold": "3"}], carried)
    join_files(output)
    (file,) = row_files(output)
    assert parquet.read_table(file, columns=["source_fold"]).column(0).to_pylist().count("3") == 1
    assert parquet.read_metadata(file).num_rows == 101


def test_wherever_it_is_killed_no_row_is_lost_or_stands_twice(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(output)
    monkeypatch.setattr(joining, "FILE_BYTES", 9 * row_files(output)[0].stat().st_size)
    unlink = Path.unlink
    for most in (0, 1, 7):  # files that have gone before the kill
        gone: list[Path] = []

        def killed(file: Path, missing_ok: bool = False, gone: list[Path] = gone, most: int = most) -> None:
            if len(gone) == most:
                raise KeyboardInterrupt
            gone.append(file)
            unlink(file, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                join_files(output)
        assert sum(parquet.read_metadata(file).num_rows for file in row_files(output)) > 100 - 5 * most
        stock = take_stock(output)
        assert stock.rows == 100
        assert rows(output) == before
    join_files(output)
    assert rows(output) == before


@pytest.mark.parametrize("when", [0, 3])
def test_two_of_a_task_at_once_make_one_file(output: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """The other one does all of it while this one reads its files."""
    before, read, looked = rows(output), parquet.read_table, []

    def read_table(file: Path, **options: Any) -> pa.Table:
        looked.append(file)
        if len(looked) == when + 1:
            join_files(output)
        return read(file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "read_table", read_table)
        join_files(output)
    assert len(looked) > 20
    assert rows(output) == before
    assert len(row_files(output)) == 1


def test_a_task_that_is_repeated_finds_it_done(output: Path) -> None:
    before = rows(output)
    join_files(output, over=lambda function, names: here(function, [*names, *names]))
    assert rows(output) == before


def test_files_that_are_gone_are_told(output: Path) -> None:
    group = json.dumps([str(output / "samples" / "gone.parquet")])
    with pytest.raises(FileNotFoundError):
        joining._join(group)
