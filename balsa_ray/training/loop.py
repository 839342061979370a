"""A training run from the driver's side: check everything, start the workers, show where they are.

The result of a run depends on its recipe, not on the number of workers or on how often it was interrupted. The same
command goes on from the last checkpoint, and returns at once when the run is finished.
"""

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from balsa_ray.audio.decode import AudioError
from balsa_ray.audio.features import num_windows, read_log_mel
from balsa_ray.checkpoints import resolve
from balsa_ray.cluster import is_local, last_error, session, worker_environment
from balsa_ray.config import UserError
from balsa_ray.storage import sole_writer
from balsa_ray.training import batches, checkpoint, data
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.meters import Meters
from balsa_ray.training.metrics import METRICS, LiveLine, follow, read, rewind
from balsa_ray.training.recipe import RECIPE, check, fingerprint, recipe_of, write_json
from balsa_ray.training.report import write_report
from balsa_ray.training.trackers import check_installed
from balsa_ray.training.validation import REPLIES, split

if TYPE_CHECKING:
    import torch

LOOK_FOR_MACHINES_EVERY_SECONDS = 60.0  # to grow onto: workers then begin anew at the last checkpoint
RETRY_AFTER_SECONDS = (1.0, 10.0, 60.0)  # a recording that can't be read at the moment
REPORT = "report.json"
ERROR = "error.txt"


def train(config: TrainConfig) -> None:
    """Trains the adapter and writes `OUTPUT/model`; with `dry_run` only says what that takes.

    Args:
        config: Of the run.

    Raises:
        UserError: If samples, recordings or models are missing or don't fit, if OUTPUT belongs to another recipe, or
            (exit code 1) if the run can't go on.
    """
    if config.dry_run:
        from balsa_ray.training.estimate import estimate, report

        print(report(config, estimate(config)))
        return
    output = config.output
    samples = data.read_samples(config.data)
    recipe = recipe_of(config, data.samples_hash(samples))
    check(output, recipe)
    if (steps := steps_finished(config)) >= config.total_steps:
        print(f"train: {output / 'model'} is complete ({steps} steps of this recipe), reused")
        return
    check_installed(config.trackers)
    encoded, skipped = encode(config, samples)
    encoded, validation = split(encoded, config.seed, config.validation.share, config.validation.samples)
    check_kinds(config, encoded, len(skipped))
    if config.encoder_cache == "disk":
        check_room_for_encoder_cache(config, samples)
    import ray

    started = time.monotonic()

    def draw() -> dict[str, Any]:
        """Draws the curves so far."""
        if not (lines := read(output / METRICS)):
            return {}
        summary = {
            "recipe": fingerprint(recipe),
            "steps": lines[-1]["step"],
            "export": config.export,
            "export_checkpoint": config.export_checkpoint,
            "samples": dict(Counter(encoded["kind"].to_pylist())),
            "validation_samples": len(validation),
            "skipped": len(skipped),
            "loss": sum(line["loss"] for line in lines[-20:]) / len(lines[-20:]),
            "seconds": round(time.monotonic() - started, 1),
        }
        write_report(output / "report.html", lines, summary, read(output / REPLIES))
        return summary

    with session():
        wants_gpu(config, ray.cluster_resources())
        # From here on something is written; all that could be wrong with the input has been looked at.
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / RECIPE, recipe)
        data.write_skipped(output / data.SKIPPED, skipped)
        if skipped:
            where = output / data.SKIPPED
            print(f"train: {len(skipped)} of {len(samples)} samples don't fit and are skipped, see {where}")
        try:
            run_workers(config, encoded, validation, (recipe["text_model"], recipe["audio_model"]), draw)
        except BaseException:
            with suppress(Exception):  # what has stopped the run is to be told, not what spoils its curves
                draw()
            raise
    # Last of all: it says that everything else is there.
    write_json(output / REPORT, draw())
    print(f"train: done, {output / 'model'}")


def steps_finished(config: TrainConfig) -> int:
    """Returns after how many steps the model in OUTPUT was written; 0 if there is none, or one of another export."""
    path = config.output / REPORT
    if not path.exists() or not (config.output / "model").is_dir():
        return 0
    report = json.loads(path.read_text("utf-8"))
    wanted = (config.export, config.export_checkpoint)
    steps: int = report["steps"] if (report["export"], report["export_checkpoint"]) == wanted else 0
    return steps


