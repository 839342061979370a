import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "dirname", "grep", "env", "mkdir", "cp")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH with the shell's tools and no Python or compiler, and a copy of what setup reads."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "cluster").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    for name in ("setup.sh", "requirements-cpu.txt", "requirements-gpu.txt"):
        shutil.copy(ROOT / "cluster" / name, tmp_path / "cluster")
    return tmp_path


def refusal(folder: Path, *arguments: str, **environment: str) -> str:
    path = {"PATH": str(folder / "bin")}
    command = [folder / "cluster" / "setup.sh", *arguments]
    done = subprocess.run(command, env=path | environment, capture_output=True, text=True)
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


def test_missing_libnuma_is_named_where_vllm_runs_on_the_cpu(bare: Path) -> None:
    (bare / "Python.h").touch()
    body = f"""case "$2" in
        *sysconfig*) echo {bare} ;;
        *ctypes*) exit 1 ;;
        *) exec {sys.executable} "$@" ;;
    esac"""
    fake_python(bare, "python3.11", body)
    fake_python(bare, "c++", "")
    assert "apt-get install libnuma1" in refusal(bare)
    # The build for GPUs goes on to what it refuses next.
    (bare / ".complete").touch()
    assert "holds what make setup installs" in refusal(bare, "gpu", VENV=".")


def test_unknown_lock_is_named(bare: Path) -> None:
    assert "there is no cluster/requirements-tpu.txt" in refusal(bare, "tpu", PYTHON=sys.executable)


def test_gpu_packages_do_not_go_over_those_for_cpus(bare: Path) -> None:
    (bare / "include").mkdir()
    (bare / "include" / "Python.h").touch()
    fake_python(bare, "python3.11", "echo include")
    fake_python(bare, "c++", "")
    (bare / "mine").mkdir()
    (bare / "mine" / ".complete").touch()
    assert "mine holds what make setup installs for CPUs: VENV=.venv-gpu " in refusal(bare, "gpu", VENV="mine")


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_one_lock_is_installed_and_no_more(bare: Path, kind: str) -> None:
    (bare / "include").mkdir()
    (bare / "include" / "Python.h").touch()
    body = """case "$*" in
        *sysconfig*) echo include ;;
        "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
        "-m pip"*) echo "$*" >> installed ;;
    esac"""
    fake_python(bare, "python3.11", body)
    fake_python(bare, "c++", "")
    subprocess.run([bare / "cluster" / "setup.sh", kind], env={"PATH": str(bare / "bin")}, check=True)
    lines = (bare / "installed").read_text().splitlines()
    assert all(" --no-deps " in line for line in lines)
    *torch, packages, project = [line.partition(" --no-deps ")[2] for line in lines]
    assert [package.partition("==")[0] for package in torch] == (["torch"] if kind == "cpu" else [])
    assert packages == f"-r cluster/requirements-{kind}.txt"
    assert project == "--no-build-isolation --editable ."


def test_locks_name_no_host_and_no_folder() -> None:
    for name in ("requirements-cpu.txt", "requirements-gpu.txt"):
        lines = (ROOT / "cluster" / name).read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert pins == sorted(pins, key=lambda line: line.partition("==")[0])
        assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in pins), name
    assert os.access(ROOT / "cluster" / "setup.sh", os.X_OK)
