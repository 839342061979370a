"""Recordings of every kind become a corpus; what can't be used is set aside and named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.config import UserError
from balsa_ray.identity import rng
from balsa_ray.miniature.config import MixConfig
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.miniature.recordings import (
    build_corpus,
    draw_sources,
    excerpt,
    mix_scene,
    read_recordings,
    trimmed,
    weights,
)
from balsa_ray.miniature.soundscapes import soundscape
from balsa_ray.schema import read_manifest

RATES = (8_000, 11_127, 44_100, 48_000)


def write_recordings(folder: Path, name: str, clips: int, first: int = 0) -> Path:
    """Writes soundscapes at odd rates, in stereo now and then, from 0.3 s to 12 s; returns their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(first, first + clips):
        samples, events = soundscape(5, "recordings", index)
        samples = np.tile(samples, 3)[: int(16_000 * (0.3, 2.0, 4.0, 12.0)[index % 4])]
        rate = RATES[index % len(RATES)]
        played = soxr.resample(samples, 16_000, rate)
        if index % 3 == 0:
            played = np.stack([played, played], axis=1)
        soundfile.write(folder / f"{index}.wav", played, rate)
        rows.append({"id": f"clip {index}", "audio": f"{index}.wav", "tags": [event["label"] for event in events]})
    return write_manifest(folder / f"{name}.jsonl", rows)


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def corpus(tmp_path: Path, train: Path, test: Path, scenes: int = 6, output: str = "corpus") -> list[str]:
    """Builds a corpus and returns what was said."""
    said: list[str] = []
    lists = read_recordings({"train": train, "test": test}, lexicon())
    mix = MixConfig(scenes=scenes)
    build_corpus(tmp_path / output, lists, seed=3, mix=mix, max_seconds=30, workers=1, log=said.append)
    return said


def test_recordings_and_scenes_become_16_khz_with_events_where_they_sound(tmp_path: Path) -> None:
    train, test = (write_recordings(tmp_path / name, name, 8, first) for name, first in (("a", 0), ("b", 8)))
    corpus(tmp_path, train, test)
    rows = read_manifest(tmp_path / "corpus" / "train.jsonl")
    assert rows[:8] == read_manifest(tmp_path / "corpus" / "recordings.jsonl")
    assert [row["id"] for row in rows[:8]] == [f"clip {i}" for i in range(8)]
    scenes = rows[8:]
    assert len(scenes) == 6
    known = {row["id"]: row["tags"] for row in rows[:8]}
    for row in rows:
        assert soundfile.info(row["audio"]).samplerate == 16_000
    for scene in scenes:
        assert soundfile.info(scene["audio"]).frames == 64_000
        sources = scene["id"].split(":")[1].split("+")
        assert set(scene["tags"]) == {label for source in sources for label in known[source]}
        assert all(0 <= event["start"] < event["end"] <= 4 for event in scene["events"])
    lengths = [soundfile.info(row["audio"]).duration for row in rows[:4]]
    assert lengths == pytest.approx([0.3, 2.0, 4.0, 12.0], abs=0.01)
    assert [row["id"] for row in read_manifest(tmp_path / "corpus" / "test.jsonl")] == [
        f"clip {i}" for i in range(8, 16)
    ]


def test_a_complete_corpus_is_reused_and_another_one_refused(tmp_path: Path) -> None:
    train, test = (write_recordings(tmp_path / name, name, 3, first) for name, first in (("a", 0), ("b", 8)))
    corpus(tmp_path, train, test)
    file = tmp_path / "corpus" / "train.jsonl"
    before = file.read_bytes(), file.stat().st_mtime_ns
    assert corpus(tmp_path, train, test) == ["   the clips are there already"]
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    corpus(tmp_path, train, test, output="again")
    assert (tmp_path / "again" / "train.jsonl").read_bytes() == before[0]
    for scene in read_manifest(file)[3:]:
        other = tmp_path / "again" / "audio" / Path(scene["audio"]).name
        assert other.read_bytes() == Path(scene["audio"]).read_bytes()
    with pytest.raises(UserError, match="clips made otherwise"):
        corpus(tmp_path, train, test, scenes=2)


