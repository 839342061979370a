"""Machines are killed under a job, and the cluster's control service: what comes out is what came out undisturbed.

Other victims (engines, actors, workers, drivers, clients, replicas, proxies) have their tests beside the jobs'.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from machines import Machines
from raylets import ROOT, free_ports
from synthesis_outputs import replies, rows_of, start, write_recipe
from tiny_models import TinyCheckpoints, tone

from balsa_ray.identity import unit
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.metrics import METRICS, read

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]
SEEDS = range(int(os.environ.get("BALSA_CHAOS_SEEDS", "1")))
VICTIMS = ["machine", "control service", "both"]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with Machines(tmp_path, BALSA_API_KEY="a key") as cluster:
        cluster.add(8)
        yield cluster


def disturb(cluster: Machines, victim: str, run: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Kills while the run is at work. Another machine is there before the one goes that has had all the work."""
    if victim != "control service":
        cluster.add(8)
    wait(run, reached)
    if victim != "control service":
        cluster.remove()
    if victim != "machine":
        cluster.restart_gcs()
    assert run.poll() is None, "it ended before anything was killed"


def wait(run: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    while not reached():
        assert run.poll() is None, "it ended before anything was killed"
        time.sleep(0.05)


def job(name: str, environment: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, f"jobs/{name}.py", *arguments], cwd=ROOT, env=environment)


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What came out undisturbed."""
    return {}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_synthesis_has_the_same_rows(
    machines: Machines, known: dict[str, Any], tiny_checkpoints: TinyCheckpoints, tmp_path: Path, victim: str, seed: int
) -> None:
    recipe = write_recipe(tmp_path, tiny_checkpoints.text)
    if "replies" not in known:
        assert start(recipe, machines.environment).wait() == 0
        known["replies"] = replies(tmp_path / "undisturbed")
    run = start(recipe, machines.environment, f"output={tmp_path}/run")
    moment = len(known["replies"]) * (0.1 + 0.5 * unit(seed, "moment", victim))
    disturb(machines, victim, run, lambda: rows_of(tmp_path / "run") >= moment)
    assert run.wait() == 0
    assert replies(tmp_path / "run") == known["replies"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_training_has_the_same_losses(
    machines: Machines, known: dict[str, Any], train_config: Callable[..., TrainConfig], tmp_path: Path,
    victim: str, seed: int,
) -> None:  # fmt: skip
    stages = [{"name": "single", "kinds": ["present", "absent"], "steps": 400}]
    config = train_config(stages=stages, num_workers=2, checkpoint_every=20)
    (tmp_path / "recipe.yaml").write_text(json.dumps(config.model_dump(mode="json")))

    def start(output: Path) -> subprocess.Popen[bytes]:
        return job("train", machines.environment, str(tmp_path / "recipe.yaml"), f"output={output}")

    if "losses" not in known:
        assert start(tmp_path / "undisturbed").wait() == 0
        known["losses"] = [line["loss"] for line in read(tmp_path / "undisturbed" / METRICS)]
    run = start(tmp_path / "run")
    moment = 30 + 200 * unit(seed, "moment", victim)
    disturb(machines, victim, run, lambda: len(read(tmp_path / "run" / METRICS)) >= moment)
    assert run.wait() == 0
    lines = read(tmp_path / "run" / METRICS)
    assert [line["step"] for line in lines] == list(range(1, 401))
    assert [line["loss"] for line in lines] == pytest.approx(known["losses"], rel=2e-4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_benchmark_of_a_served_model_has_the_same_scores(
    machines: Machines, tiny_model: Path, tmp_path: Path, victim: str, seed: int
) -> None:
    labels = ("rain", "wind", "siren", "dog barking", "church bell", "flute")
    with (tmp_path / "clips.jsonl").open("w") as file:
        for number in range(24):
            soundfile.write(tmp_path / f"{number}.flac", tone(200 + 50 * number, 0.5), 16_000)
            tags = [labels[number % 6], labels[(number + 1) % 6]]
            file.write(json.dumps({"id": f"clip-{number}", "audio": f"{number}.flac", "tags": tags}) + "\n")
    (port,) = free_ports(1)
    served = job(
        "serve", machines.environment, "jobs/configs/miniature/serve.yaml", f"model={tiny_model}",
        f"output={tmp_path}/serving", f"port={port}", "engine.max_model_len=256", "engine.max_num_seqs=8",
    )  # fmt: skip
    server_file = tmp_path / "serving" / "server.json"
    wait(served, server_file.exists)

    def start(output: Path) -> subprocess.Popen[bytes]:
        recipe = ["jobs/configs/miniature/benchmark.yaml", f"endpoint=http://127.0.0.1:{port}/v1", "concurrency=2"]
        values = [f"data_root={tmp_path}/clips.jsonl", f"output={output}", "existence.confusable=null"]
        return job("benchmark", machines.environment, *recipe, *values, "describe.labels=manifest")

    assert start(tmp_path / "undisturbed").wait() == 0
    undisturbed = json.loads((tmp_path / "undisturbed/scores.json").read_text())
    run = start(tmp_path / "run")
    answers = tmp_path / "run" / "answers.jsonl"
    moment = 5 + 50 * unit(seed, "moment", victim)
    disturb(machines, victim, run, lambda: answers.exists() and len(answers.read_text().splitlines()) >= moment)
    assert run.wait() == 0
    assert json.loads((tmp_path / "run/scores.json").read_text()) == undisturbed
    served.terminate()
    served.wait()
