import json
from pathlib import Path

from balsa_ray.schema import SAMPLE
from balsa_ray.synthesis.output import write_rows
from balsa_ray.synthesis.progress import Progress
from balsa_ray.synthesis.report import figures, summary, write


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
    made = figures(progress, identity={"recipe": "r"}, provenance={}, clips=7, bad_rows=2, kept=5)
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


def test_the_page_shows_figures_and_some_samples_of_each_kind(tmp_path: Path) -> None:
    for name in ("samples", "rejected"):
        (tmp_path / name).mkdir()
    rows = [
        {"id": f"{kind}{i}", "kind": kind, "gate": "passed", "metadata": ["rain"], "prompt": "?", "response": f"<b>{i}"}
        for kind in ("present", "joint")
        for i in range(9)
    ]
    write_rows(tmp_path / "samples", rows, SAMPLE)
    progress = Progress(18)
    progress.add([counts("passed", 9), counts("passed", 9, "joint")])
    made = figures(progress, identity={}, provenance={"model": "m"}, clips=9, bad_rows=0, kept=0)
    write(tmp_path, made, seed=0)
    page = (tmp_path / "report.html").read_text()
    assert page.count("&lt;b&gt;") == 6
    assert "There are none." in page
    assert "18 samples of 9 clips, written by m." in page
    assert json.loads((tmp_path / "report.json").read_text()) == made
