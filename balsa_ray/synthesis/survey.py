"""A first look at the whole manifest: what can't be used, what is known of the rest, and how much work it is."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from balsa_ray.audio.decode import AudioError, check_audio
from balsa_ray.config import UserError
from balsa_ray.identity import stable_hash
from balsa_ray.schema import ERROR
from balsa_ray.storage import parent
from balsa_ray.synthesis.manifest import Manifest, Piece, read_piece
from balsa_ray.synthesis.output import write_rows
from balsa_ray.synthesis.pairing import pools
from balsa_ray.synthesis.plan import Clip, Recipe, read_clip, samples_of
from balsa_ray.synthesis.resume import is_among

if TYPE_CHECKING:
    from ray.data import Dataset

MOST_COLUMNS = 100
"""That samples carry: rows of JSON may all have keys of their own."""
CHECKS_AT_ONCE = 8  # opening a recording waits for the disk or the network; what decodes it lets other threads run


@dataclass(frozen=True)
class Survey:
    """What a manifest holds.

    Attributes:
        clips: Rows that can be used.
        bad_rows: Rows that can't; they stand in `errors/`.
        first_error: What is wrong with the first of them.
        planned: Samples to be made.
        labels: All tags and event labels, sorted.
        columns: The manifest's other columns, as samples carry them, sorted; no more than `MOST_COLUMNS`.
        pieces: The manifest's pieces, which now name the rows that can't be used.
    """

    clips: int
    bad_rows: int
    first_error: str
    planned: int
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    pieces: tuple[Piece, ...]


def read_clips(piece: Piece, recipe: Recipe) -> Iterator[tuple[int, Clip | UserError]]:
    """Yields the rows of a piece with their numbers: clips, and for rows that can't be used the reason.

    Rows that the piece names as unusable are left out.
    """
    folder = recipe.source.audio_root or parent(piece.path)
    unusable = set(np.frombuffer(piece.unusable, np.uint32).tolist())
    for number, row in read_piece(piece, recipe.source):
        if number in unusable:
            continue
        if isinstance(row, UserError):
            yield number, row
            continue
        where = f"{piece.path}: row {number}"
        try:
            yield number, read_clip(row, where, folder, recipe.metadata)
        except UserError as error:
            yield number, error
        except Exception as error:  # Whatever a row holds that nobody thought of: it must not end the run.
            yield number, UserError(f"{where}: {type(error).__name__}: {error}")


def survey(pieces: "Dataset", manifest: Manifest, recipe: Recipe, errors: Path | None, light: dict[str, Any]) -> Survey:
    """Checks every row and its recording once, in the workers, and writes the bad ones to `errors`.

    Of rows with the same id the first is used. The driver keeps eight bytes a clip (to find these), four a bad row, and
    the labels.

    Args:
        pieces: The manifest's pieces as rows.
        manifest: The manifest.
        recipe: The run's recipe; its labels are not read.
        errors: Folder for the rows that can't be used; None: nothing is written.
        light: Ray's arguments for a small task.

    Raises:
        UserError: No row can be used: nothing sensible can be made of the manifest.
    """
    found = pieces.map(lambda row: _look(Piece(**row), manifest.digest, recipe, errors), **light).take_all()
    looks = {(row["path"], row["first_row"]): row for row in found}
    _leave_out_duplicates(manifest, recipe, looks, errors)
    found = list(looks.values())
    clips = sum(row["clips"] for row in found)
    first = next(filter(None, (looks[_key(piece)]["first_error"] for piece in manifest.pieces)), "")
    if not clips:
        raise UserError(f"input: none of the {manifest.rows} rows can be used: {first or 'all are blank'}")
    return Survey(
        clips=clips,
        bad_rows=sum(row["bad"] for row in found),
        first_error=first,
        planned=_planned(manifest, recipe, looks),
        labels=tuple(sorted({label for row in found for label in row["labels"]})),
        columns=_carried({name for row in found for name in row["columns"]}),
        pieces=tuple(replace(piece, unusable=looks[_key(piece)]["unusable"]) for piece in manifest.pieces),
    )


def _carried(columns: set[str]) -> tuple[str, ...]:
    if len(columns) > MOST_COLUMNS:
        print(f"synthesis: samples carry {MOST_COLUMNS} of the input's further columns, the first in the alphabet")
    return tuple(sorted(columns)[:MOST_COLUMNS])


def _key(piece: Piece) -> tuple[str, int]:
    return piece.path, piece.first_row


def _planned(manifest: Manifest, recipe: Recipe, found: dict[tuple[str, int], dict[str, Any]]) -> int:
    """Counts the samples; a pool with too few clips makes none of several."""
    looks = [found[_key(piece)] for piece in manifest.pieces]
    total = sum(look[kind] for look in looks for kind in recipe.singles())
    for pool in pools(recipe.seed, [piece.rows for piece in manifest.pieces]):
        clips = sum(looks[piece]["clips"] for piece in pool)
        total += sum(looks[piece][kind] for piece in pool for kind in recipe.groups() if clips >= recipe.clips_of(kind))
    return int(total)


def _look(piece: Piece, digest: str, recipe: Recipe, errors: Path | None) -> dict[str, Any]:
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        looked_at = list(pool.map(lambda row: _checked(piece, recipe, *row), read_clips(piece, recipe)))
    clips = [clip for _, clip in looked_at if not isinstance(clip, UserError)]
    failed = [(number, str(error)) for number, error in looked_at if isinstance(error, UserError)]
    bad = [{"id": stable_hash(digest, piece.path, number), "error": error} for number, error in failed]
    if errors is not None:
        write_rows(errors, bad, ERROR)
    events = (event["label"] for clip in clips for event in clip.get("events", []))
    return {
        "path": piece.path,
        "first_row": piece.first_row,
        "unusable": np.array([number for number, _ in failed], np.uint32).tobytes(),
        "clips": len(clips),
        "ids": np.array([_id_hash(clip) for clip in clips], np.uint64).tobytes(),
        "bad": len(bad),
        "first_error": bad[0]["error"] if bad else "",
        "labels": sorted({*events, *(label for clip in clips for label in clip.get("tags", []))}),
        "columns": sorted({name for clip in clips for name in clip["sources"]})[: MOST_COLUMNS + 1],
        **{kind: sum(samples_of(recipe, kind, clip["id"]) for clip in clips) for kind in recipe.kinds},
    }


def _checked(piece: Piece, recipe: Recipe, number: int, clip: Clip | UserError) -> tuple[int, Clip | UserError]:
    """Returns the row, or what is wrong with its recording."""
    if isinstance(clip, dict):
        try:
            check_audio(clip["audio"], recipe.source.audio_check, recipe.source.max_audio_seconds)
        except AudioError as error:
            return number, UserError(f"{piece.path}: row {number}: audio: {error}")
    return number, clip


def _id_hash(clip: Clip) -> int:
    return int(stable_hash(clip["id"]), 16)


def _leave_out_duplicates(
    manifest: Manifest, recipe: Recipe, looks: dict[tuple[str, int], dict[str, Any]], errors: Path | None
) -> None:
    """Makes bad rows of those whose id stands in an earlier row, and looks again at the pieces that they are in."""
    ids = np.concatenate([np.frombuffer(looks[_key(piece)]["ids"], np.uint64) for piece in manifest.pieces])
    found, counts = np.unique(ids, return_counts=True)
    repeated = found[counts > 1]
    del ids, found, counts
    if not len(repeated):
        return
    holding = [
        piece
        for piece in manifest.pieces
        if is_among(np.frombuffer(looks[_key(piece)]["ids"], np.uint64), repeated).any()
    ]
    # Only now is it worth knowing where they stand.
    first: dict[int, str] = {}
    for piece in holding:
        look = looks[_key(piece)]
        known = replace(piece, unusable=look["unusable"])
        again: dict[int, str] = {}
        for number, clip in read_clips(known, recipe):
            if isinstance(clip, dict) and is_among(np.array([_id_hash(clip)], np.uint64), repeated)[0]:
                if earlier := first.get(_id_hash(clip)):
                    again[number] = (
                        f"{piece.path}: row {number}: id: {clip['id']!r} stands in {earlier} already; "
                        "ids have to be unique"
                    )
                else:
                    first[_id_hash(clip)] = f"row {number} of {piece.path}"
        if not again:
            continue
        rows = [{"id": stable_hash(manifest.digest, piece.path, number), "error": again[number]} for number in again]
        if errors is not None:
            write_rows(errors, rows, ERROR)
        unusable = np.sort(np.r_[np.frombuffer(look["unusable"], np.uint32), np.array([*again], np.uint32)])
        # Recordings have been looked at, and none is opened again.
        unchecked = replace(recipe, source=replace(recipe.source, audio_check="none"))
        rest = _look(replace(piece, unusable=unusable.tobytes()), manifest.digest, unchecked, None)
        looks[_key(piece)] = rest | {
            "unusable": unusable.tobytes(),
            "bad": look["bad"] + len(again),
            "first_error": look["first_error"] or next(iter(again.values())),
        }
