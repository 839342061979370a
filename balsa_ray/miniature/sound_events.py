"""Procedural sound events: one small synthesiser for each sound that the miniature world can be heard making.

Every generator takes a keyed random generator and a length in samples at 16 kHz and returns float32 samples of any
level. Neighbours (two bells, two engines, rain and wind) share their physics and differ in what tells them apart to
a listener: pitch range, rhythm, spectrum or decay. All of it is drawn per event.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RATE = 16_000
Samples = npt.NDArray[np.floating[Any]]
Random = np.random.Generator


def _time(n: int) -> Samples:
    return np.arange(n, dtype=np.float32) / RATE


def _noise(rng: Random, n: int, low: float, high: float, tilt: float = 0.0) -> Samples:
    """White noise limited to `low`..`high` Hz, its amplitude falling as frequency**-tilt."""
    size = 1 << (n - 1).bit_length()
    frequencies = np.fft.rfftfreq(size, 1 / RATE).astype(np.float32)
    gain = 1 / (1 + (low / np.maximum(frequencies, 1)) ** 8) / (1 + (frequencies / high) ** 8)
    spectrum = np.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    shaped = np.fft.irfft(spectrum * np.sqrt(gain) * np.maximum(frequencies, 20) ** -tilt)[:n].astype(np.float32)
    return shaped / (shaped.std() + 1e-9)


def _tone(rng: Random, frequency: Samples | float, n: int, partials: list[float]) -> Samples:
    """Harmonic tone of a constant or moving frequency in Hz; `partials` are the amplitudes of 1×, 2×, 3× …."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(np.float32(frequency), n)) / RATE
    offsets = rng.uniform(0, 2 * np.pi, len(partials))
    return sum(a * np.sin((k + 1) * phase + offsets[k]) for k, a in enumerate(partials)).astype(np.float32)


def _ring(rng: Random, frequency: float, ratios: list[float], decay: float, n: int) -> Samples:
    """A struck body: inharmonic partials that die away, the higher the quicker. `decay` in seconds."""
    t = _time(n)
    out = np.zeros(n, np.float32)
    for k, ratio in enumerate(ratios):
        if frequency * ratio < 0.48 * RATE:
            out += (
                np.exp(-t * (1 + 0.5 * k) / decay)
                * np.sin(2 * np.pi * frequency * ratio * t + rng.uniform(0, 6.28))
                / (1 + 0.6 * k)
            )
    return out


def _place(n: int, times: Sequence[float], sound: Callable[[int], Samples]) -> Samples:
    """Adds `sound(samples left)` at each time (seconds)."""
    out = np.zeros(n, np.float32)
    for time in times:
        start = int(time * RATE)
        if 0 <= start < n:
            part = sound(n - start)
            out[start : start + len(part)] += part
    return out


def _beats(rng: Random, n: int, rate: float, jitter: float) -> list[float]:
    """Onsets in seconds at `rate` a second, each shifted by up to `jitter` of a period."""
    count = max(1, int(n / RATE * rate))
    return [(k + rng.uniform(0, jitter)) / rate for k in range(count)]


def _thump(rng: Random, low: float, high: float, decay: float) -> Callable[[int], Samples]:
    """A short burst of band-limited noise; `decay` in seconds."""

    def sound(n: int) -> Samples:
        length = min(n, int(8 * decay * RATE))
        return _noise(rng, max(length, 64), low, high)[:length] * np.exp(-_time(length) / decay)

    return sound


def church_bell(rng: Random, n: int) -> Samples:
    """A large bell: low, inharmonic, long decay, struck about once a second."""
    pitch, every = rng.uniform(160, 380), rng.uniform(0.7, 1.4)
    times = np.arange(rng.uniform(0, 0.1), n / RATE, every).tolist()
    return _place(n, times, lambda m: _ring(rng, pitch, [0.5, 1, 1.2, 1.5, 2, 2.67, 3.1], 0.9, m))


def bicycle_bell(rng: Random, n: int) -> Samples:
    """A small bell: high, short decay, trilled."""
    pitch, trill = rng.uniform(1900, 3000), rng.uniform(14, 22)
    starts = np.arange(0, n / RATE, rng.uniform(0.7, 1.1)).tolist()
    times = [s + k / trill for s in starts for k in range(int(rng.integers(4, 7)))]
    return _place(n, times, lambda m: _ring(rng, pitch, [1, 1.51, 2.3], 0.12, min(m, 8000)))