def test_bad_recordings_are_set_aside_counted_and_named(tmp_path: Path) -> None:
    good = write_recordings(tmp_path, "good", 2)
    rows = [json.loads(line) for line in good.read_text().splitlines()]
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "long.wav", np.ones(8_000 * 31) / 2, 8_000)
    bad = {
        "broken": "not readable",
        "silent": "silent",
        "empty": "no samples",
        "long": "31.0 s",
        "gone": "no such file",
    }
    rows += [{"id": name, "audio": f"{name}.wav", "tags": ["rain"]} for name in bad]
    rows.append({"id": "untold", "audio": "0.wav", "start": 0.1, "caption": "It rains."})
    train = write_manifest(tmp_path / "train.jsonl", rows)
    test = write_recordings(tmp_path / "test", "test", 2, first=4)
    said = "\n".join(corpus(tmp_path, train, test))
    assert "train: 2 of 8 recordings can be used" in said
    aside = [json.loads(line) for line in (tmp_path / "corpus" / "set_aside.jsonl").read_text().splitlines()]
    assert [row["id"] for row in aside] == [*bad, "untold"]
    for row, reason in zip(aside, [*bad.values(), "neither tags nor events"], strict=True):
        assert reason in row["error"]
        assert f"set aside: {row['id']}: " in said
    only_bad = write_manifest(tmp_path / "bad.jsonl", rows[2:4])
    with pytest.raises(UserError, match="none of its recordings") as refused:
        corpus(tmp_path, only_bad, test, output="bad")
    assert refused.value.exit_code == 1


def test_labels_without_words_are_listed_in_one_line_and_spelling_is_forgiven(tmp_path: Path) -> None:
    row = {"id": "a", "audio": "a.wav", "tags": ["Dog barking", "Rain"]}
    test = write_manifest(tmp_path / "test.jsonl", [row | {"audio": "b.wav"}])
    spelled = read_recordings({"train": write_manifest(tmp_path / "a.jsonl", [row]), "test": test}, lexicon())
    assert spelled["train"].rows[0]["tags"] == ["dog barking", "rain"]
    strange = write_manifest(tmp_path / "strange.jsonl", [row | {"tags": ["theremin", "rain", "didgeridoo"]}])
    with pytest.raises(UserError) as refused:
        read_recordings({"train": strange, "test": test}, lexicon())
    assert "didgeridoo, theremin;" in str(refused.value)
    assert "jobs/build_miniature.py" in str(refused.value)
    assert "lexicon=FILE" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_recording_in_both_manifests_is_refused(tmp_path: Path) -> None:
    train = write_manifest(tmp_path / "a.jsonl", [{"id": "a", "audio": "a.wav", "tags": ["rain"]}])
    test = write_manifest(tmp_path / "b.jsonl", [{"id": "other", "audio": "a.wav", "tags": ["rain"]}])
    with pytest.raises(UserError, match="'other'"):
        read_recordings({"train": train, "test": test}, lexicon())


@pytest.mark.parametrize(("learned", "asked", "apart"), [(0.0, 1.0, False), (1.0, 2.0, True), (2.0, 0.0, False)])
def test_slices_of_a_recording_may_stand_in_both_manifests_if_they_share_nothing(
    tmp_path: Path, learned: float, asked: float, apart: bool
) -> None:
    """The one that is learned from has a second, but where it begins at 0 two of them; the other one has no end."""
    row = {"audio": "a.wav", "tags": ["rain"]}
    slice_ = {"start": learned, "duration": 1.0 if learned else 2.0}
    train = write_manifest(tmp_path / "a.jsonl", [row | slice_ | {"id": "a"}])
    test = write_manifest(tmp_path / "b.jsonl", [row | {"start": asked, "id": "other"}])
    if apart:
        read_recordings({"train": train, "test": test}, lexicon())
    else:
        with pytest.raises(UserError, match="'other'"):
            read_recordings({"train": train, "test": test}, lexicon())


