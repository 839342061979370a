"""One training process of a run: the loop that Ray Train starts on every worker.

All workers walk through the same plan and differ only in which rows of each global batch they compute. Nothing random
is drawn here, so a resumed run needs weights, optimiser state and the number of steps done, and no generator state.
"""

import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from balsa_ray.audio.decode import AudioError, decode
from balsa_ray.audio.features import log_mel
from balsa_ray.config import UserError
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.processing import BalsaProcessor
from balsa_ray.storage import sole_writer
from balsa_ray.training import batches, checkpoint, packing
from balsa_ray.training.clips import ClipCache, prefetch
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.data import EncodedSamples
from balsa_ray.training.flops import Flops
from balsa_ray.training.metrics import MetricsWriter
from balsa_ray.training.step import (
    EncodedAudio,
    MicroBatch,
    adamw,
    cpu_kernels,
    encode_clip,
    learning_rate,
    prepare,
    sample_losses,
)

AHEAD = 4  # micro-batches whose clips are prepared before they are needed
BUCKET = 20_000_000  # parameters reduced at once; DeepSpeed reserves a buffer of this size
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train_worker(setup: dict[str, Any]) -> None:
    """Trains to the last step, from the newest checkpoint if there is one; rank 0 writes metrics and the model.

    Args:
        setup: `config`, a `TrainConfig` with absolute paths; `samples`, a reference to the table of `data.encode`;
            `device`, `cpu` or `gpu`.

    Raises:
        UserError: If a clip can't be used, the loss is no number, or the checkpoint doesn't fit the workers.
    """
    import ray

    config: TrainConfig = setup["config"]
    device = start_device(setup["device"], config.cpus_per_worker)
    with (
        sole_writer(config.output) if dist.get_rank() == 0 else nullcontext(),
        cpu_kernels() if device.type == "cpu" else nullcontext(),
    ):
        dist.barrier()  # nobody looks for checkpoints while a run before this one may still write them
        run(config, EncodedSamples.of(ray.get(setup["samples"])), device)


def run(config: TrainConfig, samples: EncodedSamples, device: torch.device) -> None:
    """Trains on this worker's part of every global batch; see `train_worker`."""
    rank, world = dist.get_rank(), dist.get_world_size()
    processor = make_processor(config)
    model = BalsaForConditionalGeneration.assemble(
        config.text_model,
        config.audio_model,
        **config.adapter.model_dump(),
        dtype=DTYPES[config.precision],
        seed=config.seed,
    ).to(device)
    flops = Flops.of(model)
    prepare(model, recompute=config.gradient_checkpointing)
    cache = clip_cache(model, processor, config)
    engine = start_engine(model, config)
    layout = checkpoint.Layout(world, config.deepspeed.zero_stage, config.precision)
    checkpoints = config.output / "checkpoints"
    step = resume(engine, checkpoints, layout)

    plan = batches.plan(
        config.seed,
        samples.ids,
        samples.kinds,
        config.stages,
        config.batch_size,
        samples.sources,
        config.source_weights,
    )
    todo = list(islice(plan, step, config.total_steps))
    costs = flops.of_samples(
        samples.tokens, samples.tokens - samples.prompt_tokens, samples.clip_numbers, config.encoder_cache
    )
    parts = micro_batches(todo, samples, costs, config.micro_batch_tokens, rank, world)
    ready = prefetch(parts, lambda part: samples.clips(part[0]), cache, AHEAD)
    metrics = MetricsWriter(config.output, step) if rank == 0 else None
    started = time.perf_counter()
    for batch in todo:
        rate = rate_at(config, batch)
        micro = tensors(ready, samples, device)
        loss, by_kind = distributed_step(engine, micro, samples, batch.rows, rate)
        now = time.perf_counter()
        if metrics:
            tokens = int(samples.tokens[batch.rows].sum())
            metrics.write(
                {
                    "step": batch.step,
                    "epoch": round(batch.epoch, 4),
                    "stage": config.stages[batch.stage].name,
                    "loss": loss,
                    "lr": rate,
                    "grad_norm": float(engine.get_global_grad_norm()),
                    "samples": len(batch.rows),
                    "audio_seconds": round(float(samples.audio_seconds[batch.rows].sum()), 3),
                    "tokens": tokens,
                    "reply_tokens": samples.reply_tokens(batch.rows),
                    "tokens_per_second": tokens / (now - started),
                    "seconds": now - started,
                    "loss_by_kind": by_kind,
                }
            )
        if not math.isfinite(loss):
            raise UserError(f"step {batch.step}: the loss is {loss}; try a lower learning_rate", exit_code=1)
        if batch.step % config.checkpoint_every == 0 or batch is todo[-1]:
            checkpoint.save(engine, checkpoints, batch.step, layout)
        started = time.perf_counter()
    cache.close()
    if metrics:
        metrics.close()
        export(model, processor, config.output)
    dist.barrier()


