import asyncio
import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_models import tone
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from balsa_ray.vllm_plugin.media import DataUriConnector, decode_data_uri
from balsa_ray.vllm_plugin.register import MEDIA_CONNECTOR, register

LIMIT = 2**20


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    return "data:audio/wav;base64," + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def connector() -> DataUriConnector:
    register()
    connector = MEDIA_CONNECTOR_REGISTRY.load(MEDIA_CONNECTOR, media_io_kwargs={}, allowed_media_domains=None)
    assert isinstance(connector, DataUriConnector)
    return connector


def test_audio_in_a_data_uri_is_decoded(connector: DataUriConnector) -> None:
    samples, rate = connector.fetch_audio(data_uri(wav(tone(440))))
    assert rate == 16_000
    np.testing.assert_array_equal(samples, tone(440))
    resampled, rate = asyncio.run(connector.fetch_audio_async(data_uri(wav(tone(440, rate=44_100), 44_100))))
    assert (rate, len(resampled)) == (16_000, 16_000)


def test_audio_is_decoded_up_to_what_the_model_hears(
    connector: DataUriConnector, monkeypatch: pytest.MonkeyPatch
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
        ("file:///etc/passwd", "only data: URIs"),
        ("/etc/passwd", "only data: URIs"),
        (" data:audio/wav;base64,AAAA", "only data: URIs"),
        ("ftp://example.com/a.wav", "only data: URIs"),
        ("", "only data: URIs"),
    ],
)
def test_anything_else_is_the_clients_fault(uri: str, message: str) -> None:
    with pytest.raises(VLLMValidationError, match=message) as caught:
        decode_data_uri(uri, LIMIT, 2.0)
    assert len(str(caught.value)) < 200, "the data is not shown"


def test_no_address_is_ever_contacted(connector: DataUriConnector, tmp_path: Path) -> None:
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
