"""One loss path, however a run is spread over workers, cut into micro-batches, sharded, killed and taken up."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from chaos_seeds import in_chaos_and_once_always
from safetensors.torch import load_file

from balsa_ray.identity import unit
from balsa_ray.training import checkpoint
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.loop import train
from balsa_ray.training.metrics import METRICS, read

Make = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]
STAGES = [
    {"name": "single", "kinds": ["present", "absent"], "steps": 20},
    {"name": "multi", "kinds": ["difference"], "steps": 12, "replay": 0.5},
]
TOLERANCE = 2e-4
"""Relative, of each loss: sums of float32 in another order."""


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return {}


def losses(output: Path) -> list[float]:
    lines = read(output / METRICS)
    assert [line["step"] for line in lines] == list(range(1, 33))
    return [line["loss"] for line in lines]


@pytest.fixture
def undisturbed(train_config: Make, reference: dict[str, Any], tmp_path: Path, ray_session: None) -> dict[str, Any]:
    """Losses and weights of one worker that puts whole batches through the model, made once."""
    if not reference:
        # A folder of its own: the test's would be found complete.
        own = {"output": tmp_path / "undisturbed", "num_workers": 1, "micro_batch_tokens": 10_000}
        config = train_config(stages=STAGES, deepspeed={"zero_stage": 1}, **own)
        train(config)
        reference["losses"] = losses(config.output)
        reference["weights"] = load_file(config.output / "model" / "model.safetensors")
    return reference


def equal(config: TrainConfig, undisturbed: dict[str, Any]) -> None:
    assert losses(config.output) == pytest.approx(undisturbed["losses"], rel=TOLERANCE)
    for name, weight in load_file(config.output / "model" / "model.safetensors").items():
        torch.testing.assert_close(weight, undisturbed["weights"][name], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"num_workers": 2, "micro_batch_tokens": 40, "deepspeed": {"zero_stage": 2}},
        {"num_workers": 2, "micro_batch_tokens": 40, "deepspeed": {"zero_stage": 3}, "gradient_checkpointing": True},
        {"num_workers": 3, "micro_batch_tokens": 64, "deepspeed": {"zero_stage": 1, "offload_optimizer": True}},
    ],
)
def test_workers_micro_batches_and_shards_change_nothing(
    train_config: Make, undisturbed: dict[str, Any], how: dict[str, Any]
) -> None:
    config = train_config(stages=STAGES, encoder_cache="disk", **how)
    train(config)
    equal(config, undisturbed)


@pytest.mark.slow
@in_chaos_and_once_always
def test_a_killed_worker_is_replaced_and_the_run_goes_on_by_itself_with_other_workers_later(
    train_config: Make, undisturbed: dict[str, Any], seed: int
) -> None:
    config = train_config(stages=STAGES, max_steps=16)
    victims: list[int] = []

    def kill() -> None:
        while len(workers := [worker.pid for worker in trainers(os.getpid())]) < 2:
            time.sleep(0.1)
        # They are known before the first step: on a quick machine all steps together take less time than a search.
        while len(read(config.output / METRICS)) < 1 + 11 * unit(seed, "moment", "worker"):
            time.sleep(0.002)
        os.kill(max(workers), signal.SIGKILL)
        victims.append(max(workers))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    train(config)
    assert victims
    assert [path.name for path in checkpoint.complete(config.output / "checkpoints")] == ["step-15", "step-16"]
    # Another number of workers and another stage take it up.
    more = config.model_copy(update={"max_steps": 24, "num_workers": 1})
    train(more.model_copy(update={"deepspeed": config.deepspeed.model_copy(update={"zero_stage": 3})}))
    last = config.model_copy(update={"max_steps": None, "num_workers": 3})
    train(last.model_copy(update={"deepspeed": config.deepspeed.model_copy(update={"zero_stage": 0})}))
    equal(config, undisturbed)


@pytest.mark.slow
@in_chaos_and_once_always
def test_after_a_killed_driver_the_same_command_goes_on(
    train_config: Make, undisturbed: dict[str, Any], seed: int
) -> None:
    config = train_config(stages=STAGES)
    recipe = config.output.with_suffix(".yaml")
    recipe.write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), str(recipe)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    run = subprocess.Popen(command, env=environment)
    everything: list[psutil.Process] = []
    try:
        while len(read(config.output / METRICS)) < 1 + 24 * unit(seed, "moment", "driver"):
            assert run.poll() is None
            time.sleep(0.02)
        everything = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        assert not (config.output / "model").exists()
        assert subprocess.run(command, env=environment, check=False).returncode == 0
    finally:
        run.kill()
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    equal(config, undisturbed)


def trainers(root: int) -> Iterator[psutil.Process]:
    """The processes that train, among those that this one has started."""
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                yield process
