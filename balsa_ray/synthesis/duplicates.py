"""The gate that looks at more than one reply: of those that say the same about the same clips, one is a sample.

Replies say the same if they are of one recipe and kind and have the same words, in whatever order, case and
punctuation. It stands whose row id is the smallest: so it does not matter in which order replies came, or how often a
run was cut. Rows are therefore judged at the end of a run, file by file; the driver holds eight bytes a row, and more
only of duplicates.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from balsa_ray.identity import stable_hash
from balsa_ray.synthesis.gates import PASSED, words
from balsa_ray.synthesis.output import keep_rows, row_files, rows_in, write_rows
from balsa_ray.synthesis.resume import Over, here, is_among, row_numbers

DUPLICATE = "near_duplicate"
COLUMNS = ["id", "kind", "clip_ids", "response", "gate", "provenance.recipe"]


Numbers = Callable[[], np.ndarray]


def set_duplicates_aside(
    output: Path, over: Over = here, shared: Callable[[np.ndarray], Numbers] = lambda numbers: lambda: numbers
) -> None:
    """Moves duplicates from `samples/` to `rejected/`, and back what is none any more since rows were dropped.

    A row that a kill leaves in both folders is found and moved by the next run.

    Args:
        output: The output folder.
        over: Applies a function to files.
        shared: Makes of an array what gives it to a task, without a copy for each.
    """
    files = row_files(output, errors=False)
    keys = _all(over(_keys, files), "keys")
    keys.sort()
    again = shared(np.unique(keys[1:][keys[1:] == keys[:-1]]))
    del keys
    found = [row for row in over(partial(_rows_of, again), files) if row["ids"]]
    if found:
        ids, keys = _all(found, "ids"), _all(found, "keys")
        order = np.lexsort((ids, keys))
        first = np.r_[True, keys[order][1:] != keys[order][:-1]]
        standing = shared(np.sort(ids[order][first]))
        over(partial(_move, standing, again, output), [Path(row["file"]) for row in found])


def _all(rows: Iterable[dict[str, Any]], name: str) -> np.ndarray:
    return np.concatenate([np.frombuffer(row[name], np.uint64) for row in rows] or [np.empty(0, np.uint64)])


def _keys(file: str) -> dict[str, Any]:
    return {"file": file, "keys": _judged(rows_in(file, COLUMNS))[1].tobytes()}


def _rows_of(repeated: Numbers, file: str) -> dict[str, Any]:
    """Returns the rows of a file that may have to move: repeated ones, and those that were duplicates before."""
    ids, keys, gates = _judged(rows_in(file, COLUMNS))
    wanted = is_among(keys, repeated()) | (gates == DUPLICATE)
    return {"file": file, "ids": ids[wanted].tobytes(), "keys": keys[wanted].tobytes()}


def _move(standing: Numbers, repeated: Numbers, output: Path, file: str) -> dict[str, Any]:
    import pyarrow as pa
    from pyarrow import parquet

    if not Path(file).exists():  # Ray repeats tasks that it can't be sure of.
        return {"file": file}
    ids, keys, gates = _judged(rows_in(file, COLUMNS))
    duplicate = is_among(keys, repeated()) & ~is_among(ids, standing())
    goes = {
        DUPLICATE: np.sort(ids[duplicate & (gates == PASSED)]),
        PASSED: np.sort(ids[~duplicate & (gates == DUPLICATE)]),
    }
    if not any(map(len, goes.values())):
        return {"file": file}
    table = parquet.read_table(file)
    numbers = row_numbers(table["id"].to_pylist())
    moving = {gate: is_among(numbers, moved) for gate, moved in goes.items()}
    for gate, name in ((DUPLICATE, "rejected"), (PASSED, "samples")):
        rows = table.filter(pa.array(moving[gate])).to_pylist()
        write_rows(output / name, [row | {"gate": gate} for row in rows], table.schema)
    keep_rows(Path(file), (~(moving[PASSED] | moving[DUPLICATE])).tolist())
    return {"file": file}


def _judged(found: Iterable[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows that passed all other gates: ids and what they say as numbers, and gates."""
    judged = [(row["id"], _said(row), row["gate"]) for row in found if row["gate"] in (PASSED, DUPLICATE)]
    ids, said, gates = zip(*judged, strict=True) if judged else ((), (), ())
    return row_numbers(ids), row_numbers(said), np.array(gates, "U32")


def _said(row: dict[str, Any]) -> str:
    recipe = (row["provenance"] or {}).get("recipe")
    return stable_hash(recipe, row["kind"], row["clip_ids"], sorted(words(row["response"])))
