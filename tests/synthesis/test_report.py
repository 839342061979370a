from pathlib import Path

import pytest

from balsa_ray.synthesis import report
from balsa_ray.synthesis.progress import Progress
from balsa_ray.synthesis.report import Standing, Work, cost, figures, summary
from balsa_ray.synthesis.statistics import Statistics


def counts(gate: str, rows: int, kind: str = "present", strategy: str = "") -> dict[str, object]:
    return {
        "kind": kind,
        "strategy": strategy,
        "gate": gate,
        "rows": rows,
        "prompt_tokens": 10 * rows,
        "response_tokens": 2 * rows,
    }


def test_the_report_accounts_for_every_row() -> None:
    progress = Progress(45)
    progress.add(
        [counts("passed", 35), counts("empty", 4), counts("truncated", 3, "joint", "similar"), counts("error", 3)]
    )
    made = figures(progress, Work(clips=7, bad_rows=2, kept=5), Standing(), identity={"recipe": "r"}, provenance={})
    assert made["samples"] + made["rejected"] + sum(made["errors"].values()) == made["planned"] + made["kept"] == 47
    assert made["by_kind"] == {"joint": {"truncated": 3}, "present": {"passed": 35, "empty": 4, "error": 3}}
    assert made["by_strategy"] == {"joint: similar": {"truncated": 3}}
    assert made["tokens"] == {"prompt": 450, "response": 90}
    lines = summary(made, Path("out")).splitlines()
    assert lines[0].startswith("synthesis: 35 samples of 7 clips, 7 rejected (empty 4, truncated 3) in ")
    assert lines[1:] == [
        "synthesis: 2 rows of the manifest can't be used; out/errors says why",
        "synthesis: the engine failed on 3 rows (out/errors); the same command retries",
    ]


def test_what_is_left_out_is_projected_from_the_speed_of_the_run() -> None:
    work = Work(clips=10, left_out=7200, accelerators=2, unit="GPU", price_per_hour=3.0)
    found = cost(work, tokens_per_second=1000, tokens_per_clip=500)
    assert found
    assert found["tokens_per_hour"] == 1_800_000
    assert found["left_out_clips"] == {"clips": 7200, "hours": 2.0, "price": 6.0}
    assert found["100000_clips"]["hours"] == pytest.approx(27.778)
    free = cost(Work(clips=10, accelerators=1, unit="CPU"), 1000, 500)
    assert free
    assert free["100000_clips"]["price"] is None
    assert cost(work, 0.0, 500) is None
    assert cost(Work(clips=10), 1000, 500) is None  # an endpoint's engines are not ours


def test_of_many_corpora_the_largest_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "CORPORA", 2)
    samples, rejected = Statistics(), Statistics()
    samples.corpora.update({("/a", "passed"): 5, ("/b", "passed"): 1, ("/c", "passed"): 2, ("/d", "passed"): 3})
    rejected.corpora.update({("/b", "empty"): 9, ("/c", "empty"): 1})
    made = figures(Progress(1), Work(clips=1), Standing(samples, rejected), identity={}, provenance={})
    assert made["by_corpus"] == {
        "/a": {"passed": 5},
        "/b": {"passed": 1, "empty": 9},
        "2 more": {"passed": 5, "empty": 1},
    }
