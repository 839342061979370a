"""Soundscapes: 4 s clips with one to three sound events over a noise floor, written as FLAC with a manifest.

A clip is a pure function of (seed, split, index): any worker can make any clip, and the splits share no random
stream. Events of one clip come mostly from one scene, so labels co-occur as they do in the world, and a model can
hallucinate a sound that merely fits.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from balsa_ray.identity import rng, stable_hash
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.miniature.sound_events import GENERATORS, RATE, Samples

SECONDS = 4.0


@dataclass(frozen=True)
class World:
    """How hard soundscapes are to hear, and how much their labels say of each other. All figures are ours.

    Attributes:
        same_scene: Probability that an event is drawn from the clip's scene, and not from all sounds.
        event_level_db: Least and greatest level of an event.
        noise_snr_db: Least and greatest level of the events above the noise floor.
        label_sets: `seen`: no clip has a set of labels that is held out (one in ten of those with two or more);
            `held_out`: all have one; `all`: whatever comes.
    """

    same_scene: float = 0.8
    event_level_db: tuple[float, float] = (-16.0, 0.0)
    noise_snr_db: tuple[float, float] = (2.0, 24.0)
    label_sets: Literal["all", "seen", "held_out"] = "all"


WORLD = World()
"""The one that the packaged encoder has heard."""


def held_out_set(labels: list[str]) -> bool:
    """Whether a set of two or more labels belongs to the test (one in ten)."""
    return len(set(labels)) > 1 and int(stable_hash(sorted(set(labels))), 16) % 10 == 0


def labels_of_clip(seed: int, split: str, index: int, world: World = WORLD) -> list[str]:
    """Draws a clip's one to three labels, each once."""
    draw = rng(seed, "labels", split, index)
    while True:
        labels = _labels(draw, world)
        if world.label_sets == "all" or held_out_set(labels) == (world.label_sets == "held_out"):
            return labels


def _labels(draw: np.random.Generator, world: World) -> list[str]:
    words = lexicon()
    scene = [label for label in words.scenes[draw.choice(sorted(words.scenes))] if label in GENERATORS]
    labels: list[str] = []
    for _ in range(int(draw.choice([1, 2, 3], p=[0.3, 0.4, 0.3]))):
        pool = scene if draw.random() < world.same_scene else words.synthesised
        choices = [label for label in pool if label not in labels]
        labels.append(str(draw.choice(choices or [label for label in words.synthesised if label not in labels])))
    return labels


def soundscape(seed: int, split: str, index: int, world: World = WORLD) -> tuple[Samples, list[dict[str, Any]]]:
    """Makes one clip.

    Args:
        seed: The corpus' seed.
        split: Any name; each has its own random streams.
        index: Number of the clip in its split.
        world: What it is drawn from.

    Returns:
        Mono float32 samples of 4 s at 16 kHz, peak below 1, and its events `{label, start, end}` in seconds by onset.
    """
    draw = rng(seed, "soundscape", split, index)
    total = int(SECONDS * RATE)
    mix = np.zeros(total, np.float32)
    events = []
    for label in labels_of_clip(seed, split, index, world):
        length = int(draw.uniform(1.0, 3.5) * RATE)
        start = int(draw.uniform(0, total - length))
        sound = GENERATORS[label](draw, length).astype(np.float32)
        fade = np.minimum(1, np.arange(length, dtype=np.float32) / (0.01 * RATE))
        level = 10 ** (draw.uniform(*world.event_level_db) / 20)
        sound *= fade * fade[::-1] * level / (np.sqrt(np.mean(sound**2)) + 1e-9)
        mix[start : start + length] += sound
        events.append({"label": label, "start": round(start / RATE, 3), "end": round((start + length) / RATE, 3)})
    floor = draw.standard_normal(total, dtype=np.float32) * 10 ** (-draw.uniform(*world.noise_snr_db) / 20) * mix.std()
    mix = np.convolve(floor, [1.0, draw.uniform(-0.7, 0.7)], "same").astype(np.float32) + mix
    mix *= np.float32(draw.uniform(0.1, 0.9)) / (np.abs(mix).max() + 1e-9)
    return mix, sorted(events, key=lambda event: event["start"])


def write_clip(folder: Path, seed: int, split: str, index: int, world: World = WORLD) -> dict[str, Any]:
    """Writes one clip to `FOLDER/audio` and returns its row of the manifest."""
    import soundfile

    samples, events = soundscape(seed, split, index, world)
    name = f"audio/{split}-{seed}-{index:06d}.flac"
    soundfile.write(folder / name, samples, RATE, format="FLAC", subtype="PCM_16")
    return {"id": f"{split}-{seed}-{index:06d}", "audio": name, "tags": [e["label"] for e in events], "events": events}


def write_corpus(
    folder: Path, seed: int, split: str, clips: int, workers: int = 2, world: World = WORLD
) -> Iterator[int]:
    """Writes FLAC files and `FOLDER/SPLIT.jsonl`, the manifest; yields how many clips are done.

    The manifest is written last and by renaming, so it never lists a clip that is not there.
    """
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    with ProcessPoolExecutor(workers) as pool:
        for row in pool.map(partial(write_clip, folder, seed, split, world=world), range(clips), chunksize=25):
            rows.append(row)
            yield len(rows)
    partial_manifest = folder / f".{split}.jsonl.partial"
    partial_manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    partial_manifest.replace(folder / f"{split}.jsonl")
