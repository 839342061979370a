"""Configuration of `jobs/findings.py`: which arms, in which conditions, with how many seeds."""

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from balsa_ray.config import Config

Arm = Literal["present_only", "present_only_tokens", "listen", "guided", "multi_audio", "lora", "template"]
ARMS: tuple[Arm, ...] = get_args(Arm)
BASE = "base"


class ConditionConfig(Config):
    """What a model learns from, and how hard that is to hear. What isn't set is as in the packaged world."""

    clips: int = Field(2000, ge=32, description="training clips")
    same_scene: float = Field(0.8, ge=0, le=1, description="how much the sounds of a clip say of each other")
    event_level_db: tuple[float, float] = Field((-16.0, 0.0), description="least and greatest level of an event")
    noise_snr_db: tuple[float, float] = Field((2.0, 24.0), description="least and greatest level above the noise")
    encoder_epochs: int | None = Field(
        None, ge=1, description="a weaker encoder, built by the run in so many epochs; null: the packaged one"
    )


class FindingsConfig(Config):
    """Compare ways to make the training data, from the packaged checkpoints on, with equal clips.

    What is complete is left alone: the same command goes on.
    """

    output: Path = Field(description="folder for findings.json, findings.html and the runs")
    seed: int = Field(0, description="of the clips and questions of the test, and of the bootstrap")
    seeds: list[int] = Field(min_length=1, description="of training clips, data and training; one comparison each")
    few: int = Field(3, ge=0, description="so many of the seeds for what is not the main comparison; 0: that alone")
    arms: list[Arm] = Field(list(ARMS), min_length=1, description="ways to make the data, or to train on them")
    conditions: dict[str, ConditionConfig] = Field(
        min_length=1, description="the first one has every arm and all seeds, the others the main comparison"
    )
    backbones: list[str] = Field(
        ["miniature:backbone"],
        min_length=1,
        description="the first one has everything, others the main comparison; the "
        "arm guided is the last one's, which is to read lists of absent sounds",
    )
    curve_steps: list[int] = Field([], description="learning curves of the main comparison: steps, on validation clips")
    curve_clips: list[int] = Field([], description="and training clips")
    curve_seeds: int = Field(1, ge=0, description="so many of these few seeds for the curves")
    test_clips: int = Field(200, ge=30, description="clips of the test, and as many for validation")
    steps: int = Field(600, ge=50, description="optimizer steps of every arm")
    multi_steps: int = Field(150, ge=10, description="of these, the steps on several clips in the arm multi_audio")
    multi_replay: float = Field(0.5, ge=0, lt=1, description="share of samples about one clip in those steps")
    learning_rate: float = Field(1.5e-3, gt=0, description="peak, of every arm and stage")
    resamples: int = Field(1000, ge=100, description="bootstrap resamples over clips")
    report_only: bool = Field(False, description="train and ask nothing: report on the runs that are complete")
    recipes: Path = Field(Path("jobs/configs/miniature"), description="folder of the recipes of the single jobs")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: each can be named once, got {self.seeds}")
        if self.multi_steps >= self.steps:
            raise ValueError(f"multi_steps {self.multi_steps}: must be less than steps, {self.steps}")
        return self
