import time

import pytest

from balsa_ray.synthesis import progress as module
from balsa_ray.synthesis.progress import Progress


def counts(gate: str, rows: int, kind: str = "present") -> dict[str, object]:
    counted = {"rows": rows, "prompt_tokens": 10 * rows, "response_tokens": 2 * rows}
    return {"kind": kind, "strategy": "", "gate": gate, **counted}


def test_a_line_shows_even_when_no_row_arrives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LINE_EVERY_SECONDS", 0.02)
    with Progress(10):
        time.sleep(0.2)
    assert "the engine is starting" in capsys.readouterr().out


def test_what_stood_before_counts_as_done_and_not_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(100, [counts("passed", 30), counts("empty", 20)])
    assert "the engine is starting" in progress.line()
    now[0] = 110.0
    progress.add([counts("passed", 10)])
    assert progress.speed() == (1.0, 2.0)
    assert progress.line() == "synthesis: 60 of 100 rows (60%); 20 rejected, 0 errors"


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
