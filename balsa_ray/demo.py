"""The whole pipeline in miniature: soundscapes → synthetic data → trained model → served endpoint → report.

Every step is the job of the same name with its own recipe; the demo only makes the clips, hands one step's output to
the next and draws the report. A step that is complete is reused and says so. With `input` and `evaluate` the clips are
recordings of one's own, scenes are mixed from them, and the encoder is tuned on them.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from balsa_ray.checkpoints import resolve, weights_hash
from balsa_ray.config import Config, UserError, load
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.identity import stable_hash
from balsa_ray.miniature.config import MixConfig, TuneConfig
from balsa_ray.preflight import preflight
from balsa_ray.schema import read_manifest
from balsa_ray.serving.config import ServeConfig
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.training.config import TrainConfig

if TYPE_CHECKING:
    from balsa_ray.miniature.recordings import RecordingList

Loaded = TypeVar("Loaded", bound=Config)
Step = Literal["synthesize", "train", "serve", "benchmark"]

MEMORY_GB = 8.0
"""Peak of the demo: two trainers, or a server with two engines, beside Ray."""
BASELINE = "untrained"


class DemoConfig(Config):
    """Run the whole pipeline in miniature on this machine and write a report."""

    output: Path = Field(description="folder for corpus/, data/, training/, benchmark/ and report.html")
    seed: int = Field(0, description="keys the clips, the data, the training and the questions")
    port: int = Field(8000, ge=1, le=65535, description="port of the served model on 127.0.0.1")
    train_clips: int = Field(3000, ge=2, description="soundscapes to learn from")
    test_clips: int = Field(300, ge=30, description="held-out soundscapes to be asked about")
    input: Path | None = Field(
        None, description="manifest of recordings with tags to learn from, in place of soundscapes"
    )
    evaluate: Path | None = Field(None, description="with input: manifest of recordings to be asked about")
    max_seconds: float = Field(30.0, gt=0, description="with input: longest recording; longer ones are set aside")
    mix: MixConfig = Field(MixConfig(), description="with input: scenes that are mixed from its recordings")
    tune: TuneConfig | None = Field(
        None, description="with input: how the encoder is tuned on its recordings first; null: it stays as it is"
    )
    miniature: Path | None = Field(
        None, description="OUTPUT folder of jobs/build_miniature.py; null: the packaged miniature"
    )
    recipes: Path = Field(Path("jobs/configs/miniature"), description="folder of the recipes of the single jobs")
    overrides: dict[Step, list[str]] = Field(
        {}, description="key=value for a step's recipe, by step: synthesize, train, serve, benchmark"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.input is None) != (self.evaluate is None):
            raise ValueError("input and evaluate: recordings to learn from and others to be asked about go together")
        if self.input is None and (self.tune or self.mix.scenes):
            raise ValueError(
                "input: missing; mix and tune need the manifest of your recordings (and evaluate that of others)"
            )
        return self

    def base(self, part: Literal["backbone", "encoder"]) -> str:
        """Returns the name of a model of the miniature."""
        return f"miniature:{part}" if self.miniature is None else str(self.miniature / part)

    @property
    def encoder(self) -> str:
        """Returns the name of the encoder that the model hears with."""
        return str(self.output / "encoder") if self.tune else self.base("encoder")


def demo(config: DemoConfig) -> None:
    """Runs every step that is not complete and prints the table and the report's path.

    Raises:
        UserError: Before anything is started, if this machine can't run it.
    """
    recipes = _recipes(config)  # of all steps, so that a wrong key shows before the first one
    own = _recordings(config)
    problems = preflight(MEMORY_GB, ports=[config.port])
    if problems:
        raise UserError("; ".join(problems))
    from balsa_ray.cluster import session
    from balsa_ray.demo_report import Results, write_report
    from balsa_ray.serving import haproxy
    from balsa_ray.synthesis.pipeline import synthesize
    from balsa_ray.training.loop import train

    began = time.monotonic()
    if own:
        with _step("1/6 corpus: recordings, scenes mixed from them, and an encoder that has heard them"):
            _own_corpus(config, own)
    else:
        with _step("1/6 corpus: synthetic soundscapes, the only audio that the demo uses"):
            _corpus(config.output / "corpus", config.seed, {"train": config.train_clips, "test": config.test_clips})
    with haproxy.wanted(), session():
        with _step("2/6 synthesis: the LLM reads each clip's labels and writes what to say about it (Ray Data, vLLM)"):
            synthesize(recipes.synthesize)
        with _step("3/6 training: an adapter learns to put audio where the labels were (Ray Train, DeepSpeed)"):
            train(recipes.train)
            _untrained(recipes.train, config.output / "training" / BASELINE)
        answers = _answers(config, recipes)
    with _step("6/6 report"):
        trained = recipes.benchmarks["trained"]
        shutil.copy(trained.output / "scores.json", config.output / "scores.json")
        results = Results(config.output, answers["scores"], answers["replies"], trained, config.encoder)
        print(write_report(results, config.output / "report.html", time.monotonic() - began))
    print(f"report: {(config.output / 'report.html').resolve()}")


@dataclass(frozen=True)
class Recipes:
    """The recipes of the single jobs with the demo's paths in them; `benchmarks` by run."""

    synthesize: SynthesizeConfig
    train: TrainConfig
    serve: ServeConfig
    benchmarks: dict[str, BenchmarkConfig]