def test_nothing_is_learned_from_a_copy_of_what_is_asked_about(tmp_path: Path) -> None:
    train, test = write_recordings(tmp_path / "a", "train", 4), write_recordings(tmp_path / "b", "test", 4, first=4)
    samples, rate = soundfile.read(tmp_path / "b" / "6.wav", dtype="int16")
    soundfile.write(tmp_path / "a" / "2.flac", samples, rate)  # under another name and in another format
    rows = read_manifest(train)
    rows[2] |= {"audio": str(tmp_path / "a" / "2.flac")}
    said = corpus(tmp_path, write_manifest(train, rows), test)
    assert any("set aside: clip 2: the same samples as 'clip 6' of evaluate" in line for line in said)
    assert {row["id"] for row in read_manifest(tmp_path / "corpus" / "recordings.jsonl")} == {
        "clip 0", "clip 1", "clip 3"
    }  # fmt: skip
    assert len(read_manifest(tmp_path / "corpus" / "test.jsonl")) == 4


def test_a_scene_has_the_events_that_reach_into_the_excerpt_and_no_others() -> None:
    time = np.arange(20 * 16_000) / 16_000
    samples = np.where((time > 10) & (time < 11), np.sin(2 * np.pi * 440 * time), 0.001).astype(np.float32)
    row = {
        "tags": ["siren", "rain"],
        "events": [{"label": "siren", "start": 10.0, "end": 11.0}, {"label": "rain", "start": 0.0, "end": 0.5}],
    }
    for index in range(10):
        mixed, events = mix_scene(rng(0, "test", index), [(row, samples)])
        assert [event["label"] for event in events] == ["siren"]
        heard = np.abs(mixed) > 0.5 * np.abs(mixed).max()
        first, last = (np.flatnonzero(heard)[[0, -1]]) / 16_000
        assert events[0]["start"] == pytest.approx(first, abs=0.05)
        assert events[0]["end"] == pytest.approx(last, abs=0.05)


def test_no_label_comes_twice_and_rare_ones_are_drawn_more_often() -> None:
    rows = [{"id": f"{i}", "tags": ["rain"] if i < 90 else ["dog barking", "wind"]} for i in range(100)]
    mix = MixConfig(scenes=300, events=[1, 1, 1], balance=1.0)
    drawn = [chosen for _, chosen in draw_sources(0, rows, mix)]
    assert all(1 <= len(chosen) <= 2 for chosen in drawn)
    assert all(len({label for row in chosen for label in row["tags"]}) >= len(chosen) for chosen in drawn)
    alone = [chosen[0]["tags"][0] for chosen in drawn if len(chosen) == 1]
    assert 0.3 < alone.count("rain") / len(alone) < 0.7
    chances = weights([row["tags"] for row in rows], 0.0)
    np.testing.assert_allclose(chances, 0.01)


@given(length=st.integers(1, 500), window=st.integers(1, 300), seed=st.integers(0, 99))
def test_an_excerpt_lies_in_the_recording_and_in_the_window(length: int, window: int, seed: int) -> None:
    first, place, size = excerpt(rng(seed, "excerpt"), np.ones(length), window)
    assert size == min(length, window)
    assert 0 <= first <= length - size
    assert 0 <= place <= window - size


def test_silence_around_a_sound_is_left_out() -> None:
    samples = np.zeros(1000, np.float32)
    samples[300:400] = 0.5
    before, sound = trimmed(samples)
    assert (before, len(sound)) == (300, 100)
    assert trimmed(samples[:100])[1].size == 100


def test_a_sound_that_has_tags_alone_is_said_to_last_as_long_as_it_is_heard() -> None:
    samples = np.zeros(3 * 16_000, np.float32)
    samples[16_000:32_000] = np.sin(np.arange(16_000) / 5)
    for index in range(8):
        mixed, (event,) = mix_scene(rng(1, "test", index), [({"id": "a", "tags": ["siren"]}, samples)])
        first, last = np.flatnonzero(np.abs(mixed) > 0.5 * np.abs(mixed).max())[[0, -1]] / 16_000
        assert (event["start"], event["end"]) == pytest.approx((first, last), abs=0.05)
