"""The encoder learns recordings' labels, and its mixes of log-mels are those of mixed samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from balsa_ray.checkpoints import resolve, weights_hash
from balsa_ray.identity import rng
from balsa_ray.miniature.config import TuneConfig
from balsa_ray.miniature.encoder import feature_extractor, tag_probabilities, tagging_set
from balsa_ray.miniature.soundscapes import soundscape
from balsa_ray.miniature.tuning import BANDS, FRAMES, hear, mix_mels, mixes, tune_encoder, widened

QUICK = TuneConfig(steps=3, batch_size=4, soundscapes=0.0)


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_recording_of_any_length_is_heard_at_every_speed() -> None:
    samples = np.tile(soundscape(0, "train", 1)[0], 3)
    heard = hear(feature_extractor(), ["rain"], samples)
    assert [mel.shape for mel in heard.mels] == [(80, pytest.approx(600 / s, abs=2)) for s in (0.85, 1.0, 1.18)]
    short = hear(feature_extractor(), ["rain"], samples[:100])
    assert all(mel.shape == (80, 1) for mel in short.mels)


@pytest.mark.parametrize("sounds", [1, 3])
def test_a_mix_looks_like_what_the_encoder_reads(sounds: int) -> None:
    extractor = feature_extractor()
    mels = [hear(extractor, [], soundscape(0, "train", i)[0], [1.0]).mels[0] for i in range(sounds)]
    for index in range(20):
        mixed = mix_mels(rng(0, "mix", index), mels)
        assert mixed.shape == (BANDS, FRAMES)
        assert np.isfinite(mixed).all()
        assert mixed.max() - mixed.min() <= 2 + 1e-3  # Whisper keeps 80 dB
    np.testing.assert_array_equal(mix_mels(rng(0, "mix", 4), mels), mix_mels(rng(0, "mix", 4), mels))


def test_batches_hold_each_mix_with_its_labels() -> None:
    extractor = feature_extractor()
    labels = (["rain"], ["dog barking"], ["rain", "wind"])
    recordings = [hear(extractor, of, soundscape(0, "train", i)[0], [1.0]) for i, of in enumerate(labels)]
    column = {"rain": 0, "dog barking": 1, "wind": 2}
    tune = TuneConfig(steps=2, batch_size=8, events=[1.0], soundscapes=0.0)
    batches = list(mixes(0, recordings, column, tune, balance=0.5))
    assert [x.shape for x, _ in batches] == [(8, 80, 200)] * 2
    assert {tuple(row) for _, y in batches for row in y} <= {(1, 0, 0), (0, 1, 0), (1, 0, 1)}
    again = list(mixes(0, recordings, column, tune, balance=0.5))
    np.testing.assert_array_equal(batches[1][0], again[1][0])


def test_a_wider_head_says_the_same_of_what_it_knew() -> None:
    from transformers import WhisperForAudioClassification

    base = resolve("miniature:encoder")
    features, _ = tagging_set(0, "encoder-test", 4)
    before = tag_probabilities(WhisperForAudioClassification.from_pretrained(base), features)
    model = widened(base, ["dog barking", "rain"])
    after = tag_probabilities(model, features)
    np.testing.assert_allclose(after[:, :-1], before, atol=1e-6)
    assert after.shape[1] == before.shape[1] + 1
    assert model.config.label2id["dog barking"] == before.shape[1]
    assert (after[:, -1] < 0.1).all()


def test_tuning_is_repeatable_and_done_once(tmp_path: Path) -> None:
    import soundfile

    rows = []
    for index in range(6):
        soundfile.write(tmp_path / f"{index}.flac", soundscape(0, "train", index)[0], 16_000)
        tags = [["dog barking"], ["rain"]][index % 2]
        rows.append({"id": f"{index}", "audio": f"{index}.flac", "tags": tags})
    manifest, base = write_manifest(tmp_path / "train.jsonl", rows), resolve("miniature:encoder")

    def tune(folder: str, seed: int = 0) -> list[str]:
        said: list[str] = []
        tune_encoder(
            tmp_path / folder, base, manifest, seed=seed, tune=QUICK, balance=0.5, identity="clips", log=said.append
        )
        return said

    assert "step 3/3" in tune("a")[-1]
    assert "already" in tune("a")[-1]
    tune("b")
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b")
    assert weights_hash(tmp_path / "a") != weights_hash(base)
    assert "dog barking" in json.loads((tmp_path / "a" / "config.json").read_text())["label2id"]
    assert "step 3/3" in tune("a", seed=1)[-1]


@pytest.mark.slow
def test_tuning_learns_sounds_that_the_encoder_has_never_heard(tmp_path: Path) -> None:
    import soundfile
    from transformers import WhisperForAudioClassification

    def tone(index: int) -> np.ndarray:
        """Two kinds of tones that no soundscape has: low ones that sway and high ones that warble."""
        draw = rng(0, "tone", index)
        time = np.arange(int(draw.uniform(8_000, 32_000))) / 16_000
        pitch, sways = (draw.uniform(4000, 5000), draw.uniform(8, 12)) if index % 2 else (draw.uniform(400, 600), 1.0)
        phase = 2 * np.pi * pitch * time + 0.1 * pitch / sways * np.sin(2 * np.pi * sways * time)
        return (0.3 * np.sin(phase)).astype(np.float32)

    rows = []
    for index in range(24):
        soundfile.write(tmp_path / f"{index}.flac", tone(index), 16_000)
        tags = [["cat meowing"], ["bird chirping"]][index % 2]
        rows.append({"id": f"{index}", "audio": f"{index}.flac", "tags": tags})
    manifest = write_manifest(tmp_path / "train.jsonl", rows)
    tune = TuneConfig(steps=60, batch_size=16, events=[1.0], soundscapes=0.0)
    tune_encoder(
        tmp_path / "tuned", resolve("miniature:encoder"), manifest, seed=0, tune=tune, balance=0.5, identity="tones"
    )
    torch.manual_seed(0)
    model = WhisperForAudioClassification.from_pretrained(tmp_path / "tuned")
    extractor = feature_extractor()
    features = np.concatenate(
        [extractor(tone(i), sampling_rate=16_000, return_tensors="np").input_features for i in range(100, 120)]
    )
    probabilities = tag_probabilities(model, features)
    said = [probabilities[:, model.config.label2id[label]] for label in ("cat meowing", "bird chirping")]
    right = (said[1] > said[0]) == (np.arange(100, 120) % 2 == 1)
    assert right.mean() >= 0.9
