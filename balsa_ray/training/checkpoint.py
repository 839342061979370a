"""Checkpoints of a run: `OUTPUT/checkpoints/step-N`, complete or absent, the last two kept.

Every rank writes its part of optimiser state and master weights (DeepSpeed), frozen parameters stay out. The folder
gets its final name, by a rename, only after all ranks have written, so that whatever kills a run leaves the newest
`step-N` complete. All workers must see OUTPUT: on several machines it lies on a shared file system.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KEPT = 2
STATE = "state.json"
TAG = "deepspeed"  # the folder within a checkpoint that DeepSpeed writes


@dataclass(frozen=True)
class Layout:
    """What the files of a checkpoint are bound to: they load only into the same.

    Attributes:
        num_workers: DeepSpeed writes one part of the optimiser state a worker.
        zero_stage: Decides what is cut into parts.
        precision: Of the weights.
    """

    num_workers: int
    zero_stage: int
    precision: str


def complete(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in `OUTPUT/checkpoints`, oldest first."""
    return sorted(folder.glob("step-[0-9]*"), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Returns the step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def layout_of(checkpoint: Path) -> Layout:
    """Returns what a checkpoint can be loaded into."""
    return Layout(**json.loads((checkpoint / STATE).read_text("utf-8")))


def save(engine: Any, folder: Path, step: int, layout: Layout) -> None:
    """Writes a checkpoint. All ranks call it together.

    Args:
        engine: The DeepSpeed engine.
        folder: `OUTPUT/checkpoints`.
        step: Optimisation steps done.
        layout: Of this run.
    """
    import torch.distributed as dist

    partial = folder / f"partial-{step}"
    if dist.get_rank() == 0 and partial.exists():
        shutil.rmtree(partial)
    dist.barrier()
    engine.save_checkpoint(str(partial), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    dist.barrier()
    if dist.get_rank() == 0:
        (partial / STATE).write_text(json.dumps(asdict(layout)), "utf-8")
        partial.rename(folder / f"step-{step}")
        for old in [*complete(folder)[:-KEPT], *folder.glob("partial-*")]:
            shutil.rmtree(old)


def load(engine: Any, checkpoint: Path) -> int:
    """Loads a checkpoint into the engine and returns its step. All ranks call it together."""
    # Not strict: the frozen parameters are not in the checkpoint, they came with the base models.
    engine.load_checkpoint(str(checkpoint), tag=TAG, load_module_strict=False)
    return step_of(checkpoint)