def start_device(kind: str, threads: int) -> torch.device:
    """Returns the device of this worker. Comes before DeepSpeed is imported, which asks the environment once."""
    if kind == "gpu":
        from ray.train.torch import get_device

        return get_device()
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(threads)
    return torch.device("cpu")


def make_processor(config: TrainConfig) -> BalsaProcessor:
    """Returns the processor that belongs to the model of this configuration."""
    adapter = config.adapter
    return BalsaProcessor.assemble(
        config.text_model,
        config.audio_model,
        num_query_tokens=adapter.num_query_tokens,
        audio_begin=adapter.audio_begin,
        audio_end=adapter.audio_end,
    )


def clip_cache(model: BalsaForConditionalGeneration, processor: BalsaProcessor, config: TrainConfig) -> ClipCache:
    """Returns what prepares clips; with `encoder_cache` the encoder moves there, out of the model.

    Clips are kept in main memory, as log-mels or as the encoder's states, of which the latter are larger.
    """
    extractor, tower = processor.feature_extractor, model.audio_tower
    audio_config = model.config.audio_config
    size = 4 * audio_config.num_mel_bins * 2 * audio_config.max_source_positions
    if config.encoder_cache:
        model.audio_tower = EncodedAudio(tower.connector)
        size = model.dtype.itemsize * len(tower.taps) * audio_config.max_source_positions * audio_config.d_model

    def prepare(audio: str) -> Tensor:
        try:
            clip = decode(audio, sampling_rate=model.config.sampling_rate, max_seconds=model.config.max_audio_seconds)
        except AudioError as error:
            raise UserError(f"{error}; the same command goes on from the last checkpoint", exit_code=1) from error
        mels = torch.from_numpy(log_mel(extractor, [clip])[0])
        return encode_clip(tower, mels).cpu() if config.encoder_cache else mels

    return ClipCache(prepare, capacity=int(config.cache_gb * 2**30 / size), threads=config.cpus_per_worker)


def start_engine(model: torch.nn.Module, config: TrainConfig) -> Any:
    """Returns the DeepSpeed engine around the model. All ranks call it together."""
    import logging

    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adamw(trained, config.betas, config.weight_decay),
        model_parameters=trained,
        config={
            # The steps say themselves where they end. With 1 here, offload to the CPU would not accumulate.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": config.max_grad_norm,
            "bf16": {"enabled": config.precision == "bf16"},
            "zero_optimization": {
                "stage": config.deepspeed.zero_stage,
                "reduce_bucket_size": BUCKET,
                "allgather_bucket_size": BUCKET,
            },
            "steps_per_print": 10**9,
        },
    )
    return engine


