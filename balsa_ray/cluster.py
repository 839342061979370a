"""One Ray session for a job: the cluster that `RAY_ADDRESS` names, or a local one that ends with the job."""

import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from balsa_ray.config import UserError

# A stage of Ray Data LLM is a chain of actors that each hold a CPU. With as many CPUs as a laptop has cores they
# leave none for reading and mapping, and the pipeline waits for ever. These are CPUs of the scheduler, not cores.
LOGICAL_CPUS = 8
_OBJECT_STORE_BYTES = 1 << 30
_REACH_SECONDS = 5.0
_EXCEPTION = re.compile(r"[\w.]+(?:Error|Exception)(?:: |$)")
_LONGEST_REASON = 600

# Workers start from the node's environment, which on a cluster isn't the driver's.
_PASSED_ON = ("HF_HUB_OFFLINE", "HF_HOME", "DS_ACCELERATOR", "VLLM_CPU_KVCACHE_SPACE")
_WORKER_DEFAULTS = {"TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


@contextmanager
def session() -> Iterator[None]:
    """Connect to Ray for the length of a `with` block.

    A Ray that this process is already connected to is used and left alone. Otherwise `RAY_ADDRESS` is connected to,
    and if it is unset (or `local`) a Ray is started on this machine and ended with the block.

    Raises:
        UserError: `RAY_ADDRESS` names a cluster that can't be reached, that refuses the token, or that runs another
            version of Ray or Python.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if is_local():
        _start_local()
    else:
        _connect(os.environ["RAY_ADDRESS"])
    # Ray installs a handler of its own that exits at once, past every `finally` of the job.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


def is_local() -> bool:
    """Whether jobs run on a Ray of their own on this machine: `RAY_ADDRESS` is unset, empty or `local`."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def local_cpus() -> int:
    """Returns how many CPUs a Ray of a job's own counts on this machine."""
    return max(os.cpu_count() or 1, LOGICAL_CPUS)


def local_object_store_bytes() -> int:
    """Returns the size of the object store of a Ray of a job's own."""
    import psutil

    return min(_OBJECT_STORE_BYTES, psutil.virtual_memory().available // 4)


def worker_environment() -> dict[str, str]:
    """Environment variables of every task and actor: the driver's where it sets them, else what suits small models."""
    return _WORKER_DEFAULTS | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def last_error(report: str) -> str:
    """Returns the last exception of a report of Ray's, which is where it began, as one line; empty if there is none."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    begins = [number for number, line in enumerate(lines) if _EXCEPTION.match(line)]
    if not begins:
        return ""
    # Pydantic adds an excerpt of its input and a link.
    told = [line.partition(" [type=")[0] for line in lines[begins[-1] :] if not line.startswith("For further")]
    return " ".join(told)[:_LONGEST_REASON]


def _start_local() -> None:
    import ray

    # Ray asks for a token even on a local cluster and, left alone, writes one into the user's home. A token of this
    # process's own reaches all that it starts through the environment; Ray reads it once, so it stays for later
    # sessions. RAY_AUTH_MODE is Ray's to set: it ignores a value that appears after its import.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",
        num_cpus=local_cpus(),
        object_store_memory=local_object_store_bytes(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": worker_environment()},
    )


def _connect(address: str) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={address}: is the address for `ray job submit`; a job run directly needs HOST:6379 or auto"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not _reachable(host, port):
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray answers there; start it (`ray start --head`), correct the address, "
            "or unset RAY_ADDRESS to run on this machine alone"
        )
    try:
        ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": worker_environment()})
    except AuthenticationError as error:
        raise UserError(f"RAY_ADDRESS={address}: the cluster refused the token; set RAY_AUTH_TOKEN") from error
    except ConnectionError as error:
        raise UserError(f"RAY_ADDRESS={address}: no Ray cluster found: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise UserError(f"RAY_ADDRESS={address}: {' '.join(str(error).split())}") from error


def _reachable(host: str, port: str) -> bool:
    """Whether something listens there. Ray itself tries for a minute and then ends the process without a word."""
    if not host or not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS):
            return True
    except OSError:
        return False