def encode(config: TrainConfig, samples: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Checks recordings and stages, and tokenises the samples.

    Raises:
        UserError: If a recording is gone, or if a stage finds no samples of a kind that it wants.
    """
    from transformers import AutoConfig

    from balsa_ray.training.worker import make_processor

    seconds = data.clip_seconds(samples)
    processor = make_processor(config)
    context = AutoConfig.from_pretrained(resolve(config.text_model)).get_text_config().max_position_embeddings
    limit = min(config.max_length or context, context)
    encoded, skipped = data.encode(samples, processor, seconds, limit, config.adapter.max_audio_seconds)
    return encoded, skipped


def check_kinds(config: TrainConfig, encoded: pa.Table, skipped: int) -> None:
    """Raises UserError if a stage finds no samples of a kind that it wants."""
    try:
        batches.plan(config.seed, encoded["id"].to_pylist(), encoded["kind"].to_pylist(), config.stages, 1)
    except ValueError as error:
        reasons = [f"{skipped} samples don't fit the model"] if skipped else []
        reasons += ["others are held out for validation"] if config.validation.share else []
        left_out = f" ({', '.join(reasons)})" if reasons else ""
        raise UserError(f"{', '.join(map(str, config.data))}: {error}{left_out}") from error


def check_room_for_encoder_cache(config: TrainConfig, samples: pa.Table) -> None:
    """Says how much the encoder's outputs of all clips will take on disk.

    Raises:
        UserError: There is not so much room.
    """
    from transformers import AutoConfig

    from balsa_ray.model.configuration import quarter_depths
    from balsa_ray.training.worker import make_processor

    extractor, audio = make_processor(config).feature_extractor, AutoConfig.from_pretrained(resolve(config.audio_model))
    windows = sum(num_windows(seconds, extractor) for seconds in data.clip_seconds(samples).values())
    taps = len(config.adapter.taps or quarter_depths(audio.encoder_layers))
    number = 4 if config.precision == "fp32" else 2
    size = windows * taps * audio.max_source_positions * audio.d_model * number
    place = next(folder for folder in (config.output.resolve(), *config.output.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    line = f"{size / 2**30:,.2f} GiB for the encoder's outputs of all clips, {free / 2**30:,.2f} GiB free"
    if size > 0.9 * free:
        raise UserError(f"encoder_cache=disk: {config.output}: {line}; take none or memory, or another output")
    print(f"train: encoder_cache: at most {line}")


def run_workers(
    config: TrainConfig,
    encoded: pa.Table,
    validation: pa.Table,
    revisions: tuple[str, str],
    report: Callable[[], object],
) -> None:
    """Trains on the workers of Ray Train and shows the live line until they are done.

    Args:
        config: Of the run.
        encoded: Samples to train on, of `data.encode`.
        validation: Samples that are held out.
        revisions: Hashes of the LLM's and the encoder's weights.
        report: Called after each checkpoint.

    Raises:
        UserError: If the workers can't be had or, with exit code 1, can't go on.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from balsa_ray.training.worker import FATAL, train_worker

    with sole_writer(config.output):
        done = max(map(checkpoint.step_of, checkpoint.complete(config.output / "checkpoints")), default=0)
        if done > config.total_steps:
            raise UserError(
                f"max_steps={config.max_steps}: {config.output} has got to step {done}; choose another output"
            )
        rewind(config.output / METRICS, done)
    resources = ray.cluster_resources()
    gpu = wants_gpu(config, resources)
    (config.output / FATAL).unlink(missing_ok=True)
    storage = config.output.resolve() / "ray"
    trainer = _trainer()(
        train_worker,
        train_loop_config={
            "config": portable(config),
            "samples": ray.put(encoded),
            "validation": ray.put(validation),
            "prepare": log_mels(str(resolve(config.audio_model)), config.adapter.max_audio_seconds),
            "revisions": revisions,
            "device": "gpu" if gpu else "cpu",
        },
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            elastic_resize_monitor_interval_s=LOOK_FOR_MACHINES_EVERY_SECONDS,
            use_gpu=gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=RunConfig(
            # A name of its own: Ray Train would otherwise take up its own record of the run before.
            name=f"run-{time.time_ns()}",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=config.max_failures),
            worker_runtime_env={
                "env_vars": worker_environment() | {"OMP_NUM_THREADS": str(config.cpus_per_worker)},
            },
        ),
    )
    workers = " to ".join(map(str, dict.fromkeys(config.worker_range)))
    print(f"train: {done} of {config.total_steps} steps done, {len(encoded)} samples, {workers} workers")
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    # In a thread: the main thread shows the progress and gets Ctrl-C and SIGTERM at once, as in every other job. It
    # is a daemon because nothing of it is worth waiting for then; the checkpoints are complete without it.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    live, meters = LiveLine(config.total_steps), Meters()
    # Beside the main thread: Ctrl-C that comes while libsndfile encodes a clip for the report would be lost there.
    drawing = ThreadPoolExecutor(1)
    try:
        written = False
        for line in follow(config.output / METRICS, done, thread.is_alive):
            live.show(line)
            meters.show(line)
            if written:  # a step later, when the replies are there too
                drawing.submit(report)
            written = line["step"] % config.checkpoint_every == 0
    except KeyboardInterrupt:
        print("\ntrain: stopped; the same command goes on from the last checkpoint")
        raise
    finally:
        drawing.shutdown(cancel_futures=True)
        shutil.rmtree(storage, ignore_errors=True)
    if failure:
        raise one_line(failure[0], config.output) from failure[0]


