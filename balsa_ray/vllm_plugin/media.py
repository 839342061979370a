"""Where audio in a chat message may come from: the message itself, and hosts that the server's owner has named.

vLLM's own connector fetches any http(s) URL unless told otherwise, follows redirects, and needs PyAV for what
libsndfile can't open. This one takes `data:` URIs (`input_audio` parts are turned into them by vLLM), and URLs of the
named hosts by the rules of `fetch.py`; no request of a client can make the server open another connection, or a file.
"""

import asyncio
import base64
import binascii
import hashlib
import os
from collections.abc import Callable
from threading import Lock
from typing import Any

from cachetools import LRUCache, cached
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaConnector
from vllm.multimodal.media.audio import AudioMediaIO
from vllm.multimodal.media.connector import global_thread_pool

from balsa_ray.audio.decode import AudioError, Samples, decode
from balsa_ray.model.configuration import MAX_AUDIO_SECONDS
from balsa_ray.vllm_plugin.fetch import FetchError, allowed_host, fetch
from balsa_ray.vllm_plugin.register import AUDIO_HOSTS, MAX_SECONDS

# Every Whisper encoder hears 16 kHz; another rate would be resampled once more behind this.
SAMPLING_RATE = 16_000
# Of one clip. 300 s of stereo at 96 kHz are 220 MiB; a minute decodes in 50 ms on an idle core.
MAX_DECODED_BYTES = 2**28
MAX_DECODE_SECONDS = 10.0
FETCH_SECONDS = 10.0
# Of clips that are kept in case more is asked about them: 70 minutes.
KEPT_BYTES = 2**28

listeners: list[Callable[[float], None]] = []
"""Called with the seconds of each clip of a request."""

# A client may name 25 MiB with a few bytes: so many files at once lie in memory, or are waited for, and no more.
FETCHES = 16
_fetches = asyncio.Semaphore(FETCHES)


class AudioConnector(MediaConnector):
    """Decodes audio out of `data:…;base64,…` URIs and at URLs of allowed hosts. Refuses every other medium."""

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """Returns samples `[n]` and their rate.

        Raises:
            VLLMValidationError: If the URL is of another kind, or not one of readable audio (an HTTP 400).
        """
        max_bytes = _max_bytes(media_io)
        if _is_data(url):
            return decode_data_uri(url, max_bytes, _max_seconds()), SAMPLING_RATE
        samples = _decode(asyncio.run(_fetch(url, max_bytes, fetch_timeout)), _max_seconds())
        _tell(samples)
        return samples, SAMPLING_RATE

    async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """Does the same; it decodes in vLLM's bounded pool of media threads, and no thread waits for a host."""
        loop, max_bytes = asyncio.get_running_loop(), _max_bytes(media_io)
        if _is_data(url):
            return await loop.run_in_executor(global_thread_pool, self.load_from_url, url, media_io)
        async with _fetches:
            data = await _fetch(url, max_bytes, fetch_timeout)
            samples = await loop.run_in_executor(global_thread_pool, _decode, data, _max_seconds())
        _tell(samples)
        return samples, SAMPLING_RATE


def decode_data_uri(uri: str, max_bytes: int, max_seconds: float) -> Samples:
    """Decodes the audio of a data URI (RFC 2397) to 16 kHz mono.

    Args:
        uri: `data:audio/wav;base64,…`. The media type is not looked at; the file's own header is.
        max_bytes: Largest file.
        max_seconds: Longest recording: a small file may hold hours.

    Raises:
        VLLMValidationError: If it is not base64, too large, or not readable as audio. Never shows the data.
    """
    header, _, payload = uri[5:].partition(",")
    if not header.lower().endswith(";base64"):
        raise VLLMValidationError("only base64 data: URIs are accepted", parameter="audio_url")
    # Before decoding: four characters carry three bytes.
    if len(payload) * 3 // 4 > max_bytes:
        raise VLLMValidationError(f"audio file larger than {max_bytes / 2**20:g} MiB", parameter="audio")
    samples = _decode_base64(payload, max_seconds)
    _tell(samples)
    return samples


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _max_bytes(media_io: Any) -> int:
    if not isinstance(media_io, AudioMediaIO):
        raise VLLMValidationError("this model hears audio; it takes no images and no video", parameter="content")
    return int(media_io.get_max_bytes())


def _max_seconds() -> float:
    return float(os.environ.get(MAX_SECONDS, MAX_AUDIO_SECONDS))


async def _fetch(url: str, max_bytes: int, seconds: float | None) -> bytes:
    hosts = {allowed_host(entry) for entry in os.environ.get(AUDIO_HOSTS, "").split(",") if entry}
    if not hosts:
        raise VLLMValidationError(
            "only data: URIs are accepted as audio here, and no URL of a host (allowed_audio_hosts)",
            parameter="audio_url",
        )
    try:
        return await fetch(url, hosts, max_bytes=max_bytes, seconds=seconds or FETCH_SECONDS)
    except FetchError as error:
        raise VLLMValidationError(f"audio_url: {error}", parameter="audio_url") from error


# By what was sent, and never by a name that a client gives it.
@cached(
    LRUCache(KEPT_BYTES, getsizeof=lambda samples: samples.nbytes),
    key=lambda payload, max_seconds: (hashlib.sha256(payload.encode("utf-8", "replace")).digest(), max_seconds),
    lock=Lock(),
)
def _decode_base64(payload: str, max_seconds: float) -> Samples:
    try:
        samples = _decode(base64.b64decode(payload, validate=True), max_seconds)
    except binascii.Error as error:
        raise VLLMValidationError(f"audio is not valid base64: {error}", parameter="audio") from error
    samples.setflags(write=False)
    return samples


def _decode(data: bytes, max_seconds: float) -> Samples:
    try:
        return decode(
            data,
            sampling_rate=SAMPLING_RATE,
            max_seconds=max_seconds,
            max_decoded_bytes=MAX_DECODED_BYTES,
            max_decode_seconds=MAX_DECODE_SECONDS,
        )
    except AudioError as error:
        raise VLLMValidationError(str(error), parameter="audio") from error


def _tell(samples: Samples) -> None:
    for listener in listeners:
        listener(len(samples) / SAMPLING_RATE)
