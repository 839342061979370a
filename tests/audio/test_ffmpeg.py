from pathlib import Path

import av
import numpy as np
import pytest
from tiny_models import tone

from balsa_ray.audio.decode import AudioError, check_audio, decode, seconds_of

RATE = 44_100


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of stereo AAC in MP4: 440 Hz, then 1,000 Hz, the right channel silent."""
    path = tmp_path_factory.mktemp("ffmpeg") / "clip.m4a"
    left = np.concatenate([tone(440, rate=RATE), tone(1_000, rate=RATE)])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([left, np.zeros_like(left)]), format="fltp", layout="stereo")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def pitch(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples))


def test_what_libsndfile_cannot_read_is_read_alike(recording: Path) -> None:
    samples = decode(recording)
    assert len(samples) == pytest.approx(32_000, abs=1_200)  # AAC fills its last frame
    assert seconds_of(recording) == pytest.approx(2, abs=0.07)
    assert np.sqrt((samples**2).mean()) == pytest.approx(0.25 / np.sqrt(2), abs=0.01)  # the mean of both channels
    assert (pitch(samples[:15_000]), pitch(samples[-14_000:])) == (
        pytest.approx(440, abs=3),
        pytest.approx(1000, abs=3),
    )


def test_a_slice_begins_at_its_sample(recording: Path) -> None:
    whole, part = decode(recording), decode(f"{recording}#t=0.75,1.25")
    assert len(part) == 8_000
    np.testing.assert_allclose(part[200:-200], whole[12_200:19_800], atol=2e-3)


def test_it_is_checked_like_any_other(recording: Path, tmp_path: Path) -> None:
    check_audio(recording, "full")
    with pytest.raises(AudioError, match="the model reads at most 1 s"):
        check_audio(recording, "header", max_seconds=1)
    (tmp_path / "cut.m4a").write_bytes(recording.read_bytes()[:3_000])
    with pytest.raises(AudioError, match="not readable as audio"):
        check_audio(tmp_path / "cut.m4a", "full")


def test_a_recording_without_a_length_in_its_header_is_heard(tmp_path: Path) -> None:
    import av

    path = tmp_path / "live.webm"
    with av.open(str(path), "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        samples = (tone(440, 1.0, 48_000) * 32_000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    check_audio(path, "header")
    check_audio(path, "full")
    assert len(decode(path)) > 15_000


def test_bytes_of_a_request_are_not_given_to_ffmpeg(recording: Path) -> None:
    with pytest.raises(AudioError, match="not readable as audio"):
        decode(recording.read_bytes())


def test_broken_recordings_end_as_an_error_that_names_them(recording: Path, tmp_path: Path) -> None:
    data, path, draw = recording.read_bytes(), tmp_path / "x.m4a", np.random.default_rng(0)
    refused = []
    for _ in range(200):
        broken = bytearray(data)
        for place in draw.integers(len(data), size=100):
            broken[place] = draw.integers(256)
        path.write_bytes(broken)
        try:
            check_audio(path, "full")
        except AudioError as error:
            refused.append(str(error).startswith(f"{path}: "))
    assert len(refused) > 100
    assert all(refused)
