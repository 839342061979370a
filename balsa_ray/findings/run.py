"""Runs every comparison: clips, data, training and questions, each by the job of that name with its own recipe."""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from balsa_ray.checkpoints import resolve
from balsa_ray.config import Config, load
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.findings import data, forced_choice
from balsa_ray.findings.config import FindingsConfig
from balsa_ray.findings.plan import Run, runs
from balsa_ray.findings.report import build, write
from balsa_ray.findings.results import Figures, Seeds, figures_of
from balsa_ray.storage import sole_writer
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.training.config import TrainConfig

Loaded = TypeVar("Loaded", bound=Config)

SINGLE = ("present", "absent", "combined")
TASKS = ("existence", "describe", "name_absent")
"""Of every run."""
MAIN_TASKS = ("reasoning", "which_recording")
"""Of the first condition and backbone, besides."""
OTHER_TASKS = ("choice",)
"""Of other backbones: the first one never says "none of these", whatever letter it puts before a sound."""
DONE = "done.json"
CLIPS_ENCODED = "encoder_cache"
"""Folder of what the encoder makes of the clips; a training looks for it in its own."""
BEFORE = "before"
"""The backbone as it came, without an adapter."""


class Findings:
    """One run of the job.

    Args:
        config: Of the job.
    """

    def __init__(self, config: FindingsConfig) -> None:
        self._config = config
        self._prompts = data.prompt_files(config.output)

    def run(self) -> None:
        """Runs what is missing, in one Ray session."""
        from balsa_ray.cluster import session

        planned = list(dict.fromkeys(runs(self._config)))
        left = [run for run in planned if not (self._folder(run) / DONE).exists()]
        print(f"findings: {len(planned)} trainings, {len(planned) - len(left)} of them done", flush=True)
        if self._config.report_only:
            left = []
        began = time.monotonic()
        with session() if left else nullcontext():
            for number, run in enumerate(left, 1):
                self._one(run)
                if not any(run.group == other.group for other in left[number:]):
                    for used_up in ("corpus", CLIPS_ENCODED):
                        shutil.rmtree(self._config.output / run.group / used_up, ignore_errors=True)
                pace = (time.monotonic() - began) / number
                print(
                    f"findings: {number}/{len(left)} done, {pace * (len(left) - number) / 60:.0f} min left", flush=True
                )

            if any(self._asked_in_words(run) for run in planned) and not self._config.report_only:
                self._before(next(run for run in planned if self._asked_in_words(run)))
        write(self._config, self._found([run for run in planned if (self._folder(run) / DONE).exists()]))

    def _before(self, run: Run) -> None:
        """Asks the backbone itself in words: what a training may have changed."""
        from balsa_ray.evaluation.runner import benchmark

        folder = self._config.output / BEFORE
        asked = self._benchmark(run, model=self._config.backbones[0], output=folder, modality="metadata")
        with self._alone():
            if not (folder / "scores.json").exists():
                benchmark(asked, page=False)

    def _found(self, finished: Sequence[Run]) -> dict[str, Any]:
        """Scores every run that is complete, and compares them."""
        single: dict[tuple[str, int, str], dict[int, Figures]] = defaultdict(dict)
        text: dict[str, dict[int, Figures]] = defaultdict(dict)
        points: dict[tuple[int, int, str], dict[int, Figures]] = defaultdict(dict)
        steps: dict[str, set[int]] = defaultdict(set)
        for run in finished:
            folder = self._folder(run)
            if run.split == "test":
                steps[run.arm].add(json.loads((folder / DONE).read_text("utf-8"))["steps"])
            asked = self._benchmark(run, output=folder / "benchmark", model="asked", resamples=self._config.resamples)
            figures = figures_of(folder / "benchmark", asked, folder / "margins.jsonl")
            if run.split == "validation":
                points[run.steps, run.clips, run.arm][run.seed] = figures
            else:
                single[run.condition, run.backbone, run.arm][run.seed] = figures
            if self._asked_in_words(run):
                text[run.arm][run.seed] = figures_of(folder / "text", asked)
                text[BEFORE][run.seed] = figures_of(self._config.output / BEFORE, asked)
        return build(
            self._config,
            {key: Seeds(of) for key, of in single.items()},
            {key: Seeds(of) for key, of in text.items()},
            [(key, Seeds(of)) for key, of in points.items()],
            {arm: sorted(numbers) for arm, numbers in steps.items()},
        )

    def _is_main(self, run: Run) -> bool:
        return run.backbone == 0 and run.condition == next(iter(self._config.conditions))

    def _asked_in_words(self, run: Run) -> bool:
        few = self._config.seeds[: self._config.few]
        return run.arm in ("listen", "lora") and run.split == "test" and self._is_main(run) and run.seed in few

    def _folder(self, run: Run) -> Path:
        return self._config.output / "runs" / run.name

    def _one(self, run: Run) -> None:
        from balsa_ray.evaluation.runner import benchmark
        from balsa_ray.training.loop import train

        print(f"findings: {run.name}", flush=True)
        began, folder = time.monotonic(), self._folder(run)
        recipe = self._training(run)
        shared, encoded = self._config.output / run.group / CLIPS_ENCODED, recipe.output / CLIPS_ENCODED
        shared.mkdir(parents=True, exist_ok=True)
        recipe.output.mkdir(parents=True, exist_ok=True)
        encoded.unlink(missing_ok=True)
        encoded.symlink_to(shared.resolve(), target_is_directory=True)
        train(recipe)
        encoded.unlink()
        model = recipe.output / "model"
        asked = self._benchmark(run, model=model, output=folder / "benchmark")
        benchmark(asked, page=False)
        questions = _questions(asked)
        forced_choice.write_margins(model, questions, folder / "margins.jsonl")
        if self._asked_in_words(run):
            benchmark(self._benchmark(run, model=model, output=folder / "text", modality="metadata"), page=False)
        shutil.rmtree(recipe.output / "checkpoints", ignore_errors=True)
        (folder / DONE).write_text(json.dumps({"seconds": time.monotonic() - began, "steps": recipe.total_steps}))

    def _data(self, run: Run, *, present: bool = False) -> Path:
        """Returns the folder of the samples that a run is trained on, and makes it if it isn't there.

        Args:
            run: What they are for.
            present: As many samples, but all of what is present.
        """
        from balsa_ray.synthesis.pipeline import synthesize

        condition = self._config.conditions[run.condition]
        group = self._config.output / run.group
        world = data.world_of(condition, test=False)
        manifest = data.corpus(group / "corpus", run.seed, "train", run.clips, world)
        guided = run.arm == "guided"
        target = group / ("guided" if guided else "present" if present else "data")
        if not (target / "report.json").exists():
            shares = {"negatives": "{cooccurring: 1, siblings: 1}"} if guided else {}
            single = f"present: {len(SINGLE)}" if present else "present: 1, absent: 1, combined: 1"
            kinds = f"{{{single}, difference: 0.5, joint: 0.5}}"
            synthesize(
                self._recipe(
                    SynthesizeConfig, "synthesize", seed=run.seed, input=manifest, output=target, kinds=kinds,
                    model=self._config.backbones[run.backbone], prompts=self._prompts["train"], **shares,
                )
            )  # fmt: skip
        if run.arm == "template":
            data.write_templates(target, group / "template")
            target = group / "template"
        return target

    def _training(self, run: Run) -> TrainConfig:
        """Returns the recipe of a run. Arms differ in the data and in what is trained; one in its steps."""
        samples = self._data(run)
        kinds = ["present"] if run.arm.startswith("present_only") else [*SINGLE]
        steps = run.steps
        if run.arm == "present_only_tokens":
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(resolve(self._config.backbones[run.backbone]))
            other, samples = samples, self._data(run, present=True)
            steps = round(
                steps * data.reply_tokens(other, SINGLE, tokenizer) / data.reply_tokens(samples, kinds, tokenizer)
            )
        stages: list[dict[str, Any]] = [{"name": "single", "kinds": kinds, "steps": steps}]
        if run.arm == "multi_audio":
            stages[0]["steps"] = steps - self._config.multi_steps
            several = {
                "name": "multi",
                "kinds": ["difference", "joint"],
                "steps": self._config.multi_steps,
                "replay": self._config.multi_replay,
            }
            stages.append(several)
        values: dict[str, Any] = {"stages": json.dumps(stages)}
        if run.arm == "lora":
            values["text_lora"] = "{rank: 8, alpha: 16}"
        return self._recipe(
            TrainConfig, "train", seed=run.seed, data=samples,
            output=self._config.output / "runs" / run.model / "training",
            text_model=self._config.backbones[run.backbone], audio_model=self._encoder(run.condition),
            learning_rate=self._config.learning_rate, checkpoint_every=10_000, num_workers=1, encoder_cache="disk",
            **values,
        )  # fmt: skip

    def _encoder(self, condition: str) -> str:
        """Returns the encoder of a condition; a weaker one is built first."""
        epochs = self._config.conditions[condition].encoder_epochs
        if epochs is None:
            return "miniature:encoder"
        folder = self._config.output / f"encoder-{epochs}"
        with self._alone():
            if not (folder / "figures.json").exists():
                from balsa_ray.miniature.encoder import build_encoder

                figures = build_encoder(
                    folder, seed=0, clips=4000, validation_clips=500, epochs=epochs, stop_at_map=1.0
                )
                (folder / "figures.json").write_text(json.dumps(figures))
        return str(folder)

    def _alone(self) -> AbstractContextManager[None]:
        """Keeps out other processes with the same output while something is made that runs share."""
        return sole_writer(self._config.output, patience=3600)

    def _benchmark(self, run: Run, **values: Any) -> BenchmarkConfig:
        """Returns the recipe by which a run's model is asked."""
        condition = self._config.conditions[run.condition]
        world = data.world_of(condition, test=True)
        folder = self._config.output / run.condition / "asked"
        with self._alone():
            manifest = data.corpus(folder, self._config.seed, run.split, self._config.test_clips, world)
        tasks = (*TASKS, *(MAIN_TASKS if self._is_main(run) else OTHER_TASKS if run.backbone else ()))
        prompts = self._prompts["test"]
        return self._recipe(
            BenchmarkConfig, "benchmark", seed=self._config.seed, endpoint="null", data_root=manifest,
            tasks=json.dumps(tasks),
            **{"describe.prompts": prompts, "name_absent.prompts": prompts, "name_absent.labels": "lexicon"},
            **{"which_recording.shared": True, "engine.dtype": "float32", "engine.max_model_len": 512}, **values,
        )  # fmt: skip

    def _recipe(self, cls: type[Loaded], job: str, /, **values: Any) -> Loaded:
        overrides = [f"{key}={value}" for key, value in values.items()]
        return load(cls, [str(self._config.recipes / f"{job}.yaml"), *overrides])


def _questions(config: BenchmarkConfig) -> Sequence[Any]:
    from balsa_ray.evaluation.tasks import existence

    assert config.data_root is not None
    return existence.plan(existence.read(config.data_root), config.seed, **config.settings("existence"))
