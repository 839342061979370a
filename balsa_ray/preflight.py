"""What is wrong with this machine, in plain words, before a long run finds out."""

import os
import shutil
import socket
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_GIB = 1 << 30
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def preflight(min_memory_gb: float, ports: Iterable[int] = (), compiler: bool = True) -> list[str]:
    """Look at memory, ports and compiler; nothing is started or written.

    One core is no problem: Ray's CPUs are counted, not measured, and the run only takes longer.

    Args:
        min_memory_gb: free memory in GiB that the run needs at its peak.
        ports: TCP ports that the run will listen on at 127.0.0.1.
        compiler: whether a C++ compiler and Python's headers are needed (DeepSpeed builds a small extension).

    Returns:
        A sentence for each problem with what to do about it; empty if the run can start.
    """
    problems = []
    free = available_memory_gb()
    if free < min_memory_gb:
        problems.append(
            f"{free:.1f} GB of memory are free and about {min_memory_gb:g} GB are needed: "
            "close other programs or use a larger machine."
        )
    for port in ports:
        if not port_is_free(port):
            problems.append(f"port {port} is taken by another program: stop it or choose another with port=NUMBER.")
    if compiler and not find_compiler():
        problems.append("there is no C++ compiler: install one (Debian, Ubuntu: apt-get install g++).")
    if compiler and not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        problems.append("Python's headers are missing: install them (Debian, Ubuntu: apt-get install python3-dev).")
    return problems


def available_memory_gb() -> float:
    """Free memory in GiB: the machine's, or the limit of the container if that is less."""
    import psutil

    free = psutil.virtual_memory().available
    for file in _CGROUP_LIMITS:
        if file.is_file() and (limit := file.read_text().strip()).isdigit():
            free = min(free, int(limit))
    return free / _GIB


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        # As servers do: a connection that has just ended doesn't count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def find_compiler() -> str | None:
    """Path of the C++ compiler that PyTorch would use to build an extension: `$CXX`, or `c++`, or `g++`."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "c++", "g++"))), None)
