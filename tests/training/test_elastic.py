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

import psutil
import pytest

from balsa_ray.training.config import TrainConfig
from balsa_ray.training.metrics import METRICS, read

CLUSTER = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
told = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
(told / "address").write_text(cluster.address)
while not (told / "grow").exists():
    time.sleep(0.1)
cluster.add_node(num_cpus=1)
while True:
    time.sleep(1)
"""
TRAIN = """
from balsa_ray.config import main
from balsa_ray.training import loop
from balsa_ray.training.config import TrainConfig
loop.LOOK_FOR_MACHINES_EVERY_SECONDS = 3.0
main(TrainConfig, loop.train)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A head with room for one trainer, which grows by a machine for another: a folder to tell it, and its address."""
    environment = os.environ | {"RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN", secrets.token_hex(32))}
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_grows_onto_a_machine_that_joins_and_keeps_its_path(
    train_config: Callable[..., TrainConfig], cluster: tuple[Path, dict[str, str]]
) -> None:
    told, environment = cluster
    stages = [{"name": "single", "kinds": ["present", "absent"], "steps": 600}]
    config = train_config(stages=stages, num_workers=(1, 2), checkpoint_every=25, data_workers=1, batch_size=32)
    (told / "recipe.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    metrics = config.output / METRICS
    with subprocess.Popen([sys.executable, "-c", TRAIN, str(told / "recipe.yaml")], env=environment) as run:
        while len(read(metrics)) < 60:
            assert run.poll() is None
            time.sleep(0.1)
        alone = {line["step"]: line["loss"] for line in read(metrics)}
        (told / "grow").touch()
        assert run.wait() == 0
    lines = read(metrics)
    assert [line["step"] for line in lines] == list(range(1, 601))
    assert {line["workers"] for line in lines[:25]} == {1}
    assert lines[-1]["workers"] == 2
    # What was computed before the resize, and after it once more from the last checkpoint, is the same.
    assert all(lines[step - 1]["loss"] == pytest.approx(loss, rel=1e-3) for step, loss in alone.items())
    assert (config.output / "model").is_dir()
