"""Recordings of one's own as the miniature's corpus: checked, brought to 16 kHz, and mixed into scenes.

Recordings have any rate, header and length. Each is decoded once and written as FLAC; what can't be used is set aside,
with its reason, and never ends a run. A scene lays excerpts of up to 4 s over each other, a little faster or slower,
at levels, places and with a noise of their own; its events say where each is heard. All draws are keyed by
(seed, number of the scene).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balsa_ray.audio.decode import SILENCE, AudioError, Samples, decode, resample
from balsa_ray.config import UserError
from balsa_ray.identity import file_hash, rng, stable_hash
from balsa_ray.miniature.config import MixConfig
from balsa_ray.miniature.lexicon import Lexicon
from balsa_ray.miniature.sound_events import RATE
from balsa_ray.miniature.soundscapes import SECONDS
from balsa_ray.prompts.labels import normal
from balsa_ray.prompts.render import labels_of
from balsa_ray.schema import read_manifest

Row = dict[str, Any]

SPEEDS = (0.85, 1.18)
"""How much faster an excerpt is played, at least and at most: its pitch moves by three semitones."""
AUDIBLE = 0.02
"""Share of its peak below which the beginning and the end of an excerpt are taken for silence."""
SHORTEST = 0.01
"""Seconds of an event that an excerpt must hold for the scene to have it."""
NAMED = 20
"""Recordings that are set aside and named on the terminal; all stand in the file."""


@dataclass(frozen=True)
class RecordingList:
    """The recordings that a manifest names.

    Attributes:
        manifest: Its path.
        rows: Its rows, labels as the lexicon spells them.
    """

    manifest: Path
    rows: list[Row]


def read_recordings(manifests: dict[str, Path], words: Lexicon) -> dict[str, RecordingList]:
    """Reads the manifests of `train` and `test` and looks at their labels.

    Raises:
        UserError: A manifest can't be used, a recording stands in both, or labels are not in the lexicon: one line
            that lists them, and says how to build a miniature that knows them.
    """
    lists = {split: RecordingList(path, read_manifest(path)) for split, path in manifests.items()}
    spelled = {normal(label): label for label in words.labels}
    for found in lists.values():
        unknown = {label for row in found.rows for label in _all_labels(row) if normal(label) not in spelled}
        if unknown:
            raise UserError(
                f"{found.manifest}: labels that the miniature has no words for: {', '.join(sorted(unknown))}; rename "
                "them to labels of balsa_ray/miniature/lexicon.yaml, or build a miniature with more words (python "
                "jobs/build_miniature.py jobs/configs/miniature/build.yaml output=DIR lexicon=FILE) and name it with "
                "miniature=DIR"
            )
        for row in found.rows:
            if row.get("tags"):
                row["tags"] = [spelled[normal(label)] for label in row["tags"]]
            if row.get("events"):
                row["events"] = [event | {"label": spelled[normal(event["label"])]} for event in row["events"]]
    check_apart(lists)
    return lists


def _all_labels(row: Row) -> list[str]:
    return [*(row.get("tags") or []), *(event["label"] for event in row.get("events") or [])]


def build_corpus(
    folder: Path,
    lists: dict[str, RecordingList],
    *,
    seed: int,
    mix: MixConfig,
    max_seconds: float,
    workers: int,
    log: Callable[[str], None] = print,
) -> str:
    """Writes `FOLDER/train.jsonl`, recordings and the scenes mixed from them, and `FOLDER/test.jsonl`.

    `FOLDER/recordings.jsonl` lists those of `train.jsonl` that are no scenes, `FOLDER/set_aside.jsonl` what could not
    be used. A complete folder is left alone.

    Args:
        folder: Of the corpus.
        lists: The recordings of `train` and `test`.
        seed: Keys the scenes.
        mix: How many scenes, and of what.
        max_seconds: Longest recording.
        workers: Processes.
        log: Told what is done.

    Returns:
        A hash of all that the corpus was made from.

    Raises:
        UserError: None of the recordings of a manifest can be used, or the folder holds another corpus.
    """
    identity = stable_hash([file_hash(found.manifest) for found in lists.values()], seed, mix.model_dump(), max_seconds)
    done = folder / "corpus.json"
    if done.exists():
        if json.loads(done.read_text("utf-8"))["identity"] != identity:
            raise UserError(f"{folder}: holds clips made otherwise; choose another output or remove it")
        log("   the clips are there already")
        return identity
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    aside: list[Row] = []
    kept: dict[str, list[Row]] = {}
    with ProcessPoolExecutor(workers) as pool:
        for split, found in lists.items():
            copies = pool.map(partial(copy_recording, folder, split, max_seconds), found.rows, chunksize=10)
            kept[split], unusable = _sorted_out(found, copies)
            aside += unusable
            log(f"   {split}: {len(kept[split])} of {len(found.rows)} recordings can be used")
        kept["train"], doubles = _without_copies(folder, kept["train"], kept["test"])
        aside += doubles
        _write_rows(folder / "set_aside.jsonl", aside)
        for row in aside[:NAMED]:
            log(f"   set aside: {row['id']}: {row['error']}")
        if len(aside) > NAMED:
            log(f"   and {len(aside) - NAMED} more, see {folder / 'set_aside.jsonl'}")
        for split, found in lists.items():
            if not kept[split]:
                raise UserError(f"{found.manifest}: none of its recordings can be used, see what stands above", 1)
        scenes = []
        chosen = draw_sources(seed, kept["train"], mix)
        for number, row in enumerate(pool.map(partial(write_scene, folder, seed), chosen, chunksize=25), start=1):
            if row["tags"]:  # else no event reaches into it
                scenes.append(row)
            if number % 500 == 0 or number == mix.scenes:
                log(f"   train: {number}/{mix.scenes} scenes")
    _write_rows(folder / "recordings.jsonl", kept["train"])
    _write_rows(folder / "train.jsonl", [*kept["train"], *scenes])
    _write_rows(folder / "test.jsonl", kept["test"])
    done.write_text(json.dumps({"identity": identity, "set_aside": len(aside)}), "utf-8")
    return identity


def check_apart(lists: dict[str, RecordingList]) -> None:
    """Refuses a recording, or a part of one, that stands in both manifests.

    Raises:
        UserError: Names the first one.
    """
    learned: dict[str, list[tuple[float, float]]] = {}
    for row in lists["train"].rows:
        learned.setdefault(_source(row), []).append(_span(row))
    both = [
        row["id"]
        for row in lists["test"].rows
        for start, end in [_span(row)]
        if any(start < other_end and other < end for other, other_end in learned.get(_source(row), []))
    ]
    if both:
        raise UserError(
            f"{lists['test'].manifest}: {len(both)} of its recordings stand in {lists['train'].manifest} too, "
            f"{both[0]!r} for one: nothing can be said about what was learned from"
        )


def _without_copies(folder: Path, train: list[Row], test: list[Row]) -> tuple[list[Row], list[Row]]:
    """Sets recordings aside that sound the same as one that is asked about, under whatever names."""
    asked = {file_hash(folder / row["audio"]): row["id"] for row in test}
    found = [(row, asked.get(file_hash(folder / row["audio"]))) for row in train]
    aside = [{"id": row["id"], "error": f"the same samples as {copy!r} of evaluate"} for row, copy in found if copy]
    return [row for row, copy in found if not copy], aside


def _source(row: Row) -> str:
    return row["audio"] if isinstance(row["audio"], str) else stable_hash(str(row["audio"]))


def _span(row: Row) -> tuple[float, float]:
    """Returns where in a recording its slice begins and ends, in seconds."""
    start = row.get("start") or 0.0
    return start, start + (row.get("duration") or float("inf"))


def copy_recording(folder: Path, split: str, max_seconds: float, row: Row) -> Row | str:
    """Writes a recording, or its slice, as FLAC at 16 kHz.

    Returns:
        Its row in the corpus' manifest; or why it can't be used.
    """
    if not labels_of(row):
        return "has neither tags nor events"
    audio = row["audio"]
    source = audio if isinstance(audio, str) else audio.get("bytes") or audio["path"]
    try:
        samples = decode(source, start=row.get("start"), duration=row.get("duration"), max_seconds=max_seconds)
    except AudioError as error:
        return str(error)
    if np.abs(samples).max() < SILENCE:
        return f"{row['audio'] if isinstance(audio, str) else row['id']}: silent throughout"
    name = f"audio/{split}-{stable_hash(row['id'])}.flac"
    _write_samples(folder / name, samples)
    return {"id": row["id"], "audio": name, "tags": labels_of(row)} | (
        {"events": row["events"]} if row.get("events") else {}
    )


def draw_sources(seed: int, recordings: Sequence[Row], mix: MixConfig) -> Iterator[tuple[int, list[Row]]]:
    """Draws the recordings of each scene; no label comes from two of them. Yields the scene's number and its rows."""
    chances = weights([row["tags"] for row in recordings], mix.balance)
    shares = np.array(mix.events) / sum(mix.events)
    for index in range(mix.scenes):
        draw = rng(seed, "scene-sources", index)
        number = 1 + int(draw.choice(len(shares), p=shares))
        chosen: list[Row] = []
        for at in draw.choice(len(recordings), 4 * number, p=chances):
            taken = {label for row in chosen for label in row["tags"]}
            if len(chosen) < number and not taken & {*recordings[at]["tags"]}:
                chosen.append(recordings[at])
        yield index, chosen


