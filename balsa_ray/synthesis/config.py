"""Configuration of `jobs/synthesize.py`: which clips, which backbone, which samples."""

from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from balsa_ray.audio.decode import AudioCheck
from balsa_ray.config import Config, Count
from balsa_ray.endpoint_engine import EndpointConfig
from balsa_ray.engine import EngineConfig, SamplingConfig
from balsa_ray.prompts.render import BEGIN, END, MOST_CLIPS, Kind, MetadataStyle
from balsa_ray.schema import MANIFEST_COLUMNS
from balsa_ray.storage import absolute
from balsa_ray.synthesis.layouts import Format
from balsa_ray.synthesis.negatives import Negative
from balsa_ray.synthesis.pairing import Strategy


class SynthesizeConfig(Config):
    """Lets a backbone LLM write training samples from the metadata of clips, and keeps those that pass the gates.

    The LLM reads text in place of the audio, which is only looked at to find recordings that can't be used. The same
    command again takes up a run that was cut, tries again what failed, and leaves a complete result alone.
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
    max_audio_seconds: float = Field(30.0, gt=0, description="longest recording or slice; longer ones are set aside")
    model: str | None = Field(None, description="backbone LLM: a folder, a hub name or miniature:backbone")
    endpoint: EndpointConfig | None = Field(
        None, description="in place of model: an OpenAI-compatible endpoint of the backbone; its key: BALSA_API_KEY"
    )
    limit: int | None = Field(None, ge=1, description="only the first rows of the input; null: all")
    metadata: MetadataStyle | Literal["mixed"] | tuple[MetadataStyle, ...] = Field(
        "tags",
        description="what the LLM reads of a clip; a list: all of these that the clip has, in one line; "
        "mixed: one, drawn for each sample from what its clips have",
    )
    metadata_order: Literal["as_is", "shuffled"] = Field("as_is", description="order of the tags that the LLM reads")
    marks: tuple[str, str] = Field((BEGIN, END), description="what stands before and after a clip's metadata")
    prompts: Path | None = Field(None, description="prompts in the form of balsa_ray/prompts/kinds.yaml; null: those")
    system_prompt: str | None = Field(
        None, description="what the LLM is told before the user's turn; it forms the replies, training never shows it"
    )
    kinds: dict[Kind, float] = Field(
        {"present": 1, "absent": 1, "combined": 1, "difference": 0.5, "joint": 0.5},
        description="samples of each kind for a clip, 0.5 for every second one; a pair counts for its first clip",
    )
    replies_per_prompt: int = Field(1, ge=1, description="samples of each prompt; above 1 with a temperature only")
    clips: int = Field(2, ge=2, le=MOST_CLIPS, description="clips of a sample of difference or joint")
    pairing: dict[Strategy, float] = Field(
        {"random": 1},
        description="shares of the ways to choose those clips; similar: with a common label or wider term, "
        "contrast: without, same_tag_other_clip: with the same labels; where one finds none, random takes over "
        "(`similar>random` in samples and report)",
    )
    negatives: dict[Negative, float] = Field(
        {"free": 1},
        description="shares of the ways to choose absent sounds; free: the LLM names them, otherwise it is given some: "
        "any (random), frequent ones (popular), that often stand with those present (cooccurring), other narrower "
        "terms of the same wider one (siblings); where one finds none, random takes over",
    )
    absent_candidates: int = Field(3, ge=1, description="absent sounds that the LLM is given")
    ontology: Path | None = Field(
        None, description="AudioSet's ontology.json: wider and narrower terms for pairing, negatives and gates"
    )
    labels: Literal["manifest", "lexicon"] = Field(
        "manifest", description="labels looked for in replies: the manifest's, or also the packaged lexicon's"
    )
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="decoding")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="vLLM")
    on_change: Literal["refuse", "keep", "redo"] = Field(
        "refuse",
        description="when the recipe or the input changed since output was written and rows would be made otherwise "
        "now; refuse: say so, and end; keep: they stay, new ones come beside them; redo: they go",
    )
    dry_run: bool = Field(False, description="only say how many rows and tokens there are to make; nothing is written")
    tokens_per_second: float | None = Field(
        None,
        gt=0,
        description="for dry_run: tokens of replies that all engines write in a second, to say how long it takes",
    )
    price_per_hour: float | None = Field(
        None, ge=0, description="of one GPU (of one CPU, if engines run on CPUs), for the report; in any currency"
    )
    concurrency: Count = Field(1, description="engines side by side; two numbers: the least and the most")

    @field_validator("kinds", "pairing", "negatives")
    @classmethod
    def _some_share(cls, shares: dict[str, float]) -> dict[str, float]:
        if min(shares.values(), default=0) < 0 or not 0 < sum(shares.values()) < float("inf"):
            raise ValueError("none can be negative and not all can be 0")
        return shares

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, columns: dict[str, str]) -> dict[str, str]:
        fields = [*MANIFEST_COLUMNS, "label", "end"]
        if unknown := sorted(columns.keys() - {*fields}):
            near = get_close_matches(unknown[0], fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise ValueError(f"{unknown[0]} is no field of the manifest; {hint}")
        return columns

    @field_validator("metadata")
    @classmethod
    def _some_style(cls, metadata: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not metadata:
            raise ValueError("names no style")
        return metadata

    @property
    def inputs(self) -> list[str]:
        """All names of `input`, as they hold in workers too, which start in folders of their own."""
        given = [self.input] if isinstance(self.input, str | Path) else self.input
        return [absolute(str(name)) for name in given]

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("model: name either the backbone or, with model=null, an endpoint that serves it")
        if self.replies_per_prompt > 1 and self.sampling.temperature == 0:
            raise ValueError("replies_per_prompt: greedy replies to one prompt are all the same; set a temperature")
        if self.negatives.get("siblings") and self.ontology is None and self.labels != "lexicon":
            raise ValueError("negatives.siblings: needs `ontology: FILE` or `labels: lexicon`")
        return self
