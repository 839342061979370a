import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from balsa_ray.compile_cache import build_alone, claim, with_own_cache

CLAIM = (
    "import sys; from pathlib import Path; from balsa_ray.compile_cache import claim; print(claim(Path(sys.argv[1])))"
)


def test_processes_side_by_side_have_a_folder_each_and_later_ones_find_it_again(tmp_path: Path) -> None:
    assert claim(tmp_path) == tmp_path / "replica-0"
    with subprocess.Popen(
        [sys.executable, "-c", f"{CLAIM}; input()", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout
        assert other.stdout.readline().strip() == str(tmp_path / "replica-1")
        assert claim(tmp_path) == tmp_path / "replica-2"
        other.kill()
    again = subprocess.run([sys.executable, "-c", CLAIM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == str(tmp_path / "replica-1")


def test_an_engine_starts_with_its_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))

    class Engine:
        def __init__(self, model: str) -> None:
            self.model, self.cache = model, os.environ["VLLM_CACHE_ROOT"]

    started = with_own_cache(Engine)("m")
    assert (started.model, started.cache) == ("m", str(tmp_path / "replica-0"))
    assert type(started).__name__ == "Engine"


BUILD = """
import sys, time
from pathlib import Path
from balsa_ray.compile_cache import build_alone

def build():
    mark = Path(sys.argv[1], "op", "lock")
    mark.parent.mkdir(exist_ok=True)
    mark.touch(exist_ok=False)
    print("building", flush=True)
    input()
    mark.unlink()
    print("built", flush=True)

build_alone(Path(sys.argv[1]), build)
"""


def test_a_killed_build_holds_up_no_later_one(tmp_path: Path) -> None:
    """PyTorch's mark of a build stays when its process is killed, and it waits for ever for whoever set it."""
    with subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout
        assert killed.stdout.readline() == "building\n"
        killed.kill()
    assert (tmp_path / "op/lock").exists()
    found: list[bool] = []
    build_alone(tmp_path, lambda: found.append((tmp_path / "op/lock").exists()))
    assert found == [False]
    assert os.environ.pop("TORCH_EXTENSIONS_DIR") == str(tmp_path)


def test_who_comes_during_a_build_waits_for_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:  # type: ignore[call-overload]
        assert first.stdout.readline() == "building\n"
        with subprocess.Popen(command, **pipes) as second:  # type: ignore[call-overload]
            time.sleep(1.0)
            assert (tmp_path / "op/lock").exists(), "the mark of a process that lives is left alone"
            first.stdin.write("\n")
            first.stdin.flush()
            assert first.stdout.readline() == "built\n"
            assert second.communicate("\n")[0] == "building\nbuilt\n"
