"""`kill -9` of the client at random moments: the same command goes on, and the scores are those of a quiet run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from chaos_seeds import in_chaos_and_once_always

from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.runner import benchmark
from balsa_ray.identity import unit

JOB = Path(__file__).parents[2] / "jobs/benchmark.py"
KILLS = 5


@pytest.mark.slow
@in_chaos_and_once_always
def test_a_client_killed_again_and_again_ends_with_the_scores_of_a_quiet_one(
    stub: Any, manifest: Path, tmp_path: Path, seed: int
) -> None:
    def respond(request: dict[str, Any]) -> Any:
        time.sleep(0.05)
        words = json.dumps(request["messages"])
        return stub.says("Yes." if unit(0, words) < 0.6 else "No.")

    stub.respond = respond
    keys = {"tasks": ["existence", "which_recording"], "data_root": str(manifest), "endpoint": stub.url}
    keys |= {"concurrency": 4, "resamples": 100}
    quiet = benchmark(BenchmarkConfig.model_validate({"output": tmp_path / "quiet", **keys}))
    asked = len(stub.requests)
    stub.requests.clear()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"output": str(tmp_path / "killed"), **keys}))
    killed = 0
    for moment in range(KILLS):
        run = subprocess.Popen([sys.executable, JOB, recipe], stdout=subprocess.DEVNULL)
        before = len(stub.requests)
        while run.poll() is None and len(stub.requests) == before:  # until it asks
            time.sleep(0.01)
        time.sleep(unit(seed, "kill", str(moment)) * 0.5)
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
            killed += 1
        run.wait()
    assert killed == KILLS
    assert not (tmp_path / "killed/scores.json").exists()
    assert subprocess.run([sys.executable, JOB, recipe], stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert json.loads((tmp_path / "killed/scores.json").read_text()) == quiet
    # Only what was under way at a kill is asked twice.
    assert asked <= len(stub.requests) <= asked + KILLS * 4
