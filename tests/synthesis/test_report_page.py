import json
from pathlib import Path

import numpy as np
import soundfile

from balsa_ray.schema import SAMPLE
from balsa_ray.synthesis.output import row_files, write_rows
from balsa_ray.synthesis.progress import Progress
from balsa_ray.synthesis.report import Standing, Work, figures
from balsa_ray.synthesis.report_page import write
from balsa_ray.synthesis.statistics import statistics

EVIL = "<script>alert(1)</script>"


def page_of(folder: Path, audio: list[str]) -> str:
    rows = [
        {"id": f"{i:016x}", "kind": kind, "gate": "passed", "strategy": "", "audio": audio,
         "metadata": [f"rain, {EVIL}"], "present": ["rain", EVIL], "absent": [EVIL],
         "prompt": EVIL, "response": f"{EVIL} {i}", "prompt_tokens": 9, "response_tokens": 5}
        for i, kind in enumerate(["present", "joint"] * 30)
    ]  # fmt: skip
    write_rows(folder / "samples", rows, SAMPLE)
    held = Standing(statistics(row_files(folder), seed=0))
    progress = Progress(60)
    progress.add([{"kind": "present", "strategy": "", "gate": "passed", "rows": 60, "prompt_tokens": 540,
                   "response_tokens": 300}])  # fmt: skip
    work = Work(
        clips=9,
        bad_rows=2,
        unusable=["row 3: no such file"],
        left_out=5,
        accelerators=1,
        unit="CPU",
        price_per_hour=1.0,
    )
    made = figures(progress, work, held, identity={}, provenance={"model": "m"})
    write(folder, made, held, max_seconds=30.0)
    assert json.loads((folder / "report.json").read_text()) == made
    return (folder / "report.html").read_text()


def test_the_page_shows_forty_samples_with_players_and_no_foreign_html(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(44_100) / 20), 44_100)
    page = page_of(tmp_path, [str(tmp_path / "a.wav"), f"{tmp_path / 'a.wav'}#t=0.25,0.75"])
    assert page.count("<audio") == page.count('src="data:audio/ogg') == 80
    assert "<script" not in page
    assert page.count("<img") == 6  # labels present and absent, those together, three lengths
    assert "60 samples of 9 clips, written by m." in page
    assert "There are none." in page  # of the rejected
    assert "http" not in page
    assert "100,000 clips like these" in page
    assert "5 clips that `limit` left out" in page
    assert "2 rows of the input became no samples; errors/ names all of them. The first 1:" in page
    assert "row 3: no such file" in page


def test_a_recording_that_is_gone_is_said_so_in_its_place(tmp_path: Path) -> None:
    page = page_of(tmp_path, ["/nowhere/a.wav"])
    assert page.count("/nowhere/a.wav: ") == 40
    assert "<audio" not in page
