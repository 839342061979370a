"""A cluster of several raylets on this machine, started as a user would: `ray start`, with a token."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from balsa_ray.preflight import free_ports

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
OBJECT_STORE = 200_000_000
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
HEAD = "ray.head.default"
IDLE_SECONDS = 15
"""After which an autoscaled raylet without work is ended."""


class Raylets:
    """The head and its workers, each a `ray start --block` of its own.

    Args:
        folder: For their output.
        head: Arguments of the head's `ray start`.
        variables: Set for every process of the cluster.
        grows: Node type to its settings, as in a cluster's YAML: Ray's autoscaler starts and ends raylets of these
            types on this machine. The head is one without work.
    """

    def __init__(
        self, folder: Path, *head: str, variables: Mapping[str, str], grows: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = folder
        ports = free_ports(3)
        self.address, self.dashboard = f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        self.environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.environment |= {
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            **variables,
        }
        if grows:
            # Of the second version, as `ray up` and KubeRay want it; what they tell the head stands here.
            self.environment |= {
                "RAY_FAKE_CLUSTER": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_NODE_TYPE_NAME": HEAD,
            }
            head = (*head, f"--autoscaling-config={self._autoscaling(grows)}")
        listening = [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[2]}"]
        self._arguments = ["--head", "--include-dashboard=true", *listening, *head]
        self._workers: list[subprocess.Popen[bytes]] = []
        self._places: list[tempfile.TemporaryDirectory[str]] = []
        self._start_head()

    def replace_head(self) -> None:
        """Kills the head with all that runs there, and starts another one at its address, as if on a new machine."""
        self.lose_head()
        self._start_head()

    def lose_head(self) -> None:
        """Kills the head with all that runs there."""
        end(self._head)

    def join(self, *arguments: str) -> None:
        """Starts a worker's raylet."""
        self._workers.append(self._start(f"--address={self.address}", *arguments))

    def workers(self) -> int:
        """How many raylets there are beside the head."""
        nodes = json.loads(self._ask("/api/v0/nodes"))["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" and not node["is_head_node"] for node in nodes)

    def status(self, job: str) -> str:
        """Where a submitted job is: `RUNNING`, `STOPPED`, ..."""
        return str(json.loads(self._ask(f"/api/jobs/{job}"))["status"])

    def call(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command line of Ray's against this cluster, from the repository's root, and returns what it said."""
        return subprocess.run(
            [BIN / command[0], *command[1:]],
            env=self.environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip

    def submit(self, name: str, *command: str, wait: bool = True) -> str:
        """Runs the line of the README that submits a job, and returns its log."""
        shipped = ["--working-dir", ".", "--runtime-env", "cluster/runtime_env.yaml"]
        how = ["--submission-id", name] + ([] if wait else ["--no-wait"])
        done = self.call("ray", "job", "submit", *how, *shipped, "--", "python", *command)
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def stop(self) -> None:
        """Ends every process of the cluster, and none else."""
        end(self._head, *self._workers)
        for place in self._places:
            place.cleanup()

    def _start_head(self) -> None:
        # A place of its own, as if on a machine of its own: in that of others Ray hands jobs to the cluster that came
        # last, and takes workers of a head that is gone for a head that runs.
        self._places.append(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        self._head = self._start(*self._arguments, f"--temp-dir={self._places[-1].name}")
        self._until_it_answers()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        # Raylets of one machine would otherwise ask for the same port.
        own = ["--dashboard-agent-listen-port", str(free_ports(1)[0]), "--object-store-memory", str(OBJECT_STORE)]
        with (self._folder / "raylets.log").open("ab") as log:
            return subprocess.Popen(
                [BIN / "ray", "start", "--block", "--disable-usage-stats", *own, *arguments],
                env=self.environment, cwd=self._folder, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def _autoscaling(self, grows: Mapping[str, Any]) -> Path:
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "grows",
            "max_workers": sum(kind["max_workers"] for kind in grows.values()),
            "idle_timeout_minutes": IDLE_SECONDS / 60,
            "provider": {
                # By this name: as `fake_multinode` it wants a file of defaults that isn't shipped.
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "gcs_address": self.address,
                "use_node_id_as_ip": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {HEAD: head, **grows},
            "head_node_type": HEAD,
            # `ray up` would fill these in.
            "upscaling_speed": 1.0,
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "docker": {},
            "auth": {},
            **{f"{part}_commands": [] for part in COMMANDS},
        }
        path = self._folder / "autoscaling.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _ask(self, path: str) -> bytes:
        key = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(urllib.request.Request(self.dashboard + path, headers=key), timeout=30) as answer:
            return bytes(answer.read())

    def _until_it_answers(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError):
                self._ask("/api/version")
                return
            assert self._head.poll() is None, (self._folder / "raylets.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)


def end(*runs: subprocess.Popen[Any]) -> None:
    """Kills processes and all that they have started."""
    runs = tuple(run for run in runs if run.returncode is None)  # another process may have the number of one that ended
    family = []
    for run in runs:
        with suppress(psutil.NoSuchProcess):
            family += psutil.Process(run.pid).children(recursive=True)
        run.kill()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for run in runs:
        run.wait()


def until(reached: Callable[[], Any], seconds: float = 300, every: float = 1) -> None:
    """Waits."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(every)
