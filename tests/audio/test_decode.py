import io
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tone

from balsa_ray.audio.decode import AudioCheck, AudioError, check_audio, decode, resample
from balsa_ray.audio.reference import with_slice


def encoded(samples: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def test_reads_a_file_and_its_bytes_alike(tmp_path: Path) -> None:
    samples = tone(440)
    (tmp_path / "clip.wav").write_bytes(encoded(samples))
    for source in (tmp_path / "clip.wav", str(tmp_path / "clip.wav"), encoded(samples)):
        decoded = decode(source)
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, samples)


@pytest.mark.parametrize(("form", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_reads_compressed_formats(form: str, subtype: str) -> None:
    decoded = decode(encoded(tone(440), form=form, subtype=subtype))
    assert abs(len(decoded) - 16_000) < 2_500  # MP3 pads to whole frames
    spectrum = np.abs(np.fft.rfft(decoded))
    assert abs(spectrum.argmax() * 16_000 / len(decoded) - 440) < 2


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resamples_a_tone_to_the_same_tone(rate: int) -> None:
    decoded = decode(encoded(tone(1_000, rate=rate), rate))
    assert len(decoded) == 16_000
    np.testing.assert_allclose(decoded[500:-500], tone(1_000)[500:-500], atol=2e-3)


def test_channels_are_averaged() -> None:
    left = tone(440)
    np.testing.assert_allclose(decode(encoded(np.stack([left, np.zeros_like(left)], axis=1))), left / 2, atol=1e-7)


@given(start=st.floats(0, 1.5), duration=st.floats(0.01, 0.5))
@settings(max_examples=25, deadline=None)
def test_a_slice_is_that_part_of_the_whole(start: float, duration: float) -> None:
    samples = tone(300, seconds=2)
    part = decode(encoded(samples), start=start, duration=duration)
    first = round(start * 16_000)
    np.testing.assert_array_equal(part, samples[first : first + round(duration * 16_000)])


def test_a_slice_of_a_long_file_is_read_though_the_file_is_too_long() -> None:
    long = encoded(np.zeros(16_000 * 40, np.float32))
    assert len(decode(long, start=35, duration=2)) == 32_000
    with pytest.raises(AudioError, match=r"40\.0 s, the model reads at most 30 s"):
        decode(long)


def header_that_promises(frames: int) -> bytes:
    data = bytearray(encoded(tone(440, 0.1), subtype="PCM_16"))
    data[40:44] = (2 * frames).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "not readable"),
        (b"this is text, not audio" * 10, "not readable"),
        (encoded(np.zeros(0, np.float32)), "no samples"),
        (encoded(np.full(400, np.nan, np.float32)), "NaN or infinite"),
        (encoded(np.full(400, np.inf, np.float32)), "NaN or infinite"),
        (encoded(tone(440, 31)), "at most 30 s"),
        (encoded(tone(440), rate=200), "not supported"),
    ],
)
def test_unusable_audio_is_refused_with_its_reason(source: bytes, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        decode(source)


def test_a_header_that_promises_too_much_allocates_nothing() -> None:
    assert len(decode(header_that_promises(2**30))) < 16_000


@pytest.mark.parametrize("channels", [1, 8])
def test_no_more_is_decoded_than_allowed(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    silence = encoded(np.zeros((48_000, channels), np.int16), form="FLAC", subtype="PCM_16")
    size = 4 * channels * 48_000
    assert len(decode(silence, max_decoded_bytes=size)) == 48_000
    monkeypatch.setattr(soundfile.SoundFile, "read", None)  # the header is enough
    with pytest.raises(AudioError, match="decodes to more than"):
        decode(silence, max_decoded_bytes=size - 1)


class Endless(soundfile.SoundFile):
    """A stream whose header gives no length."""

    frames = 0
    read_so_far = 0

    def read(self, frames: int, **_: object) -> np.ndarray:
        self.read_so_far += frames
        assert self.read_so_far <= 4 * 16_000, "one block more than allowed at most"
        return np.zeros((frames, 8), np.float32)


def test_no_more_is_decoded_than_allowed_when_the_header_gives_no_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "SoundFile", Endless)
    with pytest.raises(AudioError, match=r"decodes to more than 1\.5 MiB"):
        decode(encoded(np.zeros((1, 8), np.float32)), max_seconds=300, max_decoded_bytes=4 * 8 * 49_152)


def test_decoding_is_given_up_between_two_seconds_of_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = soundfile.SoundFile.read

    def slow(self: soundfile.SoundFile, frames: int, **how: object) -> np.ndarray:
        reads.append(frames)
        time.sleep(0.1)
        return read(self, frames, **how)

    monkeypatch.setattr(soundfile.SoundFile, "read", slow)
    with pytest.raises(AudioError, match="takes too long to decode"):
        decode(encoded(tone(440, 20)), max_decode_seconds=0.25)
    assert 1 <= len(reads) <= 3


def test_a_missing_file_and_a_start_behind_the_end_are_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"absent\.wav: no such file"):
        decode(tmp_path / "absent.wav")
    with pytest.raises(AudioError, match=r"starts at 3 s, but the recording has 1\.00 s"):
        decode(encoded(tone(440)), start=3)