def wind_chime(rng: Random, n: int) -> Samples:
    """Five to six tuned tubes struck at random."""
    tubes = rng.uniform(900, 1500) * np.array([1, 1.12, 1.26, 1.5, 1.68, 2.0])
    times = np.sort(rng.uniform(0, n / RATE, max(3, int(n / RATE * rng.uniform(4, 8))))).tolist()
    return _place(
        n, times, lambda m: rng.uniform(0.4, 1) * _ring(rng, rng.choice(tubes), [1, 2.76], 0.5, min(m, 24000))
    )


def car_engine(rng: Random, n: int) -> Samples:
    """An idling engine: a low harmonic hum that wavers."""
    speed = rng.uniform(24, 42) * (1 + 0.03 * np.sin(2 * np.pi * rng.uniform(0.3, 1) * _time(n)))
    body = _tone(rng, speed, n, [1, 0.9, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1])
    return body + 0.25 * _noise(rng, n, 40, 500, 0.5)


def motorcycle(rng: Random, n: int) -> Samples:
    """Separate firing pulses that rev up and down."""
    revs = 1 + 0.35 * np.abs(np.sin(np.pi * rng.uniform(0.4, 0.9) * _time(n) + rng.uniform(0, 3)))
    phase = np.cumsum(rng.uniform(45, 75) * revs) / RATE % 1
    pulses = np.exp(-8 * phase).astype(np.float32)
    return (pulses - pulses.mean()) * (1 + 0.5 * _noise(rng, n, 100, 3000))


