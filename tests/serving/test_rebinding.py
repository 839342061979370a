"""Hosts that the server may fetch from, but whose names come to point into its own network: it never goes there."""

from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from chat_requests import KEY, NAMES, PATIENT, PUBLIC, REDIRECTING, Bystander, body, url

from balsa_ray.serving.server import Server

pytestmark = pytest.mark.slow


def asked(server: Server, address: str) -> str:
    """What the server says of audio at this address; it has to refuse."""
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body(url(address)), headers=headers, timeout=PATIENT)
    assert answer.status_code == 400, answer.text
    message: str = answer.json()["error"]["message"]
    assert "127.0.0.1" not in message.replace(address, "")
    return message


@pytest.fixture
def connections(contacted: Path, bystander: Bystander) -> "Connections":
    return Connections(contacted, bystander.port)


class Connections:
    """Which of the addresses that names resolve to were connected to since this was made."""

    def __init__(self, file: Path, port: int) -> None:
        self._file, self._port, self._before = file, str(port), len(self._lines(file))

    @staticmethod
    def _lines(file: Path) -> list[str]:
        return file.read_text().splitlines() if file.exists() else []

    def made(self) -> list[str]:
        lines = [line.rpartition(" ") for line in self._lines(self._file)[self._before :]]
        return [address for address, _, port in lines if port == self._port]


def test_a_name_that_turns_to_this_machine_is_not_followed(
    server: Server, bystander: Bystander, connections: Connections
) -> None:
    address = f"http://rebinding.test:{bystander.port}/clip.wav"
    assert "status 404" in asked(server, address)  # at its public address, which the tests lead to the bystander
    assert bystander.asked == ["/clip.wav"]
    assert connections.made() == [PUBLIC[0]]
    assert "no public address" in asked(server, address)
    assert bystander.asked == ["/clip.wav"]
    assert connections.made() == [PUBLIC[0]]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("rebinding.test", REDIRECTING)])
def test_a_name_of_an_inner_address_is_not_connected_to(
    server: Server, bystander: Bystander, connections: Connections, name: str
) -> None:
    assert "no public address" in asked(server, f"http://{name}:{bystander.port}/clip.wav")
    assert connections.made() == []
    assert bystander.asked == []


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/inside",
        "http://loopback.test:{port}/inside",
        "http://elsewhere.test:{port}/inside",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "//127.0.0.1:{port}/inside",
    ],
)
def test_a_redirect_is_checked_like_the_first_address(
    server: Server, bystander: Bystander, connections: Connections, target: str
) -> None:
    to = quote(target.format(port=bystander.port), safe=":/")
    asked(server, f"http://{REDIRECTING}:{bystander.port}/clip.wav?to={to}")
    assert connections.made() == [PUBLIC[1]]
    assert bystander.asked == []


def test_redirects_have_an_end(server: Server, bystander: Bystander, connections: Connections) -> None:
    here = f"http://{REDIRECTING}:{bystander.port}/clip.wav?to=?to=?to=?to=?to=?to=?to="
    assert "redirects" in asked(server, here)
    assert connections.made() == [PUBLIC[1]] * 4
