"""A first look at the whole manifest: what can't be used, what is known of the rest, and how much work it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from balsa_ray.config import UserError
from balsa_ray.identity import stable_hash
from balsa_ray.schema import ERROR
from balsa_ray.synthesis.manifest import Manifest, Piece, read_piece
from balsa_ray.synthesis.output import write_rows
from balsa_ray.synthesis.pairing import pools
from balsa_ray.synthesis.plan import Clip, Recipe, read_clip, samples_of

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class Survey:
    """What a manifest holds.

    Attributes:
        clips: Rows that can be used.
        bad_rows: Rows that can't; they stand in `errors/`.
        planned: Samples to be made.
        labels: All tags and event labels, sorted.
    """

    clips: int
    bad_rows: int
    planned: int
    labels: tuple[str, ...]


def read_clips(piece: Piece, recipe: Recipe) -> Iterator[tuple[int, Clip | UserError]]:
    """Yields the rows of a piece with their numbers: clips, and for rows that can't be used the reason."""
    folder = str(Path(piece.path).resolve().parent)
    for number, row in read_piece(piece):
        if isinstance(row, UserError):
            yield number, row
            continue
        try:
            yield number, read_clip(row, f"{piece.path}: row {number}", folder, recipe.metadata)
        except UserError as error:
            yield number, error


def survey(pieces: "Dataset", manifest: Manifest, recipe: Recipe, errors: Path, light: dict[str, Any]) -> Survey:
    """Checks every row once, in the workers, and writes the bad ones to `errors`.

    The driver keeps eight bytes a clip (to find ids that stand twice) and the labels.

    Args:
        pieces: The manifest's pieces as rows.
        manifest: The manifest.
        recipe: The run's recipe; its labels are not read.
        errors: Folder for the rows that can't be used.
        light: Ray's arguments for a small task.

    Raises:
        UserError: An id stands twice, or no row can be used: nothing sensible can be made of the manifest.
    """
    found = pieces.map(lambda row: _look(Piece(**row), manifest.digest, recipe, errors), **light).take_all()
    ids, counts = np.unique(np.concatenate([np.frombuffer(row["ids"], np.uint64) for row in found]), return_counts=True)
    if (counts > 1).any():
        raise UserError(_duplicate(manifest, recipe, {int(value) for value in ids[counts > 1]}))
    if not len(ids):
        first = next(filter(None, (row["first_error"] for row in found)), "all are blank")
        raise UserError(f"input: none of the {manifest.rows} rows can be used: {first}")
    return Survey(
        clips=len(ids),
        bad_rows=sum(row["bad"] for row in found),
        planned=_planned(manifest, recipe, {row["first_row"]: row for row in found}),
        labels=tuple(sorted({label for row in found for label in row["labels"]})),
    )


def _planned(manifest: Manifest, recipe: Recipe, found: dict[int, dict[str, Any]]) -> int:
    """Counts the samples; a pool with too few clips makes none of several."""
    looks = [found[piece.first_row] for piece in manifest.pieces]
    total = sum(look[kind] for look in looks for kind in recipe.singles())
    for pool in pools(recipe.seed, [piece.rows for piece in manifest.pieces]):
        clips = sum(looks[piece]["clips"] for piece in pool)
        total += sum(looks[piece][kind] for piece in pool for kind in recipe.groups() if clips >= recipe.clips_of(kind))
    return int(total)


def _look(piece: Piece, digest: str, recipe: Recipe, errors: Path) -> dict[str, Any]:
    clips, bad = [], []
    for number, clip in read_clips(piece, recipe):
        if isinstance(clip, UserError):
            bad.append({"id": stable_hash(digest, number), "error": str(clip)})
        else:
            clips.append(clip)
    write_rows(errors, bad, ERROR)
    events = (event["label"] for clip in clips for event in clip.get("events", []))
    return {
        "first_row": piece.first_row,
        "clips": len(clips),
        "ids": np.array([_id_hash(clip) for clip in clips], np.uint64).tobytes(),
        "bad": len(bad),
        "first_error": bad[0]["error"] if bad else "",
        "labels": sorted({*events, *(label for clip in clips for label in clip.get("tags", []))}),
        **{kind: sum(samples_of(recipe, kind, clip["id"]) for clip in clips) for kind in recipe.kinds},
    }


def _id_hash(clip: Clip) -> int:
    return int(stable_hash(clip["id"]), 16)


def _duplicate(manifest: Manifest, recipe: Recipe, hashes: set[int]) -> str:
    """Names the first id that stands twice, and where; only now is it worth reading the manifest again."""
    rows: dict[str, int] = {}
    for piece in manifest.pieces:
        for number, clip in read_clips(piece, recipe):
            if isinstance(clip, dict) and _id_hash(clip) in hashes:
                if clip["id"] in rows:
                    return (
                        f"input: {manifest.path}: row {number}: id: {clip['id']!r} stands in row {rows[clip['id']]} "
                        "already; ids have to be unique"
                    )
                rows[clip["id"]] = number
    raise AssertionError("two ids with one hash of 64 bits")
