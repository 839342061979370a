"""Configuration of `jobs/train.py`: what to train on, what to train, and how."""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from balsa_ray.config import Config

Key = TypeVar("Key")
Kind = Literal["present", "absent", "combined", "difference", "joint"]


def _wanted(value: list[Key] | dict[Key, float]) -> list[Key] | dict[Key, float]:
    """Drops what has the weight 0."""
    if isinstance(value, dict) and value:
        value = {key: weight for key, weight in value.items() if weight}
        if not value:
            raise ValueError("all weights are 0")
    return value


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AdapterConfig(Config):
    """The trained part between the frozen audio encoder and the frozen LLM."""

    num_query_tokens: int = Field(default=64, ge=1, description="embeddings that the LLM reads in place of one clip")
    taps: list[int] | None = Field(
        default=None, description="encoder blocks to read, 1-based: k is the output of block k; null: quarter depths"
    )
    qformer_layers: int = Field(default=2, ge=1, description="depth of the Q-Former")
    audio_begin: str = Field(default="", description="text kept before the embeddings of a clip")
    audio_end: str = Field(default="", description="text kept after the embeddings of a clip")


class StageConfig(Config):
    """One stage of the curriculum: which samples, for how long."""

    name: str = Field(description="name shown in metrics and curves")
    kinds: Annotated[list[Kind] | dict[Kind, Weight], AfterValidator(_wanted)] = Field(
        min_length=1,
        description="kinds of samples that this stage introduces: a list, in it each kind has the share that its "
        "samples have, or weights, {present: 1, absent: 2}",
    )
    steps: int = Field(ge=1, description="optimisation steps")
    replay: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="share of rows drawn from the kinds of earlier stages"
    )
    learning_rate: float | None = Field(default=None, gt=0, description="peak learning rate; null: that of the run")


class DeepSpeedConfig(Config):
    """What is sharded over the workers."""

    zero_stage: Literal[0, 1, 2] = Field(default=2, description="0: nothing, 1: optimiser state, 2: gradients too")


class TrainConfig(Config):
    """Trains the adapter on synthetic samples with Ray Train and DeepSpeed; LLM and audio encoder stay as they are."""

    output: Path = Field(description="folder for model/, checkpoints/, metrics.jsonl and report.html")
    seed: int = Field(default=0, description="keys the adapter's initialisation and the order of the samples")
    data: Annotated[
        list[Path] | dict[Path, Weight],
        BeforeValidator(lambda value: [value] if isinstance(value, str | Path) else value),
        AfterValidator(_wanted),
    ] = Field(
        min_length=1,
        description="OUTPUT folders of jobs/synthesize.py: one, a list, or weights, {runs/a: 2, runs/b: 1}, by which "
        "each kind is drawn from those folders that have it",
    )
    text_model: str = Field(description="backbone LLM: a folder, a hub name or miniature:backbone")
    audio_model: str = Field(description="Whisper-like encoder: a folder, a hub name or miniature:encoder")
    adapter: AdapterConfig = Field(default_factory=AdapterConfig, description="the trained part")
    stages: list[StageConfig] = Field(min_length=1, description="trained one after the other in one run")

    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="dtype of weights and activations")
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="auto: a GPU a worker where the cluster has any"
    )
    num_workers: int = Field(default=2, ge=1, description="training processes; the result does not depend on it")
    cpus_per_worker: int = Field(default=1, ge=1, description="CPUs, and on a CPU also threads, of one worker")
    batch_size: int = Field(default=32, ge=1, description="samples of one optimisation step over all workers")
    micro_batch_tokens: int = Field(
        default=4096,
        ge=8,
        description="most tokens that a worker puts through the model at once, the embeddings of clips included",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="compute the LLM's blocks a second time in the backward pass instead of keeping what they made: "
        "far less memory, up to half as long again",
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="stop after this many steps of the run; null: all stages"
    )
    max_length: int | None = Field(
        default=None,
        ge=8,
        description="longest sample in tokens, longer ones are skipped and listed; null: the LLM's context",
    )
    deepspeed: DeepSpeedConfig = Field(default_factory=DeepSpeedConfig, description="sharding")

    learning_rate: float = Field(default=1e-4, gt=0, description="peak; each stage warms up and falls to 0 by a cosine")
    warmup_steps: int = Field(default=2000, ge=0, description="linear warm-up at the start of every stage")
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="AdamW")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")

    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints; the last two are kept")
    encoder_cache: bool = Field(
        default=False,
        description="keep the frozen encoder's outputs, not log-mels, in the clip cache; worth it if they fit there",
    )
    cache_gb: float = Field(default=1.0, ge=0, description="memory of one worker's clip cache")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.num_workers:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of num_workers {self.num_workers}")
        for stage in self.stages:
            if stage.steps <= self.warmup_steps:
                raise ValueError(f"stage {stage.name!r} has {stage.steps} steps, warmup_steps is {self.warmup_steps}")
        if self.stages[0].replay:
            raise ValueError(f"replay of stage {self.stages[0].name!r}: the first stage has nothing to replay")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: names must differ, got {names}")
        return self

    @property
    def source_weights(self) -> list[float]:
        """Weight of each folder of `data` if they have weights; else of all of them together."""
        return list(self.data.values()) if isinstance(self.data, dict) else [1.0]

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the run."""
        steps = sum(stage.steps for stage in self.stages)
        return min(steps, self.max_steps or steps)