def lawn_mower(rng: Random, n: int) -> Samples:
    """A steady mid buzz with much broadband noise."""
    blade = rng.uniform(90, 140)
    buzz = _tone(rng, blade * (1 + 0.01 * _noise(rng, n, 0.5, 8)), n, [0.6, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    return buzz + 0.9 * _noise(rng, n, 300, 4000, 0.3)


def rain(rng: Random, n: int) -> Samples:
    """High noise with single drops."""
    drops = np.zeros(n, np.float32)
    hits = rng.integers(0, n, int(n / RATE * rng.uniform(60, 200)))
    np.add.at(drops, hits, rng.uniform(2, 9, len(hits)).astype(np.float32))
    return _noise(rng, n, 1500, 7500) + np.convolve(drops, np.hanning(12).astype(np.float32), "same")


def wind(rng: Random, n: int) -> Samples:
    """Low noise that swells in gusts."""
    gusts = 1 + 0.9 * np.sin(2 * np.pi * rng.uniform(0.25, 0.7) * _time(n) + rng.uniform(0, 6.28))
    return _noise(rng, n, 60, rng.uniform(350, 700), 0.4) * gusts


def waterfall(rng: Random, n: int) -> Samples:
    """Steady broadband noise."""
    return _noise(rng, n, 100, rng.uniform(3500, 6500), 0.5)


def siren(rng: Random, n: int) -> Samples:
    """A slow sweep up and down."""
    sweep = 0.5 - 0.5 * np.cos(2 * np.pi * rng.uniform(0.25, 0.6) * _time(n) + rng.uniform(0, 6.28))
    return _tone(rng, rng.uniform(450, 650) * (1 + 1.2 * sweep), n, [1, 0.4, 0.3, 0.1])


def smoke_detector(rng: Random, n: int) -> Samples:
    """Groups of four very high beeps."""
    period, pulse = rng.uniform(0.22, 0.3), rng.uniform(0.45, 0.6)
    t = _time(n)
    on = (t / period % 1 < pulse) & (t / period % 6 < 4)
    return _tone(rng, rng.uniform(2800, 3500), n, [1, 0.15]) * on


def car_alarm(rng: Random, n: int) -> Samples:
    """Quick upward sweeps."""
    saw = _time(n) * rng.uniform(2.5, 5) % 1
    return _tone(rng, rng.uniform(600, 900) * (1 + 1.1 * saw), n, [1, 0.5, 0.4, 0.2])


def knocking(rng: Random, n: int) -> Samples:
    """Groups of four dull thumps."""
    rate = rng.uniform(4, 6.5)
    times = [t for t in _beats(rng, n, rate, 0.1) if int(t * rate) % 6 < 4]
    low = rng.uniform(120, 220)
    return _place(n, times, _thump(rng, low, low * 3.5, 0.018))


def hammering(rng: Random, n: int) -> Samples:
    """Regular metallic blows."""
    pitch = rng.uniform(1300, 2400)
    times = _beats(rng, n, rng.uniform(1.8, 3.2), 0.1)
    click = _thump(rng, 800, 6000, 0.006)
    blows = _place(n, times, click)
    return blows + 0.6 * _place(n, times, lambda m: _ring(rng, pitch, [1, 1.83, 2.9], 0.05, min(m, 6000)))


def clapping(rng: Random, n: int) -> Samples:
    """Several hands, out of step."""
    hands = [_beats(rng, n, rng.uniform(3, 5), 0.7) for _ in range(int(rng.integers(2, 5)))]
    return _place(n, [t for times in hands for t in times], _thump(rng, 700, 2600, 0.012))


def whistling(rng: Random, n: int) -> Samples:
    """One gliding sine."""
    notes = rng.uniform(900, 2000, 2 + n // int(0.35 * RATE))
    glide = np.interp(_time(n), np.arange(len(notes)) * rng.uniform(0.28, 0.4), notes).astype(np.float32)
    return _tone(rng, glide, n, [1, 0.05]) + 0.03 * _noise(rng, n, 800, 4000)


def flute(rng: Random, n: int) -> Samples:
    """Notes of a scale with vibrato and breath."""
    step, base = rng.uniform(0.25, 0.45), rng.uniform(420, 620)
    scale = base * 2 ** (np.array([0, 2, 4, 5, 7, 9]) / 12)
    notes = rng.choice(scale, 2 + int(n / RATE / step))[(_time(n) / step).astype(int)]
    vibrato = 1 + 0.012 * np.sin(2 * np.pi * rng.uniform(4.5, 6) * _time(n))
    attack = np.minimum(1, (_time(n) / step % 1) * 8)
    return (_tone(rng, notes * vibrato, n, [1, 0.5, 0.25, 0.1]) + 0.08 * _noise(rng, n, 1000, 6000)) * attack


def train_whistle(rng: Random, n: int) -> Samples:
    """Blasts of a three-note chord."""
    base = rng.uniform(310, 420)
    chord = sum(_tone(rng, base * r, n, [1, 0.6, 0.4, 0.2]) for r in (1, 1.19, 1.5))
    blast = (_time(n) / rng.uniform(0.9, 1.4) % 1) < rng.uniform(0.7, 0.85)
    return (chord + 0.5 * _noise(rng, n, 300, 3000)) * blast


def telephone_ringing(rng: Random, n: int) -> Samples:
    """A two-tone trill, on and off."""
    t, trill = _time(n), rng.uniform(18, 24)
    pitch = np.where(t * trill % 1 < 0.5, 1, 1.27) * rng.uniform(950, 1250)
    return _tone(rng, pitch, n, [1, 0.3, 0.2]) * (t / rng.uniform(1.2, 1.6) % 1 < rng.uniform(0.55, 0.7))


def reversing_beeps(rng: Random, n: int) -> Samples:
    """Even beeps, about one a second."""
    on = _time(n) / rng.uniform(0.8, 1.1) % 1 < rng.uniform(0.45, 0.55)
    return _tone(rng, rng.uniform(1000, 1400), n, [1, 0, 0.3, 0, 0.1]) * on


def dial_tone(rng: Random, n: int) -> Samples:
    """Two constant tones."""
    base = rng.uniform(330, 400)
    return _tone(rng, base, n, [1, 0.05]) + _tone(rng, base * 1.257, n, [1, 0.05])


def clock_ticking(rng: Random, n: int) -> Samples:
    """Two clicks a second, every other one louder."""
    rate, pitch = rng.uniform(1.8, 2.4), rng.uniform(2500, 3600)

    def tick(left: int) -> Samples:
        return _ring(rng, pitch, [1, 1.6], 0.006, min(left, 800))

    return _place(n, _beats(rng, n, rate, 0.02), tick) + 0.6 * _place(n, _beats(rng, n, rate / 2, 0.02), tick)


def typing(rng: Random, n: int) -> Samples:
    """Irregular bright clicks."""
    times = np.sort(rng.uniform(0, n / RATE, max(3, int(n / RATE * rng.uniform(6, 11))))).tolist()
    return _place(n, times, lambda m: rng.uniform(0.3, 1) * _thump(rng, 1500, 5500, 0.005)(m))


def footsteps(rng: Random, n: int) -> Samples:
    """Regular low thuds with a scuff."""
    times = _beats(rng, n, rng.uniform(1.6, 2.3), 0.08)
    return _place(n, times, _thump(rng, 60, 350, 0.03)) + 0.3 * _place(n, times, _thump(rng, 1500, 5000, 0.05))


GENERATORS: dict[str, Callable[[Random, int], Samples]] = {
    generator.__name__.replace("_", " "): generator
    for generator in (
        church_bell, bicycle_bell, wind_chime, car_engine, motorcycle, lawn_mower, rain, wind, waterfall, siren,
        smoke_detector, car_alarm, knocking, hammering, clapping, whistling, flute, train_whistle, telephone_ringing,
        reversing_beeps, dial_tone, clock_ticking, typing, footsteps,
    )
}  # fmt: skip
