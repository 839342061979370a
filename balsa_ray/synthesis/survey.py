"""A first look at the whole manifest: what can't be used, what is known of the rest, and how much work it is."""

from collections import Counter
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
from balsa_ray.synthesis.pairing import bucket_of, number_of_buckets
from balsa_ray.synthesis.plan import Clip, Recipe, clips_of, read_clip, samples_of

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
    buckets = number_of_buckets(manifest.rows)
    found = pieces.map(lambda row: _look(Piece(**row), manifest.digest, recipe, buckets, errors), **light).take_all()
    ids, counts = np.unique(np.concatenate([np.frombuffer(row["ids"], np.uint64) for row in found]), return_counts=True)
    if (counts > 1).any():
        raise UserError(_duplicate(manifest, recipe, {int(value) for value in ids[counts > 1]}))
    if not len(ids):
        first = next(filter(None, (row["first_error"] for row in found)), "all are blank")
        raise UserError(f"input: none of the {manifest.rows} rows can be used: {first}")
    sizes = np.sum([row["sizes"] for row in found], axis=0)
    return Survey(
        clips=len(ids),
        bad_rows=sum(row["bad"] for row in found),
        planned=sum(
            int(np.sum([row[f"first_{kind}"] for row in found], axis=0)[sizes >= clips_of(kind)].sum())
            for kind in recipe.kinds
        ),
        labels=tuple(sorted({label for row in found for label in row["labels"]})),
    )


def _look(piece: Piece, digest: str, recipe: Recipe, buckets: int, errors: Path) -> dict[str, Any]:
    """Counts a piece by bucket, because a bucket with too few clips makes no samples of several."""
    clips, bad = [], []
    for number, clip in read_clips(piece, recipe):
        if isinstance(clip, UserError):
            bad.append({"id": stable_hash(digest, number), "error": str(clip)})
        else:
            clips.append(clip)
    write_rows(errors, bad, ERROR)
    bucket = [bucket_of(recipe.seed, clip["id"], buckets) for clip in clips]
    labels: Counter[str] = Counter()
    for clip in clips:
        labels.update([*clip.get("tags", []), *(event["label"] for event in clip.get("events", []))])
    return {
        "ids": np.array([_id_hash(clip) for clip in clips], np.uint64).tobytes(),
        "bad": len(bad),
        "first_error": bad[0]["error"] if bad else "",
        "labels": sorted(labels),
        "sizes": np.bincount(bucket, minlength=buckets),
        **{
            f"first_{kind}": np.bincount(
                bucket, [samples_of(recipe, kind, clip["id"]) for clip in clips], minlength=buckets
            )
            for kind in recipe.kinds
        },
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
