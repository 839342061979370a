"""The images: what the Dockerfile says, since it is built elsewhere."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from balsa_ray.serving.haproxy import PROGRAM

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each, in order."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in joined)]


def arguments(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def pinned(package: str, kind: str) -> str:
    lock = (ROOT / "cluster" / f"requirements-{kind}.txt").read_text()
    found = re.search(rf"^{re.escape(package)}==(\S+)$", lock, re.MULTILINE)
    assert found, package
    return found[1]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in arguments("ENV") for pair in line.split())


def test_linter_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_bases_are_pinned_and_fit_the_locks() -> None:
    cuda, base, cpu, gpu = arguments("FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+ AS base", base)
    assert (cpu, gpu) == ("base AS cpu", "base AS gpu")
    version = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel-\S+ AS cuda", cuda)
    assert version
    assert pinned("cuda-toolkit", "gpu").startswith(f"{version[1]}.")
    assert f"--from=cuda /usr/local/cuda-{version[1]} /usr/local/cuda" in arguments("COPY")
    assert pinned("ray", "cpu") == pinned("ray", "gpu")
    assert f":ray-{pinned('ray', 'cpu')}-gpu" in DOCKERFILE.read_text()


def test_packages_come_from_the_locks_by_the_script_of_make_setup() -> None:
    runs = arguments("RUN")
    assert [run for run in runs if "setup.sh" in run] == ["cluster/setup.sh cpu", "cluster/setup.sh gpu"]
    assert not any(re.search(r"\b(pip|uv|conda)\b", run) for run in runs)
    assert "cluster/setup.sh" in (ROOT / "Makefile").read_text()


def test_image_holds_no_secret_and_no_root() -> None:
    names = [word for word, _ in instructions()]
    assert set(names) == {"FROM", "SHELL", "RUN", "USER", "WORKDIR", "ENV", "COPY"}
    assert arguments("USER") == ["1000"]
    assert names.index("USER") < names.index("COPY")
    assert environment()["RAY_AUTH_MODE"] == "token"
    assert not any(re.search("TOKEN$|KEY|SECRET|PASSWORD", name) for name in environment())


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored, *kept = [
        line for line in (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines() if line[0] != "#"
    ]
    assert ignored == "*"
    allowed = [line[1:] for line in kept if line.startswith("!")]
    assert [pattern for pattern in allowed if not list(ROOT.glob(pattern))] == []
    for line in arguments("COPY"):
        if line.startswith("--chown=ray ") and line != "--chown=ray . .":
            for source in line.split()[1:-1]:
                assert (ROOT / source).is_file(), source
                assert any(Path(source).match(pattern) or source.startswith(f"{pattern}/") for pattern in allowed)
    # What the editable installation reads, and the packages' sources.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", *project["license-files"], "balsa_ray", "jobs"} <= set(allowed)


def test_programs_are_found() -> None:
    (folder,) = arguments("WORKDIR")
    programs = f"{folder}/.venv/bin"
    assert environment()["PATH"] == f"{programs}:$PATH"
    assert f"'export PATH={programs}:$PATH' > /etc/profile.d/" in " ".join(arguments("RUN"))
    assert environment()["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert environment()["RAY_SERVE_HAPROXY_BINARY_PATH"] == f"{programs}/{PROGRAM}"
    assert PROGRAM in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
