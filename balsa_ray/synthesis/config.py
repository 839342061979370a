"""Configuration of `jobs/synthesize.py`: which clips, which backbone, which samples."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from balsa_ray.config import Config
from balsa_ray.engine import EngineConfig, SamplingConfig
from balsa_ray.prompts.render import MetadataStyle

Kind = Literal["present", "absent", "combined", "difference", "joint"]


class SynthesizeConfig(Config):
    """Lets a backbone LLM write training samples from the metadata of clips, and keeps those that pass the gates.

    The audio is not opened: the LLM reads text in its place. The same command again reuses a complete result.
    """

    output: Path = Field(description="folder for samples/, rejected/, errors/ and report.json")
    seed: int = Field(0, description="keys the prompts' wordings, the pairs of clips and sampling")
    input: Path = Field(description="manifest of clips, JSON Lines or Parquet")
    model: str = Field(description="backbone LLM: a folder, a hub name or miniature:backbone")
    limit: int | None = Field(None, ge=1, description="only the first clips of the manifest; null: all")
    metadata: MetadataStyle | Literal["mixed"] = Field(
        "tags", description="what the LLM reads of a clip; mixed: drawn for each sample from what its clips have"
    )
    kinds: dict[Kind, float] = Field(
        {"present": 1, "absent": 1, "combined": 1, "difference": 0.5, "joint": 0.5},
        description="samples of each kind for a clip, 0.5 for every second one; a pair counts for its first clip",
    )
    labels: Literal["manifest", "lexicon"] = Field(
        "manifest", description="labels looked for in replies: the manifest's, or also the packaged lexicon's"
    )
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="decoding")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="vLLM")
    concurrency: int | tuple[int, int] = Field(
        1, description="engines side by side; two numbers: the least and the most"
    )

    @field_validator("kinds")
    @classmethod
    def _some_samples(cls, kinds: dict[Kind, float]) -> dict[Kind, float]:
        if min(kinds.values(), default=0) < 0 or not sum(kinds.values()) > 0:
            raise ValueError("samples for a clip: none can be negative and not all can be 0")
        return kinds
