"""The encoder is tuned on recordings: it has heard synthetic sounds alone before.

Recordings are few, so no step hears the same: log-mels of some are laid over each other as if they had sounded
together, at other speeds, levels and places, with noise and another colour, and parts of them are masked.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balsa_ray.audio.decode import Samples, decode, resample
from balsa_ray.audio.features import log_mel
from balsa_ray.checkpoints import weights_hash
from balsa_ray.identity import rng, stable_hash
from balsa_ray.miniature.config import TuneConfig
from balsa_ray.miniature.encoder import tagging_set, training
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.miniature.recordings import excerpt, weights
from balsa_ray.miniature.sound_events import RATE
from balsa_ray.schema import read_manifest

Mel = npt.NDArray[np.floating[Any]]

SPEEDS = (0.85, 1.0, 1.18)
"""How much faster a recording is played: its pitch moves by three semitones."""
BANDS = 80
FRAMES = 200
SOUNDSCAPES = 1000
"""Synthetic clips that the tuning hears besides."""


@dataclass(frozen=True)
class Heard:
    """A recording as the tuning holds it.

    Attributes:
        labels: Its sounds.
        mels: Log-mel `[80, frames]` (float16) at each of `SPEEDS`.
    """

    labels: tuple[str, ...]
    mels: tuple[Mel, ...]


def hear(extractor: Any, labels: Sequence[str], samples: Samples, speeds: Sequence[float] = SPEEDS) -> Heard:
    """Computes the log-mels of a recording of any length at several speeds."""
    mels = []
    for speed in speeds:
        played = samples if speed == 1 else resample(samples, RATE * speed, RATE)
        windows = log_mel(extractor, [played])
        frames = max(1, min(len(played) // extractor.hop_length, windows.shape[0] * windows.shape[2]))
        mels.append(np.concatenate(list(windows), axis=1)[:, :frames].astype(np.float16))
    return Heard(tuple(labels), tuple(mels))


def mix_mels(draw: np.random.Generator, mels: Sequence[Mel]) -> Mel:
    """Lays excerpts of log-mels over each other and disturbs the result.

    Powers add up: Whisper's compression (log, at most 80 dB below the loudest, scaled) is undone before and done after.

    Args:
        draw: Decides places, levels, noise, colour and masks.
        mels: `[80, frames]` of each recording.

    Returns:
        `[80, 200]`, float32.
    """
    power = np.zeros((BANDS, FRAMES), np.float32)
    for mel in mels:
        loudness = 10 ** (2 * (mel.max(axis=0).astype(np.float32) - 1))  # as amplitude
        first, place, length = excerpt(draw, loudness, FRAMES)
        cut = 10 ** (4 * mel[:, first : first + length].astype(np.float32) - 4)
        if len(mels) > 1:
            cut *= np.float32(10 ** draw.uniform(-1.2, 0)) / (cut.mean() + np.float32(1e-9))
        power[:, place : place + length] += np.roll(cut, int(draw.integers(-2, 3)), axis=0)
    tilt = np.interp(np.arange(BANDS), [0, 40, 79], draw.uniform(-0.5, 0.5, 3)) - draw.uniform(1.0, 4.5)
    noise = draw.standard_exponential(power.shape, np.float32) * power.mean()
    power += noise * (10 ** tilt[:, None]).astype(np.float32)
    colour = np.interp(np.arange(BANDS), [0, 20, 40, 60, 79], draw.uniform(-0.5, 0.5, 5)) + draw.uniform(-1, 0.5)
    power *= (10 ** colour[:, None]).astype(np.float32)
    log = np.log10(np.maximum(power, np.float32(1e-10)))
    mixed = (np.maximum(log, log.max() - 8) + 4) / 4
    band, stretch = int(draw.integers(72)), int(draw.integers(180))
    mixed[band : band + int(draw.integers(1, 13))] = mixed.mean()
    mixed[:, stretch : stretch + int(draw.integers(1, 31))] = mixed.mean()
    return np.asarray(mixed, np.float32)


def tune_encoder(
    output: Path,
    base: Path,
    manifest: Path,
    *,
    seed: int,
    tune: TuneConfig,
    balance: float,
    identity: str,
    log: Callable[[str], None] = print,
) -> None:
    """Goes on training an encoder of the miniature, its tagging head widened by the recordings' labels.

    Args:
        output: Folder of the tuned encoder; one of the same identity is left alone.
        base: The encoder to begin with.
        manifest: Recordings at 16 kHz with tags.
        seed: Keys the mixes.
        tune: How long, and of what.
        balance: As `recordings.weights` takes it.
        identity: Of the manifest's recordings.
        log: Told how far it is.
    """
    import torch
    from transformers import AutoFeatureExtractor

    made_from = stable_hash(identity, weights_hash(base), seed, tune.model_dump(), balance)
    done = output / "tuned.json"
    if done.exists() and json.loads(done.read_text("utf-8"))["made_from"] == made_from:
        log("   the encoder has been tuned on these recordings already")
        return
    extractor = AutoFeatureExtractor.from_pretrained(base)
    rows = read_manifest(manifest)
    recordings = [hear(extractor, row["tags"], decode(row["audio"], max_seconds=1e6)) for row in rows]
    model = widened(base, dict.fromkeys(label for row in rows for label in row["tags"]))
    torch.manual_seed(seed)  # of dropout
    step = training(model, tune.learning_rate, tune.steps, compiled=False)
    model.train()
    began, losses = time.monotonic(), []
    for number, (x, y) in enumerate(mixes(seed, recordings, model.config.label2id, tune, balance), start=1):
        losses.append(step(torch.from_numpy(x), torch.from_numpy(y)))
        if number % 100 == 0 or number == tune.steps:
            pace = (time.monotonic() - began) / number
            loss, left = np.mean(losses[-100:]), pace * (tune.steps - number) / 60
            log(f"   encoder: step {number}/{tune.steps}, loss {loss:.4f}, {left:.0f} min left")
    shutil.rmtree(output, ignore_errors=True)
    model.save_pretrained(output)
    extractor.save_pretrained(output)
    done.write_text(json.dumps({"made_from": made_from}), "utf-8")


def widened(base: Path, labels: Iterable[str]) -> Any:
    """Returns an encoder with its tagging head, which has further outputs for labels that it did not know."""
    import torch
    from transformers import WhisperForAudioClassification

    model = WhisperForAudioClassification.from_pretrained(base, dtype=torch.float32)
    known = [model.config.id2label[i] for i in range(model.config.num_labels)]
    everything = [*known, *(label for label in labels if label not in known)]
    head = torch.nn.Linear(model.classifier.in_features, len(everything))
    with torch.no_grad():
        head.weight.zero_()
        head.weight[: len(known)] = model.classifier.weight
        head.bias.fill_(-3.0)  # most sounds are absent from a clip
        head.bias[: len(known)] = model.classifier.bias
    model.classifier = head
    model.num_labels = model.config.num_labels = len(everything)
    model.config.id2label = dict(enumerate(everything))
    model.config.label2id = {label: i for i, label in enumerate(everything)}
    return model


def mixes(
    seed: int, recordings: Sequence[Heard], column: Mapping[str, int], tune: TuneConfig, balance: float
) -> Iterator[tuple[Mel, npt.NDArray[np.float32]]]:
    """Yields a batch for each step: log-mels `[batch, 80, 200]` and multi-hot targets `[batch, labels]`."""
    chances = weights([heard.labels for heard in recordings], balance)
    sizes = np.array(tune.events) / sum(tune.events)
    heard_before, tags = tagging_set(seed, "encoder-train", SOUNDSCAPES if tune.soundscapes else 0)
    known = [(column[label], i) for i, label in enumerate(lexicon().synthesised) if label in column]
    ours, theirs = map(list, zip(*known, strict=True)) if known else ([], [])
    for step in range(tune.steps):
        draw = rng(seed, "tuning", step)
        x = np.empty((tune.batch_size, BANDS, FRAMES), np.float32)
        y = np.zeros((tune.batch_size, len(column)), np.float32)
        for row in range(tune.batch_size):
            if draw.random() < tune.soundscapes:
                index = int(draw.integers(SOUNDSCAPES))
                x[row], y[row, ours] = heard_before[index], tags[index, theirs]
                continue
            number = min(1 + int(draw.choice(len(sizes), p=sizes)), int(np.count_nonzero(chances)))
            chosen = [recordings[i] for i in draw.choice(len(recordings), number, replace=False, p=chances)]
            x[row] = mix_mels(draw, [heard.mels[int(draw.integers(len(heard.mels)))] for heard in chosen])
            y[row, [column[label] for heard in chosen for label in heard.labels]] = 1
        yield x, y
