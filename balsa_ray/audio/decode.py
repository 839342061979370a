"""Any audio file or bytes → mono float32 at the rate the model wants, with an error that says what is wrong."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Samples = npt.NDArray[np.float32]

# A header may promise any rate; beyond these bounds it is not audio, and a block of one second would not fit memory.
LOWEST_RATE, HIGHEST_RATE = 1_000, 384_000
MOST_CHANNELS = 32


class AudioError(ValueError):
    """A recording that can't be used; the message says why, without its content."""


def decode(
    source: str | Path | bytes,
    *,
    start: float | None = None,
    duration: float | None = None,
    sampling_rate: int = 16_000,
    max_seconds: float = 30.0,
) -> Samples:
    """Decodes a recording, or a slice of it.

    The header is checked before anything is decoded, and decoding stops at `max_seconds`, whatever the header said.

    Args:
        source: A path, or the file's bytes. WAV, FLAC, Ogg, MP3 and whatever else libsndfile reads.
        start: Seconds to skip.
        duration: Seconds to keep (default: to the end).
        sampling_rate: Of the result, in Hz.
        max_seconds: Longest result.

    Returns:
        Samples `[n]`, mean over channels.

    Raises:
        AudioError: If the recording can't be read, is empty, longer than `max_seconds`, or has NaN or infinite samples.
    """
    name = "audio" if isinstance(source, bytes) else str(source)
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            samples, rate = _read(file, name, start or 0.0, duration, max_seconds), file.samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
        raise AudioError(f"{name}: not readable as audio ({reason})") from error
    return resample(samples, rate, sampling_rate, name)


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


def _read(file: soundfile.SoundFile, name: str, start: float, duration: float | None, max_seconds: float) -> Samples:
    """Reads a slice as the mean over channels, a second at a time so that a false header can't fill the memory."""
    rate, channels = file.samplerate, file.channels
    if not LOWEST_RATE <= rate <= HIGHEST_RATE or channels > MOST_CHANNELS:
        raise AudioError(f"{name}: {channels} channels at {rate} Hz is not supported")
    if file.frames > 0 and start >= file.frames / rate:
        raise AudioError(f"{name}: starts at {start:g} s, but the recording has {file.frames / rate:.2f} s")
    wanted = file.frames / rate - start if duration is None else duration
    if wanted > max_seconds:
        raise AudioError(f"{name}: {wanted:.1f} s, the model reads at most {max_seconds:g} s")
    if start:
        file.seek(round(start * rate))
    most = round(max_seconds * rate) if duration is None else round(duration * rate)
    blocks, read = [], 0
    while read < most and len(block := file.read(min(rate, most - read), dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1))
        read += len(block)
    if duration is None and len(file.read(1)):
        raise AudioError(f"{name}: longer than its header says, and than the {max_seconds:g} s that the model reads")
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)
