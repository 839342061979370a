import asyncio
import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny_models import tone
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from balsa_ray.vllm_plugin import media
from balsa_ray.vllm_plugin.fetch import FetchError
from balsa_ray.vllm_plugin.media import AudioConnector, decode_data_uri
from balsa_ray.vllm_plugin.register import AUDIO_HOSTS, MEDIA_CONNECTOR, register

LIMIT = 2**20


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    return "data:audio/wav;base64," + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def connector() -> AudioConnector:
    register()
    connector = MEDIA_CONNECTOR_REGISTRY.load(MEDIA_CONNECTOR, media_io_kwargs={}, allowed_media_domains=None)
    assert isinstance(connector, AudioConnector)
    return connector


def test_audio_in_a_data_uri_is_decoded(connector: AudioConnector) -> None:
    samples, rate = connector.fetch_audio(data_uri(wav(tone(440))))
    assert rate == 16_000
    np.testing.assert_array_equal(samples, tone(440))
    resampled, rate = asyncio.run(connector.fetch_audio_async(data_uri(wav(tone(440, rate=44_100), 44_100))))
    assert (rate, len(resampled)) == (16_000, 16_000)


def test_audio_is_decoded_up_to_what_the_model_hears(
    connector: AudioConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = data_uri(wav(tone(440, 40, rate=1_000), 1_000))
    assert len(connector.fetch_audio(long)[0]) == 40 * 16_000
    monkeypatch.setenv("BALSA_MAX_AUDIO_SECONDS", "30")
    with pytest.raises(VLLMValidationError, match=r"40\.0 s, the model reads at most 30 s"):
        connector.fetch_audio(long)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (data_uri(b"this is text, not audio"), "not readable as audio"),
        (data_uri(b""), "not readable as audio"),
        (data_uri(wav(np.full(400, np.nan, np.float32))), "NaN"),
        (data_uri(wav(np.zeros(0, np.float32))), "no samples"),
        ("data:audio/wav;base64,@@@@", "not valid base64"),
        ("data:audio/wav;base64,QUJ", "not valid base64"),
        ("data:audio/wav,plain", "only base64"),
        ("data:", "only base64"),
        (data_uri(bytes(LIMIT + 10)), "larger than 1 MiB"),
        (data_uri(wav(tone(440, 2.5))), r"2\.5 s, the model reads at most 2 s"),
    ],
)
def test_anything_else_is_the_clients_fault(uri: str, message: str) -> None:
    with pytest.raises(VLLMValidationError, match=message) as caught:
        decode_data_uri(uri, LIMIT, 2.0)
    assert len(str(caught.value)) < 200, "the data is not shown"


@pytest.mark.parametrize("hosts", ["", "audio.example"])
@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "/etc/passwd", " data:audio/wav;base64,AAAA", "ftp://example.com/a.wav", "http://h/", ""],
)
def test_other_urls_are_refused(
    connector: AudioConnector, monkeypatch: pytest.MonkeyPatch, url: str, hosts: str
) -> None:
    monkeypatch.setenv(AUDIO_HOSTS, hosts)
    for load in (connector.fetch_audio, lambda url: asyncio.run(connector.fetch_audio_async(url))):
        with pytest.raises(VLLMValidationError, match=r"audio_url: the |only data: URIs are accepted"):
            load(url)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Hosts are allowed, and instead of fetching from them `body` is returned (or raised) after `wait` seconds."""
    state: dict[str, Any] = {"body": wav(tone(440)), "wait": 0.0, "now": 0, "most": 0}

    async def fetch(url: str, hosts: set[str], **limits: float) -> bytes:
        state.update(limits, url=url, hosts=hosts, now=state["now"] + 1)
        state["most"] = max(state["most"], state["now"])
        await asyncio.sleep(state["wait"])
        state["now"] -= 1
        if isinstance(state["body"], Exception):
            raise state["body"]
        return state["body"]

    monkeypatch.setenv(AUDIO_HOSTS, "audio.example,other.example:8080")
    monkeypatch.setattr(media, "fetch", fetch)
    return state


def test_audio_of_an_allowed_host_is_decoded(connector: AudioConnector, fetched: dict[str, Any]) -> None:
    for load in (connector.fetch_audio, lambda url: asyncio.run(connector.fetch_audio_async(url))):
        samples, rate = load("https://audio.example/a.wav")
        assert rate == 16_000
        np.testing.assert_array_equal(samples, tone(440))
        assert fetched["hosts"] == {"audio.example", "other.example:8080"}
        assert (fetched["max_bytes"], fetched["seconds"]) == (25 * 2**20, 10), "vLLM's own limits"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (FetchError("the host answered with status 404"), "audio_url: the host answered with status 404"),
        (b"this is text, not audio", "not readable as audio"),
        (wav(tone(440, 301, rate=1_000), 1_000), "the model reads at most 300 s"),
    ],
)
def test_what_is_wrong_with_a_url_is_the_clients_fault(
    connector: AudioConnector, fetched: dict[str, Any], body: bytes | Exception, message: str
) -> None:
    fetched["body"] = body
    for load in (connector.fetch_audio, lambda url: asyncio.run(connector.fetch_audio_async(url))):
        with pytest.raises(VLLMValidationError, match=message):
            load("https://audio.example/a.wav")


def test_no_more_than_some_files_are_in_memory_at_once(connector: AudioConnector, fetched: dict[str, Any]) -> None:
    fetched["wait"] = 0.02

    async def many() -> list[Any]:
        return await asyncio.gather(*(connector.fetch_audio_async("http://audio.example/") for _ in range(40)))

    assert len(asyncio.run(many())) == 40
    assert fetched["most"] == 16


def test_a_small_file_of_much_silence_is_not_decoded() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((192_000 * 50, 8), np.int16), 192_000, format="FLAC", subtype="PCM_16")
    assert len(buffer.getvalue()) < LIMIT
    with pytest.raises(VLLMValidationError, match="decodes to more than 256 MiB"):
        decode_data_uri(data_uri(buffer.getvalue()), LIMIT, 300.0)


def test_decoding_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_DECODE_SECONDS", 0.0)
    with pytest.raises(VLLMValidationError, match="takes too long"):
        decode_data_uri(data_uri(wav(tone(440))), LIMIT, 2.0)


def test_no_address_is_ever_contacted_unless_allowed(connector: AudioConnector) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/clip.wav"
        for fetch in (connector.fetch_audio, connector.fetch_image, connector.fetch_video):
            with pytest.raises(VLLMValidationError):
                fetch(url)
        with pytest.raises(VLLMValidationError):
            asyncio.run(connector.fetch_audio_async(url))
        server.shutdown()
    assert asked == []
