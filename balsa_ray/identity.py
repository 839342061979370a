"""Content hashes and keyed choices: what makes a run repeatable.

No choice in this package comes from a running generator. Each is drawn from (seed, key of the row), so a resume,
another number of workers or another order of the rows draws the same. Hashes are over canonical JSON, so they don't
depend on the order of a mapping's keys.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate
from json.encoder import encode_basestring as _quoted
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

_CHUNK = 1 << 20
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _canonical(parts: tuple[Any, ...]) -> bytes:
    if {*map(type, parts)} <= {str, int}:
        # What the encoder would write, in a third of the time: keys of choices are drawn several times a row.
        return f"[{','.join([_quoted(part) if type(part) is str else str(part) for part in parts])}]".encode()
    return _CANONICAL.encode(parts).encode()


def _digest(*parts: Any) -> bytes:
    return hashlib.sha256(_canonical(parts)).digest()


def stable_hash(*parts: Any, length: int = 16) -> str:
    """Hash values that JSON can hold; equal values give equal hashes in every process and release.

    Args:
        *parts: strings, numbers, booleans, None, and lists and mappings of them.
        length: hexadecimal digits to keep (4 bits each), at most 64.

    Raises:
        TypeError: a part that JSON can't hold.
        ValueError: a number that is not finite.
    """
    return _digest(*parts).hex()[:length]


def hash_of_lists(*lists: Iterable[Sequence[Any]], length: int = 16) -> str:
    """The `stable_hash` of lists that would be too large in memory: each comes in parts."""
    digest = hashlib.sha256(b"[")
    for number, parts in enumerate(lists):
        digest.update(b",[" if number else b"[")
        before = b""
        for part in parts:
            if part:
                digest.update(before + _CANONICAL.encode(part).encode()[1:-1])
                before = b","
        digest.update(b"]")
    digest.update(b"]")
    return digest.hexdigest()[:length]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def rng(seed: int, *key: str | int) -> np.random.Generator:
    """A fresh generator for one row: the same (seed, key) always starts the same stream.

    Philox is counter-based: its streams for different keys are independent, however similar the keys are.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest("rng", seed, *key)[:16], "big")))


def unit(seed: int, *key: str | int) -> float:
    """One number in [0, 1) for (seed, key): cheaper than `rng` where a row needs a single draw."""
    return (int.from_bytes(_digest("unit", seed, *key)[:8], "big") >> 11) / (1 << 53)


def units(seed: int, *key: str | int, count: int) -> list[float]:
    """Several numbers in [0, 1) for (seed, key), by one hash."""
    stream = hashlib.shake_128(_canonical(("units", seed, *key))).digest(8 * count)
    return [(bits >> 11) / (1 << 53) for bits in struct.unpack(f">{count}Q", stream)]


def sampling_seed(seed: int, key: str) -> int:
    """The seed (32 bits) by which an engine draws the reply to one request."""
    return int(stable_hash("sampling", seed, key, length=8), 16)


def shuffled(
    seed: int, key: Sequence[str | int], items: Sequence[T], weights: Sequence[float] | None = None
) -> list[T]:
    """All of `items` in an order drawn for (seed, key): each next one with a chance in proportion to its weight.

    Efraimidis and Spirakis, Weighted random sampling with a reservoir (2006): an exponential race.

    Args:
        seed: the run's seed.
        key: what names the row and the choice.
        items: in a fixed order.
        weights: a positive weight for each item; equal weights if None.
    """
    race = [-math.log1p(-u) for u in units(seed, *key, count=len(items))]
    if weights is not None:
        race = [time / weight for time, weight in zip(race, weights, strict=True)]
    return [items[i] for i in sorted(range(len(items)), key=race.__getitem__)]


def pick(seed: int, key: Sequence[str | int], options: Sequence[T], weights: Sequence[float] | None = None) -> T:
    """Choose one of `options` for (seed, key).

    Args:
        seed: the run's seed.
        key: what names the row and the choice, for example `(row_id, "prompt")`.
        options: what to choose from, in a fixed order.
        weights: a non-negative weight for each option; equal weights if None.

    Raises:
        ValueError: no options, another number of weights, a negative weight, or weights that are all zero.
    """
    if not options:
        raise ValueError("there are no options to choose from")
    if len(options) == 1 and weights is None:
        return options[0]
    position = unit(seed, *key)
    if weights is None:
        return options[int(position * len(options))]
    if len(weights) != len(options) or min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"{len(options)} options need as many weights, none negative and not all zero: {weights}")
    edges = list(accumulate(weights))
    target = position * edges[-1]
    # A positive weight is asked for so that rounding can never land on an option of weight zero.
    chosen = [i for i, edge in enumerate(edges) if weights[i] > 0 and target < edge]
    return options[chosen[0] if chosen else max(i for i, weight in enumerate(weights) if weight > 0)]
