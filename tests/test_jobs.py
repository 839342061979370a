import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.py"))
# Processor time, not time on the clock: a machine that is busy with something else must not fail this.
LIMIT_SECONDS = float(os.environ.get("HELP_LIMIT_SECONDS", "1.0"))


def help_seconds(job: Path) -> float:
    before = os.times()
    done = subprocess.run([sys.executable, str(job), "--help"], capture_output=True, text=True, cwd=ROOT)
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python {job.name} CONFIG.yaml [key=value ...]")
    assert "  output  (" in done.stdout
    assert "  seed  (" in done.stdout
    return after.children_user - before.children_user


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_help_is_there_at_once(job: Path) -> None:
    assert statistics.median(help_seconds(job) for _ in range(3)) < LIMIT_SECONDS


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_unknown_key_is_refused_and_nothing_written(job: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output: {tmp_path}/run\nsed: 3\n")
    done = subprocess.run([sys.executable, str(job), str(recipe)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {recipe}: sed: unknown key; did you mean 'seed'?")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [recipe]
