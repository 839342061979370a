"""Where audio in a chat message may come from: the message itself.

vLLM's own connector fetches any http(s) URL unless told otherwise, follows redirects, and needs PyAV for what
libsndfile can't open. This one takes `data:` URIs (`input_audio` parts are turned into them by vLLM) and nothing else,
so no request of a client can make the server open a connection or a file.
"""

import asyncio
import base64
import binascii
import os
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaConnector
from vllm.multimodal.media.audio import AudioMediaIO
from vllm.multimodal.media.connector import global_thread_pool

from balsa_ray.audio.decode import AudioError, Samples, decode
from balsa_ray.model.configuration import MAX_AUDIO_SECONDS
from balsa_ray.vllm_plugin.register import MAX_SECONDS

# Every Whisper encoder hears 16 kHz; another rate would be resampled once more behind this.
SAMPLING_RATE = 16_000


class DataUriConnector(MediaConnector):
    """Decodes audio out of `data:…;base64,…` URIs. Refuses every other URL, and every other medium."""

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """Returns samples `[n]` and their rate.

        Raises:
            VLLMValidationError: If the URL is not a data URI of readable audio (an HTTP 400).
        """
        if not isinstance(media_io, AudioMediaIO):
            raise VLLMValidationError("this model hears audio; it takes no images and no video", parameter="content")
        max_seconds = float(os.environ.get(MAX_SECONDS, MAX_AUDIO_SECONDS))
        return decode_data_uri(url, media_io.get_max_bytes(), max_seconds), SAMPLING_RATE

    async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """Does the same in vLLM's bounded pool of media threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(global_thread_pool, self.load_from_url, url, media_io)


def decode_data_uri(uri: str, max_bytes: int, max_seconds: float) -> Samples:
    """Decodes the audio of a data URI (RFC 2397) to 16 kHz mono.

    Args:
        uri: `data:audio/wav;base64,…`. The media type is not looked at; the file's own header is.
        max_bytes: Largest file.
        max_seconds: Longest recording: a small file may hold hours.

    Raises:
        VLLMValidationError: If it is something else, too large, or not readable as audio. Never shows the data.
    """
    if uri[:5].lower() != "data:":
        raise VLLMValidationError("only data: URIs are accepted as audio", parameter="audio_url")
    header, _, payload = uri[5:].partition(",")
    if not header.lower().endswith(";base64"):
        raise VLLMValidationError("only base64 data: URIs are accepted", parameter="audio_url")
    # Before decoding: four characters carry three bytes.
    if len(payload) * 3 // 4 > max_bytes:
        raise VLLMValidationError(f"audio file larger than {max_bytes / 2**20:g} MiB", parameter="audio")
    try:
        return decode(base64.b64decode(payload, validate=True), sampling_rate=SAMPLING_RATE, max_seconds=max_seconds)
    except binascii.Error as error:
        raise VLLMValidationError(f"audio is not valid base64: {error}", parameter="audio") from error
    except AudioError as error:
        raise VLLMValidationError(str(error), parameter="audio") from error
