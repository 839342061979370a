"""Machines are killed under a job, and the cluster's control service: what comes out is what came out undisturbed.

One cluster lives through all of it, and so does the application that it serves. Other victims (engines, actors,
workers, drivers, clients, replicas, proxies) have their tests beside the jobs'.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from chaos_seeds import in_chaos
from machines import Machines
from raylets import ROOT
from synthesis_outputs import replies, rows_of, start, write_recipe
from tiny_models import TinyCheckpoints, tone

from balsa_ray.identity import unit
from balsa_ray.preflight import free_ports
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.metrics import METRICS, read

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]
each_victim = pytest.mark.parametrize("victim", ["machine", "control service", "both"])


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A head without work, and one worker: another one at the end of each test that kills machines."""
    with Machines(tmp_path_factory.mktemp("cluster"), BALSA_API_KEY="a key") as cluster:
        cluster.add(8)
        yield cluster


def survives(cluster: Machines, victim: str, run: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Kills while the run is at work. Another machine is there before the one goes that has had all the work."""
    try:
        if victim != "control service":
            cluster.add(8)
        wait(run, reached)
        if victim != "control service":
            cluster.remove()
        if victim != "machine":
            cluster.restart_gcs()
        assert run.poll() is None, "it ended before anything was killed"
        assert run.wait() == 0
    finally:
        run.kill()


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


@in_chaos
@each_victim
def test_a_synthesis_has_the_same_rows(
    machines: Machines, known: dict[str, Any], tiny_checkpoints: TinyCheckpoints, tmp_path: Path, victim: str, seed: int
) -> None:
    recipe = write_recipe(tmp_path, tiny_checkpoints.text)
    if "replies" not in known:
        assert start(recipe, machines.environment).wait() == 0
        known["replies"] = replies(tmp_path / "undisturbed")
    run = start(recipe, machines.environment, f"output={tmp_path}/run")
    moment = len(known["replies"]) * (0.1 + 0.5 * unit(seed, "moment", victim))
    survives(machines, victim, run, lambda: rows_of(tmp_path / "run") >= moment)
    assert replies(tmp_path / "run") == known["replies"]


@in_chaos
@each_victim
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
    survives(machines, victim, run, lambda: len(read(tmp_path / "run" / METRICS)) >= moment)
    lines = read(tmp_path / "run" / METRICS)
    assert [line["step"] for line in lines] == list(range(1, 401))
    assert [line["loss"] for line in lines] == pytest.approx(known["losses"], rel=2e-4)


@pytest.fixture(scope="module")
def served(machines: Machines, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an application."""
    (port,) = free_ports(1)
    output = tmp_path_factory.mktemp("serving")
    run = job(
        "serve", machines.environment, "jobs/configs/miniature/serve.yaml", f"model={tiny_model}", f"output={output}",
        f"port={port}", "engine.max_model_len=256", "engine.max_num_seqs=8",
    )  # fmt: skip
    wait(run, (output / "server.json").exists)
    yield f"http://127.0.0.1:{port}/v1"
    run.terminate()
    assert run.wait() == 0


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of tones: its path stands among the scores."""
    folder = tmp_path_factory.mktemp("clips")
    labels = ("rain", "wind", "siren", "dog barking", "church bell", "flute")
    with (folder / "clips.jsonl").open("w") as file:
        for number in range(24):
            soundfile.write(folder / f"{number}.flac", tone(200 + 50 * number, 0.5), 16_000)
            tags = [labels[number % 6], labels[(number + 1) % 6]]
            file.write(json.dumps({"id": f"clip-{number}", "audio": f"{number}.flac", "tags": tags}) + "\n")
    return folder / "clips.jsonl"


@in_chaos
@each_victim
def test_a_benchmark_of_a_served_model_has_the_same_scores(
    machines: Machines, known: dict[str, Any], served: str, clips: Path, tmp_path: Path, victim: str, seed: int
) -> None:
    def start(output: Path) -> subprocess.Popen[bytes]:
        recipe = ["jobs/configs/miniature/benchmark.yaml", f"endpoint={served}", "concurrency=2"]
        values = [f"data_root={clips}", f"output={output}", "existence.confusable=null"]
        return job("benchmark", machines.environment, *recipe, *values, "describe.labels=manifest")

    def scores(output: Path) -> Any:
        return json.loads((output / "scores.json").read_text())

    if "scores" not in known:
        assert start(tmp_path / "undisturbed").wait() == 0
        known["scores"] = scores(tmp_path / "undisturbed")
    run = start(tmp_path / "run")
    answers = tmp_path / "run" / "answers.jsonl"
    moment = 5 + 50 * unit(seed, "moment", victim)
    survives(machines, victim, run, lambda: answers.exists() and len(answers.read_text().splitlines()) >= moment)
    assert scores(tmp_path / "run") == known["scores"]