def _recipes(config: DemoConfig) -> Recipes:
    """Loads every step's own recipe.

    The benchmark asks the trained model, the untrained one, and the LLM with the labels as text in place of the audio.
    """

    def recipe(cls: type[Loaded], job: Step, /, **values: Any) -> Loaded:
        overrides = [f"{key}={value}" for key, value in {"seed": config.seed, **values}.items()]
        return load(cls, [str(config.recipes / f"{job}.yaml"), *overrides, *config.overrides.get(job, [])])

    out = config.output
    served = {"model": out / "training" / "model", f"extra_models.{BASELINE}": out / "training" / BASELINE}
    runs: dict[str, dict[str, Any]] = {
        "trained": {"name": "balsa"},
        "text": {"name": "balsa", "modality": "metadata"},
        BASELINE: {"name": BASELINE, "tasks": "[existence,which_recording]"},
    }
    backbone = config.base("backbone")
    text: dict[str, Any] = {"model": backbone} if config.miniature else {}
    models: dict[str, Any] = {"text_model": backbone} if config.miniature else {}
    if config.miniature or config.tune:
        models["audio_model"] = config.encoder
    if config.input:
        text["max_audio_seconds"] = config.max_seconds
    asked = {"endpoint": _url(config), "data_root": out / "corpus" / "test.jsonl"}
    return Recipes(
        recipe(SynthesizeConfig, "synthesize", input=out / "corpus" / "train.jsonl", output=out / "data", **text),
        recipe(TrainConfig, "train", data=out / "data", output=out / "training", **models),
        recipe(ServeConfig, "serve", output=out / "serving", port=config.port, **served),
        {
            run: recipe(BenchmarkConfig, "benchmark", output=out / "benchmark" / run, **asked, **values)
            for run, values in runs.items()
        },
    )


def _url(config: DemoConfig) -> str:
    return f"http://127.0.0.1:{config.port}/v1"


@contextlib.contextmanager
def _step(title: str) -> Iterator[None]:
    print(f"\n== {title}", flush=True)
    began = time.monotonic()
    yield
    print(f"   done in {time.monotonic() - began:.0f} s", flush=True)


def _corpus(folder: Path, seed: int, splits: dict[str, int]) -> None:
    """Writes the clips of each split unless they are there."""
    from balsa_ray.miniature.soundscapes import write_corpus

    for split, clips in splits.items():
        manifest = folder / f"{split}.jsonl"
        if manifest.exists():
            rows = read_manifest(manifest)
            if len(rows) == clips and rows[0]["id"].startswith(f"{split}-{seed}-"):
                print(f"   {split}: {clips} clips are there already")
                continue
            raise UserError(f"{manifest}: holds other clips than this demo's; choose another output or remove it")
        for done in write_corpus(folder, seed, split, clips, workers=os.cpu_count() or 1):
            if done % 500 == 0 or done == clips:
                print(f"   {split}: {done}/{clips} clips", flush=True)


def _recordings(config: DemoConfig) -> "dict[str, RecordingList]":
    """Reads the manifests of one's own recordings, if there are any."""
    if config.input is None or config.evaluate is None:
        return {}
    from balsa_ray.miniature.lexicon import PACKAGED, read_lexicon
    from balsa_ray.miniature.recordings import read_recordings

    words = read_lexicon(config.miniature / "lexicon.yaml" if config.miniature else PACKAGED)
    return read_recordings({"train": config.input, "test": config.evaluate}, words)


