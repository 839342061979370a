"""The DeepSpeed engine around the model: one optimisation step of all workers, and the loss on held-out samples."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from balsa_ray.compile_cache import build_collectives
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.data import EncodedSamples
from balsa_ray.training.step import MicroBatch, adamw, sample_losses

BUCKET = 20_000_000  # parameters reduced at once; DeepSpeed reserves a buffer of this size


@dataclass(frozen=True)
class Losses:
    """Means over reply tokens.

    Attributes:
        mean: Over all.
        by_kind: Over those of each kind.
    """

    mean: float
    by_kind: dict[str, float]


@dataclass(frozen=True)
class StepOutcome:
    """Outcome of one optimisation step of all workers.

    Attributes:
        losses: Of the global batch, before the step.
        grad_norm: Of all trained parameters, before clipping.
        votes: Whether any worker voted, for each question.
    """

    losses: Losses
    grad_norm: float
    votes: tuple[bool, ...]


def start_engine(model: nn.Module, config: TrainConfig, device: torch.device) -> Any:
    """Returns the DeepSpeed engine around the model. All ranks call it together.

    To DeepSpeed every run is one in float32, as what is trained is: no weight needs a second copy, and gradients are
    summed in float32. That the frozen weights are in bfloat16 is no concern of it.
    """
    import logging

    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if device.type == "cpu":
        build_collectives()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    zero: dict[str, Any] = {
        "stage": config.deepspeed.zero_stage,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
    }
    if config.deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    settings = {
        # How many micro-batches a step has differs from step to step: `distributed_step` says which is the last. With 1
        # here, offload to the CPU would not accumulate.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        # AdamW is torch's own everywhere: the loss path does not hang on where the moments lie.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if config.deepspeed.zero_stage == 3:
        # The model is in main memory still, and goes to the device parameter by parameter, each cut on its way.
        deepspeed.zero.Init(module=model, config_dict_or_path=settings, dtype=torch.float32)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adamw(trained, config.betas, config.weight_decay),
        model_parameters=trained,
        config=settings,
    )
    return engine


def distributed_step(
    engine: Any,
    micro: Iterable[tuple[np.ndarray, MicroBatch]],
    number: int,
    samples: EncodedSamples,
    rows: np.ndarray,
    rate: float,
    votes: tuple[bool, ...] = (),
) -> StepOutcome:
    """Makes one optimisation step of all workers.

    Args:
        engine: The DeepSpeed engine.
        micro: This worker's part of the global batch: rows and tensors of each micro-batch.
        number: How many there are.
        samples: Tells kinds and reply tokens. They are known to every worker, so nobody has to ask the others.
        rows: Of the global batch.
        rate: Learning rate.
        votes: What this worker says to some questions; carried along with the losses, so that it costs nothing.

    """
    sums = KindSums(samples, rows, engine.device, len(votes))
    whole_gradients = engine.zero_optimization_stage() == 0  # of which DeepSpeed tells no norm
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    for place, (part, batch) in enumerate(micro, start=1):
        losses = sample_losses(engine, batch)
        engine.set_gradient_accumulation_boundary(place == number)
        # DeepSpeed averages gradients over the workers; the sum of all workers' parts is what is wanted.
        engine.backward(losses.sum() * (dist.get_world_size() / sums.reply_tokens), scale_wrt_gas=False)
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if place == number and whole_gradients else None
        engine.step()
        sums.add(part, losses.detach())
    found, voted = sums.over_all_workers(votes)
    return StepOutcome(found, float(engine.get_global_grad_norm() if norm is None else norm), voted)


@torch.no_grad()
def evaluate(
    engine: Any, micro: Iterable[tuple[np.ndarray, MicroBatch]], samples: EncodedSamples, rows: np.ndarray
) -> Losses:
    """Returns the losses of samples without learning from them. All workers call it, with equally many micro-batches.

    Args:
        engine: The DeepSpeed engine.
        micro: This worker's part: rows and tensors of each micro-batch.
        samples: Which the rows are of.
        rows: Of all workers.
    """
    sums = KindSums(samples, rows, engine.device)
    for part, batch in micro:
        sums.add(part, sample_losses(engine.module, batch))
    return sums.over_all_workers()[0]


class KindSums:
    """Adds up losses by kind, first of one worker, then of all."""

    def __init__(self, samples: EncodedSamples, rows: np.ndarray, device: torch.device, questions: int = 0) -> None:
        """Args: the samples, those of all workers that are counted, where the losses lie, how many votes there are."""
        self._kinds = samples.kinds
        names = sorted({samples.kinds[row] for row in rows})
        self._place = {kind: place for place, kind in enumerate(names)}
        self._tokens = {
            kind: samples.reply_tokens(np.array([row for row in rows if samples.kinds[row] == kind])) for kind in names
        }
        self.reply_tokens = samples.reply_tokens(rows)
        self._sums = torch.zeros(len(names) + questions, device=device)

    def add(self, rows: np.ndarray, losses: Tensor) -> None:
        """Counts the summed losses of some samples."""
        index = torch.tensor([self._place[self._kinds[row]] for row in rows], device=losses.device)
        self._sums.index_add_(0, index, losses)

    def over_all_workers(self, votes: tuple[bool, ...] = ()) -> tuple[Losses, tuple[bool, ...]]:
        """Returns the losses of all workers, and to each question whether one of them voted."""
        kinds = len(self._place)
        self._sums[kinds:] = torch.tensor(votes, dtype=torch.float32)
        dist.all_reduce(self._sums)
        numbers = self._sums.tolist()
        by_kind = {kind: total / self._tokens[kind] for kind, total in zip(self._place, numbers[:kinds], strict=True)}
        found = Losses(sum(numbers[:kinds]) / self.reply_tokens, by_kind)
        return found, tuple(number > 0 for number in numbers[kinds:])
