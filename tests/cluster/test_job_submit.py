"""From nothing to a trained, served and benchmarked model by the README's `ray job submit` lines, in miniature."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from raylets import Raylets, until

from balsa_ray.miniature.soundscapes import write_corpus
from balsa_ray.preflight import free_ports
from balsa_ray.training.metrics import METRICS, read

KEY = "a key of this test"
CPUS = 8  # of a node: one trainer of 5 has room there, and not two


@pytest.fixture
def raylets(tmp_path: Path) -> Iterator[Raylets]:
    """A head without work and a worker."""
    cluster = Raylets(tmp_path, "--num-cpus=0", variables={"BALSA_API_KEY": KEY, "HF_HUB_OFFLINE": "1"})
    try:
        cluster.join(f"--num-cpus={CPUS}")
        yield cluster
    finally:
        cluster.stop()


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_the_readmes_lines_on_a_cluster_with_a_token_that_grows(raylets: Raylets, tmp_path: Path) -> None:
    for split, clips in (("train", 60), ("test", 10)):
        for _ in write_corpus(tmp_path / "clips", 0, split, clips, workers=2):
            pass
    data, train = tmp_path / "runs" / "data", tmp_path / "runs" / "train"

    refused = raylets.call("ray", "job", "list", "--headers", '{"Authorization": "Bearer wrong"}')
    assert refused.returncode != 0

    said = raylets.submit(
        "synthesis-1", "jobs/synthesize.py", "jobs/configs/miniature/synthesize.yaml",
        f"input={tmp_path}/clips/train.jsonl", f"output={data}",
    )  # fmt: skip
    assert "succeeded" in said
    assert json.loads((data / "report.json").read_text())["samples"] > 0

    line = [
        "jobs/train.py", "jobs/configs/miniature/train.yaml", f"data={data}", f"output={train}", "num_workers=[1,2]",
        "cpus_per_worker=5", "stages=[{name: single, kinds: [present, absent, combined], steps: 100000}]",
        "checkpoint_every=10",
    ]  # fmt: skip
    raylets.submit("training-1", *line, wait=False)
    metrics = train / METRICS

    def workers() -> int:
        lines = read(metrics) if metrics.exists() else []
        assert raylets.status("training-1") in ("PENDING", "RUNNING")
        return lines[-1]["workers"] if lines else 0

    until(lambda: workers() == 1)
    raylets.join(f"--num-cpus={CPUS}")
    until(lambda: workers() == 2)
    assert raylets.call("ray", "job", "stop", "training-1").returncode == 0
    assert raylets.status("training-1") == "STOPPED"
    steps = [line["step"] for line in read(metrics)]
    assert steps == list(range(1, len(steps) + 1))

    # The same line goes on.
    raylets.submit("training-2", *line, f"max_steps={len(steps) + 10}")
    assert {line["workers"] for line in read(metrics)} == {1, 2}
    assert [line["step"] for line in read(metrics)] == list(range(1, len(steps) + 11))

    port, another = free_ports(2)
    raylets.submit(
        "serving-1", "jobs/serve.py", "jobs/configs/miniature/serve.yaml", f"model={train / 'model'}",
        f"output={tmp_path}/runs/serving", f"port={another}", wait=False,
    )  # fmt: skip
    until((tmp_path / "runs" / "serving" / "server.json").exists)
    assert raylets.call("ray", "job", "stop", "serving-1").returncode == 0
    # All of it, and not only what Ray's three seconds leave time for: another may be deployed.
    assert raylets.call("ray", "job", "logs", "serving-1").stdout.rstrip().endswith("stopped")

    application = {
        "name": "balsa",
        "route_prefix": "/",
        "import_path": "balsa_ray.serving:app",
        "args": {"model": str(train / "model"), "engine": {"device": "cpu", "dtype": "float32", "max_model_len": 512}},
    }
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    deployed = raylets.call("serve", "deploy", "--address", raylets.dashboard, str(tmp_path / "serve.yaml"))
    assert deployed.returncode == 0, deployed.stdout
    until(
        lambda: "RUNNING" in raylets.call("serve", "status", "--address", raylets.dashboard, "--name", "balsa").stdout
    )

    output = tmp_path / "runs" / "benchmark"
    raylets.submit(
        "benchmark-1", "jobs/benchmark.py", "jobs/configs/miniature/benchmark.yaml",
        f"endpoint=http://127.0.0.1:{port}/v1", f"data_root={tmp_path}/clips/test.jsonl", f"output={output}",
    )  # fmt: skip
    scores = json.loads((output / "scores.json").read_text())
    assert scores["existence"]["splits"]["random"]["strict"]["accuracy"]["n"] > 0
    assert raylets.call("serve", "shutdown", "--address", raylets.dashboard, "-y").returncode == 0
