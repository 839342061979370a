"""The head of a cluster is replaced, with all that runs there, as Kubernetes does it where its state is in Redis."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import yaml
from chaos_seeds import in_chaos
from chat_requests import body, clip
from machines import redis
from raylets import Raylets, end, free_ports, until

from balsa_ray.identity import unit

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
