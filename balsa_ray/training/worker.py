"""One training process of a run: the loop that Ray Train starts on every worker.

All workers walk through the same plan and differ only in which micro-batches of each global batch they compute. Nothing
random is drawn here, so a resumed run needs weights, Adam's moments and the number of steps done, and no generator
state.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from balsa_ray.config import UserError
from balsa_ray.model.export import export_full
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.processing import BalsaProcessor
from balsa_ray.storage import as_readable_as, sole_writer
from balsa_ray.training import batches, checkpoint, packing
from balsa_ray.training.clip_workers import ask, start_clip_workers
from balsa_ray.training.clips import ClipCache, clip_cache, prefetch
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.data import EncodedSamples
from balsa_ray.training.engine import Losses, StepOutcome, distributed_step, evaluate, start_engine
from balsa_ray.training.flops import Flops, peak_flops
from balsa_ray.training.metrics import MetricsWriter
from balsa_ray.training.recipe import RECIPE
from balsa_ray.training.state import TrainState, gather, load_weights, restore
from balsa_ray.training.step import MicroBatch, cpu_kernels, learning_rate
from balsa_ray.training.step import prepare as make_ready
from balsa_ray.training.validation import RepliesWriter, drawn

AHEAD = 4  # micro-batches whose clips are prepared before they are needed
SEEN_AFTER_SECONDS = 60  # every worker's machine shows what another has written
LOOK_EVERY_SECONDS = 5.0  # for notices that a machine goes: to look costs all workers a round trip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FATAL = "fatal.txt"
"""What only the user can mend. Ray Train starts failed workers again, and these then say it at once."""


def train_worker(setup: dict[str, Any]) -> None:
    """Trains to the last step, from the newest checkpoint if there is one; rank 0 writes metrics and the model.

    Args:
        setup: `config`, a `TrainConfig` with absolute paths; `samples` and `validation`, references to tables of
            `data.encode`; `prepare`, which turns a recording into log-mels; `revisions`, hashes of the LLM's and the
            encoder's weights; `device`, `cpu` or `gpu`.

    Raises:
        UserError: If a clip can't be used, the loss is no number, or a checkpoint is of another model.
    """
    import ray

    config: TrainConfig = setup["config"]
    fatal = config.output / FATAL
    if fatal.exists():
        raise UserError(fatal.read_text("utf-8"), exit_code=1)
    samples, validation = (EncodedSamples.of(ray.get(setup[name])) for name in ("samples", "validation"))
    try:
        device = start_device(setup["device"], config)
        with (
            sole_writer(config.output) if dist.get_rank() == 0 else nullcontext(),
            cpu_kernels() if device.type == "cpu" else nullcontext(),
        ):
            dist.barrier()  # nobody looks for checkpoints while a run before this one may still write them
            prepare = shared_clip_workers(setup["prepare"], config, device)
            run(config, samples, validation, prepare, setup["revisions"], device)
    except UserError as error:
        with suppress(OSError):  # a full disk: the error itself says so
            fatal.write_text(str(error), "utf-8")
        raise


def run(
    config: TrainConfig,
    samples: EncodedSamples,
    validation: EncodedSamples,
    prepare: Callable[[str], Tensor],
    revisions: tuple[str, str],
    device: torch.device,
) -> None:
    """Trains on this worker's part of every global batch; see `train_worker`."""
    first = dist.get_rank() == 0
    processor, model = make_processor(config), make_model(config, device, revisions)
    flops, peak = Flops.of(model), peak_flops(config, device)
    cache, checkpoints = clip_cache(model, prepare, config, device), config.output / "checkpoints"
    state = newest_state(checkpoints, model, device)
    engine = start_engine(model, config, device)
    restore(engine, state)
    step = state.step if state else 0
    todo = list(islice(batches.plan(*plan_of(config, samples)), step, config.total_steps))
    cut = Cut(samples, flops, config)
    ready = prefetch((part for batch in todo for part in cut(batch.rows)), samples.clips, cache, AHEAD)
    metrics = MetricsWriter(config.output, step, config.trackers, RECIPE) if first else None
    replies = RepliesWriter(config.output, step) if first else None
    writer = checkpoint.CheckpointWriter(checkpoints, config.keep_checkpoints) if first else None
    watch, saved, clock = NoticeWatch(), time.monotonic(), StepClock()
    for batch in todo:
        rate, number = rate_at(config, batch), len(cut(batch.rows))
        micro = tensors(islice(ready, number), samples, device)
        overdue = first and time.monotonic() - saved > 60 * config.checkpoint_minutes
        done = distributed_step(engine, micro, number, samples, batch.rows, rate, (watch.is_due(), overdue))
        seconds = clock.lap()
        check_finite(batch.step, done)
        if writer:
            writer.check()
        look, overdue = done.votes
        due = batch.step % config.checkpoint_every == 0 or batch is todo[-1]
        with clock.aside():
            measured = validate(engine, validation, flops, cache, config) if due and validation.ids else None
        if metrics:
            metrics.write(
                {
                    "step": batch.step,
                    "epoch": round(batch.epoch, 4),
                    "stage": config.stages[batch.stage].name,
                    "loss": done.losses.mean,
                    "lr": rate,
                    "grad_norm": done.grad_norm,
                    **speed(samples, batch.rows, seconds),
                    **utilisation(cut.flops(batch.rows), seconds, peak),
                    "workers": dist.get_world_size(),
                    "loss_by_kind": done.losses.by_kind,
                    **({"validation_loss": measured.mean, "validation_by_kind": measured.by_kind} if measured else {}),
                }
            )
        with clock.aside():
            if measured:
                said = say(model, validation, processor, cache, config)
                if replies:
                    replies.write(batch.step, said)
            if (look and watch.machine_goes()) or due or overdue:
                state, saved = gather(engine, batch.step, keep=first), time.monotonic()
                if writer and state:
                    writer.save(state, measured.mean if measured else None)
    cache.close()
    if metrics and writer and state:
        writer.wait()
        metrics.close()
        best = checkpoint.best(checkpoints) if config.export_checkpoint == "best" else None
        export(model, processor, checkpoint.read(best) if best else state, config)
    dist.barrier()


