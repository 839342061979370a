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
        # Four workers; bytes of a frozen parameter: 2; of a trained one: 4 weights, 4 gradients, 4 + 8 optimizer.
        (0, False, 4 * TRAINED + 2 * FROZEN, 4 * TRAINED, 8 * TRAINED, 0),
        (1, False, 4 * TRAINED + 2 * FROZEN, 4 * TRAINED, 3 * TRAINED, 0),
        (2, False, 4 * TRAINED + 2 * FROZEN, TRAINED, 3 * TRAINED, 0),
        (3, False, TRAINED + FROZEN / 2 + 2e9, TRAINED, 3 * TRAINED, 0),
        # Gradients and new weights wait in main memory, beside the optimizer's state.
        (2, True, 4 * TRAINED + 2 * FROZEN, 0, 0, (12 + 4 + 4) / 4 * TRAINED),
        (3, True, TRAINED + FROZEN / 2 + 2e9, 0, 0, (12 + 4 + 4) / 4 * TRAINED),
    ],
)
def test_stages_shard_what_the_paper_says(
    stage: int, offload: bool, weights: float, gradients: float, optimizer: float, offloaded: float
) -> None:
    bucket = 1000
    found = states(stage, TRAINED, FROZEN, 2, 4, bucket, offload)
    assert found.weights == pytest.approx(weights)
    assert found.gradients == pytest.approx(gradients + (4 * bucket if stage else 0))
    assert found.optimizer == pytest.approx(optimizer)
    assert found.offloaded == pytest.approx(offloaded)


def test_one_worker_gathers_nothing() -> None:
    assert states(3, TRAINED, FROZEN, 2, 1, 0).weights == 4 * TRAINED + 2 * FROZEN


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
            module = nn.Sequential(nn.Linear(512, 1024, bias=False).to(dtype), nn.Linear(1024, 512, bias=False))
            frozen, learned = (part.weight for part in module)
            frozen.requires_grad_(False)
            engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=adamw([learned], (0.9, 0.98), 0.01),
                model_parameters=[learned],
                dist_init_required=False,
                config={
                    "train_micro_batch_size_per_gpu": 1,
                    "zero_optimization": {"stage": stage, "reduce_bucket_size": 1000, "allgather_bucket_size": 1000},
                    "steps_per_print": 10**9,
                },
            )
            with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                loss = engine(torch.ones(1, 512, dtype=dtype)).float().sum()
            engine.backward(loss)
            engine.step()
            assert (frozen.dtype, learned.dtype) == (dtype, torch.float32)
            expected = states(stage, 1024 * 512, 512 * 1024, dtype.itemsize, 1, 1000)
            assert held(engine) == expected.optimizer, (dtype, stage)
            state = gather(engine, 1, keep=True)
            assert state
            writer = CheckpointWriter(tmp_path / f"{stage}-{dtype}", keep=1)
            writer.save(state, None)
            writer.wait()
            stored = sum(file.stat().st_size for file in (tmp_path / f"{stage}-{dtype}").rglob("*.safetensors"))
            assert stored == pytest.approx(checkpoint_bytes(1024 * 512), rel=0.02), (dtype, stage)
