from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from balsa_ray.training.checkpoint import CheckpointWriter
from balsa_ray.training.state import gather
from balsa_ray.training.step import adamw
from balsa_ray.training.zero import checkpoint_bytes, states

TRAINED, FROZEN = 22_253_312, 8_118_415_360


@pytest.mark.parametrize(
    ("stage", "offload", "weights", "gradients", "optimizer", "offloaded"),
    [
        # bfloat16, four workers; bytes a parameter: 2 weights, 2 gradients, 4 + 8 optimizer.
        (0, False, 2 * (TRAINED + FROZEN), 2 * TRAINED, 12 * TRAINED, 0),
        (1, False, 2 * (TRAINED + FROZEN), 2 * TRAINED, 3 * TRAINED, 0),
        (2, False, 2 * (TRAINED + FROZEN), TRAINED / 2, 3 * TRAINED, 0),
        (3, False, (TRAINED + FROZEN) / 2 + 2e9, TRAINED / 2, 3 * TRAINED, 0),
        # Gradients in float32 and new weights in bfloat16 wait in main memory, beside the optimizer's state.
        (2, True, 2 * (TRAINED + FROZEN), 0, 0, (12 + 4 + 2) / 4 * TRAINED),
        (3, True, (TRAINED + FROZEN) / 2 + 2e9, 0, 0, (12 + 4 + 2) / 4 * TRAINED),
    ],
)
def test_stages_shard_what_the_paper_says(
    stage: int, offload: bool, weights: float, gradients: float, optimizer: float, offloaded: float
) -> None:
    bucket = 1000
    found = states(stage, TRAINED, FROZEN, 2, 4, bucket, offload)
    assert found.weights == pytest.approx(weights)
    assert found.gradients == pytest.approx(gradients + (2 * bucket if stage else 0))
    assert found.optimizer == pytest.approx(optimizer)
    assert found.offloaded == pytest.approx(offloaded)


def test_one_worker_gathers_nothing() -> None:
    assert states(3, TRAINED, FROZEN, 2, 1, 0).weights == 2 * (TRAINED + FROZEN)


@pytest.fixture
def lonely_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone, in which DeepSpeed starts."""
    for name, value in {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def held(engine: Any) -> int:
    """Bytes of the optimizer's state and of weights that are not the module's own, counted on the real engine."""
    wrapper = engine.optimizer
    inner = getattr(wrapper, "optimizer", wrapper)
    moments = [value for state in inner.state.values() for value in state.values()]
    # Stage 3 takes its float32 weights out of the inner optimizer between steps.
    masters = getattr(wrapper, "fp32_partitioned_groups_flat", None)
    if masters is None:
        masters = [parameter for group in inner.param_groups for parameter in group["params"]]
    own = {weight.data_ptr() for weight in engine.module.parameters()} | {
        flat.data_ptr() for flat in getattr(wrapper, "fp16_partitioned_groups_flat", [])
    }
    tensors = [tensor for tensor in moments if tensor.numel() > 1]
    tensors += [tensor for tensor in masters if tensor.data_ptr() not in own]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.slow
@pytest.mark.usefixtures("lonely_worker")
def test_deepspeed_holds_and_stores_what_is_said(tmp_path: Path) -> None:
    import deepspeed

    for dtype in (torch.bfloat16, torch.float32):
        for stage in (0, 1, 2, 3):
            module = nn.Linear(1024, 512, bias=False).to(dtype)
            trained = module.weight.numel()
            engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=adamw(module.parameters(), (0.9, 0.98), 0.01),
                model_parameters=module.parameters(),
                dist_init_required=False,
                config={
                    "train_micro_batch_size_per_gpu": 1,
                    "bf16": {"enabled": dtype == torch.bfloat16},
                    "zero_optimization": {"stage": stage, "reduce_bucket_size": 1000, "allgather_bucket_size": 1000},
                    "steps_per_print": 10**9,
                },
            )
            engine.backward(engine(torch.ones(1, 1024, dtype=dtype)).float().sum())
            engine.step()
            expected = states(stage, trained, 0, dtype.itemsize, 1, 1000)
            assert held(engine) == expected.optimizer, (dtype, stage)
            state = gather(engine, 1, keep=True)
            assert state
            writer = CheckpointWriter(tmp_path / f"{stage}-{dtype}", keep=1)
            writer.save(state, None)
            writer.wait()
            stored = sum(file.stat().st_size for file in (tmp_path / f"{stage}-{dtype}").rglob("*.safetensors"))
            assert stored == pytest.approx(checkpoint_bytes(trained), rel=0.02), (dtype, stage)