def test_resample_leaves_the_wanted_rate_untouched() -> None:
    samples = tone(440)
    np.testing.assert_array_equal(resample(samples, 16_000, 16_000), samples)
    assert resample(samples.astype(np.float64), 16_000.0, 16_000).dtype == np.float32


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"),
    [(16_000, 1, "PCM_U8"), (44_100, 2, "PCM_24"), (48_000, 1, "DOUBLE"), (48_000, 6, "FLOAT"), (192_000, 2, "PCM_32")],
)
def test_every_kind_of_wav_is_the_same_tone(tmp_path: Path, rate: int, channels: int, subtype: str) -> None:
    samples = 0.5 * tone(440, rate=rate)
    (tmp_path / "a.wav").write_bytes(encoded(np.stack([samples] * channels, axis=1), rate, subtype=subtype))
    decoded = decode(tmp_path / "a.wav")
    assert len(decoded) == 16_000
    np.testing.assert_allclose(decoded[500:-500], 0.5 * tone(440)[500:-500], atol=1e-2)
    check_audio(tmp_path / "a.wav", "full")


def sparse(path: Path, seconds: int) -> Path:
    """A WAV of zeros whose header tells the truth, and which takes no room on the disk."""
    header = bytearray(encoded(np.zeros(1, np.int16), subtype="PCM_16")[:44])
    size = 2 * 16_000 * seconds
    header[4:8], header[40:44] = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(44 + size)
    return path


BAD = {
    "missing": (None, "header", "no such file"),
    "text": (b"this is text, not audio" * 10, "header", "not readable as audio"),
    "nothing": (b"", "header", "not readable as audio"),
    "no samples": (encoded(np.zeros(0, np.float32)), "header", "empty, no samples"),
    "slow": (encoded(tone(440), rate=200), "header", "not supported"),
    "long": (encoded(tone(440, 31)), "header", r"31\.0 s, the model reads at most 30 s"),
    "NaN": (encoded(np.full(400, np.nan, np.float32)), "full", "NaN or infinite"),
    "silent": (encoded(np.full(400, 5e-5, np.float32)), "full", "silent throughout"),
    "clipped": (encoded(np.sign(tone(440)), subtype="PCM_16"), "full", "clipped throughout"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_check_finds_what_it_looks_for_and_says_so(tmp_path: Path, name: str) -> None:
    content, needed, reason = BAD[name]
    path = tmp_path / "clip.wav"
    if content is not None:
        path.write_bytes(content)
    checks: list[AudioCheck] = ["none", "header", "full"]
    for how in checks:
        if checks.index(how) < checks.index(needed):
            check_audio(path, how)
            continue
        with pytest.raises(AudioError, match=reason) as error:
            check_audio(path, how)
        assert str(error.value).startswith(f"{path}: ")


def test_three_hours_are_refused_by_the_header_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sparse(tmp_path / "clip.wav", 3 * 3600)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    for how in ("header", "full"):
        with pytest.raises(AudioError, match=r"10800\.0 s, the model reads at most 30 s"):
            check_audio(path, how)
    check_audio(f"{path}#t=7200,7210", "header")
    check_audio(path, "header", max_seconds=20_000)


@pytest.mark.parametrize("start", [60.74, 0.1, 33.33, 1234.56])
def test_a_slice_as_long_as_the_limit_is_not_too_long(tmp_path: Path, start: float) -> None:
    path = sparse(tmp_path / "clip.wav", 1300)
    slice_ = with_slice(str(path), start, 30.0)
    check_audio(slice_, "header")
    assert len(decode(slice_)) == 480_000
    with pytest.raises(AudioError, match="the model reads at most 30 s"):
        check_audio(with_slice(str(path), start, 30.001), "header")


@pytest.mark.parametrize("name", ["headless.raw", "circle.wav"])
def test_what_no_decoder_expects_is_an_error_like_any_other(tmp_path: Path, name: str) -> None:
    (tmp_path / "headless.raw").write_bytes(bytes(64))
    (tmp_path / "circle.wav").symlink_to(tmp_path / "circle.wav")
    with pytest.raises(AudioError, match=name):
        check_audio(tmp_path / name, "header")


def test_loud_music_is_not_taken_for_clipped(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(np.clip(2.4 * tone(440), -1, 1), subtype="PCM_16"))
    check_audio(tmp_path / "a.wav", "full")
