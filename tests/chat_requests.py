"""Chat requests with clips, as the tests of the endpoint send them."""

import base64
import io
from dataclasses import dataclass, field
from typing import Any

import httpx
import soundfile
from tiny_models import tone

KEY = "the-right-key"
PATIENT = httpx.Timeout(120)
# Addresses of nobody in particular, public by their numbers; in the tests' replica they lead to the bystander.
PUBLIC = ("93.184.215.14", "93.184.215.15")
REDIRECTING = "redirecting.test"
# Names, and what they resolve to: first this, then that.
NAMES = {
    "rebinding.test": [[PUBLIC[0]], ["127.0.0.1"]],
    "half.test": [[PUBLIC[0], "127.0.0.1"]],
    "loopback.test": [["127.0.0.1"]],
    "link-local.test": [["169.254.169.254"]],
    "private.test": [["10.0.0.5"]],
    "six.test": [["::1"]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    REDIRECTING: [[PUBLIC[1]]],
}


def settings(model: str) -> dict[str, Any]:
    """Of a server of a tiny model, on two cores; its queue is short."""
    engine = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 8, "max_clips": 2}
    return {"model": model, "max_waiting": 4, "max_body_mb": 8, "playground": True, "engine": engine}


def wav(frequency: float) -> str:
    """A second of a tone as a WAV file, in base64."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(frequency), 16_000, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()


def audio(data: str, form: str = "wav") -> dict[str, Any]:
    """A part of a message: a file in base64."""
    return {"type": "input_audio", "input_audio": {"data": data, "format": form}}


def clip(frequency: float) -> dict[str, Any]:
    """A part of a message: a tone."""
    return audio(wav(frequency))


def url(address: str) -> dict[str, Any]:
    """A part of a message: an address of audio."""
    return {"type": "audio_url", "audio_url": {"url": address}}


def body(*parts: Any, **settings: Any) -> dict[str, Any]:
    """A request of these parts and a question; settings replace what stands in it."""
    question = {"type": "text", "text": "What do you hear?"}
    message = {"role": "user", "content": [*parts, question]}
    return {"model": "balsa", "messages": [message], "max_tokens": 8, "temperature": 0, **settings}


@dataclass
class Bystander:
    """A web server on this machine that must never be asked."""

    port: int = 0
    asked: list[str] = field(default_factory=list)
