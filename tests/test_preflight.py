import re
import socket
import sysconfig
from pathlib import Path

import pytest

from balsa_ray import preflight as module
from balsa_ray.preflight import available_memory_gb, port_is_free, preflight


def test_machine_that_runs_these_tests_is_fine() -> None:
    assert preflight(min_memory_gb=0.01, compiler=False) == []


def test_too_little_memory_is_said_with_both_figures() -> None:
    (problem,) = preflight(min_memory_gb=99999, compiler=False)
    assert re.match(r"\d+\.\d GB of memory are free and about 99999 GB are needed: ", problem)


def test_limit_of_the_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(module, "_CGROUP_LIMITS", (limit,))
    limit.write_text(f"{1 << 29}\n")
    assert available_memory_gb() == 0.5
    limit.write_text("max\n")
    assert available_memory_gb() > 0.5


def test_taken_port_is_named() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not port_is_free(port)
        (problem,) = preflight(min_memory_gb=0, ports=[port], compiler=False)
        assert f"port {port} is taken" in problem
    assert port_is_free(port)


def test_missing_compiler_and_headers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    problems = preflight(min_memory_gb=0)
    assert ["C++ compiler" in problems[0], "Python's headers" in problems[1]] == [True, True]
