import numpy as np
import pytest
from tiny_models import tone
from transformers import WhisperFeatureExtractor

from balsa_ray.audio.decode import AudioError
from balsa_ray.audio.features import log_mel

EXTRACTOR = WhisperFeatureExtractor(feature_size=80, sampling_rate=16_000, hop_length=320, chunk_length=2)


def test_every_clip_fills_the_window() -> None:
    features = log_mel(EXTRACTOR, [tone(300, 0.01), tone(300, 2)])
    assert features.shape == (2, 80, 100)
    assert features.dtype == np.float32


def test_a_batch_equals_its_clips_one_by_one() -> None:
    clips = [tone(300, 0.5), tone(700, 1.9), tone(50, 1)]
    alone = np.concatenate([log_mel(EXTRACTOR, [clip]) for clip in clips])
    np.testing.assert_array_equal(log_mel(EXTRACTOR, clips), alone)


def test_nothing_is_cut_off_silently() -> None:
    with pytest.raises(AudioError, match=r"clip 1: 2\.10 s, the audio encoder's window is 2 s"):
        log_mel(EXTRACTOR, [tone(300), tone(300, 2.1)])
