"""Training on a cluster of several raylets whose machines come and go."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_seeds import TIMES
from machines import Machines

from balsa_ray.training import checkpoint
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.metrics import METRICS, read

TRAIN = """
from balsa_ray.config import main
from balsa_ray.training import loop
from balsa_ray.training import checkpoint
from balsa_ray.training.config import TrainConfig
loop.LOOK_FOR_MACHINES_EVERY_SECONDS = 3.0
main(TrainConfig, loop.train)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Machines]:
    """A head with room for one trainer."""
    with Machines(tmp_path, cpus=1, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="1") as machines:
        yield machines


@pytest.mark.chaos
@pytest.mark.timeout(600 + 300 * TIMES)
def test_a_run_keeps_its_path_as_a_machine_joins_gets_notice_and_goes(
    train_config: Callable[..., TrainConfig], cluster: Machines, tmp_path: Path
) -> None:
    stages = [{"name": "single", "kinds": ["present", "absent"], "steps": 100_000}]
    config = train_config(
        stages=stages, num_workers=(1, 2), checkpoint_every=25, keep_checkpoints=10_000, data_workers=1, batch_size=32
    )
    (tmp_path / "recipe.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    metrics, checkpoints = config.output / METRICS, config.output / "checkpoints"
    seen: dict[int, float] = {}

    def until(reached: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Waits, and checks that a step that is computed once more, after a resume, has the loss that it had."""
        while not reached(lines := read(metrics)):
            assert run.poll() is None
            for line in lines:
                assert line["loss"] == pytest.approx(seen.setdefault(line["step"], line["loss"]), rel=1e-2)
            time.sleep(0.1)

    def irregular() -> int:
        return sum(checkpoint.step_of(path) % 25 > 0 for path in checkpoint.complete(checkpoints))

    command = [sys.executable, "-c", TRAIN, str(tmp_path / "recipe.yaml")]
    run = subprocess.Popen(command, env=cluster.environment)
    try:
        until(lambda lines: len(lines) >= 60)
        assert {line["workers"] for line in read(metrics)} == {1}
        for times in range(1, TIMES + 1):
            node = cluster.add(1)
            until(lambda lines: lines[-1]["workers"] == 2)
            # As a cloud gives notice before it takes a machine back: a checkpoint between the regular ones is written.
            address = cluster.environment["RAY_ADDRESS"]
            drain = [Path(sys.executable).with_name("ray"), "drain-node", "--address", address]
            notice = ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
            rest = ["--reason-message", "test", "--deadline-remaining-seconds", "10"]
            subprocess.run([*drain, *notice, *rest], env=cluster.environment, check=True)
            until(lambda _, times=times: irregular() >= times)
            cluster.remove()
            until(lambda lines: lines[-1]["workers"] == 1)
            before = max(seen)
            until(lambda lines, before=before: len(lines) > before)
    finally:
        run.terminate()
        assert run.wait() == 128 + signal.SIGTERM
    lines = read(metrics)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    alone = {name: value for name, value in cluster.environment.items() if name != "RAY_ADDRESS"}
    others = [f"output={tmp_path}/undisturbed", "num_workers=1", f"max_steps={len(lines)}"]
    subprocess.run([*command, *others], env=alone, check=True)
    losses = [line["loss"] for line in lines]
    undisturbed = [line["loss"] for line in read(tmp_path / "undisturbed" / METRICS)]
    # Two workers sum in another order than one, 1e-7 apart, and at this learning rate that grows tenfold in 15 steps.
    soon = [line["workers"] for line in lines].index(2) + 25
    assert losses[:soon] == pytest.approx(undisturbed[:soon], rel=2e-4)
    assert len(losses) == len(undisturbed)
    assert sum(losses) == pytest.approx(sum(undisturbed), rel=0.05)