def weights(labels: Sequence[Sequence[str]], balance: float) -> npt.NDArray[np.float64]:
    """Returns the chance of each recording to be drawn: by its rarest label's frequency to the power of -balance."""
    counts = Counter(label for of_one in labels for label in of_one)
    rare = np.array([min(counts[label] for label in of_one) for of_one in labels], np.float64) ** -balance
    return rare / rare.sum()


def write_scene(folder: Path, seed: int, chosen: tuple[int, list[Row]]) -> Row:
    """Mixes recordings of the corpus, writes the scene as FLAC and returns its row of the manifest.

    Args:
        folder: Of the corpus.
        seed: Keys the mix, together with the scene's number.
        chosen: That number, and the rows of the recordings.
    """
    import soundfile

    index, recordings = chosen
    heard = [(row, soundfile.read(folder / row["audio"], dtype="float32")[0]) for row in recordings]
    samples, events = mix_scene(rng(seed, "scene", index), heard)
    name = f"audio/scene-{seed}-{index:06d}.flac"
    _write_samples(folder / name, samples)
    made_of = "+".join(row["id"] for row in recordings)
    tags = list(dict.fromkeys(event["label"] for event in events))
    return {"id": f"scene-{seed}-{index:06d}:{made_of}", "audio": name, "tags": tags, "events": events}


