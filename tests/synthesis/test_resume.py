"""What stands and what is left, as pure functions; then real runs in which something is killed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from balsa_ray.identity import stable_hash
from balsa_ray.schema import ERROR, SAMPLE
from balsa_ray.synthesis.output import row_files, write_rows
from balsa_ray.synthesis.resume import (
    Change,
    changes,
    contents,
    contents_of,
    drop_others,
    is_among,
    planned_keys,
    row_numbers,
    take_stock,
    weigh,
)


def row(number: int, **more: Any) -> dict[str, Any]:
    found = {"id": stable_hash(number), "kind": "present", "strategy": "", "gate": "passed", "audio": ["/a.wav"]}
    return found | {"present": ["rain"], "response": f"reply {number}", "prompt_tokens": 7, "response_tokens": 3} | more


def ids_in(output: Path) -> list[str]:
    return [row["id"] for file in row_files(output) for row in parquet.read_table(file, columns=["id"]).to_pylist()]


def test_numbers_of_rows_are_found_among_many(tmp_path: Path) -> None:
    ids = [stable_hash(i) for i in range(200)]
    known = np.sort(row_numbers(ids[::2]))
    assert is_among(row_numbers(ids), known).tolist() == [True, False] * 100
    assert not is_among(row_numbers(ids), row_numbers([])).any()
    assert is_among(row_numbers([]), known).tolist() == []
    assert row_numbers(["00000000000000ff", "f" * 16]).tolist() == [255, 2**64 - 1]


def test_rows_that_two_tasks_wrote_stand_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "samples", [row(i) for i in range(6)], SAMPLE)
    write_rows(tmp_path / "samples", [row(i) for i in range(4, 9)], SAMPLE)  # run again, with other rows beside them
    write_rows(tmp_path / "rejected", [row(10, gate="loops"), row(11, gate="empty")], SAMPLE)
    write_rows(tmp_path / "errors", [row(10), row(12)], ERROR)  # failed once, was answered the second time
    write_rows(tmp_path / "errors", [row(11)], ERROR)
    write_rows(tmp_path / "errors", [{"id": stable_hash("bad row"), "error": "row 3"}], ERROR)
    stock = take_stock(tmp_path)
    assert sorted(ids_in(tmp_path)) == sorted(stable_hash(i) for i in [*range(9), 10, 11, 12, "bad row"])
    assert stock.rows == 12
    assert is_among(row_numbers(ids_in(tmp_path)), stock.ids).all()
    assert {(count["gate"], count["rows"], count["response_tokens"]) for count in stock.counts} >= {
        ("loops", 1, 3),
        ("empty", 1, 3),
        ("error", 1, 0),
    }
    files = {file: file.read_bytes() for file in row_files(tmp_path)}
    again = take_stock(tmp_path)
    assert again.ids.tolist() == stock.ids.tolist()
    assert files == {file: file.read_bytes() for file in row_files(tmp_path)}


def test_an_empty_output_has_no_stock(tmp_path: Path) -> None:
    stock = take_stock(tmp_path)
    assert (len(stock.ids), stock.rows, stock.counts) == (0, 0, [])


def test_a_change_is_told_by_name() -> None:
    was = {"recipe": "a", "limit": None, "prompts": "p" * 99, "seed": 0}
    found = changes(was, {"recipe": "b", "limit": 5, "prompts": "p" * 99, "seed": 0, "clips": 3})
    assert found == {"clips": "null -> 3", "limit": "null -> 5"}


@pytest.mark.parametrize(
    ("planned", "alike", "stand"),
    [
        ([row(i) for i in range(8)], True, 8),  # fewer clips
        ([row(i) for i in range(15)], True, 10),  # more clips
        ([row(i) for i in range(20, 30)], True, 0),  # another prompt or model: other ids
        ([row(i) for i in range(10)], False, 0),  # other gates
        ([row(i, audio=["/b.wav"]) for i in range(10)], True, 0),  # recordings lie elsewhere
        ([row(i, present=["rain", "wind"]) if i else row(i) for i in range(10)], True, 1),  # other labels are known
    ],
)
def test_rows_stand_that_would_be_made_just_so(
    tmp_path: Path, planned: list[dict[str, Any]], alike: bool, stand: int
) -> None:
    for first in (0, 4):
        write_rows(tmp_path / "samples", [row(i) for i in range(first, 6)], SAMPLE)  # two stand twice
    write_rows(tmp_path / "rejected", [row(i) for i in range(6, 10)], SAMPLE)
    held = [contents_of(str(file)) for file in row_files(tmp_path)]
    wanted = [contents(planned[:3]), contents(planned[3:]), contents([])]
    both = {stable_hash(i) for i in range(10)} & {one["id"] for one in planned}
    assert weigh(held, wanted, alike) == Change(10, stand, len(both), len(planned))
    for file in row_files(tmp_path):
        drop_others(str(file), planned_keys(wanted if alike else []))
    assert len(set(ids_in(tmp_path))) == stand == take_stock(tmp_path).rows


def test_a_change_says_what_happens_to_the_rows() -> None:
    change = Change(rows=1200, stand=900, planned_before=1000, planned=1300)
    assert change.line("redo") == (
        "900 of 1,200 rows stand; 300 are redone or dropped, and 400 of 1,300 planned ones are to be made"
    )
    assert change.line("keep") == "all 1,200 rows stand as they are, none is redone; 300 of 1,300 are new"
