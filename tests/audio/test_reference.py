import io
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tiny_models import tone

from balsa_ray.audio.decode import AudioError, decode, seconds_of
from balsa_ray.audio.reference import Reference, parse, with_slice


def wav(frequency: float, seconds: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(frequency, seconds), 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("a/b.wav", Reference("a/b.wav")),
        ("s3://b/x.parquet#row=17", Reference("s3://b/x.parquet", row=17)),
        ("x.tar#bytes=512+99", Reference("x.tar", place=(512, 99))),
        ("a.wav#t=1.5,3.5", Reference("a.wav", start=1.5, duration=2.0)),
        ("x.tar#bytes=512+99&t=2", Reference("x.tar", place=(512, 99), start=2.0)),
        ("C# minor.wav", Reference("C# minor.wav")),
        ("take#", Reference("take#")),
        ("take#t=e.wav", Reference("take#t=e.wav")),
    ],
)
def test_a_reference_is_taken_apart(reference: str, parts: Reference) -> None:
    assert parse(reference) == parts


@given(start=st.floats(0, 1e5), duration=st.none() | st.floats(1e-3, 1e4))
def test_a_slice_survives_being_written_down(start: float, duration: float | None) -> None:
    for whole in ("a.wav", "a.parquet#row=2"):
        parts = parse(with_slice(whole, start, duration))
        assert (parts.path, parts.row) == (parse(whole).path, parse(whole).row)
        assert (parts.start or 0.0) == start
        assert parts.duration == (None if duration is None else pytest.approx(duration, abs=1e-6))


def test_recordings_inside_files_are_the_ones_that_were_put_there(tmp_path: Path) -> None:
    recordings = [wav(200 + 100 * i) for i in range(5)]
    rows = [{"audio": {"bytes": data, "path": None}, "n": i} for i, data in enumerate(recordings)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=2)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i, data in enumerate(recordings):
            member = tarfile.TarInfo(f"{i}.wav")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with tarfile.open(tmp_path / "x.tar") as tar:
        places = [f"{member.offset_data}+{member.size}" for member in tar]
    for i, data in enumerate(recordings):
        for reference in (f"{tmp_path}/x.parquet#row={i + 1}", f"{tmp_path}/x.tar#bytes={places[i]}"):
            np.testing.assert_array_equal(decode(reference), decode(data))
            assert seconds_of(reference) == 1.0


def test_a_slice_is_decoded_wherever_the_recording_lies(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(300, 3))
    fsspec.filesystem("memory").pipe("/clips/a.wav", wav(300, 3))
    expected = decode(tmp_path / "a.wav", start=1, duration=0.5)
    for path in (f"{tmp_path}/a.wav", "memory://clips/a.wav"):
        reference = with_slice(path, 1, 0.5)
        np.testing.assert_array_equal(decode(reference), expected)
        assert seconds_of(reference) == 0.5
        assert seconds_of(with_slice(path, 1, None)) == 2.0


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("memory://clips/absent.wav", "not readable"),
        ("nonsense://clips/absent.wav", "Protocol not known"),
        ("{folder}/x.parquet#row=3", "no such row"),
        ("{folder}/x.parquet#row=2", "no bytes"),
        ("{folder}/text.parquet#row=1", "not a Parquet|not readable"),
        ("{folder}/x.parquet#bytes=1+99999999", "ends before byte"),
        ("{folder}/absent.tar#bytes=0+10", "no such file"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, reference: str, reason: str) -> None:
    (tmp_path / "text.parquet").write_text("no parquet")
    rows = [{"audio": {"bytes": wav(200), "path": None}}, {"audio": {"bytes": None, "path": "x"}}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    with pytest.raises(AudioError, match=reason) as error:
        decode(reference.format(folder=tmp_path))
    assert "\n" not in str(error.value)