class StepClock:
    """Tells how long steps take, whatever is done aside."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def lap(self) -> float:
        """Returns the seconds since the last call."""
        before, self._began = self._began, time.perf_counter()
        return self._began - before

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done inside belongs to no step: validation, checkpoints."""
        before = time.perf_counter()
        yield
        self._began += time.perf_counter() - before


class NoticeWatch:
    """Asks Ray Train now and then whether one of the run's machines will be taken away."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._known: set[str] = set()

    def is_due(self) -> bool:
        """Whether it is time to ask. Workers agree on it by a vote, since all have to ask together."""
        return time.monotonic() - self._looked > LOOK_EVERY_SECONDS

    def machine_goes(self) -> bool:
        """Whether a machine has got notice that had none before; all workers call it together."""
        from ray.train import get_preemption_info

        self._looked = time.monotonic()
        notice = get_preemption_info()
        new = set(notice.preempted_node_ids) - self._known if notice else set()
        self._known |= new
        return bool(new)


def start_device(kind: str, config: TrainConfig) -> torch.device:
    """Returns the device of this worker. Comes before DeepSpeed is imported, which asks the environment once.

    Raises:
        UserError: (exit code 1) It can't do what is wanted of it.
    """
    if kind == "gpu":
        from ray.train.torch import get_device

        if not torch.cuda.is_available():
            raise UserError(f"device: torch {torch.__version__} finds no GPU on {os.uname().nodename}", exit_code=1)
        if config.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name()
            raise UserError(f"precision: {name} doesn't compute in bfloat16; set it to fp32", exit_code=1)
        return get_device()
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(config.cpus_per_worker)
    return torch.device("cpu")


def shared_clip_workers(
    prepare: Callable[[str], Tensor], config: TrainConfig, device: torch.device
) -> Callable[[str], Tensor]:
    """Returns what has a clip prepared by actors that all workers share; all call it together.

    Rank 0 starts them and not the driver, which begins before a cluster that grows has any machine.
    """
    booked = dist.get_world_size() * config.cpus_per_worker
    started = [start_clip_workers(prepare, booked, config.data_workers) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(started, device=device)
    assert started[0]
    return ask(started[0])


def make_processor(config: TrainConfig) -> BalsaProcessor:
    """Returns the processor that belongs to the model of this configuration."""
    adapter = config.adapter
    return BalsaProcessor.assemble(
        config.text_model,
        config.audio_model,
        num_query_tokens=adapter.num_query_tokens,
        audio_begin=adapter.audio_begin,
        audio_end=adapter.audio_end,
        max_audio_seconds=adapter.max_audio_seconds,
    )


def make_model(
    config: TrainConfig, device: torch.device, revisions: tuple[str, str] | None = None
) -> BalsaForConditionalGeneration:
    """Returns the model of this configuration as it is before the first step.

    Args:
        config: Of the run.
        device: Where it goes; under ZeRO 3 it stays in main memory, since there it is cut before it moves.
        revisions: Hashes of the weights, if they are known.
    """
    model = BalsaForConditionalGeneration.assemble(
        config.text_model,
        config.audio_model,
        **config.adapter.model_dump(),
        **config.trained_beside_adapter,
        dtype=DTYPES[config.precision],
        seed=config.seed,
        revisions=revisions,
    )
    if config.deepspeed.zero_stage < 3:
        model.to(device)
    make_ready(model, recompute=config.gradient_checkpointing)
    return model


def newest_state(checkpoints: Path, model: torch.nn.Module, device: torch.device) -> TrainState | None:
    """Returns the newest checkpoint, with its weights put into the model; None if there is none.

    Which that is rank 0 says: on a network's file system others may not see it yet. All ranks call this together.

    Raises:
        UserError: It can't be read, or is of another model.
    """
    found = checkpoint.complete(checkpoints)[-1:] if dist.get_rank() == 0 else []
    told = [found[0].name if found else None]
    dist.broadcast_object_list(told, device=device)
    if told[0] is None:
        return None
    newest = checkpoints / told[0]
    for _ in range(SEEN_AFTER_SECONDS):
        if newest.is_dir():
            break
        time.sleep(1)
    state = checkpoint.read(newest)
    try:
        load_weights(model, state)
    except ValueError as error:
        raise UserError(f"{newest}: is of another model: {error}; choose another output", exit_code=1) from error
    return state


def plan_of(config: TrainConfig, samples: EncodedSamples) -> tuple[Any, ...]:
    """Returns the arguments of `batches.plan`."""
    return (
        config.seed, samples.ids, samples.kinds, config.stages, config.batch_size, samples.sources,
        config.source_weights,
    )  # fmt: skip


class Cut:
    """Cuts groups of rows into micro-batches, and tells which of them are this worker's."""

    def __init__(self, samples: EncodedSamples, flops: Flops, config: TrainConfig) -> None:
        """Args: what is cut, what it costs, and the configuration of the run."""
        self._tokens, self._budget = samples.tokens, config.micro_batch_tokens
        self._costs = flops.of_samples(
            samples.tokens,
            samples.tokens - samples.prompt_tokens,
            samples.windows,
            encoded=config.encoder_cache != "none",
        )

    def __call__(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns this worker's micro-batches of rows that all workers share."""
        shares = packing.cut(rows, self._tokens[rows], self._costs[rows], dist.get_world_size(), self._budget)
        return shares[dist.get_rank()]

    def flops(self, rows: np.ndarray) -> float:
        """Returns the floating-point operations of one worker, on average, for these rows."""
        return float(self._costs[rows].sum()) / dist.get_world_size()


def tensors(
    ready: Iterable[tuple[np.ndarray, list[Tensor]]], samples: EncodedSamples, device: torch.device
) -> Iterator[tuple[np.ndarray, MicroBatch]]:
    """Yields micro-batches of rows and clips as tensors."""
    for rows, clips in ready:
        arrays = packing.collate(rows, samples.input_ids, samples.prompt_tokens)
        yield rows, MicroBatch.of(arrays, clips, device)


def check_finite(step: int, done: StepOutcome) -> None:
    """Raises UserError (exit code 1) where a step taught nothing: DeepSpeed passes over it and says nothing."""
    for name, value in (("loss", done.losses.mean), ("gradient's norm", done.grad_norm)):
        if not math.isfinite(value):
            raise UserError(f"step {step}: the {name} is {value}; try a lower learning_rate", exit_code=1)


def rate_at(config: TrainConfig, batch: batches.GlobalBatch) -> float:
    """Returns the learning rate of a step; every stage has a schedule of its own."""
    stage = config.stages[batch.stage]
    peak = stage.learning_rate or config.learning_rate
    return learning_rate(batch.stage_step, stage.steps, peak, config.warmup_steps)


def speed(samples: EncodedSamples, rows: np.ndarray, seconds: float) -> dict[str, Any]:
    """Returns how much was trained on in a step, and how fast."""
    tokens = int(samples.tokens[rows].sum())
    return {
        "samples": len(rows),
        "audio_seconds": round(float(samples.audio_seconds[rows].sum()), 3),
        "tokens": tokens,
        "reply_tokens": samples.reply_tokens(rows),
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
    }


def utilisation(flops: float, seconds: float, peak: float | None) -> dict[str, float]:
    """Returns a worker's floating-point operations a second in TFLOP/s, and their share in the peak if that is known.

    Args:
        flops: Of one worker in a step.
        seconds: That the step took.
        peak: Operations a second that the device can make.
    """
    rate = flops / seconds
    return {"tflops": rate / 1e12} | ({"mfu": rate / peak} if peak else {})


def validate(engine: Any, validation: EncodedSamples, flops: Flops, cache: ClipCache, config: TrainConfig) -> Losses:
    """Returns the losses on the validation samples. All workers call it together."""
    # Some rows twice rather than workers without any: each takes part in every exchange.
    rows = np.resize(np.arange(len(validation.ids)), max(len(validation.ids), dist.get_world_size()))
    ready = prefetch(Cut(validation, flops, config)(rows), validation.clips, cache, AHEAD)
    return evaluate(engine, tensors(ready, validation, engine.device), validation, rows)


@torch.no_grad()
def say(
    model: BalsaForConditionalGeneration,
    validation: EncodedSamples,
    processor: BalsaProcessor,
    cache: ClipCache,
    config: TrainConfig,
) -> list[dict[str, Any]]:
    """Returns what the model answers to some validation samples, always the same ones, by greedy decoding.

    All workers do the same: where weights are spread over them (ZeRO 3) none could do it alone, and none may stop
    before the others do.
    """
    spread = config.deepspeed.zero_stage == 3 and dist.get_world_size() > 1
    rows = drawn(validation.ids, config.seed, config.validation.replies)
    said = []
    for row in rows.tolist():
        ids = validation.input_ids(row)
        prompt, target = ids[: validation.prompt_tokens[row]], ids[validation.prompt_tokens[row] :]
        clips = [cache.request(audio).result() for audio in validation.audio[row]]
        tokens = torch.from_numpy(prompt.astype(np.int64))[None].to(model.device)
        answer = model.generate(
            tokens,
            input_features=torch.cat(clips).to(model.device),
            max_new_tokens=2 * len(target) + 8,
            do_sample=False,
            synced_gpus=spread,
            pad_token_id=processor.filler_id,
        )[0, tokens.shape[1] :]
        said.append(
            {
                "id": validation.ids[row],
                "kind": validation.kinds[row],
                "audio": validation.audio[row],
                "reply": processor.tokenizer.decode(answer, skip_special_tokens=True),
                "target": processor.tokenizer.decode(target, skip_special_tokens=True),
            }
        )
    return said


def export(
    model: BalsaForConditionalGeneration, processor: BalsaProcessor, state: TrainState, config: TrainConfig
) -> None:
    """Writes the model directory, of what was trained or everything; it gets its name when it is complete."""
    output = config.output
    trained, partial, final = output / "model.trained", output / "model.partial", output / "model"
    for folder in (trained, partial):
        shutil.rmtree(folder, ignore_errors=True)
    # Trained weights as gathered: in the model they may be spread over the workers.
    weights = {name: weight.to(model.dtype) for name, weight in state.weights.items()}
    model.save_pretrained(trained, state_dict={**model.state_dict(), **weights})
    processor.save_pretrained(trained)
    if config.export == "full":
        # From the files: in memory the frozen parts may be spread too, or not be there at all (`encoder_cache`).
        export_full(trained, partial)
    complete = partial if config.export == "full" else trained
    as_readable_as(complete / "config.json")
    shutil.rmtree(final, ignore_errors=True)
    (partial if config.export == "full" else trained).rename(final)
    shutil.rmtree(trained, ignore_errors=True)
