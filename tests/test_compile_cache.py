import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsa_ray.compile_cache import claim, with_own_cache

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
