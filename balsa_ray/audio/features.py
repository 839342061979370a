"""Samples → log-mel, by the feature extractor that came with the encoder."""

from typing import Any

import numpy as np
import numpy.typing as npt

from balsa_ray.audio.decode import AudioError


def log_mel(feature_extractor: Any, clips: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Computes the log-mel spectrograms of clips, each padded with silence to the encoder's window.

    Args:
        feature_extractor: A `WhisperFeatureExtractor`.
        clips: Mono samples at its `sampling_rate`, each within its window of `n_samples`.

    Returns:
        `[clips, mel bins, frames]`.

    Raises:
        AudioError: If a clip is longer than the window; nothing is cut off silently.
    """
    rate, window = feature_extractor.sampling_rate, feature_extractor.n_samples
    for index, clip in enumerate(clips):
        if len(clip) > window:
            raise AudioError(
                f"clip {index}: {len(clip) / rate:.2f} s, the audio encoder's window is {window / rate:g} s"
            )
    features = feature_extractor(clips, sampling_rate=rate, padding="max_length", return_tensors="np")
    return np.asarray(features.input_features, dtype=np.float32)
