"""A labelled manifest and an OpenAI-compatible endpoint whose behaviour a test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

LABELS = [
    ["rain", "wind"],
    ["rain", "siren"],
    ["siren"],
    ["church bell", "rain"],
    ["bicycle bell"],
    ["church bell", "wind", "rain"],
    ["typing", "clock ticking"],
    ["flute"],
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Eight clips of a tenth of a second, each with a frequency of its own."""
    path = tmp_path / "clips.jsonl"
    with path.open("w") as file:
        for index, labels in enumerate(LABELS):
            samples = 0.5 * np.sin(2 * np.pi * (200 + 50 * index) * np.arange(1600) / 16_000)
            soundfile.write(tmp_path / f"{index}.flac", samples, 16_000)
            file.write(json.dumps({"id": f"clip-{index}", "audio": f"{index}.flac", "tags": labels}) + "\n")
    return path


Reply = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body; None closes the connection without a word."""


@dataclass
class StubEndpoint:
    """An endpoint on this machine.

    Attributes:
        respond: From a request body to the reply.
        requests: Bodies of all chat requests so far.
        models: Names that it lists.
        key: Token that it wants, if any.
    """

    respond: Callable[[dict[str, Any]], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    models: list[str] = field(default_factory=lambda: ["stub"])
    key: str | None = None
    url: str = ""

    @staticmethod
    def says(text: str) -> Reply:
        """A chat completion with this text."""
        return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()

    def prompts(self) -> list[str]:
        """The prompts that were asked."""
        return [text_of(request) for request in self.requests]


def text_of(request: dict[str, Any]) -> str:
    """The text of a request's only message."""
    content = request["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.fixture
def stub() -> Iterator[StubEndpoint]:
    """A stub that says "Yes." to everything until told otherwise."""
    endpoint = StubEndpoint(lambda _: StubEndpoint.says("Yes."))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are written apart, which else costs 40 ms a reply

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if endpoint.key and self.headers.get("Authorization") != f"Bearer {endpoint.key}":
                return self._send((401, {}, b'{"error": {"message": "who are you?"}}'))
            cards = [{"id": name, "metadata": {"fingerprint": f"weights-of-{name}"}} for name in endpoint.models]
            return self._send((200, {}, json.dumps({"data": cards}).encode()))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.requests.append(body)
            self._send(endpoint.respond(body))

        def _send(self, reply: Reply) -> None:
            if reply is None:
                self.close_connection = True
                return
            status, headers, body = reply
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # of 5, Linux lets connections beyond it hang for up to a minute

    server = Server(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield endpoint
    server.shutdown()
    server.server_close()
