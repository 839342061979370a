"""How fast are soundscapes made on one core, against writing noise of the same length as FLAC?

    python benchmarks/corpus_throughput.py [--clips 200]

The baseline is what any corpus of files costs (libsndfile's FLAC encoder); the ratio says what synthesis adds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from balsa_ray.identity import rng
from balsa_ray.miniature.sound_events import RATE
from balsa_ray.miniature.soundscapes import SECONDS, write_clip


def main() -> None:
    """Prints medians of five interleaved rounds, in seconds of CPU time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=200)
    clips = parser.parse_args().clips
    noise = rng(0, "noise").uniform(-0.5, 0.5, int(SECONDS * RATE)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "audio").mkdir()

        def soundscape(index: int) -> None:
            write_clip(folder, 0, "bench", index)

        def baseline(_: int) -> None:
            soundfile.write(folder / "noise.flac", noise, RATE, format="FLAC", subtype="PCM_16")

        rounds = [(seconds(soundscape, clips), seconds(baseline, clips)) for _ in range(5)]
    made, written = (statistics.median(column) / clips for column in zip(*rounds, strict=True))
    print(f"soundscapes: {1 / made:.0f} clips/s on one core ({1000 * made:.1f} ms each)")
    print(
        f"baseline, white noise to FLAC: {1 / written:.0f} clips/s; a soundscape costs {made / written:.1f} times that"
    )


def seconds(work: Callable[[int], None], times: int) -> float:
    """Returns the CPU seconds of `times` calls."""
    start = time.process_time()
    for index in range(times):
        work(index)
    return time.process_time() - start


if __name__ == "__main__":
    main()