def mix_scene(
    draw: np.random.Generator, recordings: Sequence[tuple[Row, Samples]]
) -> tuple[Samples, list[dict[str, Any]]]:
    """Lays excerpts of recordings over each other.

    Args:
        draw: Keyed generator.
        recordings: Rows of a manifest and their samples (16 kHz).

    Returns:
        Samples of 4 s, peak below 1, and the events `{label, start, end}` in seconds by onset: those of the recording
        that fall into its excerpt; if it has tags alone, each for the whole of the excerpt.
    """
    total = int(SECONDS * RATE)
    mix = np.zeros(total, np.float32)
    events = []
    for row, samples in recordings:
        speed = float(draw.uniform(*SPEEDS))
        played = resample(samples, RATE * speed, RATE)
        spans = [(e["label"], e["start"] / speed, e["end"] / speed) for e in row.get("events") or []]
        first, place, length = excerpt(draw, np.abs(played) * _inside(spans, len(played)), total)
        cut = played[first : first + length]
        if not spans:  # when it is heard nobody says, so silence before and after is left out
            before, cut = trimmed(cut)
            first, place = first + before, place + int(draw.integers(length - len(cut) + 1))
            spans = [(label, 0.0, len(played) / RATE) for label in row["tags"]]
        fade = np.minimum(1, np.arange(1, len(cut) + 1, dtype=np.float32) / (0.01 * RATE))
        level = np.float32(10 ** (draw.uniform(-12, 0) / 20) / (np.sqrt(np.mean(cut**2)) + 1e-9))
        mix[place : place + len(cut)] += cut * np.minimum(fade, fade[::-1]) * level
        for label, *ends in spans:
            start, end = (place + np.clip(np.array(ends) * RATE - first, 0, len(cut))) / RATE
            if end - start >= SHORTEST:
                events.append({"label": label, "start": round(float(start), 3), "end": round(float(end), 3)})
    noise = draw.standard_normal(total, dtype=np.float32) * 10 ** (-draw.uniform(10, 40) / 20) * mix.std()
    mix += np.convolve(noise, [1.0, draw.uniform(-0.7, 0.7)], "same").astype(np.float32)
    mix *= np.float32(draw.uniform(0.1, 0.9)) / (np.abs(mix).max() + 1e-9)
    return mix, sorted(events, key=lambda event: event["start"])


