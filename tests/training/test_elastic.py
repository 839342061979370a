"""Training on a cluster of several raylets whose machines come and go."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from balsa_ray.training import checkpoint
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.metrics import METRICS, read

CLUSTER = """
import sys, time
from pathlib import Path
from typing import Any
from ray.cluster_utils import Cluster

told = Path(sys.argv[1])

def wait_for(name):
    while not (told / name).exists():
        time.sleep(0.1)

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
(told / "address").write_text(cluster.address)
wait_for("grow")
node = cluster.add_node(num_cpus=1)
(told / "node").write_text(node.node_id)
wait_for("shrink")
cluster.remove_node(node, allow_graceful=False)
while True:
    time.sleep(1)
"""
TRAIN = """
from balsa_ray.config import main
from balsa_ray.training import loop
from balsa_ray.training import checkpoint
from balsa_ray.training.config import TrainConfig
loop.LOOK_FOR_MACHINES_EVERY_SECONDS = 3.0
main(TrainConfig, loop.train)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A head with room for one trainer, which grows by a machine for another: a folder to tell it, and its address."""
    environment = os.environ | {"RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN", secrets.token_hex(32))}
    environment["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "1"
    run = subprocess.Popen([sys.executable, "-c", CLUSTER, str(tmp_path)], env=environment)
    try:
        while not (tmp_path / "address").exists() or not (tmp_path / "address").read_text():
            assert run.poll() is None
            time.sleep(0.1)
        yield tmp_path, environment | {"RAY_ADDRESS": (tmp_path / "address").read_text()}
    finally:
        everything = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGKILL)
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        run.wait()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_run_keeps_its_path_as_a_machine_joins_gets_notice_and_goes(
    train_config: Callable[..., TrainConfig], cluster: tuple[Path, dict[str, str]]
) -> None:
    told, environment = cluster
    stages = [{"name": "single", "kinds": ["present", "absent"], "steps": 100_000}]
    config = train_config(
        stages=stages, num_workers=(1, 2), checkpoint_every=25, keep_checkpoints=10_000, data_workers=1, batch_size=32
    )
    (told / "recipe.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    metrics, checkpoints = config.output / METRICS, config.output / "checkpoints"
    seen: dict[int, float] = {}

    def until(reached: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Waits, and checks that a step that is computed once more, after a resume, has the loss that it had."""
        while not reached(lines := read(metrics)):
            assert run.poll() is None
            for line in lines:
                assert line["loss"] == pytest.approx(seen.setdefault(line["step"], line["loss"]), rel=1e-2)
            time.sleep(0.1)

    run = subprocess.Popen([sys.executable, "-c", TRAIN, str(told / "recipe.yaml")], env=environment)
    try:
        until(lambda lines: len(lines) >= 60)
        assert {line["workers"] for line in read(metrics)} == {1}
        (told / "grow").touch()
        until(lambda lines: lines[-1]["workers"] == 2)
        # A notice, as a cloud gives before it takes a machine back: a checkpoint between the regular ones is written.
        command = [Path(sys.executable).with_name("ray"), "drain-node", "--address", environment["RAY_ADDRESS"]]
        notice = ["--node-id", (told / "node").read_text(), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        rest = ["--reason-message", "test", "--deadline-remaining-seconds", "10"]
        subprocess.run([*command, *notice, *rest], env=environment, check=True)
        until(lambda _: any(checkpoint.step_of(path) % 25 for path in checkpoint.complete(checkpoints)))
        (told / "shrink").touch()
        until(lambda lines: lines[-1]["workers"] == 1)
        before = max(seen)
        until(lambda lines: len(lines) > before)
        steps = [line["step"] for line in read(metrics)]
        assert steps == list(range(1, len(steps) + 1))
    finally:
        run.terminate()
        assert run.wait() == 128 + signal.SIGTERM
