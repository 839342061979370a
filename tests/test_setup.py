import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "dirname", "grep", "env")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH with the shell's tools and no Python or compiler, and a copy of what setup reads."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "cluster").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    for name in ("setup.sh", "requirements-cpu.txt"):
        shutil.copy(ROOT / "cluster" / name, tmp_path / "cluster")
    return tmp_path


def refusal(folder: Path, **environment: str) -> str:
    path = {"PATH": str(folder / "bin")}
    done = subprocess.run([folder / "cluster" / "setup.sh"], env=path | environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert not (folder / ".venv").exists()
    return done.stderr


def fake_python(folder: Path, name: str, body: str) -> None:
    script = folder / "bin" / name
    script.write_text(f"#!/usr/bin/env bash\n{body}\n")
    script.chmod(0o755)


def test_wrong_python_is_named(bare: Path) -> None:
    fake_python(bare, "python3.11", "echo 'shim: not installed' >&2; exit 127")
    fake_python(bare, "python3", '[ "$1" = --version ] && echo "Python 3.9.2" || exit 1')
    line = refusal(bare)
    assert line.startswith("setup: Python 3.11 or 3.12 is needed and was not found; python3 is Python 3.9.2.")


def test_missing_compiler_is_named(bare: Path) -> None:
    assert "a C++ compiler is needed" in refusal(bare, PYTHON=sys.executable)


def test_missing_venv_module_is_named(bare: Path) -> None:
    fake_python(bare, "python3.12", f'[ "$2" = "import ensurepip, venv" ] && exit 1; exec {sys.executable} "$@"')
    assert "python3.12 can't make virtual environments" in refusal(bare)


def test_locks_name_no_host_and_no_folder() -> None:
    for name in ("requirements-cpu.txt", "requirements-gpu.txt"):
        lines = (ROOT / "cluster" / name).read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert pins == sorted(pins, key=lambda line: line.partition("==")[0])
        assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in pins), name
    assert os.access(ROOT / "cluster" / "setup.sh", os.X_OK)
