"""Weights & Biases and MLflow, where they are installed and asked for.

Both are set up by environment variables of their own (`WANDB_MODE`, `MLFLOW_TRACKING_URI`, …). A run that is taken up
goes on under the same name there.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from balsa_ray.config import UserError
from balsa_ray.identity import stable_hash

TrackerName = Literal["wandb", "mlflow"]
PROJECT = "balsa_ray"


class Tracker(Protocol):
    """Where the numbers of each step go beside `metrics.jsonl`."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Sends the numbers of a step."""

    def close(self) -> None:
        """Ends the run there."""


def check_installed(names: list[TrackerName]) -> None:
    """Raises UserError if a tracker that is asked for is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed here: pip install {name}, or leave it out")


def open_tracker(name: TrackerName, output: Path, recipe: dict[str, Any]) -> Tracker:
    """Begins a run at a tracker, or goes on with it.

    Args:
        name: Which.
        output: OUTPUT of the run, whose name the run gets.
        recipe: What it depends on, under dotted keys.
    """
    return _Wandb(output, recipe) if name == "wandb" else _MLflow(output, recipe)


class _Wandb:
    def __init__(self, output: Path, recipe: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            name=output.name,
            id=stable_hash(str(output), recipe),
            resume="allow",
            dir=str(output),
            config=recipe,
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, output: Path, recipe: dict[str, Any]) -> None:
        import mlflow

        known = output / "mlflow_run"
        mlflow.set_experiment(PROJECT)
        run = mlflow.start_run(run_id=known.read_text("utf-8") if known.exists() else None, run_name=output.name)
        if not known.exists():
            known.write_text(run.info.run_id, "utf-8")
            mlflow.log_params(recipe)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        import mlflow

        mlflow.log_metrics(numbers, step=step)

    def close(self) -> None:
        import mlflow

        mlflow.end_run()