def _inside(spans: Sequence[tuple[str, float, float]], length: int) -> npt.NDArray[np.bool_]:
    """Returns for each sample whether it lies in a span; all, if none does."""
    inside = np.zeros(length, np.bool_)
    for _, start, end in spans:
        inside[int(start * RATE) : int(end * RATE) + 1] = True
    return inside if inside.any() else ~inside


def excerpt(draw: np.random.Generator, loudness: npt.NDArray[np.floating[Any]], window: int) -> tuple[int, int, int]:
    """Draws which part of a recording is heard, and where in the window.

    Of a recording that is longer than the window a part is taken around a point that is drawn by loudness: its labels
    may hold for a moment only.

    Args:
        draw: Keyed generator.
        loudness: A positive number for each sample or frame.
        window: Length of the window in the same unit.

    Returns:
        Where the part begins in the recording, where it is placed in the window, and its length.
    """
    length = len(loudness)
    if length <= window:
        return 0, int(draw.integers(window - length + 1)), length
    reached = np.cumsum(loudness, dtype=np.float64)
    around = int(np.searchsorted(reached, draw.random() * reached[-1]))
    return int(np.clip(around - draw.integers(window), 0, length - window)), 0, window


def trimmed(samples: Samples) -> tuple[int, Samples]:
    """Returns how many samples of silence stand before a sound, and the sound without those before and after."""
    loud = np.flatnonzero(np.abs(samples) > AUDIBLE * np.abs(samples).max())
    return (int(loud[0]), samples[loud[0] : loud[-1] + 1]) if len(loud) else (0, samples)


def _sorted_out(found: RecordingList, copies: Iterable[Row | str]) -> tuple[list[Row], list[Row]]:
    """Parts the rows that became clips from those that did not, in the order of the manifest."""
    kept, aside = [], []
    for row, copy in zip(found.rows, copies, strict=True):
        if isinstance(copy, str):
            aside.append({"id": row["id"], "manifest": str(found.manifest), "error": copy})
        else:
            kept.append(copy)
    return kept, aside


def _write_samples(path: Path, samples: Samples) -> None:
    import soundfile

    # Resampling overshoots where a recording is at full scale.
    soundfile.write(path, np.clip(samples, -1, 32767 / 32768), RATE, format="FLAC", subtype="PCM_16")


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
