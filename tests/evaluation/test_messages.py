import base64
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from benchmark_files import write_recording
from pyarrow import parquet

from balsa_ray.audio.decode import decode
from balsa_ray.evaluation.messages import load_span


def sent(audio: Any, **clip: Any) -> tuple[bytes, str]:
    """What stands for a recording in a message, and its format."""
    part = load_span({"id": "a", "audio": audio, **clip}, "audio", "tags").content
    assert isinstance(part, dict)
    return base64.b64decode(part["input_audio"]["data"]), part["input_audio"]["format"]


def samples(data: bytes) -> np.ndarray:
    return decode(data, sampling_rate=16_000, max_seconds=1.0)


def test_a_recording_is_the_same_by_path_uri_and_reference(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    write_recording(file)
    data = file.read_bytes()
    assert sent(str(file)) == sent(f"file://{file}") == (data, "wav")
    assert sent({"bytes": data, "path": "a.wav"}) == sent({"bytes": None, "path": str(file)}) == (data, "wav")
    table = pa.Table.from_pylist([{"audio": {"bytes": b"", "path": ""}}, {"audio": {"bytes": data, "path": "a.wav"}}])
    parquet.write_table(table, tmp_path / "clips.parquet")
    (tmp_path / "shard.tar").write_bytes(b"12345" + data)
    for reference in ("clips.parquet#row=2", f"shard.tar#bytes=5+{len(data)}"):
        found, form = sent(f"{tmp_path}/{reference}")
        assert form == "wav"
        assert np.array_equal(samples(found), samples(data))


def test_a_slice_by_reference_is_that_slice(tmp_path: Path) -> None:
    write_recording(tmp_path / "a.wav")
    by_columns = sent(str(tmp_path / "a.wav"), start=0.0025, duration=0.005)
    assert sent(f"{tmp_path}/a.wav#t=0.0025,0.0075") == by_columns
    assert len(samples(by_columns[0])) == 80


@pytest.mark.parametrize("reference", ["clips.parquet#row=9", "none.wav", "none.tar#bytes=1+2"])
def test_a_recording_that_is_not_there_is_an_os_error(tmp_path: Path, reference: str) -> None:
    parquet.write_table(pa.Table.from_pylist([{"audio": {"bytes": b"x", "path": ""}}]), tmp_path / "clips.parquet")
    with pytest.raises(OSError, match=r"no such row|none\."):
        sent(f"{tmp_path}/{reference}")
