import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tone
from transformers import WhisperFeatureExtractor

from balsa_ray.audio import features
from balsa_ray.audio.decode import AudioError, seconds_of
from balsa_ray.audio.features import log_mel, num_windows, read_log_mel, windows_of

EXTRACTOR = WhisperFeatureExtractor(feature_size=80, sampling_rate=16_000, hop_length=320, chunk_length=2)


def test_every_clip_fills_the_window() -> None:
    windows = log_mel(EXTRACTOR, [tone(300, 0.01), tone(300, 2)])
    assert windows.shape == (2, 80, 100)
    assert windows.dtype == np.float32


def test_a_batch_equals_its_clips_one_by_one() -> None:
    clips = [tone(300, 0.5), tone(700, 1.9), tone(50, 1)]
    alone = np.concatenate([log_mel(EXTRACTOR, [clip]) for clip in clips])
    np.testing.assert_array_equal(log_mel(EXTRACTOR, clips), alone)


def test_a_long_clip_is_its_windows_in_order() -> None:
    clip = np.concatenate([tone(300, 2), tone(700, 2), tone(50, 0.5)])
    windows = log_mel(EXTRACTOR, [tone(900), clip, tone(900)])
    alone = [tone(900), tone(300, 2), tone(700, 2), tone(50, 0.5), tone(900)]
    np.testing.assert_array_equal(windows, log_mel(EXTRACTOR, alone))


@pytest.mark.parametrize(
    ("seconds", "windows"), [(0.0, 1), (0.01, 1), (2.0, 1), (2.09, 1), (2.11, 2), (4.0, 2), (4.05, 2), (5.0, 3)]
)
def test_windows_of_a_clip(seconds: float, windows: int) -> None:
    assert num_windows(seconds, EXTRACTOR) == windows
    clip = np.zeros(round(seconds * 16_000), np.float32)
    assert windows_of([clip], EXTRACTOR) == [windows]
    if len(clip):
        assert log_mel(EXTRACTOR, [clip]).shape == (windows, 80, 100)


@given(frames=st.integers(1, 400_000), rate=st.sampled_from([8_000, 11_025, 22_050, 44_100, 48_000]))
@settings(max_examples=100, deadline=None)
def test_counting_by_the_header_agrees_with_resampled_audio(frames: int, rate: int) -> None:
    """A length near the boundary may round to either side; then the header's count is the one that is used."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(frames, np.float32), rate, format="WAV")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        path.write_bytes(file.getvalue())
        assert len(read_log_mel(EXTRACTOR, str(path), 60.0)) == num_windows(seconds_of(path), EXTRACTOR)


def test_a_recording_longer_than_its_header_is_refused_and_a_padded_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = np.concatenate([tone(300, 2), tone(700, 1)])
    monkeypatch.setattr(features, "decode_with_seconds", lambda *_, **__: (samples, 2.05))
    # Between: the overhang of a codec, behind what was counted. It is not heard.
    np.testing.assert_array_equal(read_log_mel(EXTRACTOR, "clip.mp3", 9.0), log_mel(EXTRACTOR, [tone(300, 2)]))
    monkeypatch.setattr(features, "decode_with_seconds", lambda *_, **__: (samples, 1.5))
    with pytest.raises(AudioError, match=r"clip\.mp3: 3\.00 s, its header says 1\.50 s"):
        read_log_mel(EXTRACTOR, "clip.mp3", 9.0)


def test_a_header_that_promises_more_is_filled_up_with_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "decode_with_seconds", lambda *_, **__: (tone(300, 2), 3.9))
    silence = np.zeros(32_000, np.float32)
    np.testing.assert_array_equal(read_log_mel(EXTRACTOR, "clip.mp3", 9.0), log_mel(EXTRACTOR, [tone(300, 2), silence]))