def _trainer() -> Any:
    """Ray Train's trainer. On a Ray that ends with the job nobody has to clean up behind it.

    What would do so asks Ray's dashboard, which isn't there, and holds up the end of a run by 12 seconds.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class LocalTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    return LocalTrainer if is_local() else TorchTrainer


def wants_gpu(config: TrainConfig, resources: dict[str, float]) -> bool:
    """Decides whether workers get a GPU each.

    Raises:
        UserError: If this Ray cluster can't hold the workers; Ray itself would wait for ever.
    """
    # A cluster that grows by itself may have nothing yet.
    if is_local() and (problem := lacking(config, resources)):
        raise UserError(problem)
    return _on_gpu(config, resources)


def lacking(config: TrainConfig, resources: Mapping[str, float]) -> str:
    """Returns what the least number of workers lacks on a Ray with these resources; empty if they find room."""
    least, _ = config.worker_range
    needed = {"CPU": least * config.cpus_per_worker} | ({"GPU": least} if _on_gpu(config, resources) else {})
    for name, amount in needed.items():
        if (found := resources.get(name, 0)) < amount:
            return f"device={config.device}, num_workers={least}: {amount} {name}s are needed, this Ray has {found:g}"
    return ""


def _on_gpu(config: TrainConfig, resources: Mapping[str, float]) -> bool:
    return config.device == "gpu" or (config.device == "auto" and resources.get("GPU", 0) > 0)


def log_mels(audio_model: str, max_seconds: float) -> "Callable[[str], torch.Tensor]":
    """Returns what turns a recording into log-mels `[windows, mels, frames]`.

    It is small, as Ray wants it of what an actor is started with: the extractor is loaded where it runs.

    Args:
        audio_model: The audio encoder, named as for `checkpoints.resolve`.
        max_seconds: Longest recording.
    """

    def prepare(audio: str) -> "torch.Tensor":
        import torch

        waits = iter(RETRY_AFTER_SECONDS)
        while True:
            try:
                return torch.from_numpy(read_log_mel(_feature_extractor(audio_model), audio, max_seconds))
            except AudioError as error:
                # What is wrong with the file stays wrong; a file system that doesn't answer may do so later.
                wait = next(waits, None) if isinstance(error.__cause__, OSError) else None
                if wait is None:
                    raise UserError(
                        f"{error}; the same command goes on from the last checkpoint", exit_code=1
                    ) from error
                time.sleep(wait)

    return prepare


@cache
def _feature_extractor(name: str) -> Any:
    from transformers import AutoFeatureExtractor

    return AutoFeatureExtractor.from_pretrained(resolve(name))


def portable(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with absolute paths: workers run in a folder of their own."""

    def absolute(name: str) -> str:
        return str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name

    return config.model_copy(
        update={
            "output": config.output.resolve(),
            "text_model": absolute(config.text_model),
            "audio_model": absolute(config.audio_model),
        }
    )


def one_line(error: BaseException, output: Path) -> UserError:
    """Returns what stopped the workers as one line; whatever isn't the user's mistake is kept in full in a file."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        if isinstance(failure, UserError):
            return failure
    text = str(failures[0] if failures else error).strip()
    with suppress(OSError):
        (output / ERROR).write_text(str(error), "utf-8")
    reason = last_error(text) or text.rpartition("\n")[2] or type(error).__name__
    return UserError(
        f"the workers stopped: {reason} (all of it in {output / ERROR}); the same command goes on from the last "
        "checkpoint",
        exit_code=1,
    )
