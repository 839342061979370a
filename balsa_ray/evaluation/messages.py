"""Questions as chat messages: a clip becomes an audio part, or its metadata text where the text-only bound is asked."""

import base64
import hashlib
import io
import pickle
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from balsa_ray.audio.decode import Samples, decode
from balsa_ray.audio.reference import opened, parse
from balsa_ray.evaluation.questions import Clip, Question
from balsa_ray.identity import stable_hash
from balsa_ray.prompts.render import STYLES, MetadataStyle, render_metadata, span, user_content

_AS_IT_IS = {".wav": "wav", ".flac": "flac", ".mp3": "mp3", ".ogg": "ogg"}
_RATE = 16_000
_MAX_SECONDS = 600.0  # how much of a file is decoded to cut a slice; what a model takes is the endpoint's to say


@dataclass(frozen=True)
class Span:
    """What stands for one clip in a message.

    Attributes:
        key: Hash of the content: equal content, equal answers.
        content: An `input_audio` part, or text.
    """

    key: str
    content: dict[str, Any] | str


def content_of(clip: Clip, modality: Literal["audio", "metadata"]) -> Hashable:
    """Returns what tells clips apart by what is sent of them: their ids don't, those of two benchmarks may be alike."""
    if modality == "metadata":
        return repr([clip.get(key) for key in ("in_words", *STYLES)])
    audio = clip["audio"]
    where = (audio.get("path"), id(audio.get("bytes"))) if isinstance(audio, dict) else audio
    return where, clip.get("start"), clip.get("duration")


def load_span(clip: Clip, modality: Literal["audio", "metadata"], style: MetadataStyle) -> Span:
    """Reads a clip once and encodes it.

    A whole file in a format of the API is sent byte for byte; a slice, or another format, as 16-bit WAV at 16 kHz. As
    metadata a clip is what its benchmark says in place of it (`in_words`), if it says anything, else its metadata text.

    Raises:
        OSError: If the file can't be read.
        ValueError: If a slice can't be decoded (`AudioError`) or the clip has no metadata of this style.
    """
    if modality == "metadata":
        text = clip["in_words"] if "in_words" in clip else span(render_metadata(clip, style))
        return Span(stable_hash(text), text)
    data, form = _recording(clip)
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode("ascii"), "format": form}}
    return Span(hashlib.sha256(data).hexdigest(), part)


def load_samples(pickled_clip: bytes, max_seconds: float) -> tuple[Samples, int]:
    """Decodes what `load_span` would send, as our endpoint does, to samples and their rate.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it can't be decoded or is longer than `max_seconds` (`AudioError`).
    """
    data, _ = _recording(pickle.loads(pickled_clip))
    return decode(data, sampling_rate=_RATE, max_seconds=max_seconds), _RATE


def request_key(salt: str, contents: Sequence[str], question: Question) -> str:
    """Returns what an answer is stored under.

    Args:
        salt: Hash of who is asked and how.
        contents: Keys of the spans, in order.
        question: Its words count, and nothing else of it.
    """
    words = [question.prompt, question.system] if question.system else [question.prompt]
    return stable_hash(salt, list(contents), *words, length=32)


def conversation(spans: list[Span], question: Question) -> list[dict[str, Any]]:
    """Returns the turns of a question: the system's, if it has one, and the user's."""
    system = [{"role": "system", "content": question.system}] if question.system else []
    return [*system, user_message(spans, question.prompt)]


def user_message(spans: list[Span], prompt: str) -> dict[str, Any]:
    """Returns the user turn: the clips in order, then the prompt."""
    texts = [s.content for s in spans if isinstance(s.content, str)]
    if texts:
        return {"role": "user", "content": user_content(texts, prompt)}
    return {"role": "user", "content": [*(s.content for s in spans), {"type": "text", "text": prompt}]}


def _recording(clip: Clip) -> tuple[bytes, str]:
    """Returns what is sent of a clip, and its format."""
    audio = clip["audio"]
    if isinstance(audio, dict) and audio.get("bytes"):
        data, name = audio["bytes"], audio.get("path") or ""
    else:
        reference = parse(str(audio["path"] if isinstance(audio, dict) else audio))
        with opened(reference) as found:
            data, name = Path(found).read_bytes() if isinstance(found, str) else found.read(), reference.path
        if reference.start or reference.duration:  # a slice of the slice, if the clip has one too
            start = (reference.start or 0.0) + (clip.get("start") or 0.0)
            clip = clip | {"start": start, "duration": clip.get("duration") or reference.duration}
    form = _AS_IT_IS.get(Path(name).suffix.lower())
    if form is None or clip.get("start") or clip.get("duration"):
        return _slice(data, clip), "wav"
    return data, form


def _slice(data: bytes, clip: Clip) -> bytes:
    import numpy as np
    import soundfile

    samples = decode(
        data, start=clip.get("start"), duration=clip.get("duration"), sampling_rate=_RATE, max_seconds=_MAX_SECONDS
    )
    # Rounded by hand: libsndfile scales floats by 32767, which would change 16-bit recordings.
    whole = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    out = io.BytesIO()
    soundfile.write(out, whole, _RATE, subtype="PCM_16", format="WAV")
    return out.getvalue()
