import time
from pathlib import Path

import pytest

from balsa_ray.synthesis import report
from balsa_ray.synthesis.report import Progress, figures, summary


def counts(gate: str, rows: int, kind: str = "present") -> dict[str, object]:
    return {"kind": kind, "gate": gate, "rows": rows, "prompt_tokens": 10 * rows, "response_tokens": 2 * rows}


def test_a_line_shows_even_when_no_row_arrives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "LINE_EVERY_SECONDS", 0.02)
    with Progress(10):
        time.sleep(0.2)
    assert "the engine is starting" in capsys.readouterr().out


def test_speed_counts_from_the_first_rows_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(100)
    now[0] = 160.0
    progress.add([counts("passed", 20)])
    assert progress.speed() == (20 / 60, 40 / 60)
    assert progress.line() == "synthesis: 20 of 100 rows (20%); 0 rejected, 0 errors"
    now[0] = 170.0
    progress.add([counts("passed", 20), counts("error", 10), counts("empty", 10)])
    assert progress.speed() == (4.0, 8.0)
    assert progress.line() == (
        "synthesis: 60 of 100 rows (60%), 10 s left, 4 rows/s, 8 tokens/s; 10 rejected, 10 errors"
    )


def test_the_report_accounts_for_every_row() -> None:
    progress = Progress(40)
    progress.add([counts("passed", 30), counts("empty", 4), counts("truncated", 3, "joint"), counts("error", 3)])
    made = figures(progress, identity={"recipe": "r"}, provenance={}, clips=7, bad_rows=2)
    assert made["samples"] + made["rejected"] + sum(made["errors"].values()) == made["planned"] == 42
    assert made["by_kind"] == {"joint": {"truncated": 3}, "present": {"passed": 30, "empty": 4, "error": 3}}
    assert made["tokens"] == {"prompt": 400, "response": 80}
    lines = summary(made, Path("out")).splitlines()
    assert lines[0].startswith("synthesis: 30 samples of 7 clips, 7 rejected (empty 4, truncated 3) in ")
    assert lines[1:] == [
        "synthesis: 2 rows of the manifest can't be used; out/errors says why",
        "synthesis: the engine failed on 3 rows (out/errors); the same command retries",
    ]
