"""Any audio file or bytes → mono float32 at the rate the model wants, with an error that says what is wrong."""

import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from balsa_ray.audio.ffmpeg import FFmpegFile
from balsa_ray.audio.reference import Reference, opened, parse
from balsa_ray.storage import is_uri

Samples = npt.NDArray[np.float32]

# A header may promise any rate; beyond these bounds it is not audio, and a block of one second would not fit memory.
LOWEST_RATE, HIGHEST_RATE = 1_000, 384_000
MOST_CHANNELS = 32

SILENCE = 1e-4
"""Peak below which a recording holds nothing: -80 dB of full scale, three steps of 16 bits."""
FULL_SCALE = 0.999
CLIPPED_SHARE = 0.5
"""Of samples at full scale: loud music has a few in a hundred, a recording clipped throughout more than half."""

Decoder: TypeAlias = soundfile.SoundFile | FFmpegFile
AudioCheck = Literal["full", "header", "none"]


class AudioError(ValueError):
    """A recording that can't be used; the message says why, without its content."""


def decode(
    source: str | Path | bytes,
    *,
    start: float | None = None,
    duration: float | None = None,
    sampling_rate: int = 16_000,
    max_seconds: float = 30.0,
    max_decoded_bytes: float = math.inf,
    max_decode_seconds: float = math.inf,
) -> Samples:
    """Decodes a recording, or a slice of it.

    The header is checked before anything is decoded, and decoding stops at `max_seconds`, whatever the header said.

    Args:
        source: A path, a URI or a reference (`audio/reference.py`) to a file that libsndfile or FFmpeg reads; or the
            file's bytes, which may come from a stranger and are given to libsndfile alone (WAV, FLAC, Ogg, MP3, …).
        start: Seconds to skip (default: what the reference says).
        duration: Seconds to keep (default: what the reference says, or to the end).
        sampling_rate: Of the result, in Hz.
        max_seconds: Longest result.
        max_decoded_bytes: Most that it may decode to, as float32 of all channels at the recording's own rate: a small
            file may hold many channels of silence at a high rate.
        max_decode_seconds: Longest time to spend; looked at after each second of the recording.

    Returns:
        Samples `[n]`, mean over channels.

    Raises:
        AudioError: If the recording can't be read, is empty, beyond one of the limits, or has NaN or infinite samples.
    """
    deadline = time.monotonic() + max_decode_seconds
    with _open(source) as (file, name, reference):
        start = reference.start if start is None else start
        duration = reference.duration if duration is None else duration
        samples = _read(file, name, start or 0.0, duration, max_seconds, max_decoded_bytes, deadline)
        rate = file.samplerate
    return resample(samples, rate, sampling_rate, name)


def decode_with_seconds(source: str, *, sampling_rate: int, max_seconds: float) -> tuple[Samples, float]:
    """Decodes a recording as `decode` does, and also returns its length by the header, as `seconds_of` does.

    The two may differ by some milliseconds (resampling, an encoder's padding), and by more where a header is wrong.
    """
    with _open(source) as (file, name, reference):
        start, rate = reference.start or 0.0, file.samplerate
        seconds = _seconds(file, name, start, reference.duration)
        samples = _read(file, name, start, reference.duration, max_seconds)
    return resample(samples, rate, sampling_rate, name), seconds


def seconds_of(source: str | Path) -> float:
    """Returns the length of a recording, or of the slice that its reference names, from its header.

    Raises:
        AudioError: If the recording can't be read.
    """
    with _open(source) as (file, name, reference):
        return _seconds(file, name, reference.start or 0.0, reference.duration)


def check_audio(source: str | Path, how: AudioCheck, max_seconds: float = 30.0) -> None:
    """Finds out whether a recording is fit to be heard.

    Args:
        source: A path, a URI or a reference.
        how: `header` opens it and looks at its rate and length; `full` also decodes it and looks at the samples;
            `none` does nothing.
        max_seconds: Longest recording, or slice where the reference names one.

    Raises:
        AudioError: If it can't be read, has no samples, is longer than `max_seconds`, or, with `full`, has NaN samples,
            is silent throughout or clipped throughout.
    """
    if how == "none":
        return
    with _open(source) as (file, name, reference):
        start, duration = reference.start or 0.0, reference.duration
        if how == "header":
            seconds = _seconds(file, name, start, duration)
            if file.frames == 0:
                # Streams and browsers write no length: whether there is sound shows the first block.
                if len(file.read(round(file.samplerate * min(1.0, max_seconds)))) == 0:
                    raise AudioError(f"{name}: empty, no samples")
                return
            if seconds <= 0:
                raise AudioError(f"{name}: empty, no samples")
            if _exceeds(seconds, max_seconds):
                raise _too_long(name, seconds, max_seconds)
            return
        samples = _read(file, name, start, duration, max_seconds)
    peaks = np.abs(resample(samples, 1, 1, name))
    if peaks.max() < SILENCE:
        raise AudioError(f"{name}: silent throughout")
    if (peaks >= FULL_SCALE).mean() > CLIPPED_SHARE:
        raise AudioError(f"{name}: clipped throughout")


