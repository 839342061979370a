"""The demo on recordings of one's own, with few of them and few steps: real Ray, vLLM, DeepSpeed and Serve."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from balsa_ray.miniature.soundscapes import soundscape
from balsa_ray.preflight import free_ports

ROOT = Path(__file__).parents[2]
FEW = [
    "mix.scenes=12", "tune.steps=3", "tune.batch_size=4", "tune.soundscapes=0",
    "overrides.train=[adapter.num_query_tokens=6,warmup_steps=2,'stages.0.steps=4','stages.1.steps=4']",
    "overrides.benchmark=[resamples=50]",
]  # fmt: skip


def write_recordings(folder: Path, clips: range) -> Path:
    """Writes soundscapes at odd rates, from 1 s to 9 s, and one file that is none; returns their manifest."""
    folder.mkdir()
    rows = []
    for index in clips:
        samples, events = soundscape(0, "own", index)
        samples = np.tile(samples, 3)[: 16_000 * (1, 4, 9)[index % 3]]
        rate = (11_127, 44_100, 8_000)[index % 3]
        soundfile.write(folder / f"{index}.wav", soxr.resample(samples, 16_000, rate), rate)
        rows.append({"id": f"{index}", "audio": f"{index}.wav", "tags": [event["label"] for event in events]})
    (folder / "broken.wav").write_bytes(b"no recording")
    rows.append({"id": "broken", "audio": "broken.wav", "tags": ["rain"]})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    (port,) = free_ports(1)
    command = [sys.executable, "jobs/demo.py", "jobs/configs/own_audio.yaml", f"port={port}", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_recordings_go_all_the_way_to_scores_and_a_report(tmp_path: Path) -> None:
    train, test = write_recordings(tmp_path / "train", range(12)), write_recordings(tmp_path / "test", range(20, 32))
    output = tmp_path / "own"
    done = run(f"input={train}", f"evaluate={test}", f"output={output}", *FEW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: 12 of 13 recordings can be used" in done.stdout
    assert done.stdout.count("set aside: broken: ") == 2
    random = json.loads((output / "scores.json").read_text())["existence"]["splits"]["random"]["strict"]
    # Twelve recordings with one question at least whose answer is yes, and as many with no.
    assert random["accuracy"]["n"] >= 24
    assert random["accuracy"]["low"] <= random["accuracy"]["value"] <= random["accuracy"]["high"]
    html = (output / "report.html").read_text()
    assert html.count("<audio") == 12
    config = json.loads((output / "training" / "model" / "config.json").read_text())
    assert config["audio_model"] == str(output / "encoder")


def test_mistakes_are_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    train = write_recordings(tmp_path / "train", range(2))
    strange = train.with_name("strange.jsonl")
    strange.write_text(train.read_text().replace('"rain"', '"theremin"'))
    output = f"output={tmp_path / 'own'}"
    for arguments, said in (
        ([f"input={train}"], "input and evaluate"),
        ([], "input: missing"),
        (["mix.events=[0, 0]"], "mix.events: not all can be 0"),
        ([f"input={train}", f"evaluate={tmp_path}/gone.jsonl"], "gone.jsonl: no such file"),
        ([f"input={strange}", f"evaluate={train}"], "no words for: theremin;"),
    ):
        refused = run(output, *arguments)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert not (tmp_path / "own").exists()
