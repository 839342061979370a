"""A server of the tiny model, started once for all tests of this folder."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from chat_requests import KEY, NAMES, PATIENT, PUBLIC, REDIRECTING, Bystander, body, clip, settings

from balsa_ray.serving import server as module
from balsa_ray.serving.config import ServeConfig
from balsa_ray.serving.server import Server, start

LONG = 150
"""Tokens of a reply that takes a moment."""


@pytest.fixture(scope="package")
def contacted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the addresses that the replica has connected to."""
    return tmp_path_factory.mktemp("contacted") / "addresses"


@pytest.fixture(scope="package")
def server(
    ray_session: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, web: Bystander, contacted: Path
) -> Iterator[Server]:
    """The server; it may fetch from hosts whose addresses are told by a resolver that lies (`resolver/`)."""
    output = tmp_path_factory.mktemp("serving")
    names = output / "names.json"
    routes = dict.fromkeys(PUBLIC, web.port)
    names.write_text(json.dumps({"names": NAMES, "routes": routes, "log": str(contacted)}))
    lies = {
        "NAMES_OF_TESTS": str(names),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "resolver"), os.environ.get("PYTHONPATH", "")]),
        "RAYLLM_VLLM_ENGINE_CLS": "lying_resolver.LyingEngine",
    }
    made = module.engine_settings

    def lied_to(*arguments: Any) -> dict[str, Any]:
        wanted = made(*arguments)
        wanted["runtime_env"]["env_vars"] |= lies
        return wanted

    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("BALSA_API_KEY", KEY)
        changed.setattr(module, "engine_settings", lied_to)
        allowed = [f"{name}:{web.port}" for name in NAMES]
        keys = {"output": output, "port": 0, "allowed_audio_hosts": allowed}
        running = start(ServeConfig.model_validate(settings(str(tiny_model)) | keys))
    yield running
    told = replies_while_it_stops(running)
    assert told == [LONG] * len(told), "who was being answered got all of the answer"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{running.url}/healthz", timeout=PATIENT)


def replies_while_it_stops(running: Server) -> list[int]:
    """Tokens of replies that have begun when the server is told to stop; who asks meanwhile is told to try again."""
    url = f"{running.url}/v1"
    with openai.OpenAI(base_url=url, api_key=KEY, timeout=120, max_retries=0) as client, ThreadPoolExecutor(9) as pool:
        settings = {"max_tokens": LONG, "stream": True, "stream_options": {"include_usage": True}}
        wanted = body(clip(300), **settings) | {"extra_body": {"ignore_eos": True}}
        streams = [client.chat.completions.create(**wanted) for _ in range(8)]

        def tokens(stream: Any) -> int:
            return [chunk.usage for chunk in stream][-1].completion_tokens

        def ask_until_it_is_gone() -> set[int]:
            told, key = set[int](), {"Authorization": f"Bearer {KEY}"}
            with contextlib.suppress(httpx.TransportError):
                while True:
                    told.add(httpx.get(f"{url}/models", headers=key, timeout=30).status_code)
                    time.sleep(0.05)
            return told

        counted = [pool.submit(tokens, stream) for stream in streams]
        asked = pool.submit(ask_until_it_is_gone)
        running.stop()
        assert asked.result() <= {200, 503}
        return [count.result() for count in counted]


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, timeout=120, max_retries=0) as client:
        yield client


@pytest.fixture
def bystander(web: Bystander) -> Bystander:
    """The web server, which nobody has asked yet."""
    web.asked.clear()
    return web


@pytest.fixture(scope="package")
def web() -> Iterator[Bystander]:
    """A web server on this machine. As REDIRECTING it sends its visitors to where they ask to be sent."""
    seen = Bystander()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Host"].startswith(REDIRECTING):
                self.send_response(302)
                self.send_header("Location", self.path.partition("?to=")[2])
                self.end_headers()
                return
            seen.asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    seen.port = listening.server_port
    yield seen
    listening.shutdown()
    listening.server_close()
