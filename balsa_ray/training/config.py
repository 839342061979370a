"""Configuration of `jobs/train.py`: what to train on, what to train, and how."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from balsa_ray.config import Config, Count, count_range
from balsa_ray.training.trackers import TrackerName

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

    num_query_tokens: int = Field(
        default=64, ge=1, description="embeddings that the LLM reads in place of one window (Whisper: 30 s) of a clip"
    )
    taps: list[int] | None = Field(
        default=None, description="encoder blocks to read, 1-based: k is the output of block k; null: quarter depths"
    )
    qformer_layers: int = Field(default=2, ge=1, description="depth of the Q-Former")
    audio_begin: str = Field(default="", description="text kept before the embeddings of a clip")
    audio_end: str = Field(default="", description="text kept after the embeddings of a clip")
    max_audio_seconds: float = Field(
        default=300.0, gt=0, description="longest clip; samples with a longer one are skipped and listed"
    )


class LoraConfig(Config):
    """Low-rank updates of the LLM or of the encoder, trained beside the adapter. They have no dropout."""

    rank: int = Field(default=16, ge=1, description="of each update")
    alpha: float = Field(default=16.0, gt=0, description="updates are scaled by alpha / rank")
    target_modules: list[str] | None = Field(
        default=None, min_length=1, description="last names of the layers, as q_proj; null: all linear ones"
    )


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

    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="0: nothing, 1: optimiser state, 2: gradients too, which then are exchanged after every "
        "micro-batch, 3: weights too, also frozen ones",
    )
    offload_optimizer: bool = Field(default=False, description="optimiser state in main memory; from stage 1 on")


class ValidationConfig(Config):
    """Samples that are not trained on, and tell at every checkpoint how the model does."""

    share: float = Field(
        default=0.0, ge=0, le=0.5, description="of the recordings; no sample about one of these is trained on"
    )
    samples: int = Field(default=512, ge=1, description="most samples about them that are looked at")
    replies: int = Field(
        default=8, ge=0, description="samples whose replies are written to replies.jsonl and the report"
    )


class TrainConfig(Config):
    """Trains the adapter on synthetic samples with Ray Train and DeepSpeed; LLM and encoder stay, unless told to."""

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
    adapter: AdapterConfig = Field(default_factory=AdapterConfig, description="what is always trained")
    text_lora: LoraConfig | None = Field(default=None, description="also trains updates of the LLM")
    audio_lora: LoraConfig | None = Field(default=None, description="also trains updates of the audio encoder")
    train_encoder: bool = Field(default=False, description="also trains the audio encoder itself")
    export: Literal["trained", "full"] = Field(
        default="trained",
        description="what model/ holds: what was trained; full: every weight, LoRA merged, so that it needs no other",
    )
    export_checkpoint: Literal["last", "best"] = Field(
        default="last", description="best: what model/ holds is the checkpoint with the lowest loss in validation"
    )
    stages: list[StageConfig] = Field(min_length=1, description="trained one after the other in one run")

    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="dtype of frozen weights and of activations; what is trained is kept in float32"
    )
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto",
        description="auto: a GPU a worker where the cluster has any now; name it where machines come with the run",
    )
    num_workers: Count = Field(
        default=2,
        description="training processes, or the least and the most: as many as the cluster has room for, when machines "
        "come and go; the result does not depend on it",
    )
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
    data_workers: int | None = Field(
        default=None,
        ge=1,
        description="processes that read and decode recordings; null: by the cluster's size",
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

    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    checkpoint_minutes: float = Field(
        default=10.0, gt=0, description="and minutes at most: what is lost when machines are lost, come or go"
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, description="so many of the last are kept, and the best by validation"
    )
    validation: ValidationConfig = Field(default_factory=ValidationConfig, description="held-out samples")
    max_failures: int = Field(default=3, ge=0, description="times that workers may fail before the run ends")
    encoder_cache: Literal["none", "memory", "disk"] = Field(
        default="none",
        description="keep the frozen encoder's outputs instead of log-mels: in the clip cache, worth it if they fit, "
        "or also in OUTPUT, if there is room for them",
    )
    cache_gb: float = Field(default=1.0, ge=0, description="memory of one worker's clip cache")
    trackers: list[TrackerName] = Field(default=[], description="where metrics go too, if it is installed")

    dry_run: bool = Field(
        default=False, description="only say what the run takes: memory, hours, disk; needs no weights, writes nothing"
    )
    mfu: float = Field(
        default=0.4, gt=0, le=1, description="for dry_run: share of peak_tflops that a worker is assumed to reach"
    )
    peak_tflops: float | None = Field(
        default=None,
        gt=0,
        description="a GPU's dense TFLOP/s in this precision, for mfu and hours; null: those of H100, H200 and A100 "
        "are known, else both are left out",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _, most = self.worker_range
        if self.batch_size < most:
            raise ValueError(f"batch_size {self.batch_size} gives {most} workers less than a sample each")
        if self.deepspeed.offload_optimizer and not self.deepspeed.zero_stage:
            raise ValueError("deepspeed.offload_optimizer: needs deepspeed.zero_stage 1, 2 or 3")
        if self.deepspeed.zero_stage == 3 and self.train_encoder:
            raise ValueError("deepspeed.zero_stage 3: doesn't go with train_encoder; take 2")
        for stage in self.stages:
            if stage.steps <= self.warmup_steps:
                raise ValueError(f"stage {stage.name!r} has {stage.steps} steps, warmup_steps is {self.warmup_steps}")
        if self.train_encoder and self.audio_lora:
            raise ValueError("train_encoder and audio_lora: an encoder is trained itself or by updates, not both")
        if self.encoder_cache != "none" and (self.train_encoder or self.audio_lora):
            raise ValueError("encoder_cache: the outputs of an encoder that is trained change; set it to none")
        if self.stages[0].replay:
            raise ValueError(f"replay of stage {self.stages[0].name!r}: the first stage has nothing to replay")
        if self.export_checkpoint == "best" and not self.validation.share:
            raise ValueError("export_checkpoint best: needs validation.share, which is 0")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: names must differ, got {names}")
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the most workers."""
        return count_range(self.num_workers)

    @property
    def source_weights(self) -> list[float]:
        """Weight of each folder of `data` if they have weights; else of all of them together."""
        return list(self.data.values()) if isinstance(self.data, dict) else [1.0]

    @property
    def trained_beside_adapter(self) -> dict[str, Any]:
        """What else is trained, as arguments of `BalsaForConditionalGeneration.assemble`."""
        return self.model_dump(include={"text_lora", "audio_lora", "train_encoder"})

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the run."""
        steps = sum(stage.steps for stage in self.stages)
        return min(steps, self.max_steps or steps)
