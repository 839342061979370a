"""Checkpoints of a run: `OUTPUT/checkpoints/step-N`, complete or absent, the last few and the best one kept.

Each holds what is trained and Adam's moments, gathered from all workers (`state.py`), so that it is small and fits any
number of workers. Rank 0 writes it in the background while training goes on. The folder gets its final name, by a
rename, when everything in it has reached the disk: whatever kills a run leaves the newest `step-N` whole. All workers
must see OUTPUT: on several machines it lies on a shared file system.
"""

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from balsa_ray.config import UserError
from balsa_ray.storage import as_readable_as, to_disk
from balsa_ray.training.state import TrainState

STATE, WEIGHTS, MOMENTS = "state.json", "weights.safetensors", "moments.safetensors"


def complete(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in `OUTPUT/checkpoints`, oldest first."""
    return sorted(folder.glob("step-[0-9]*"), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Returns the step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def validation_loss(checkpoint: Path) -> float | None:
    """Returns the loss on the validation samples at a checkpoint, if it was measured there."""
    found: float | None = json.loads((checkpoint / STATE).read_text("utf-8"))["validation_loss"]
    return found


def best(folder: Path) -> Path | None:
    """Returns the checkpoint with the lowest validation loss, the earliest of several; None if none was measured."""
    measured = [(loss, step_of(path), path) for path in complete(folder) if (loss := validation_loss(path)) is not None]
    return min(measured)[2] if measured else None


def read(checkpoint: Path) -> TrainState:
    """Reads a checkpoint.

    Raises:
        UserError: It is not one of this version; names it.
    """
    try:
        return TrainState(step_of(checkpoint), load_file(checkpoint / WEIGHTS), load_file(checkpoint / MOMENTS))
    except (OSError, SafetensorError) as error:
        reason = f"{checkpoint}: can't be read ({error}); without it the run goes on from the one before"
        raise UserError(reason, exit_code=1) from error


class CheckpointWriter:
    """Writes checkpoints in a thread of its own, one after the other. Only rank 0 has one."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Args: `OUTPUT/checkpoints`, and how many of the last are kept beside the best."""
        self._folder, self._keep = folder, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def save(self, state: TrainState, loss: float | None) -> None:
        """Begins to write a checkpoint, once the one before is written.

        Args:
            state: Not changed by the caller any more.
            loss: On the validation samples, if it was measured.

        Raises:
            UserError: (exit code 1) The one before could not be written.
        """
        self.wait()
        self._under_way = self._pool.submit(self._write, state, loss)

    def check(self) -> None:
        """Raises UserError (exit code 1) if what is being written has failed by now."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            UserError: (exit code 1) It could not be.
        """
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def _write(self, state: TrainState, loss: float | None) -> None:
        partial, final = self._folder / f"partial-{state.step}", self._folder / f"step-{state.step}"
        try:
            for folder in (*self._folder.glob("partial-*"), final):
                shutil.rmtree(folder, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(state.weights, partial / WEIGHTS)
            save_file(state.moments, partial / MOMENTS)
            (partial / STATE).write_text(json.dumps({"step": state.step, "validation_loss": loss}), "utf-8")
            as_readable_as(partial / STATE)
            for path in (*partial.iterdir(), partial):
                to_disk(path)
            partial.rename(final)
            to_disk(self._folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            last = complete(self._folder)
            goes_on = (
                f"{last[-1].name} stays valid, and the same command goes on from it" if last else "none stands yet"
            )
            raise UserError(f"{final}: can't be written ({error}); {goes_on}", exit_code=1) from error
        kept = {*complete(self._folder)[-self._keep :], best(self._folder)}
        for old in complete(self._folder):
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)
