"""Parts of a serving cluster are killed under load, and it is updated: a client that tries again loses nothing."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import openai
import psutil
import pytest
from chaos_seeds import IN_CHAOS, SHORT, in_chaos
from chat_requests import KEY, body, clip, settings
from raylets import until

from balsa_ray.identity import unit
from balsa_ray.serving import app
from balsa_ray.serving.server import APPLICATION, Server

pytestmark = pytest.mark.slow
ASKED, AT_ONCE = 40, 4
REPLICA = "ServeReplica:balsa:Endpoint"
PARTS = [REPLICA, "EngineCore", "haproxy -db", "HAProxyManager", "ProxyActor"]


@pytest.fixture
def patient(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, timeout=60, max_retries=40) as client:
        yield client


def processes(name: str) -> list[psutil.Process]:
    """The processes that this one has started with this in their titles."""
    found = []
    for child in psutil.Process(os.getpid()).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if name in " ".join(child.cmdline()):
                found.append(child)
    return found


def another(name: str, than: psutil.Process) -> bool:
    """Whether there is one such process, and not that one."""
    found = processes(name)
    return len(found) == 1 and found[0] != than


def answers(client: openai.OpenAI, disturb: threading.Thread, moment: float) -> list[str]:
    """What is answered to the same question again and again, while something happens at a moment in [0, 1)."""
    started = threading.Event()

    def ask(number: int) -> str:
        if number == int(ASKED // 2 * moment):
            started.set()
        reply = client.chat.completions.create(**body(clip(300), max_tokens=40))
        return reply.choices[0].message.content or ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = [pool.submit(ask, number) for number in range(ASKED)]
        started.wait()
        disturb.start()
        found = [answer.result() for answer in told]
    disturb.join()
    return found


@pytest.mark.parametrize(
    ("name", "seed"),
    [(REPLICA, SHORT)] + [pytest.param(part, *seed.values, marks=seed.marks) for part in PARTS for seed in IN_CHAOS],
)
def test_a_killed_part_comes_back_and_every_request_is_answered(patient: openai.OpenAI, name: str, seed: int) -> None:
    expected = patient.chat.completions.create(**body(clip(300), max_tokens=40)).choices[0].message.content
    (victim,) = processes(name)
    kill = threading.Thread(target=victim.send_signal, args=[signal.SIGKILL])
    found = answers(patient, kill, unit(seed, "moment", name))
    assert found == [expected] * ASKED
    until(lambda: another(name, victim), seconds=120)


@in_chaos
def test_an_update_under_load_loses_no_request(
    patient: openai.OpenAI, server: Server, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    from ray import serve

    expected = patient.chat.completions.create(**body(clip(300), max_tokens=40)).choices[0].message.content
    (before,) = processes(REPLICA)
    monkeypatch.setenv("BALSA_API_KEY", KEY)
    same = settings(str(server.models[0].path))
    changed = app(same | {"seed": seed, "engine": same["engine"] | {"device": "cpu"}})

    def update() -> None:
        serve.run(changed, name=APPLICATION, route_prefix="/")

    assert answers(patient, threading.Thread(target=update), unit(seed, "moment", "update")) == [expected] * ASKED
    until(lambda: another(REPLICA, before), seconds=120)
