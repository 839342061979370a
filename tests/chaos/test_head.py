"""The head of a cluster is killed, with all that runs there.

Where its state is in Redis, as on Kubernetes, it is replaced; without, another cluster takes over.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from chaos_seeds import in_chaos
from chat_requests import body, clip
from machines import redis
from raylets import Raylets, end, until
from synthesis_outputs import SMALL_FILES, replies, rows_of, write_recipe
from tiny_models import TinyCheckpoints

from balsa_ray.identity import unit
from balsa_ray.preflight import free_ports
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.metrics import METRICS, read

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]
KEY = "a key of this test"
ASKED, AT_ONCE = 40, 4


@pytest.fixture(scope="module")
def raylets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raylets]:
    """A head without work, and a worker."""
    folder = tmp_path_factory.mktemp("cluster")
    store, address = redis(folder)
    variables = {"BALSA_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "RAY_REDIS_ADDRESS": address}
    cluster = Raylets(folder, "--num-cpus=0", variables=variables)
    try:
        cluster.join("--num-cpus=4")
        yield cluster
    finally:
        cluster.stop()
        end(store)


@pytest.fixture(scope="module")
def served(raylets: Raylets, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of an application that `serve deploy` has left to the cluster."""
    (port,) = free_ports(1)
    engine = {"device": "cpu", "dtype": "float32", "max_model_len": 512, "max_num_seqs": 8}
    application = {
        "name": "balsa",
        "route_prefix": "/",
        "import_path": "balsa_ray.serving:app",
        "args": {"model": str(tiny_model), "engine": engine},
    }
    config = {"proxy_location": "HeadOnly", "http_options": {"port": port}, "applications": [application]}
    path = tmp_path_factory.mktemp("serving") / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    address = ["--address", raylets.dashboard]
    assert raylets.call("serve", "deploy", *address, str(path)).returncode == 0
    until(lambda: "RUNNING" in raylets.call("serve", "status", *address, "--name", "balsa").stdout)
    return f"http://127.0.0.1:{port}/v1"


@in_chaos
def test_an_application_outlives_its_head_and_every_request_is_answered(
    raylets: Raylets, served: str, seed: int
) -> None:
    with openai.OpenAI(base_url=served, api_key=KEY, timeout=60, max_retries=60) as client:

        def ask(_: int) -> str:
            reply = client.chat.completions.create(**body(clip(300), max_tokens=40))
            return reply.choices[0].message.content or ""

        expected = ask(0)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            before = int(ASKED * 0.5 * unit(seed, "moment", "head"))
            told = [pool.submit(ask, number) for number in range(ASKED)]
            until(lambda: sum(answer.done() for answer in told) >= before)
            raylets.replace_head()
            assert not all(answer.done() for answer in told), "all was answered before the head was killed"
            assert [answer.result() for answer in told] == [expected] * ASKED


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What came out undisturbed."""
    return {}


def goes_on_elsewhere(
    folder: Path, command: list[str], moment: Callable[[Path], bool], last: str, undisturbed: bool
) -> str:
    """Runs a job whose cluster loses its head, and again in another cluster; there perhaps once undisturbed as well.

    The first cluster's worker is left to itself, and to what it was at.

    Args:
        folder: Where `run` and `undisturbed` go.
        command: The job, without its output.
        moment: Whether the head is to be killed, by what is in the output.
        last: What a job writes at last.
        undisturbed: Whether to run it undisturbed too.

    Returns:
        What the job said that went on.
    """
    with ExitStack() as ending:

        def cluster(name: str) -> Raylets:
            (folder / name).mkdir()
            raylets = Raylets(folder / name, "--num-cpus=0", variables={"HF_HUB_OFFLINE": "1"})
            ending.callback(raylets.stop)
            raylets.join("--num-cpus=4")
            return raylets

        first = cluster("first")
        first.submit("job-1", *command, f"output={folder}/run", wait=False)
        until(lambda: moment(folder / "run"), every=0.1)
        first.lose_head()
        second = cluster("second")
        assert not (folder / "run" / last).exists(), "it ended before the head was killed"
        said = [
            second.submit(f"job-{name}", *command, f"output={folder}/{name}")
            for name in (["run", "undisturbed"] if undisturbed else ["run"])
        ]
    assert all("succeeded" in log for log in said)
    return said[0]


def stood(pattern: str, log: str) -> tuple[int, int]:
    """How much was there already, of how much, when a job went on."""
    found = re.search(pattern, log)
    assert found, log
    done, total = (int(number.replace(",", "")) for number in found.groups())
    return done, total


@in_chaos
def test_without_redis_a_synthesis_goes_on_in_another_cluster(
    known: dict[str, Any], tiny_checkpoints: TinyCheckpoints, tmp_path: Path, seed: int
) -> None:
    script, recipe = tmp_path / "small_files.py", write_recipe(tmp_path, tiny_checkpoints.text)
    script.write_text(SMALL_FILES)
    moment = 40 + 200 * unit(seed, "moment", "synthesis")
    said = goes_on_elsewhere(
        tmp_path, [str(script), str(recipe)],
        moment=lambda output: rows_of(output) >= moment, last="report.json", undisturbed="replies" not in known,
    )  # fmt: skip
    done, total = stood(r"synthesis: ([\d,]+) of ([\d,]+) rows stand", said)
    assert moment <= done < total
    if "replies" not in known:
        known["replies"] = replies(tmp_path / "undisturbed")
    assert replies(tmp_path / "run") == known["replies"]


@in_chaos
def test_without_redis_a_training_goes_on_in_another_cluster(
    known: dict[str, Any], train_config: Callable[..., TrainConfig], tmp_path: Path, seed: int
) -> None:
    stages = [{"name": "single", "kinds": ["present", "absent"], "steps": 300}]
    config = train_config(stages=stages, num_workers=2, checkpoint_every=20)
    (tmp_path / "recipe.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    moment = 30 + 150 * unit(seed, "moment", "training")
    said = goes_on_elsewhere(
        tmp_path, ["jobs/train.py", str(tmp_path / "recipe.yaml")],
        moment=lambda output: len(read(output / METRICS)) >= moment, last="model", undisturbed="losses" not in known,
    )  # fmt: skip
    done, total = stood(r"train: (\d+) of (\d+) steps done", said)
    assert moment - 20 <= done < total
    if "losses" not in known:
        known["losses"] = [line["loss"] for line in read(tmp_path / "undisturbed" / METRICS)]
    run = read(tmp_path / "run" / METRICS)
    assert [line["step"] for line in run] == list(range(1, total + 1))
    assert [line["loss"] for line in run] == pytest.approx(known["losses"], rel=2e-4)
