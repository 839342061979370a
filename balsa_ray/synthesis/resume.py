"""What of an output stands, what is left to make, and what a changed recipe means for it. No Ray here.

A row stands if its id is in `samples/` or `rejected/`; which file it is in does not matter. So a run that was cut is
taken up by planning it again and leaving out the ids that stand, eight bytes each. A task that wrote its rows and died
before it returned is run again by Ray, perhaps with other rows beside them: rows that then stand twice are removed by
`take_stock`, before and after every run, and since a reply hangs on its row alone (greedy, or with the row's own seed)
it does not matter which of the two stays.

Ray Data's CheckpointConfig is not used: it filters rows as they are read and notes them in a `write_*` at the end of
the plan. Here ids come into being in the middle, when prompts are planned, replies go to three folders, those that
failed are to be tried again, and a row may have to be made anew because its recipe changed.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from balsa_ray.identity import stable_hash
from balsa_ray.schema import SOURCE
from balsa_ray.synthesis.output import keep_rows, row_files, rows_in
from balsa_ray.synthesis.progress import counts

_HASH = re.compile("[0-9a-f]{16,}")
_PLANNED = ("id", "audio", "present")

Over = Callable[[Callable[[str], dict[str, Any]], Sequence[Path | str]], Iterable[dict[str, Any]]]
"""Applies a function to the names of files, in the workers of a cluster or right here; the order is free."""


@dataclass(frozen=True)
class Stock:
    """The rows of an output.

    Attributes:
        ids: Their ids as numbers, sorted; also of rows of the manifest that can't be used.
        rows: How many were planned, and not of the manifest.
        counts: What is in them, as `Tally.add` takes it.
    """

    ids: np.ndarray
    rows: int
    counts: list[dict[str, Any]]


def here(function: Callable[[str], dict[str, Any]], files: Sequence[Path | str]) -> list[dict[str, Any]]:
    """An `Over` in this process."""
    return [function(str(file)) for file in files]


def take_stock(output: Path, over: Over = here) -> Stock:
    """Reads which rows an output has, and removes those that stand twice."""
    files = row_files(output)
    looks = {look["file"]: look for look in over(look_into, files)}
    known = [np.frombuffer(looks[str(file)]["ids"], np.uint64) for file in files]
    ids, first = np.unique(np.concatenate([*known, np.empty(0, np.uint64)]), return_index=True)
    if len(ids) < sum(map(len, known)):
        once = np.zeros(sum(map(len, known)), bool)
        once[first] = True
        for file, mask in zip(files, np.split(once, np.cumsum([len(numbers) for numbers in known])[:-1]), strict=True):
            keep_rows(file, mask.tolist())
            if not mask.all():
                looks[str(file)] = look_into(str(file)) if mask.any() else {"counts": "[]"}
    found = [count for file in files for count in json.loads(looks[str(file)]["counts"])]
    return Stock(ids, sum(count["rows"] for count in found), found)


def look_into(file: str) -> dict[str, Any]:
    """Returns the ids and the counts of a file."""
    ids: list[str] = []

    def planned() -> Iterator[dict[str, Any]]:
        for row in rows_in(file, ["id", "kind", "strategy", "gate", "prompt_tokens", "response_tokens"]):
            ids.append(row["id"])
            # Rows of the manifest that can't be used have no kind, and those that the engine failed on no gate.
            if row["kind"]:
                yield {"gate": "error"} | row

    counted = counts(planned())
    return {"file": file, "ids": row_numbers(ids).tobytes(), "counts": json.dumps(counted)}


def row_numbers(ids: Sequence[str]) -> np.ndarray:
    """Returns row ids, which are 16 hexadecimal digits, as numbers."""
    return np.frombuffer(bytes.fromhex("".join(ids)), ">u8").astype(np.uint64)


def is_among(numbers: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each number is among many known ones, which are sorted.

    `numpy.isin` would sort them again each time: 20 s for 20 thousand among 10 million, and this takes 0.03 s.
    """
    if not len(known):
        return np.zeros(len(numbers), bool)
    places = np.searchsorted(known, numbers)
    return np.asarray(known[np.minimum(places, len(known) - 1)] == numbers)


