import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from balsa_ray.identity import rng
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.miniature.sound_events import GENERATORS
from balsa_ray.miniature.soundscapes import soundscape, write_corpus
from balsa_ray.schema import read_manifest


def test_every_synthesised_label_has_a_generator() -> None:
    assert set(GENERATORS) == set(lexicon().synthesised)
    assert len(GENERATORS) >= 24


def test_every_synthesised_sound_has_confusable_neighbours_that_can_be_heard() -> None:
    for label in lexicon().synthesised:
        assert set(lexicon().neighbours(label)) & set(lexicon().synthesised)


@pytest.mark.parametrize("label", sorted(GENERATORS))
@settings(max_examples=8, deadline=None)
@given(samples=st.integers(16_000, 64_000), seed=st.integers(0, 1_000))
def test_generators_make_sound_of_the_length_asked_for(label: str, samples: int, seed: int) -> None:
    sound = GENERATORS[label](rng(seed, label), samples)
    assert sound.shape == (samples,)
    assert np.isfinite(sound).all()
    assert np.abs(sound).max() > 0


def test_a_clip_depends_on_seed_split_and_index_alone() -> None:
    again = [soundscape(0, "train", 7)[0] for _ in range(2)]
    np.testing.assert_array_equal(*again)
    others = [soundscape(1, "train", 7)[0], soundscape(0, "test", 7)[0], soundscape(0, "train", 8)[0]]
    assert all(not np.array_equal(again[0], other) for other in others)


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, 10_000))
def test_events_lie_in_the_clip_and_are_named_once(index: int) -> None:
    samples, events = soundscape(3, "train", index)
    assert samples.shape == (64_000,)
    assert np.abs(samples).max() < 1
    assert 1 <= len(events) <= 3
    assert len({event["label"] for event in events}) == len(events)
    assert all(0 <= event["start"] < event["end"] <= 4 for event in events)
    assert [event["start"] for event in events] == sorted(event["start"] for event in events)


def test_a_corpus_is_a_manifest_of_readable_clips(tmp_path: Path) -> None:
    assert list(write_corpus(tmp_path, 0, "test", 6, workers=2))[-1] == 6
    rows = read_manifest(tmp_path / "test.jsonl")
    assert [row["id"] for row in rows] == [f"test-0-{i:06d}" for i in range(6)]
    for i, row in enumerate(rows):
        samples, rate = soundfile.read(row["audio"], dtype="float32")
        assert rate == 16_000
        np.testing.assert_allclose(samples, soundscape(0, "test", i)[0], atol=1e-4)
        assert row["tags"] == [event["label"] for event in row["events"]]
    assert len((tmp_path / "test.jsonl").read_text().splitlines()) == 6
    json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])
