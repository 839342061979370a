from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from balsa_ray.identity import shuffled, stable_hash
from balsa_ray.schema import SAMPLE
from balsa_ray.synthesis import duplicates
from balsa_ray.synthesis.duplicates import set_duplicates_aside
from balsa_ray.synthesis.output import row_files, write_rows
from balsa_ray.synthesis.resume import take_stock


def row(number: int, response: str, clips: str = "a", kind: str = "present", gate: str = "passed") -> dict[str, Any]:
    found = {"id": f"{number:016x}", "kind": kind, "clip_ids": clips.split("+"), "strategy": "", "audio": ["/a.wav"]}
    return found | {"response": response, "gate": gate, "prompt_tokens": 7, "response_tokens": 3}


def gates(output: Path) -> dict[int, tuple[str, str]]:
    rows = [(file.parent.name, row) for file in row_files(output) for row in parquet.read_table(file).to_pylist()]
    assert len(rows) == len({row["id"] for _, row in rows})
    return {int(row["id"], 16): (folder, row["gate"]) for folder, row in rows}


ROWS = [
    row(9, "I hear rain and a siren."),
    row(3, "a siren, and i hear the rain"),
    row(5, "I hear a siren and rain!"),
    row(4, "I hear rain and a siren.", clips="b"),
    row(6, "I hear rain and a siren.", kind="combined"),
    row(7, "I hear rain and a siren.", clips="a+b"),
    row(8, "I hear rain."),
]  # fmt: skip
WANTED = {
    9: ("rejected", "near_duplicate"), 5: ("rejected", "near_duplicate"), 3: ("samples", "passed"),
    4: ("samples", "passed"), 6: ("samples", "passed"), 7: ("samples", "passed"), 8: ("samples", "passed"),
    1: ("rejected", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("cut", range(4))
def test_the_smallest_id_stands_in_whatever_files_the_rows_came(tmp_path: Path, cut: int) -> None:
    rows = shuffled(cut, ["rows"], ROWS)
    write_rows(tmp_path / "samples", rows[: 2 * cut], SAMPLE)
    write_rows(tmp_path / "samples", rows[2 * cut :], SAMPLE)
    # Another reason to reject a reply goes before.
    write_rows(tmp_path / "rejected", [row(1, "I hear rain and a siren.", gate="empty")], SAMPLE)
    for _ in range(2):
        set_duplicates_aside(tmp_path)
        assert gates(tmp_path) == WANTED


def test_a_row_whose_likeness_is_gone_is_a_sample_again(tmp_path: Path) -> None:
    write_rows(tmp_path / "samples", ROWS, SAMPLE)
    set_duplicates_aside(tmp_path)
    for file in row_files(tmp_path):
        rows = [row for row in parquet.read_table(file).to_pylist() if int(row["id"], 16) not in (3, 9)]
        file.unlink()
        write_rows(file.parent, rows, SAMPLE)
    set_duplicates_aside(tmp_path)
    left = dict.fromkeys((4, 5, 6, 7, 8), ("samples", "passed"))
    assert gates(tmp_path) == left


def test_a_move_that_was_cut_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "samples", ROWS, SAMPLE)
    write_rows(tmp_path / "rejected", [row(1, "", gate="empty")], SAMPLE)
    with monkeypatch.context() as patch:
        patch.setattr(duplicates, "keep_rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            set_duplicates_aside(tmp_path)
    assert take_stock(tmp_path).rows == len(WANTED)
    set_duplicates_aside(tmp_path)
    assert gates(tmp_path) == WANTED
    assert take_stock(tmp_path).rows == len(WANTED)


def test_nothing_is_touched_where_there_are_none(tmp_path: Path) -> None:
    set_duplicates_aside(tmp_path)
    write_rows(tmp_path / "samples", [row(i, f"reply {stable_hash(i)}") for i in range(50)], SAMPLE)
    before = [(file, file.stat().st_mtime_ns) for file in row_files(tmp_path)]
    set_duplicates_aside(tmp_path)
    assert [(file, file.stat().st_mtime_ns) for file in row_files(tmp_path)] == before
