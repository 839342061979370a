"""Ray's autoscaler adds machines for a job and takes them away: the cluster is a head alone before and afterwards."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import yaml
from chat_requests import body, clip
from raylets import OBJECT_STORE, ROOT, Raylets, until
from synthesis_outputs import replies, write_clips
from tiny_models import TinyCheckpoints

from balsa_ray.preflight import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1200)]
KEY = "a key of this test"


@pytest.fixture
def grows(tmp_path: Path) -> Iterator[Callable[[int], Raylets]]:
    """Starts a cluster of which each machine has so many CPUs, as Ray counts them."""
    started = []

    def start(cpus: int) -> Raylets:
        resources = {"CPU": cpus, "object_store_memory": OBJECT_STORE}
        kind = {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": 2}
        variables = {"BALSA_API_KEY": KEY, "HF_HUB_OFFLINE": "1"}
        started.append(Raylets(tmp_path, "--num-cpus=0", variables=variables, grows={"worker": kind}))
        return started[-1]

    yield start
    for cluster in started:
        cluster.stop()


def synthesize(environment: dict[str, str], *overrides: str) -> str:
    recipe = ["jobs/synthesize.py", "jobs/configs/miniature/synthesize.yaml", "audio_check=none", *overrides]
    done = subprocess.run(
        [sys.executable, *recipe], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, check=True
    )
    return done.stdout


def test_a_synthesis_has_machines_for_as_long_as_it_runs(
    grows: Callable[[int], Raylets], tmp_path: Path, tiny_checkpoints: TinyCheckpoints
) -> None:
    write_clips(tmp_path / "clips.jsonl", 400)
    values = [f"input={tmp_path}/clips.jsonl", f"model={tiny_checkpoints.text}"]
    cluster = grows(2)  # of which an engine and the tasks around it take one each
    assert cluster.workers() == 0
    with ThreadPoolExecutor(1) as pool:
        environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
        run = pool.submit(synthesize, environment, *values, f"output={tmp_path}/grown", "concurrency=[1,2]")
        most = 0
        while not run.done():
            most = max(most, cluster.workers())
            time.sleep(1)
        assert "Waiting for machines" in run.result()
    assert most == 2, "the second engine wants a second machine"
    until(lambda: cluster.workers() == 0)
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    synthesize(alone, *values, f"output={tmp_path}/alone")
    assert replies(tmp_path / "grown") == replies(tmp_path / "alone")
    assert json.loads((tmp_path / "grown/report.json").read_text())["samples"] > 0


def test_an_application_has_machines_for_as_long_as_it_is_asked(
    grows: Callable[[int], Raylets], tmp_path: Path, tiny_model: Path
) -> None:
    cluster, (port,) = grows(1), free_ports(1)
    engine = {"device": "cpu", "dtype": "float32", "max_model_len": 512, "max_num_seqs": 2}
    application = {
        "name": "balsa",
        "route_prefix": "/",
        "import_path": "balsa_ray.serving:app",
        "args": {"model": str(tiny_model), "replicas": [1, 2], "engine": engine},
    }
    config = {"proxy_location": "HeadOnly", "http_options": {"port": port}, "applications": [application]}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    address = ["--address", cluster.dashboard]
    assert cluster.workers() == 0
    assert cluster.call("serve", "deploy", *address, str(tmp_path / "serve.yaml")).returncode == 0
    until(lambda: "RUNNING" in cluster.call("serve", "status", *address, "--name", "balsa").stdout)
    assert cluster.workers() == 1

    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, timeout=120, max_retries=60) as client:

        def ask(_: int) -> str:
            reply = client.chat.completions.create(**body(clip(300), max_tokens=150))
            return reply.choices[0].message.content or ""

        expected = ask(0)
        with ThreadPoolExecutor(4) as pool:
            while cluster.workers() < 2:  # more is asked than one engine takes
                assert set(pool.map(ask, range(20))) == {expected}
    assert cluster.call("serve", "shutdown", *address, "-y").returncode == 0
    until(lambda: cluster.workers() == 0)