def resample(samples: npt.NDArray[Any], rate: float, sampling_rate: int, name: str = "audio") -> Samples:
    """Checks mono samples and brings them to another rate.

    Args:
        samples: `[n]`, any real dtype, full scale ±1.
        rate: Their rate in Hz.
        sampling_rate: The wanted rate in Hz.
        name: Named in the error.

    Raises:
        AudioError: If there are no samples, or NaN or infinite ones.
    """
    if samples.size == 0:
        raise AudioError(f"{name}: empty, no samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: has NaN or infinite samples")
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate)
    return np.ascontiguousarray(samples, dtype=np.float32)


@contextmanager
def _open(source: str | Path | bytes) -> Iterator[tuple[Decoder, str, Reference]]:
    """Opens a recording and says what to call it in errors; whatever goes wrong inside is an `AudioError`."""
    name = "audio" if isinstance(source, bytes) else str(source)
    reference = Reference("") if isinstance(source, bytes) else parse(name)
    try:
        if isinstance(source, bytes):
            with soundfile.SoundFile(io.BytesIO(source)) as file:
                yield file, name, reference
        else:
            if not is_uri(reference.path) and not Path(reference.path).exists():
                raise AudioError(f"{name}: no such file")
            with opened(reference) as stream, _decoder(stream) as file:
                yield file, name, reference
    except AudioError:
        raise
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError, RuntimeError) as error:
        # The last three: a file without a header (.raw), a name with a NUL, links that lead to each other.
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
        raise AudioError(f"{name}: not readable as audio ({reason})") from error


def _decoder(stream: str | IO[bytes]) -> Decoder:
    """Opens a stream with libsndfile, else with FFmpeg; if neither can, the former's reason is the better one."""
    try:
        return soundfile.SoundFile(stream)
    except soundfile.LibsndfileError as error:
        if not isinstance(stream, str):
            stream.seek(0)
        try:
            return FFmpegFile(stream)
        except OSError:
            raise error from None


def _seconds(file: Decoder, name: str, start: float, duration: float | None) -> float:
    """Returns the length of a slice by the header, which is checked."""
    rate, channels = file.samplerate, file.channels
    if not LOWEST_RATE <= rate <= HIGHEST_RATE or channels > MOST_CHANNELS:
        raise AudioError(f"{name}: {channels} channels at {rate} Hz is not supported")
    whole = file.frames / rate
    if file.frames > 0 and start >= whole:
        raise AudioError(f"{name}: starts at {start:g} s, but the recording has {whole:.2f} s")
    return whole - start if duration is None else duration


def _exceeds(seconds: float, most: float) -> bool:
    """Whether a length is too long; a slice's is the difference of two numbers, and may be off in its last digits."""
    return seconds > most + 1e-4


def _too_long(name: str, seconds: float, max_seconds: float) -> AudioError:
    return AudioError(f"{name}: {seconds:.1f} s, the model reads at most {max_seconds:g} s")


def _too_much(name: str, max_decoded_bytes: float) -> AudioError:
    return AudioError(f"{name}: decodes to more than {max_decoded_bytes / 2**20:g} MiB; lower its rate or channels")


def _read(
    file: Decoder,
    name: str,
    start: float,
    duration: float | None,
    max_seconds: float,
    max_decoded_bytes: float = math.inf,
    deadline: float = math.inf,
) -> Samples:
    """Reads a slice as the mean over channels, a second at a time so that a false header can't fill the memory."""
    wanted, rate = _seconds(file, name, start, duration), file.samplerate
    if _exceeds(wanted, max_seconds):
        raise _too_long(name, wanted, max_seconds)
    frame_bytes = np.dtype(np.float32).itemsize * file.channels
    if wanted * rate * frame_bytes > max_decoded_bytes:
        raise _too_much(name, max_decoded_bytes)
    if start:
        file.seek(round(start * rate))
    most = round(max_seconds * rate) if duration is None else round(duration * rate)
    blocks, read = [], 0
    while read < most and len(block := file.read(min(rate, most - read), dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1))
        read += len(block)
        if read * frame_bytes > max_decoded_bytes:  # the header said less, or nothing
            raise _too_much(name, max_decoded_bytes)
        if time.monotonic() > deadline:
            raise AudioError(f"{name}: takes too long to decode")
    if duration is None and len(file.read(1)):
        raise AudioError(f"{name}: longer than its header says, and than the {max_seconds:g} s that the model reads")
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)
