"""Samples → log-mel, by the feature extractor that came with the encoder; a long clip as several windows.

The encoder hears windows of a fixed length (Whisper: 30 s). A longer clip is cut into consecutive windows, each of
which becomes query tokens of its own, in order; the last one is filled up with silence.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from balsa_ray.audio.decode import AudioError, decode_with_seconds

SLACK = 0.1
"""Seconds by which a clip may overhang its last window without getting a further one: what encoders of MP3 and AAC put
around a recording of 30 s. So short a rest is not worth a window's query tokens, and is not heard."""
FALSE_HEADER = 1.0
"""Seconds by which a recording may be longer than its header says."""


def num_windows(seconds: float, feature_extractor: Any) -> int:
    """Returns how many windows of the encoder a clip is cut into. Everything that counts a clip's tokens asks here."""
    window = feature_extractor.n_samples / feature_extractor.sampling_rate
    return max(1, math.ceil((seconds - SLACK) / window))


def windows_of(clips: Sequence[npt.NDArray[np.float32]], feature_extractor: Any) -> list[int]:
    """Returns the number of windows of each of these clips, which are at the feature extractor's rate."""
    return [num_windows(len(clip) / feature_extractor.sampling_rate, feature_extractor) for clip in clips]


def log_mel(
    feature_extractor: Any, clips: Sequence[npt.NDArray[np.float32]], windows: Sequence[int] | None = None
) -> npt.NDArray[np.float32]:
    """Computes the log-mel spectrograms of clips, window by window.

    Args:
        feature_extractor: A `WhisperFeatureExtractor`.
        clips: Mono samples at its `sampling_rate`.
        windows: How many each clip is cut into (default: what its length asks for).

    Returns:
        All windows of all clips in order: `[windows, mel bins, frames]`.
    """
    rate, size = feature_extractor.sampling_rate, feature_extractor.n_samples
    parts = [
        clip[size * index : size * (index + 1)]
        for clip, count in zip(clips, windows or windows_of(clips, feature_extractor), strict=True)
        for index in range(count)
    ]
    features = feature_extractor(parts, sampling_rate=rate, padding="max_length", return_tensors="np")
    return np.asarray(features.input_features, dtype=np.float32)


def read_log_mel(feature_extractor: Any, audio: str, max_seconds: float) -> npt.NDArray[np.float32]:
    """Reads a recording for training, where its tokens have been counted by the header (`seconds_of`) long before.

    Args:
        feature_extractor: A `WhisperFeatureExtractor`.
        audio: A path, a URI or a reference.
        max_seconds: Longest recording.

    Returns:
        `[windows, mel bins, frames]`, with as many windows as the header asks for, whatever rounding or an encoder's
        padding has made of the length.

    Raises:
        AudioError: If it can't be read, is too long, or is longer than its header says.
    """
    rate = feature_extractor.sampling_rate
    samples, seconds = decode_with_seconds(audio, sampling_rate=rate, max_seconds=max_seconds)
    if len(samples) / rate > seconds + FALSE_HEADER:
        raise AudioError(f"{audio}: {len(samples) / rate:.2f} s, its header says {seconds:.2f} s")
    return log_mel(feature_extractor, [samples], [num_windows(seconds, feature_extractor)])
