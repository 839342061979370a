"""What a run will take, before a GPU is rented: `dry_run=true` of `jobs/train.py`.

Neither weights nor a hub nor an accelerator are needed, and nothing is written. Parameters, operations and activations
are those of the model's own modules (`footprint`), what is sharded follows DeepSpeed (`zero`), lengths come from the
samples or are assumed (`workload`). The one thing that has to be believed is `mfu`, the share of the GPUs' peak that a
run reaches, counted as the field does for a frozen LLM: forward, and backward for activations only; what checkpointing
computes twice counts once.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from balsa_ray.config import UserError
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.shapes import on_meta
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.footprint import Shape, encoder_flops, measure
from balsa_ray.training.worker import BUCKET, DTYPES
from balsa_ray.training.workload import Workload, workload
from balsa_ray.training.zero import checkpoint_bytes, states

GIB, MIB = 2**30, 2**20
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
            config.text_model, config.audio_model, DTYPES[config.precision], **config.adapter.model_dump()
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    work = workload(config, model.config.text_config.max_position_embeddings)
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
    """The largest micro-batch: all of its samples are padded to the longest one."""
    tokens, reply_tokens, clips = work.longest()
    samples = min(config.micro_batch_size, config.batch_size // config.num_workers)
    shape = Shape(samples, tokens, reply_tokens, clips)
    plain = measure(model, shape).peak_bytes
    without_logits = measure(model, Shape(samples, tokens, 1, clips)).peak_bytes
    return asdict(shape) | {
        "activations": plain,
        "logits": plain - without_logits,
        "activations_checkpointed": measure(model, shape, checkpointing=True).peak_bytes,
    }


def _memory(config: TrainConfig, trained: int, frozen: int) -> list[dict[str, Any]]:
    itemsize = DTYPES[config.precision].itemsize
    return [
        {"zero_stage": stage, "offload": offload}
        | asdict(states(stage, trained, frozen, itemsize, config.num_workers, BUCKET, offload))
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
    flops = {
        kind: measure(
            model, Shape(1, round(mean.tokens), max(1, round(mean.reply_tokens)), max(1, round(mean.clips)))
        ).flops
        for kind, mean in work.kinds.items()
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
        hours = total / (config.mfu * config.peak_tflops * 1e12 * config.num_workers) / 3600
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
        "checkpoint": checkpoint_bytes(config.deepspeed.zero_stage, trained, itemsize),
        "encoder_cache_clip": clip,
        "encoder_cache": None if work.clips is None else work.clips * clip,
    }


def report(config: TrainConfig, numbers: dict[str, Any]) -> str:
    """Returns an estimate as text of at most some 100 columns.

    Args:
        config: Of the run.
        numbers: As `estimate` returns them.
    """
    blocks = [_model_table(config, numbers), _memory_table(config, numbers), _time_table(config, numbers)]
    return "\n\n".join([*blocks, _disk_lines(config, numbers), _notes(config, numbers)])


def _model_table(config: TrainConfig, numbers: dict[str, Any]) -> str:
    count = numbers["parameters"]
    itemsize = DTYPES[config.precision].itemsize
    adapter = config.adapter
    rows = [
        ("LLM", config.text_model, "text_model"),
        ("audio encoder", config.audio_model, "audio_model"),
        ("adapter", f"{adapter.num_query_tokens} queries, Q-Former of {adapter.qformer_layers} layers", "adapter"),
    ]
    table = [["model", "", "parameters", f"GiB in {config.precision}"]]
    table += [[part, what, _count(count[key]), f"{count[key] * itemsize / GIB:.2f}"] for part, what, key in rows]
    table.append(
        [
            "trained",
            f"{count['trained'] / count['total']:.3%} of all",
            _count(count["trained"]),
            f"{count['trained'] * itemsize / GIB:.2f}",
        ]
    )
    return _align(table, left=2)


def _memory_table(config: TrainConfig, numbers: dict[str, Any]) -> str:
    batch = numbers["micro_batch"]
    header = ["GiB of a worker", "weights", "gradients", "optimizer", "activations", "sum", "checkpointed", "on CPU"]
    table = [header]
    for row in numbers["memory"]:
        name = f"ZeRO {row['zero_stage']}" + (", optimizer on CPU" if row["offload"] else "")
        here = row["zero_stage"] == config.deepspeed.zero_stage and not row["offload"]
        held = row["weights"] + row["gradients"] + row["optimizer"]
        figures = [
            row["weights"],
            row["gradients"],
            row["optimizer"],
            batch["activations"],
            held + batch["activations"],
            held + batch["activations_checkpointed"],
            row["offloaded"],
        ]
        table.append([f"{'*' if here else ' '} {name}", *(f"{figure / GIB:.2f}" for figure in figures)])
    return "\n".join(
        [
            _align(table),
            f"* this recipe; {config.num_workers} workers. Activations of {batch['samples']} samples of "
            f"{batch['tokens']} tokens with {batch['windows']} clips,",
            f"  {batch['logits'] / GIB:.2f} of them logits of {batch['reply_tokens']} reply positions each; "
            f"checkpointed: the sum where the LLM's blocks are",
            f"  computed twice ({batch['activations_checkpointed'] / GIB:.2f} of activations).",
        ]
    )


def _time_table(config: TrainConfig, numbers: dict[str, Any]) -> str:
    time = numbers["time"]
    table = [["stage", "steps", "samples", "epochs", "tokens a sample", "TFLOP a sample", "hours"]]
    for stage in time["stages"]:
        hours = "" if time["hours"] is None else f"{time['hours'] * stage['flops'] / time['flops']:,.1f}"
        epochs = "?" if stage["epochs"] is None else f"{stage['epochs']:.2f}"
        each = stage["flops"] / stage["samples"] / 1e12 if stage["samples"] else 0.0
        table.append(
            [
                stage["name"],
                f"{stage['steps']:,}",
                f"{stage['samples']:,}",
                epochs,
                f"{stage['tokens']:.0f}",
                f"{each:.2f}",
                hours,
            ]
        )
    if time["hours"] is None:
        closing = (
            f"{time['flops'] / 1e18:,.4g} EFLOP; hours are left out, because the peak of a GPU isn't known: peak_tflops=…"
        )
    else:
        closing = (
            f"{time['flops'] / 1e18:,.4g} EFLOP: {time['hours']:,.1f} hours, {time['samples_per_second']:,.1f} samples/s, "
            f"if {config.num_workers} × {config.peak_tflops:g} TFLOP/s are used to {config.mfu:.0%}"
        )
    return f"{_align(table)}\n{closing}"


def _disk_lines(config: TrainConfig, numbers: dict[str, Any]) -> str:
    disk, time = numbers["disk"], numbers["time"]
    of_all = "" if disk["encoder_cache"] is None else f", {disk['encoder_cache'] / GIB:,.1f} GiB for all"
    return "\n".join(
        [
            f"on disk   {disk['model'] / MIB:,.1f} MiB of trained weights, {disk['checkpoint'] / MIB:,.1f} MiB a checkpoint",
            f"encoder   {time['encoder_share']:.1%} of the operations, which encoder_cache saves from a clip's second "
            f"time on; it holds {disk['encoder_cache_clip'] / MIB:.2f} MiB a clip{of_all}",
        ]
    )


def _notes(config: TrainConfig, numbers: dict[str, Any]) -> str:
    notes = [
        *numbers["notes"],
        "every clip counts as one window of the encoder, padding as nothing in the time",
        "not in it: communication, loading, CUDA's context and the allocator's fragments (leave some GiB free)",
    ]
    return "\n".join(f"- {note}" for note in notes)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


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
