"""Planning in Ray Data's tasks: pieces of the manifest become planned samples, and the driver holds no clip.

The manifest is read once for samples of one clip and once for those of several: that costs less than keeping a copy,
and spares a shuffle across the cluster.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsa_ray.synthesis.manifest import Manifest, Piece
from balsa_ray.synthesis.negatives import Occurrence
from balsa_ray.synthesis.pairing import pools
from balsa_ray.synthesis.plan import Planned, Recipe, plan_clip, plan_groups, stated_labels
from balsa_ray.synthesis.resume import contents, is_among, row_numbers, together
from balsa_ray.synthesis.survey import read_clips

if TYPE_CHECKING:
    import numpy as np
    from ray.data import Dataset


def planned(
    manifest: Manifest, recipe: Recipe, light: dict[str, Any], standing: "np.ndarray | None" = None
) -> "Dataset":
    """Returns the planned samples of a manifest, each a row of JSON in the column `planned`.

    Args:
        manifest: The manifest.
        recipe: What to plan.
        light: Ray's arguments for a small task.
        standing: Ids to leave out, as sorted numbers: one copy a machine, in Ray's object store.
    """
    import ray

    left_out = ray.put(standing) if standing is not None and len(standing) else None
    return _work(manifest, recipe).flat_map(partial(_plan, recipe, left_out), **light)


def planned_contents(manifest: Manifest, recipe: Recipe, light: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the `contents` of all planned samples, in parts."""
    return list(_work(manifest, recipe).map(partial(_contents, recipe), **light).take_all())


def planned_ids(manifest: Manifest, recipe: Recipe, light: dict[str, Any]) -> "np.ndarray":
    """Returns the ids of all planned samples as sorted numbers."""
    found = _work(manifest, recipe).map(lambda work: {"ids": _contents(recipe, work)["ids"]}, **light).take_all()
    return together(found, "ids")


def count_labels(manifest: Manifest, recipe: Recipe, light: dict[str, Any]) -> Occurrence:
    """Reads the manifest once more; the driver holds the counts of labels and of their pairs, never the clips."""
    total = Occurrence()
    counted = pieces_of(manifest).map(partial(_count_piece, recipe), **light)
    for row in counted.iter_rows():
        clips, together = json.loads(row["counts"])
        total.merge(Occurrence(Counter(clips), {label: Counter(counts) for label, counts in together.items()}))
    return total.cut()


def pieces_of(manifest: Manifest) -> "Dataset":
    """Returns the pieces of a manifest as rows."""
    import ray

    return ray.data.from_items([asdict(piece) for piece in manifest.pieces])


def over_files(
    light: dict[str, Any], function: Callable[[str], dict[str, Any]], files: Sequence[Path | str]
) -> list[dict[str, Any]]:
    """Applies a function to the names of files, in the workers: an `Over` once `light` is given."""
    import ray

    if not files:
        return []
    names = ray.data.from_items([{"file": str(file)} for file in files])
    return list(names.map(lambda row: function(row["file"]), **light).take_all())


def _work(manifest: Manifest, recipe: Recipe) -> "Dataset":
    import ray

    pieces = [asdict(piece) for piece in manifest.pieces]
    work = [{"pieces": [piece], "groups": False} for piece in pieces if recipe.singles()]
    if recipe.groups():
        dealt = pools(recipe.seed, [piece.rows for piece in manifest.pieces])
        work += [{"pieces": [pieces[number] for number in pool], "groups": True} for pool in dealt]
    return ray.data.from_items(work, override_num_blocks=len(work))


def _plan(recipe: Recipe, left_out: Any, work: dict[str, Any]) -> list[dict[str, str]]:
    import ray

    samples = list(_samples(recipe, work))
    if left_out is not None and samples:
        stands = is_among(row_numbers([sample["id"] for sample in samples]), ray.get(left_out))
        samples = [sample for sample, there in zip(samples, stands, strict=True) if not there]
    # As JSON: a column of one type, whatever stands in the rows.
    return [{"planned": json.dumps(sample)} for sample in samples]


def _contents(recipe: Recipe, work: dict[str, Any]) -> dict[str, bytes]:
    return contents(_samples(recipe, work))


def _samples(recipe: Recipe, work: dict[str, Any]) -> Iterator[Planned]:
    found = (clip for piece in work["pieces"] for _, clip in read_clips(Piece(**piece), recipe))
    clips = [clip for clip in found if isinstance(clip, dict)]
    return plan_groups(recipe, clips) if work["groups"] else (s for clip in clips for s in plan_clip(recipe, clip))


def _count_piece(recipe: Recipe, piece: dict[str, Any]) -> dict[str, str]:
    counts = Occurrence()
    for _, clip in read_clips(Piece(**piece), recipe):
        if isinstance(clip, dict):
            counts.add(stated_labels(clip, recipe.relations.finder))
    return {"counts": json.dumps([counts.clips, counts.together])}
