"""The model as it is trained, its loss, and one optimisation step in bare PyTorch.

This is what the tests and benchmarks compare the distributed loop with: it needs neither Ray nor DeepSpeed, and the
loop uses the same model, the same loss and the same optimiser.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from balsa_ray.model.configuration import IGNORED
from balsa_ray.model.connector import AudioTower, Connector
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.packed_attention import Layout, attend_within_samples


@contextmanager
def cpu_kernels() -> Iterator[None]:
    """Chooses kernels for training small float32 models on a CPU: a step takes two thirds of the time.

    PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 unused on AMD's processors (90 GFLOP/s a core
    where oneDNN reaches 220). The only way to oneDNN is to permit it bfloat16 products; it makes use of that on CPUs
    with AMX alone and computes in full float32 elsewhere, bit for bit as MKL, so it is permitted elsewhere alone.
    Flash attention calls it for tiles so small that they become five times slower; plain attention does not. With AMX
    nothing is changed, and flash attention is the quicker one by a tenth to a quarter.
    """
    if torch.cpu.get_capabilities().get("amx_bf16", True):
        yield
        return
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Returns the rate of a stage's 1-based `step`: linear from 0 to `peak` in `warmup` steps, then a cosine to 0.

    Step `steps` still learns: the cosine reaches 0 at the step after it.
    """
    if step <= warmup:
        return peak * step / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - 1 - warmup) / (steps - warmup)))


def adamw(parameters: Iterable[nn.Parameter], betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """Returns the optimiser. Its learning rate is set before every step."""
    return torch.optim.AdamW(parameters, lr=0.0, betas=betas, weight_decay=weight_decay)


class EncodedAudio(nn.Module):
    """Stands in a model where the audio tower was, when clips come already encoded.

    The encoder is frozen, so its outputs can be made once and kept; keys of the trained weights stay the same.
    """

    def __init__(self, connector: Connector) -> None:
        super().__init__()
        self.encoder = nn.Identity()  # the model switches its encoder to eval mode
        self.connector = connector

    def forward(self, states: Tensor) -> Tensor:
        """Returns states `[windows, taps, positions, width]` as LLM embeddings `[windows, queries, LLM width]`."""
        return self.connector(states.transpose(0, 1))


@torch.no_grad()
def encode_clip(tower: AudioTower, log_mel: Tensor) -> Tensor:
    """Returns a log-mel `[windows, mels, frames]` as the encoder's tapped states `[windows, taps, positions, width]`.

    One clip at a time, so that a clip's states don't depend on which others happened to be missing from a cache.
    """
    return tower.encode(log_mel).transpose(0, 1)


def prepare(model: BalsaForConditionalGeneration, recompute: bool = False) -> None:
    """Makes a model ready for micro-batches.

    What is trained becomes float32, whatever the rest is: in bfloat16 a step at a small learning rate would be lost in
    rounding, and gradients would depend on how a batch is cut.

    Args:
        model: As loaded.
        recompute: Whether the LLM keeps only each block's input for the backward pass and computes the rest again
            there. transformers' own switch works in train mode alone, in which a frozen LLM would drop out.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    attend_within_samples(model.language_model)
    for module in model.language_model.modules() if recompute else ():
        if isinstance(module, GradientCheckpointingLayer):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class MicroBatch:
    """What the model sees at once: samples one behind the other in a single row.

    Attributes:
        input_ids: Token ids [1, tokens].
        labels: As `input_ids`; `IGNORED` outside the replies.
        owners: Which sample each label belongs to, [labels].
        layout: Where the samples begin.
        audio: The windows of all clips in reading order: log-mels [windows, mels, frames], or states for
            `EncodedAudio`.
    """

    input_ids: Tensor
    labels: Tensor
    owners: Tensor
    layout: Layout
    audio: Tensor

    @classmethod
    def of(
        cls, arrays: Mapping[str, np.ndarray], clips: Sequence[Tensor], device: torch.device | str = "cpu"
    ) -> "MicroBatch":
        """Makes tensors of what `packing.collate` returns, and of the clips, each with its windows first."""
        lengths, labels = arrays["lengths"], arrays["labels"]
        owners = np.repeat(np.arange(len(lengths)), lengths)[labels[0] != IGNORED]
        tensors = {name: arrays[name] for name in ("input_ids", "labels")} | {"owners": owners}
        return cls(
            **{name: torch.from_numpy(array).to(device) for name, array in tensors.items()},
            layout=Layout.of(lengths, device),
            audio=torch.cat(list(clips)).to(device),
        )


def sample_losses(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Returns the summed cross entropy of each sample's reply, float32 [samples].

    Summed, not averaged: divided by the reply tokens of the *global* batch, the loss is the same however the batch is
    cut over workers and micro-batches. One number a sample gives the loss of each kind without further work.

    Args:
        model: `BalsaForConditionalGeneration` that `prepare` has seen, or an engine around it.
        batch: Samples with at least one clip each.
    """
    dtype = getattr(model, "module", model).language_model.dtype
    # What is trained has float32 weights, and is computed in the LLM's dtype nevertheless.
    with torch.autocast(batch.input_ids.device.type, dtype, enabled=dtype != torch.float32):
        losses = model(
            input_ids=batch.input_ids,
            input_features=batch.audio,
            labels=batch.labels,
            layout=batch.layout,
        ).reply_losses
    return losses.new_zeros(batch.layout.samples).index_add(0, batch.owners, losses)


@dataclass(frozen=True)
class StepResult:
    """Outcome of one optimisation step.

    Attributes:
        loss: Mean over the reply tokens of the global batch, before the step.
        grad_norm: Of all trained parameters, before clipping.
    """

    loss: float
    grad_norm: float


def optimise(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Sequence[MicroBatch],
    rate: float,
    max_grad_norm: float,
) -> StepResult:
    """Makes one optimisation step over the micro-batches of a global batch."""
    reply_tokens = sum(len(batch.owners) for batch in batches)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    total = 0.0
    for batch in batches:
        loss = sample_losses(model, batch).sum() / reply_tokens
        loss.backward()
        total += loss.item()
    trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(trained, max_grad_norm)
    optimiser.step()
    return StepResult(total, float(norm))