def resume(engine: Any, checkpoints: Path, layout: checkpoint.Layout) -> int:
    """Loads the newest checkpoint, if any, and returns the steps done.

    Raises:
        UserError: If it was written by another number of workers, ZeRO stage or precision.
    """
    newest = checkpoint.complete(checkpoints)[-1:]
    if not newest:
        return 0
    written = checkpoint.layout_of(newest[0])
    if written != layout:
        raise UserError(f"{newest[0]} was written with {written}, this run has {layout}: resume with the former", 1)
    return checkpoint.load(engine, newest[0])


def rate_at(config: TrainConfig, batch: batches.GlobalBatch) -> float:
    """Returns the learning rate of a step; every stage has a schedule of its own."""
    stage = config.stages[batch.stage]
    peak = stage.learning_rate or config.learning_rate
    return learning_rate(batch.stage_step, stage.steps, peak, config.warmup_steps)


def micro_batches(
    todo: Iterable[batches.GlobalBatch],
    samples: EncodedSamples,
    costs: np.ndarray,
    budget: int,
    rank: int,
    world: int,
) -> Iterator[tuple[np.ndarray, bool]]:
    """Yields this worker's micro-batches, step after step, and with each whether it is the last one of its step."""
    for batch in todo:
        mine = packing.cut(batch.rows, samples.tokens[batch.rows], costs[batch.rows], world, budget)[rank]
        for number, part in enumerate(mine, start=1):
            yield part, number == len(mine)


def tensors(
    ready: Iterator[tuple[tuple[np.ndarray, bool], list[Tensor]]],
    samples: EncodedSamples,
    device: torch.device,
) -> Iterator[tuple[np.ndarray, MicroBatch, bool]]:
    """Yields the micro-batches of one step as samples, tensors, and whether it is the last one."""
    for (part, last), clips in ready:
        arrays = packing.collate(part, samples.input_ids, samples.prompt_tokens)
        yield part, MicroBatch.of(arrays, clips, device), last
        if last:
            return


def distributed_step(
    engine: Any,
    micro: Iterator[tuple[np.ndarray, MicroBatch, bool]],
    samples: EncodedSamples,
    rows: np.ndarray,
    rate: float,
) -> tuple[float, dict[str, float]]:
    """Makes one optimisation step of all workers.

    Args:
        engine: The DeepSpeed engine.
        micro: This worker's part of the global batch: samples and tensors of each micro-batch, and which is the last.
        samples: Tells kinds and reply tokens. They are known to every worker, so nobody has to ask the others.
        rows: Of the global batch.
        rate: Learning rate.

    Returns:
        The mean loss over the reply tokens of the global batch, and the same of each kind in it.
    """
    kinds = sorted({samples.kinds[row] for row in rows})
    reply_tokens = samples.reply_tokens(rows)
    by_kind = torch.zeros(len(kinds), device=engine.device)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    for part, batch, last in micro:
        # Told, not counted: how many micro-batches a step has depends on the lengths of its samples.
        engine.set_gradient_accumulation_boundary(last)
        losses = sample_losses(engine, batch)
        # DeepSpeed averages gradients over the workers; the sum of all workers' parts is what is wanted.
        engine.backward(losses.sum() * (dist.get_world_size() / reply_tokens), scale_wrt_gas=False)
        engine.step()
        index = torch.tensor([kinds.index(samples.kinds[row]) for row in part], device=engine.device)
        by_kind.index_add_(0, index, losses.detach())
    dist.all_reduce(by_kind)
    totals = dict(zip(kinds, by_kind.tolist(), strict=True))
    of_kind = {kind: np.asarray([row for row in rows if samples.kinds[row] == kind]) for kind in kinds}
    return sum(totals.values()) / reply_tokens, {
        kind: total / samples.reply_tokens(of_kind[kind]) for kind, total in totals.items()
    }


def export(model: BalsaForConditionalGeneration, processor: BalsaProcessor, output: Path) -> None:
    """Writes the model directory; it gets its name when it is complete."""
    partial, final = output / "model.partial", output / "model"
    for folder in (partial, final):
        shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(final)
