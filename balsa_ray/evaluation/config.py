"""Configuration of `jobs/benchmark.py`: which benchmarks, on which clips, answered by whom."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from balsa_ray.config import Config
from balsa_ray.engine import EngineConfig, SamplingConfig
from balsa_ray.prompts.render import MetadataStyle

TaskName = Literal[
    "existence",
    "describe",
    "name_absent",
    "choice",
    "reasoning",
    "which_recording",
    "audio_hallucination",
    "object_existence",
    "temporal_order",
    "object_attribute",
    "audio_hallucination_generative",
    "aqua_bench",
    "mmau",
    "sakura",
    "air_bench",
    "clotho_aqa",
    "nonspeech7k",
    "edansa",
    "synonym_hypernym",
    "speech_ifeval",
]
Prefix = Literal["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8"]


class ExistenceConfig(Config):
    """Is there a sound of X in the audio?"""

    templates: int = Field(default=5, ge=1, le=5, description="how many of the five templates each label is asked with")
    confusable: Literal["lexicon"] | None = Field(
        default=None,
        description="lexicon: adversarial labels are first the packaged lexicon's neighbours of a present one",
    )
    prefix: Prefix | None = Field(default=None, description="sentence of the prompt study before each question")


class AudioHallucinationConfig(Config):
    """Is there a sound of X in the audio, as published?"""

    templates: int = Field(
        default=5, ge=1, le=5, description="how many of the five published templates are asked; 1: the sound one alone"
    )
    prefix: Prefix | None = Field(default=None, description="sentence of the prompt study before each question")


class DescribeConfig(Config):
    """What do you hear?"""

    labels: Literal["manifest", "lexicon"] = Field(
        default="manifest", description="labels looked for in a reply: the manifest's, or also the packaged lexicon's"
    )
    prompts: Path | None = Field(
        default=None, description="prompts in the form of balsa_ray/prompts/kinds.yaml; null: those"
    )


class NameAbsentConfig(Config):
    """What do you not hear?"""

    labels: Literal["manifest", "lexicon"] = Field(
        default="manifest", description="labels looked for in a reply: the manifest's, or also the packaged lexicon's"
    )
    prompts: Path | None = Field(
        default=None, description="prompts in the form of balsa_ray/prompts/kinds.yaml; null: those"
    )


class WhichRecordingConfig(Config):
    """Which of two clips has X?"""

    shared: bool = Field(default=False, description="also asked of sounds that both clips have, or neither")


class AquaBenchConfig(Config):
    """Can the question be answered from the recording at all?"""

    tracks: list[Literal["animal", "vocal", "instrument"]] = Field(
        default=[], description="tracks to ask about; none: all that are there"
    )
    variants: list[Literal["published", "design1", "design2", "uncertainty"]] = Field(
        default=["published"], min_length=1, description="wordings of the abstaining options, each with its own scores"
    )


class MmauConfig(Config):
    """Questions with options about sounds, music and speech."""

    version: Literal["original", "v05.15.25"] | None = Field(
        default=None, description="which release the questions are of, which their file doesn't say; has to be set"
    )
    prompt: Literal["plain", "desta2.5"] = Field(
        default="plain", description="how the options are put: our own way, or as DeSTA2.5-Audio does"
    )
    sub_categories: bool = Field(default=False, description="scores by sub-category too")


class SakuraConfig(Config):
    """What is heard, and what follows from it."""

    tracks: list[Literal["gender", "language", "emotion", "animal"]] = Field(
        default=[], description="tracks to ask about; none: all that are there"
    )


class AirBenchConfig(Config):
    """Questions with options of AIR-Bench's Foundation part."""

    tasks: list[str] = Field(default=[], description="tasks to ask, as task_name says it; none: all")


class ClothoAqaConfig(Config):
    """Questions that three people answered."""

    part: Literal["train", "val", "test"] = Field(default="test", description="which of the published tables")
    disputed: bool = Field(
        default=True, description="also yes/no questions on which people disagree; the official figures want them"
    )


class EdansaConfig(Config):
    """Is it in this soundscape?"""

    sets: list[Literal["train", "valid", "test"]] = Field(
        default=["test"], min_length=1, description="which of the published sets"
    )


class SynonymHypernymConfig(Config):
    """Is it known by another name too?"""

    words: Path | None = Field(
        default=None, description="YAML or JSON: label to lists synonyms and hypernyms; null: the packaged words"
    )
    ontology: Path | None = Field(default=None, description="AudioSet's ontology.json, for further words")


class SpeechIfevalConfig(Config):
    """Is it done as it was told?"""

    reference: Path | None = Field(
        default=None, description="scores.json or predictions.jsonl of the text backbone's run, for delta"
    )


class JudgeConfig(Config):
    """A language model that says whether a reply is right, where a benchmark has it so."""

    endpoint: str = Field(description="base URL of any OpenAI-compatible API; its key: BALSA_JUDGE_API_KEY")
    name: str | None = Field(default=None, description="which of the endpoint's models; null: the only one")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="decoding")
    concurrency: int = Field(default=8, ge=1, description="requests under way at once")


