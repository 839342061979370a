import json
from pathlib import Path

import pyarrow as pa

from balsa_ray.training.validation import RepliesWriter, drawn, split


def samples(recordings: int = 400) -> pa.Table:
    """A sample about each recording, one about a slice of it, and one about it and the next."""
    rows = [
        {"id": f"{name}-{number}", "audio": audio}
        for number in range(recordings)
        for name, audio in (
            ("one", [f"/{number}.wav"]),
            ("slice", [f"/{number}.wav#t=1.0,2.0"]),
            ("two", [f"/{number}.wav", f"/{(number + 1) % recordings}.wav"]),
        )
    ]
    return pa.Table.from_pylist(rows)


def heard(table: pa.Table) -> set[str]:
    return {audio.partition("#")[0] for clips in table["audio"].to_pylist() for audio in clips}


def test_no_recording_of_a_validation_sample_is_trained_on() -> None:
    table = samples()
    train, validation = split(table, 0, 0.1, 10_000)
    held_out = {clips[0] for clips in validation["audio"].to_pylist() if len(clips) == 1 and "#" not in clips[0]}
    assert 0.05 < len(held_out) / 400 < 0.15
    assert not held_out & heard(train)
    # A pair is out if either of its recordings is.
    assert len(train) + len(validation) == len(table)
    assert all(held_out & heard(validation.slice(row, 1)) for row in range(len(validation)))


def test_the_split_hangs_on_the_seed_and_the_recordings_alone() -> None:
    table = samples()
    train, validation = split(table, 0, 0.1, 20)
    assert len(validation) == 20
    turned = table.take(list(range(len(table)))[::-1])
    again = split(turned, 0, 0.1, 20)
    assert set(again[1]["id"].to_pylist()) == set(validation["id"].to_pylist())
    assert set(again[0]["id"].to_pylist()) == set(train["id"].to_pylist())
    assert set(split(table, 1, 0.1, 20)[1]["id"].to_pylist()) != set(validation["id"].to_pylist())
    everything, nothing = split(table, 0, 0.0, 20)
    assert (len(everything), len(nothing)) == (len(table), 0)


def test_the_same_samples_are_asked_every_time() -> None:
    ids = [f"id-{number}" for number in range(50)]
    assert [ids[place] for place in drawn(ids, 3, 5)] == [ids[::-1][place] for place in drawn(ids[::-1], 3, 5)]
    assert len(drawn(ids[:3], 3, 5)) == 3


def test_replies_after_the_checkpoint_are_said_again(tmp_path: Path) -> None:
    writer = RepliesWriter(tmp_path, 0)
    for step in (5, 10):
        writer.write(step, [{"id": "a", "reply": f"It rains at {step}."}])
    RepliesWriter(tmp_path, 5).write(10, [{"id": "a", "reply": "Again."}])
    lines = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert lines == [{"step": 5, "id": "a", "reply": "It rains at 5."}, {"step": 10, "id": "a", "reply": "Again."}]