def contents(rows: Iterable[dict[str, Any]]) -> dict[str, bytes]:
    """Returns the ids of rows, planned or written, and hashes of all that planning decides of them.

    Most of that is in the id; where the recording lies, which labels its metadata states and what is carried from the
    manifest are not.
    """
    found = [(row["id"], stable_hash(row["id"], row["audio"], row["present"], _sources(row))) for row in rows]
    columns = zip(*found, strict=True) if found else ((), ())
    return dict(zip(("ids", "keys"), (row_numbers(column).tobytes() for column in columns), strict=True))


def contents_of(file: str) -> dict[str, Any]:
    """Returns the `contents` of a file."""
    return {"file": file, **contents(rows_in(file, _PLANNED, prefix=SOURCE))}


def _sources(row: dict[str, Any]) -> list[Any]:
    """What a row carries; a column without a value is the same as none."""
    return sorted([name, row[name]] for name in row if name.startswith(SOURCE) and any(row[name] or ()))


def changes(was: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Returns which parts of an identity differ, and how."""
    names = sorted({*was, *now} - {"recipe"})
    return {
        name: f"{_show(was.get(name))} -> {_show(now.get(name))}" for name in names if was.get(name) != now.get(name)
    }


@dataclass(frozen=True)
class Change:
    """What a changed recipe means for the rows that are there.

    Attributes:
        rows: Rows that are there.
        stand: Those of them that the new recipe would make just so.
        planned_before: Those whose id the new recipe plans too.
        planned: Rows of the new recipe.
    """

    rows: int
    stand: int
    planned_before: int
    planned: int

    def line(self, on_change: str) -> str:
        """Returns what happens to the rows."""
        if on_change == "keep":
            made = self.planned - self.planned_before
            return f"all {self.rows:,} rows stand as they are, none is redone; {made:,} of {self.planned:,} are new"
        gone, made = self.rows - self.stand, self.planned - self.stand
        return (
            f"{self.stand:,} of {self.rows:,} rows stand; {gone:,} are redone or dropped, "
            f"and {made:,} of {self.planned:,} planned ones are to be made"
        )


def weigh(held: Sequence[dict[str, Any]], planned: Sequence[dict[str, Any]], judged_alike: bool) -> Change:
    """Compares the rows that are there with those that are planned.

    Args:
        held: `contents` of the rows that are there, in any number of parts.
        planned: The same of the planned ones.
        judged_alike: Whether the gates would say the same of a reply: else no row stands.
    """
    there, wanted = together(held, "ids"), together(planned, "ids")
    stand = is_among(together(held, "keys"), together(planned, "keys")).sum() if judged_alike else 0
    return Change(len(there), int(stand), int(is_among(there, wanted).sum()), len(wanted))


def ids_with(parts: Iterable[dict[str, Any]], keys: np.ndarray) -> np.ndarray:
    """Returns the ids, as sorted numbers, of those rows of `contents` whose hash is among these sorted ones."""
    found = [
        np.frombuffer(part["ids"], np.uint64)[is_among(np.frombuffer(part["keys"], np.uint64), keys)] for part in parts
    ]
    return np.unique(np.concatenate([*found, np.empty(0, np.uint64)]))


def drop_others(file: str, keys: np.ndarray) -> dict[str, Any]:
    """Leaves in a file only rows with the content that is planned; a file that is gone has been seen to already."""
    if not Path(file).exists():
        return {"file": file}
    mask = is_among(np.frombuffer(contents_of(file)["keys"], np.uint64), keys)
    keep_rows(Path(file), mask.tolist())
    return {"file": file}


def together(parts: Iterable[dict[str, Any]], name: str) -> np.ndarray:
    """Returns the numbers of all parts under a name, sorted, each once."""
    return np.unique(
        np.concatenate([np.frombuffer(part[name], np.uint64) for part in parts] or [np.empty(0, np.uint64)])
    )


def _show(value: Any) -> str:
    if isinstance(value, str) and _HASH.fullmatch(value):
        return f"{value[:8]}…"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