class BenchmarkConfig(Config):
    """Asks an endpoint, or a model without a server, benchmark questions about labelled clips and scores the replies.

    Any OpenAI-compatible endpoint will do; its key is read from the environment variable BALSA_API_KEY. The same
    command asks only what is missing.
    """

    output: Path = Field(description="folder for scores.json, answers.jsonl and <task>/predictions.jsonl")
    seed: int = Field(default=0, description="keys the choice of questions and the bootstrap")
    tasks: list[TaskName] = Field(min_length=1, description="benchmarks to run")
    data_root: Path | None = Field(
        default=None,
        description="labelled manifest (JSON Lines or Parquet) that questions are about, or the folder of a "
        "benchmark's published files; for several tasks a folder that holds one of each task's name",
    )
    limit: int | None = Field(
        default=None, ge=1, description="at most this many clips (or pairs of clips) a task; null: all"
    )
    shard: str | None = Field(
        default=None,
        pattern=r"^[1-9]\d*/[1-9]\d*$",
        description="i/n: ask only the i-th of n parts, with the same output as the others; null then scores them all",
    )
    existence: ExistenceConfig = Field(default_factory=ExistenceConfig, description="settings of this task")
    describe: DescribeConfig = Field(default_factory=DescribeConfig, description="settings of this task")
    name_absent: NameAbsentConfig = Field(default_factory=NameAbsentConfig, description="settings of this task")
    which_recording: WhichRecordingConfig = Field(
        default_factory=WhichRecordingConfig, description="settings of this task"
    )
    audio_hallucination: AudioHallucinationConfig = Field(
        default_factory=AudioHallucinationConfig, description="settings of this task"
    )
    aqua_bench: AquaBenchConfig = Field(default_factory=AquaBenchConfig, description="settings of this task")
    mmau: MmauConfig = Field(default_factory=MmauConfig, description="settings of this task")
    sakura: SakuraConfig = Field(default_factory=SakuraConfig, description="settings of this task")
    air_bench: AirBenchConfig = Field(default_factory=AirBenchConfig, description="settings of this task")
    clotho_aqa: ClothoAqaConfig = Field(default_factory=ClothoAqaConfig, description="settings of this task")
    edansa: EdansaConfig = Field(default_factory=EdansaConfig, description="settings of this task")
    synonym_hypernym: SynonymHypernymConfig = Field(
        default_factory=SynonymHypernymConfig, description="settings of this task"
    )
    speech_ifeval: SpeechIfevalConfig = Field(default_factory=SpeechIfevalConfig, description="settings of this task")

    endpoint: str | None = Field(default=None, description="base URL of the API, such as http://127.0.0.1:8000/v1")
    name: str | None = Field(default=None, description="which of the endpoint's models; null: the only one")
    model: str | None = Field(
        default=None, description="ask this model without a server: a directory, a hub name or miniature:backbone"
    )
    replicas: int = Field(default=1, ge=1, description="engines that work side by side (model)")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="vLLM (model)")
    predictions: Path | None = Field(
        default=None, description="score the replies in this file (JSON Lines), ask nobody"
    )
    compare: list[Path] | None = Field(
        default=None, min_length=2, description="output folders of runs: differences of the others to the first"
    )
    modality: Literal["audio", "metadata"] = Field(
        default="audio",
        description="metadata: send each clip's metadata text in place of audio, the text-only upper bound",
    )
    metadata: MetadataStyle = Field(default="tags", description="form of the metadata text")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="decoding")
    concurrency: int = Field(default=32, ge=1, description="requests under way at once (endpoint)")
    attempts: int = Field(
        default=6, ge=1, description="tries of a request that is refused or fails, with growing pauses (endpoint)"
    )
    timeout_s: float = Field(default=120.0, gt=0, description="longest time for one request in seconds (endpoint)")
    judge: JudgeConfig | None = Field(
        default=None, description="for metrics that a judge decides; without one they are left out"
    )
    resamples: int = Field(default=1000, ge=1, description="bootstrap resamples for the 95 % intervals")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [name for name in ("endpoint", "model", "predictions", "compare") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"set one of endpoint, model, predictions and compare, not {' and '.join(given) or 'none'}"
                + (" (KEY=null on the command line takes one back)" if given else "")
            )
        if self.predictions is None and self.compare is None and self.data_root is None:
            raise ValueError("data_root: missing; the questions are made from it")
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint: must begin with http:// or https://, not {self.endpoint!r}")
        if self.predictions is not None and len(self.tasks) > 1:
            raise ValueError(f"predictions: a file holds the answers of one task, tasks names {len(self.tasks)}")
        if self.shard is not None and not (self.endpoint or self.model):
            raise ValueError("shard: needs somebody to ask, an endpoint or a model")
        if self.shard is not None and self.part[0] >= self.part[1]:
            raise ValueError(f"shard {self.shard}: there are only {self.part[1]} parts")
        if "mmau" in self.tasks and self.mmau.version is None and self.compare is None:
            raise ValueError("mmau.version: missing; say which release the questions are of, original or v05.15.25")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: each can be named once, got {self.tasks}")
        return self

    def data_of(self, task: str) -> Path:
        """Returns where a task's data lie: in the folder of its name, if there is one, so that several share a root."""
        assert self.data_root is not None
        own = self.data_root / task
        return own if own.is_dir() else self.data_root

    @property
    def part(self) -> tuple[int, int]:
        """Which part is asked, counted from 0, and of how many."""
        if self.shard is None:
            return 0, 1
        number, parts = self.shard.split("/")
        return int(number) - 1, int(parts)

    @property
    def answers(self) -> Path:
        """The file of answers that this run adds to."""
        part, parts = self.part
        return self.output / ("answers.jsonl" if parts == 1 else f"answers.{part + 1}-of-{parts}.jsonl")

    def settings(self, task: str) -> dict[str, Any]:
        """Returns a task's own settings as keyword arguments of its `plan`."""
        own = getattr(self, task, None)
        return own.model_dump(mode="json") if isinstance(own, Config) else {}
