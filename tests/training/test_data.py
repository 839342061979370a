import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from balsa_ray.config import UserError
from balsa_ray.training import data
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.data import EncodedSamples, clip_seconds, encode, read_samples, samples_hash, write_skipped
from balsa_ray.training.worker import make_processor

Make = Callable[..., TrainConfig]


def test_samples_are_sorted_and_each_id_comes_once(synthesis_output: Path) -> None:
    once = read_samples([synthesis_output])
    assert once["id"].to_pylist() == sorted(once["id"].to_pylist())
    assert len(once) == 128
    assert read_samples([synthesis_output, synthesis_output]).equals(once)


def test_sources_count_only_where_they_have_weights(synthesis_output: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(synthesis_output / "samples", other / "samples")
    (other / "samples" / "0.parquet").unlink()
    both = read_samples({other: 1.0, synthesis_output: 2.0})
    # An id that two folders have belongs to the first.
    assert both["source"].to_pylist().count(0) == len(read_samples([other])) == 64
    assert both.drop_columns("source").equals(read_samples([other, synthesis_output]).drop_columns("source"))
    assert set(read_samples([other, synthesis_output])["source"].to_pylist()) == {0}
    hashes = [samples_hash(read_samples(data)) for data in ([synthesis_output], [other, synthesis_output])]
    assert hashes[0] == hashes[1] != samples_hash(both)


def test_a_folder_without_samples_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: no samples"):
        read_samples([tmp_path])


def test_samples_of_a_run_that_was_cut_are_refused(synthesis_output: Path, tmp_path: Path) -> None:
    shutil.copytree(synthesis_output / "samples", tmp_path / "samples")
    (tmp_path / "identity.json").write_text("{}")
    with pytest.raises(UserError, match="was cut before its end"):
        read_samples([tmp_path])
    (tmp_path / "report.json").write_text("{}")
    assert len(read_samples([tmp_path]))


def test_hash_tells_what_is_learned_not_where_the_audio_lies(synthesis_output: Path) -> None:
    samples = read_samples([synthesis_output])
    moved = samples.set_column(2, "audio", [[["elsewhere.wav"]] * len(samples)])
    assert samples_hash(moved) == samples_hash(samples)
    assert samples_hash(samples.slice(1)) != samples_hash(samples)


def test_lost_and_broken_recordings_are_counted_and_the_first_is_named(synthesis_output: Path, tmp_path: Path) -> None:
    samples = read_samples([synthesis_output])
    assert set(clip_seconds(samples).values()) == {0.2}
    copy = tmp_path / "copy"
    shutil.copytree(synthesis_output, copy)
    (copy / "0.wav").write_bytes(b"no audio")
    (copy / "1.wav").unlink()
    rows = [row | {"audio": [str(copy / Path(audio).name) for audio in row["audio"]]} for row in samples.to_pylist()]
    with pytest.raises(
        UserError, match=r"^2 of 64 recordings can't be used, the first: .*0.wav \(sample 00-diff"
    ) as error:
        clip_seconds(type(samples).from_pylist(rows))
    assert "\n" not in str(error.value)


def test_no_column_ends_at_two_gigabytes(synthesis_output: Path) -> None:
    for schema in (read_samples([synthesis_output]).schema, data.ENCODED):
        kinds = {kind for field in schema for kind in (field.type, getattr(field.type, "value_type", field.type))}
        assert not any(pa.types.is_string(kind) or pa.types.is_list(kind) for kind in kinds)


def test_rows_are_encoded_in_parts_as_they_are_at_once(
    synthesis_output: Path, train_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_samples([synthesis_output])
    processor, seconds = make_processor(train_config()), clip_seconds(table)
    encoded, skipped = encode(table, processor, seconds, 50, 2.0)
    whole = samples_hash(table)
    monkeypatch.setattr(data, "ROWS_AT_ONCE", 7)
    in_parts, skipped_in_parts = encode(table, processor, seconds, 50, 2.0)
    assert 0 < len(skipped) < len(table)
    assert skipped_in_parts == skipped
    assert in_parts.equals(encoded)
    monkeypatch.setattr(data, "PARALLEL_FROM", 1)
    in_processes, skipped_in_processes = encode(table, processor, seconds, 50, 2.0)
    assert (in_processes.equals(encoded), skipped_in_processes) == (True, skipped)
    assert samples_hash(table) == whole
    # Workers share the tokens, which lie in Ray's object store, and have no copy.
    tokens = in_parts["input_ids"].chunk(0).values
    assert np.shares_memory(EncodedSamples.of(in_parts)._values, tokens.to_numpy())


def test_encoded_samples_give_back_prompt_and_reply(synthesis_output: Path, train_config: Make) -> None:
    table = read_samples([synthesis_output])
    processor = make_processor(train_config())
    encoded, skipped = encode(table, processor, clip_seconds(table), 512, 2.0)
    assert skipped == []
    samples = EncodedSamples.of(encoded)
    row = samples.ids.index("05-difference")
    ids, labels = processor.encode_example("Describe", [1, 1], "rain and wind, then a siren")
    assert samples.input_ids(row).tolist() == ids
    assert samples.windows[row] == 2
    assert samples.prompt_tokens[row] == labels.count(-100)
    assert samples.reply_tokens(np.array([row, row])) == 2 * (len(ids) - labels.count(-100))
    assert [Path(audio).name for audio in samples.clips(np.array([row]))] == ["5.wav", "10.wav"]
    assert samples.audio_seconds[row] == pytest.approx(0.4)


def test_a_long_clip_takes_the_tokens_of_its_windows(synthesis_output: Path, train_config: Make) -> None:
    table = read_samples([synthesis_output])
    seconds = clip_seconds(table)
    row = table["id"].to_pylist().index("05-difference")
    seconds[table["audio"][row].as_py()[1]] = 4.5
    processor = make_processor(train_config())
    samples = EncodedSamples.of(encode(table, processor, seconds, 512, 300.0)[0])
    expected, _ = processor.encode_example("Describe", [1, 3], "rain and wind, then a siren")
    assert samples.input_ids(samples.ids.index("05-difference")).tolist() == expected
    assert expected.count(processor.audio_token_id) == 4 * (1 + 3)


def test_samples_that_do_not_fit_are_left_out_and_listed(
    synthesis_output: Path, train_config: Make, tmp_path: Path
) -> None:
    table = read_samples([synthesis_output])
    seconds = clip_seconds(table)
    long = table["audio"][table["id"].to_pylist().index("00-present")].as_py()[0]
    seconds[long] = 3.0
    processor = make_processor(train_config())
    lengths = [len(processor.encode_example("Describe", [1] * n, "no cat")[0]) for n in (1, 2)]
    encoded, skipped = encode(table, processor, seconds, lengths[1], 2.0)
    reasons = {line["id"]: line["reason"] for line in skipped}
    assert len(encoded) + len(skipped) == len(table)
    assert reasons["00-present"] == "a clip of 3.00 s, the limit is 2 s"
    assert reasons["07-difference"].endswith(f"tokens, the limit is {lengths[1]}")
    assert len(reasons) == 65
    file = tmp_path / "skipped.jsonl"
    write_skipped(file, skipped)
    assert len(file.read_text().splitlines()) == 65
    write_skipped(file, [])
    assert not file.exists()
