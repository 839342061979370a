"""The demo as a user runs it, with few clips and few steps: real Ray, vLLM, DeepSpeed and Serve."""

import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from balsa_ray.preflight import free_ports

ROOT = Path(__file__).parents[2]
MARK = "BALSA_TEST_MARK"


def run(output: Path, port: int, mark: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/demo.py", "jobs/configs/miniature/demo.yaml", f"output={output}", f"port={port}"]
    environment = os.environ | {MARK: mark}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [*command, "train_clips=60", "test_clips=30", *more], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def table_of(stdout: str) -> list[str]:
    """The lines of the final table, without those that say how long a step took."""
    return [line for line in stdout.split("== 6/6 report")[1].splitlines() if "done in" not in line]


def survivors(mark: str) -> Iterator[str]:
    """Processes that inherited the mark and still run."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield " ".join(process.cmdline())
        except psutil.Error:
            continue


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_ends_with_a_report_and_a_second_run_reuses_it(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    mark = uuid.uuid4().hex
    few = "overrides.train=[warmup_steps=2,'stages.0.steps=6','stages.1.steps=6']"
    first = run(tmp_path / "demo", port, mark, few)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "random" in first.stdout
    assert "untrained adapter" in first.stdout
    assert not list(survivors(mark))
    html = (tmp_path / "demo" / "report.html").read_text()
    assert html.count("<audio") == 30
    assert "What is the difference between the recordings?" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    scores = json.loads((tmp_path / "demo" / "benchmark" / "text" / "scores.json").read_text())
    assert scores["existence"]["splits"]["random"]["strict"]["accuracy"]["value"] > 90
    metrics = (tmp_path / "demo" / "training" / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 12

    second = run(tmp_path / "demo", port, mark, few)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "nothing is served" in second.stdout
    assert "clips are there already" in second.stdout
    assert table_of(first.stdout) == table_of(second.stdout)


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = run(tmp_path / "demo", port, "port")
    assert refused.returncode == 2
    assert f"port {port} is taken" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "demo").exists()
