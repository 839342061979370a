"""What a run will take, before a GPU is rented: `dry_run=true` of `jobs/train.py`.

Neither weights nor a hub nor an accelerator are needed, and nothing is written. Parameters, operations and activations
are those of the model's own modules (`footprint`), what is sharded follows DeepSpeed (`zero`), lengths come from the
samples or are assumed (`workload`). The one thing that has to be believed is `mfu`, the share of the GPUs' peak that a
run reaches, counted as the field does for a frozen LLM: forward, and backward for activations only; what checkpointing
computes twice counts once.
"""

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from balsa_ray.config import UserError
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.shapes import on_meta
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.engine import BUCKET
from balsa_ray.training.footprint import Shape, encoder_flops, measure
from balsa_ray.training.worker import DTYPES
from balsa_ray.training.workload import Workload, workload
from balsa_ray.training.zero import checkpoint_bytes, states

GIB, MIB = 2**30, 2**20
WIDTH = 100
LAYOUTS = [(0, False), (1, False), (2, False), (3, False), (2, True), (3, True)]  # ZeRO stage, optimizer on the CPU


def estimate(config: TrainConfig) -> dict[str, Any]:
    """Estimates parameters, memory, time and disk of a run.

    Args:
        config: Of the run.

    Returns:
        Numbers in parameters, bytes, operations, samples and hours; `hours` and `samples_per_second` are None without
        `peak_tflops`.

    Raises:
        UserError: If a model's shape isn't known, or if there are samples and a stage finds none of a kind.
    """
    try:
        model = on_meta(
            config.text_model,
            config.audio_model,
            DTYPES[config.precision],
            **config.adapter.model_dump(),
            **config.trained_beside_adapter,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    work = workload(config, model.config.text_config.get_text_config().max_position_embeddings)
    parameters = count_parameters(model)
    return {
        "parameters": parameters,
        "micro_batch": _micro_batch(config, work, model),
        "memory": _memory(config, parameters["trained"], parameters["total"] - parameters["trained"]),
        "time": _time(config, work, model),
        "disk": _disk(config, parameters["trained"], work, model),
        "notes": work.notes,
    }


def count_parameters(model: BalsaForConditionalGeneration) -> dict[str, int]:
    """Returns how many parameters the parts of a model have, and how many are trained; tied ones count once."""
    tower = model.audio_tower
    parts = {"text_model": model.language_model, "audio_model": tower.encoder, "adapter": tower.connector}
    return {name: _numel(part) for name, part in parts.items()} | {
        "total": _numel(model),
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _micro_batch(config: TrainConfig, work: Workload, model: BalsaForConditionalGeneration) -> dict[str, int]:
    """The largest micro-batch, as if all of its samples were the longest one."""
    tokens, reply_tokens, clips = work.longest()
    samples = min(max(1, config.micro_batch_tokens // tokens), -(-config.batch_size // config.worker_range[0]))
    shape = Shape(samples, tokens, reply_tokens, clips)
    plain, checkpointed = measure(model, shape), measure(model, shape, checkpointing=True)
    without_logits = measure(model, Shape(samples, tokens, 1, clips))
    return asdict(shape) | {
        "activations": plain.peak_bytes,
        "logits": plain.peak_bytes - without_logits.peak_bytes,
        "activations_checkpointed": checkpointed.peak_bytes,
        "flops": plain.flops,
        "flops_checkpointed": checkpointed.flops,
    }


def _memory(config: TrainConfig, trained: int, frozen: int) -> list[dict[str, Any]]:
    itemsize = DTYPES[config.precision].itemsize
    return [
        {"zero_stage": stage, "offload": offload}
        | asdict(states(stage, trained, frozen, itemsize, config.worker_range[0], BUCKET, offload))
        for stage, offload in LAYOUTS
    ]


@dataclass(frozen=True)
class StageTime:
    """A stage of the curriculum.

    Attributes:
        name: As in the recipe.
        steps: That are made of it.
        samples: That it draws.
        epochs: How often it goes through the samples that it introduces; None if their number isn't known.
        tokens: Mean length of a sample.
        flops: Of all of it.
        encoder_flops: What the audio encoder has in them.
    """

    name: str
    steps: int
    samples: int
    epochs: float | None
    tokens: float
    flops: float
    encoder_flops: float


def _time(config: TrainConfig, work: Workload, model: BalsaForConditionalGeneration) -> dict[str, Any]:
    per_window = encoder_flops(model)
    shapes = {
        kind: Shape(1, round(mean.tokens), max(1, int(mean.reply_tokens)), int(mean.clips))
        for kind, mean in work.kinds.items()
    }
    flops_of = {shape: measure(model, shape).flops for shape in set(shapes.values())}
    # Clips are whole in a shape: where their number varies, the rest of the mean is added.
    flops = {
        kind: flops_of[shape] + (work.kinds[kind].clips - shape.windows) * per_window for kind, shape in shapes.items()
    }
    stages = []
    left = config.total_steps
    for index, stage in enumerate(config.stages):
        shares = work.shares(config.stages, index)
        steps = min(stage.steps, left)
        left -= steps
        samples = steps * config.batch_size
        known = [work.kinds[kind].samples for kind in stage.kinds]
        introduced = sum(number for number in known if number is not None)
        stages.append(
            StageTime(
                stage.name,
                steps,
                samples,
                samples * (1 - stage.replay) / introduced if introduced else None,
                sum(share * work.kinds[kind].tokens for kind, share in shares.items()),
                samples * sum(share * flops[kind] for kind, share in shares.items()),
                samples * sum(share * work.kinds[kind].clips * per_window for kind, share in shares.items()),
            )
        )
    total = sum(stage.flops for stage in stages)
    hours = None
    if config.peak_tflops is not None:
        hours = total / (config.mfu * config.peak_tflops * 1e12 * config.worker_range[0]) / 3600
    samples = sum(stage.samples for stage in stages)
    return {
        "stages": [asdict(stage) for stage in stages],
        "steps": config.total_steps,
        "samples": samples,
        "flops": total,
        "encoder_share": sum(stage.encoder_flops for stage in stages) / total,
        "hours": hours,
        "samples_per_second": None if hours is None else samples / hours / 3600,
    }


def _disk(
    config: TrainConfig, trained: int, work: Workload, model: BalsaForConditionalGeneration
) -> dict[str, int | None]:
    itemsize = DTYPES[config.precision].itemsize
    audio = model.config.audio_config
    clip = len(model.config.taps) * audio.max_source_positions * audio.d_model * itemsize
    return {
        "model": trained * itemsize,
        "checkpoint": checkpoint_bytes(trained),
        "encoder_cache_clip": clip,
        "encoder_cache": None if work.clips is None else work.clips * clip,
    }


def report(config: TrainConfig, numbers: dict[str, Any]) -> str:
    """Returns an estimate as text of at most 100 columns.

    Args:
        config: Of the run.
        numbers: As `estimate` returns them.
    """
    opening = f"dry run: {config.total_steps:,} steps on {config.worker_range[0]} workers; nothing is written"
    blocks = [_models(config, numbers), _memory_table(config, numbers), _time_table(config, numbers)]
    return "\n\n".join([opening, *blocks, _disk_lines(numbers), _notes(numbers)])


def _models(config: TrainConfig, numbers: dict[str, Any]) -> str:
    count = numbers["parameters"]
    adapter = f"{config.adapter.num_query_tokens} queries, Q-Former of {config.adapter.qformer_layers} layers"
    rows = [
        ("LLM", config.text_model, count["text_model"]),
        ("audio encoder", config.audio_model, count["audio_model"]),
        ("adapter", adapter, count["adapter"]),
        ("trained", f"{count['trained'] / count['total']:.3%} of all", count["trained"]),
    ]
    itemsize = DTYPES[config.precision].itemsize
    header = ["model", "", "parameters", f"GiB in {config.precision}"]
    return _align([header, *([*row[:2], _count(row[2]), _gib(row[2] * itemsize)] for row in rows)], left=2)


def _memory_table(config: TrainConfig, numbers: dict[str, Any]) -> str:
    batch = numbers["micro_batch"]
    table = [["GiB of a worker", "weights", "gradients", "optimizer", "activations", "sum", "checkpointed", "on CPU"]]
    for row in numbers["memory"]:
        here = row["zero_stage"] == config.deepspeed.zero_stage and not row["offload"]
        name = f"{'*' if here else ' '} ZeRO {row['zero_stage']}" + (", optimizer on CPU" if row["offload"] else "")
        states = [row["weights"], row["gradients"], row["optimizer"]]
        sums = [sum(states) + batch[key] for key in ("activations", "activations_checkpointed")]
        table.append([name, *map(_gib, [*states, batch["activations"], *sums, row["offloaded"]])])
    return f"{_align(table)}\n" + _paragraph(
        f"* this recipe. The largest micro-batch: {batch['samples']} samples of {batch['tokens']} tokens, clips: "
        f"{batch['windows']} each, {batch['reply_tokens']} reply positions each ({_gib(batch['logits'])} GiB for their "
        "logits). checkpointed: the sum if the LLM's blocks keep their inputs alone, which leaves "
        f"{_gib(batch['activations_checkpointed'])} GiB of activations and takes "
        f"{batch['flops_checkpointed'] / batch['flops'] - 1:.0%} more operations"
    )


def _time_table(config: TrainConfig, numbers: dict[str, Any]) -> str:
    time = numbers["time"]
    table = [["stage", "steps", "samples", "epochs", "tokens a sample", "TFLOP a sample", "hours"]]
    for stage in time["stages"]:
        epochs = "?" if stage["epochs"] is None else f"{stage['epochs']:.2f}"
        each = stage["flops"] / max(1, stage["samples"]) / 1e12
        hours = "?" if time["hours"] is None else f"{time['hours'] * stage['flops'] / time['flops']:,.1f}"
        counts = [f"{stage['steps']:,}", f"{stage['samples']:,}", epochs, f"{stage['tokens']:.0f}"]
        table.append([stage["name"], *counts, f"{each:.3g}", hours])
    closing = f"{time['flops'] / 1e18:.4g} EFLOP in all"
    if time["hours"] is None:
        closing += "; how many hours that is depends on the GPU: name its peak, peak_tflops=N"
    else:
        closing += (
            f": {time['hours']:,.1f} hours, {time['samples_per_second']:,.1f} samples/s, if {config.worker_range[0]} × "
            f"{config.peak_tflops:g} TFLOP/s are used to {config.mfu:.0%} (mfu)"
        )
    return f"{_align(table)}\n{closing}"


def _disk_lines(numbers: dict[str, Any]) -> str:
    disk = numbers["disk"]
    cache = f"encoder_cache: {disk['encoder_cache_clip'] / MIB:.2f} MiB a clip"
    if disk["encoder_cache"] is not None:
        cache += f", {disk['encoder_cache'] / GIB:,.1f} GiB for all"
    return _paragraph(
        f"trained weights: {disk['model'] / MIB:,.1f} MiB; a checkpoint: {disk['checkpoint'] / MIB:,.1f} MiB; {cache}; "
        f"it saves the encoder's {numbers['time']['encoder_share']:.1%} of the operations from a clip's second time on"
    )


def _notes(numbers: dict[str, Any]) -> str:
    notes = [
        *numbers["notes"],
        "a clip counts as one window of the encoder, padding takes no time, and the encoder runs every time",
        "ZeRO 3 also holds up to a billion weights that it has gathered (DeepSpeed's default)",
        "not in it: communication, loading, CUDA's context, kernels' workspaces and fragments of the allocator; leave "
        "a tenth of the memory free",
    ]
    return "\n".join(_paragraph(f"- {note}") for note in notes)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _paragraph(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _align(table: list[list[str]], left: int = 1) -> str:
    """Aligns the first `left` columns to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )
