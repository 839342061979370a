import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from balsa_ray.config import UserError
from balsa_ray.training import checkpoint
from balsa_ray.training.checkpoint import CheckpointWriter
from balsa_ray.training.state import TrainState


def state(step: int, size: int = 3) -> TrainState:
    weights = {"a": torch.full((size,), float(step)), "b.c": torch.arange(4).view(2, 2).float()}
    moments = {f"{key}/{name}": weight + 1 for key in ("exp_avg", "exp_avg_sq") for name, weight in weights.items()}
    return TrainState(step, weights, moments)


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.complete(folder)]


def test_what_is_written_is_read_and_the_order_is_that_of_steps(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=3)
    for step in (9, 10, 100):
        writer.save(state(step), None)
    writer.wait()
    assert names(tmp_path) == ["step-9", "step-10", "step-100"]
    found = checkpoint.read(tmp_path / "step-10")
    assert found.step == 10
    for read, written in ((found.weights, state(10).weights), (found.moments, state(10).moments)):
        assert read.keys() == written.keys()
        assert all(torch.equal(read[name], written[name]) for name in written)
    assert checkpoint.best(tmp_path) is None


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        writer.save(state(step), loss)
    writer.wait()
    assert names(tmp_path) == ["step-2", "step-4", "step-5"]
    best = checkpoint.best(tmp_path)
    assert best
    assert (best.name, checkpoint.validation_loss(best)) == ("step-2", 1.0)


def test_leftovers_of_a_cut_write_are_no_checkpoint_and_go(tmp_path: Path) -> None:
    (tmp_path / "partial-7").mkdir()
    assert names(tmp_path) == []
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save(state(8), None)
    writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-8"]


def test_a_write_that_failed_is_noticed_without_waiting_for_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("a file stands where the folder should")
    writer = CheckpointWriter(folder, keep=1)
    writer.check()
    writer.save(state(1), None)
    writer._pool.shutdown()
    with pytest.raises(UserError, match="step-1: can't be written"):
        writer.check()


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_checkpoint import CheckpointWriter, UserError, names, state
folder = Path(sys.argv[1])
writer = CheckpointWriter(folder, keep=1)
writer.save(state(1), None)
writer.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file may grow beyond, as on a disk that is full
writer.save(state(2, size=100_000), None)
try:
    writer.wait()
except UserError as error:
    print(error)
    print(error.exit_code, names(folder), sorted(path.name for path in folder.iterdir()))
"""


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(Path(__file__).parent), *sys.path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    line, rest = run.stdout.splitlines()
    assert line.startswith(f"{tmp_path / 'step-2'}: can't be written (")
    assert line.endswith("; step-1 stays valid, and the same command goes on from it")
    assert rest == "1 ['step-1'] ['step-1']"


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "step-4").mkdir()
    with pytest.raises(UserError, match=r"step-4: can't be read .*goes on from the one before"):
        checkpoint.read(tmp_path / "step-4")
