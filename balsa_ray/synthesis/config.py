"""Configuration of `jobs/synthesize.py`: which clips, which backbone, which samples."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from balsa_ray.audio.decode import AudioCheck
from balsa_ray.config import Config
from balsa_ray.engine import EngineConfig, SamplingConfig
from balsa_ray.prompts.render import MetadataStyle
from balsa_ray.synthesis.layouts import Format

Kind = Literal["present", "absent", "combined", "difference", "joint"]


class SynthesizeConfig(Config):
    """Lets a backbone LLM write training samples from the metadata of clips, and keeps those that pass the gates.

    The LLM reads text in place of the audio, which is only looked at to find recordings that can't be used. The same
    command again reuses a complete result.
    """

    output: Path = Field(description="folder for samples/, rejected/, errors/ and report.json")
    seed: int = Field(0, description="keys the prompts' wordings, the pairs of clips and sampling")
    input: str | Path | list[str] = Field(
        description="what describes the clips: a file, a folder, a pattern with *, or several; paths or URIs"
    )
    input_format: Format = Field("manifest", description="layout of the input: this project's, or a published one")
    audio_root: str | None = Field(
        None, description="folder or URI of the recordings, where the input names them without one; null: the input's"
    )
    columns: dict[str, str] = Field(
        {},
        description="columns of the input that are called otherwise than input_format says, by manifest field: "
        "caption: sentence; or a pattern of columns: audio: 'Y{YTID}.flac'",
    )
    class_labels: str | None = Field(
        None, description="for audioset and audioset_strong: class_labels_indices.csv or ontology.json"
    )
    audio_check: AudioCheck = Field(
        "header", description="header: each recording can be opened and is not too long; full: nor silent nor clipped"
    )
    max_audio_seconds: float = Field(30.0, gt=0, description="longest recording or slice: what the encoder hears")
    model: str = Field(description="backbone LLM: a folder, a hub name or miniature:backbone")
    limit: int | None = Field(None, ge=1, description="only the first rows of the input; null: all")
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
