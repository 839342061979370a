"""A server of the tiny model, started once for all tests of this folder."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import openai
import pytest
from chat_requests import KEY, PATIENT, Bystander, settings

from balsa_ray.serving.config import ServeConfig
from balsa_ray.serving.server import Server, start


@pytest.fixture(scope="package")
def server(ray_session: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    output = tmp_path_factory.mktemp("serving")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BALSA_API_KEY", KEY)
        running = start(ServeConfig.model_validate(settings(str(tiny_model)) | {"output": output, "port": 0}))
    yield running
    running.stop()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{running.url}/healthz", timeout=PATIENT)


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, timeout=120, max_retries=0) as client:
        yield client


@pytest.fixture
def bystander() -> Iterator[Bystander]:
    seen = Bystander()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    web = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    seen.port = web.server_port
    yield seen
    web.shutdown()
    web.server_close()
