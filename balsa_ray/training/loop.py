"""A training run from the driver's side: check everything, start the workers, show where they are.

The result of a run depends on its recipe, not on the number of workers or on how often it was interrupted. The same
command goes on from the last checkpoint, and returns at once when the run is finished.
"""

import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from balsa_ray.checkpoints import resolve
from balsa_ray.cluster import is_local, last_error, session, worker_environment
from balsa_ray.config import UserError
from balsa_ray.storage import sole_writer
from balsa_ray.training import batches, checkpoint, data
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.metrics import METRICS, LiveLine, follow, read, rewind
from balsa_ray.training.recipe import RECIPE, check, fingerprint, recipe_of, write_json
from balsa_ray.training.report import write_report

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
    if (steps := steps_finished(output)) >= config.total_steps:
        print(f"train: {output / 'model'} is complete ({steps} steps of this recipe), reused")
        return
    encoded, skipped = encode(config, samples)
    # From here on something is written; all that could be wrong with the input has been looked at.
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / RECIPE, recipe)
    data.write_skipped(output / data.SKIPPED, skipped)
    if skipped:
        print(f"train: {len(skipped)} of {len(samples)} samples don't fit and are skipped, see {output / data.SKIPPED}")
    started = time.monotonic()
    with session():
        run_workers(config, encoded)
    lines = read(output / METRICS)
    summary = {
        "recipe": fingerprint(recipe),
        "steps": config.total_steps,
        "samples": dict(Counter(encoded["kind"].to_pylist())),
        "skipped": len(skipped),
        "loss": sum(line["loss"] for line in lines[-20:]) / len(lines[-20:]),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_report(output / "report.html", lines, summary)
    # Last of all: it says that everything else is there.
    write_json(output / REPORT, summary)
    print(f"train: done, {output / 'model'}")


def steps_finished(output: Path) -> int:
    """Returns after how many steps the model in OUTPUT was written; 0 if there is none."""
    report = output / REPORT
    return json.loads(report.read_text("utf-8"))["steps"] if report.exists() and (output / "model").is_dir() else 0


def encode(config: TrainConfig, samples: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Checks recordings and stages, and tokenises the samples.

    Raises:
        UserError: If a recording is gone, or if a stage finds no samples of a kind that it wants.
    """
    from transformers import AutoConfig

    from balsa_ray.training.worker import make_processor

    seconds = data.clip_seconds(samples)
    processor = make_processor(config)
    extractor = processor.feature_extractor
    context = AutoConfig.from_pretrained(resolve(config.text_model)).get_text_config().max_position_embeddings
    limit = min(config.max_length or context, context)
    encoded, skipped = data.encode(samples, processor, seconds, limit, extractor.n_samples / extractor.sampling_rate)
    try:
        batches.plan(config.seed, encoded["id"].to_pylist(), encoded["kind"].to_pylist(), config.stages, 1)
    except ValueError as error:
        left_out = f" ({len(skipped)} samples don't fit the model)" if skipped else ""
        raise UserError(f"{', '.join(map(str, config.data))}: {error}{left_out}") from error
    return encoded, skipped


def run_workers(config: TrainConfig, encoded: pa.Table) -> None:
    """Trains on the workers of Ray Train and shows the live line until they are done."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from balsa_ray.training.worker import train_worker

    gpu = wants_gpu(config, ray.cluster_resources())
    storage = config.output.resolve() / "ray"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": portable(config),
            "samples": ray.put(encoded),
            "device": "gpu" if gpu else "cpu",
        },
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=RunConfig(
            # A name of its own: Ray Train would otherwise take up its own record of the run before.
            name=f"run-{time.time_ns()}",
            storage_path=str(storage),
            worker_runtime_env={
                "env_vars": worker_environment() | {"OMP_NUM_THREADS": str(config.cpus_per_worker)},
            },
        ),
    )
    with sole_writer(config.output):
        done = max(map(checkpoint.step_of, checkpoint.complete(config.output / "checkpoints")), default=0)
        rewind(config.output / METRICS, done)
    print(f"train: {done} of {config.total_steps} steps done, {len(encoded)} samples, {config.num_workers} workers")
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
    live = LiveLine(config.total_steps)
    try:
        for line in follow(config.output / METRICS, done, thread.is_alive):
            live.show(line)
    except KeyboardInterrupt:
        print("\ntrain: stopped; the same command goes on from the last checkpoint")
        raise
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    if failure:
        raise one_line(failure[0], config.output) from failure[0]


def wants_gpu(config: TrainConfig, resources: dict[str, float]) -> bool:
    """Decides whether workers get a GPU each.

    Raises:
        UserError: If this Ray cluster can't hold the workers; Ray itself would wait for ever.
    """
    gpu = config.device == "gpu" or (config.device == "auto" and resources.get("GPU", 0) > 0)
    needed = {"CPU": config.num_workers * config.cpus_per_worker} | ({"GPU": config.num_workers} if gpu else {})
    # A cluster that grows by itself may have nothing yet.
    if is_local():
        for name, amount in needed.items():
            if resources.get(name, 0) < amount:
                raise UserError(
                    f"num_workers={config.num_workers} needs {amount} {name}s, this Ray has {resources.get(name, 0):g}"
                )
    return gpu


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
    (output / ERROR).write_text(str(error), "utf-8")
    reason = last_error(text) or text.rpartition("\n")[2] or type(error).__name__
    return UserError(
        f"the workers stopped: {reason} (all of it in {output / ERROR}); the same command goes on from the last "
        "checkpoint",
        exit_code=1,
    )