def _own_corpus(config: DemoConfig, recordings: "dict[str, RecordingList]") -> None:
    """Writes the recordings and the scenes, and tunes the encoder, unless they are there."""
    from balsa_ray.miniature.recordings import build_corpus
    from balsa_ray.miniature.tuning import tune_encoder

    corpus, say = config.output / "corpus", partial(print, flush=True)
    identity = build_corpus(
        corpus, recordings, seed=config.seed, mix=config.mix, max_seconds=config.max_seconds,
        workers=os.cpu_count() or 1, log=say,
    )  # fmt: skip
    if config.tune:
        tune_encoder(
            config.output / "encoder", resolve(config.base("encoder")), corpus / "recordings.jsonl", seed=config.seed,
            tune=config.tune, balance=config.mix.balance, identity=identity, log=say,
        )  # fmt: skip


def _untrained(recipe: TrainConfig, output: Path) -> None:
    """Writes the model as it was before its first step: the baseline that can only guess."""
    from balsa_ray.model.modeling import WEIGHTS_FILE, BalsaForConditionalGeneration
    from balsa_ray.model.processing import BalsaProcessor

    if (output / WEIGHTS_FILE).exists():  # written last
        return
    adapter = recipe.adapter.model_dump()
    model = BalsaForConditionalGeneration.assemble(recipe.text_model, recipe.audio_model, seed=recipe.seed, **adapter)
    adapter = {key: adapter[key] for key in ("num_query_tokens", "audio_begin", "audio_end")}
    BalsaProcessor.assemble(recipe.text_model, recipe.audio_model, **adapter).save_pretrained(output)
    model.save_pretrained(output)


@contextlib.contextmanager
def _serving(recipe: ServeConfig, url: str) -> Iterator[None]:
    """Serves the trained model and the untrained one on one endpoint, with a token of this run's own."""
    from balsa_ray.serving.server import start

    os.environ.setdefault("BALSA_API_KEY", secrets.token_urlsafe(24))
    with _step(f"4/6 serving: the trained model answers at {url} (Ray Serve, vLLM)"):
        handle = start(recipe)
    try:
        yield
    finally:
        handle.stop()


def _answers(config: DemoConfig, recipes: Recipes) -> dict[str, Any]:
    """Serves and asks, unless this very model has answered these very questions before."""
    from balsa_ray.evaluation.runner import benchmark

    folder, training = config.output / "benchmark", config.output / "training"
    asked = [recipe.model_dump(mode="json") for recipe in recipes.benchmarks.values()]
    models = [weights_hash(training / name) for name in ("model", BASELINE)]
    identity = stable_hash(models, asked, recipes.serve.model_dump(mode="json"))
    file = folder / "answers.json"
    if file.exists() and (answers := json.loads(file.read_text("utf-8")))["identity"] == identity:
        print("\n== 4/6 and 5/6: this model has answered every question already; nothing is served")
        return dict(answers)
    answers = {"identity": identity, "scores": {}}
    with (
        _serving(recipes.serve, _url(config)),
        _step("5/6 benchmark: questions about clips that nothing was trained on, over HTTP"),
    ):
        for run, recipe in recipes.benchmarks.items():
            print(f"   -- {run}", flush=True)
            answers["scores"][run] = benchmark(recipe)
        clips = read_manifest(config.output / "corpus" / "test.jsonl")
        answers["replies"] = asyncio.run(_replies(_url(config), clips[:30]))
    if not any(path.stat().st_size for path in folder.glob("*/*/errors.jsonl")):  # else they are asked again
        partial = folder / ".answers.json.partial"
        partial.write_text(json.dumps(answers), "utf-8")
        partial.replace(file)
    return answers


async def _replies(url: str, clips: list[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Asks one prompt of each kind about each clip; two-clip prompts about the clip and the next one.

    Returns:
        Clip id to (prompt, reply) pairs.
    """
    from balsa_ray.endpoint import Endpoint
    from balsa_ray.evaluation.messages import load_span, user_message
    from balsa_ray.prompts.render import prompts_of

    key = os.environ["BALSA_API_KEY"]
    sampling = {"temperature": 0.0, "max_tokens": 64}
    spans = [load_span(clip, "audio", "tags") for clip in clips]
    asked = [prompts_of(kind)[0] for kind in ("present", "absent", "combined", "difference", "joint")]
    async with Endpoint(
        url, key=key, name="balsa", sampling=sampling, concurrency=16, attempts=6, timeout_s=120
    ) as endpoint:
        questions = [
            user_message([spans[(i + k) % len(spans)] for k in range(p.clips)], p.text)
            for i in range(len(clips))
            for p in asked
        ]
        replies = iter(await asyncio.gather(*(endpoint.ask([question]) for question in questions)))
    return {clip["id"]: [(prompt.text, next(replies).response) for prompt in asked] for clip in clips}
