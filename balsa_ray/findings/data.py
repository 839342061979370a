"""What the arms are trained on: clips, the backbone's own words about them, and a template's in their place."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from balsa_ray.findings.config import ConditionConfig
from balsa_ray.miniature.soundscapes import World, write_corpus
from balsa_ray.miniature.text_world import in_words
from balsa_ray.prompts.render import prompts

TEMPLATES = {
    "present": "Sounds present: {present}.",
    "absent": "Sounds absent: {absent}.",
    "combined": "Sounds present: {present}. Sounds absent: {absent}.",
}


def world_of(condition: ConditionConfig, test: bool) -> World:
    """Returns the world of a condition. Label sets of the test, two or three sounds, are in no training clip."""
    return World(
        same_scene=condition.same_scene,
        event_level_db=condition.event_level_db,
        noise_snr_db=condition.noise_snr_db,
        label_sets="held_out" if test else "seen",
    )


def corpus(folder: Path, seed: int, split: str, clips: int, world: World) -> Path:
    """Writes clips and their manifest unless they are there, and returns the manifest."""
    manifest = folder / f"{split}.jsonl"
    if not manifest.exists():
        for _ in write_corpus(folder, seed, split, clips, workers=os.cpu_count() or 1, world=world):
            pass
    return manifest


def prompt_files(folder: Path) -> dict[str, Path]:
    """Writes the packaged prompts in two files: of each kind the last is for the test alone.

    Returns:
        `train` and `test` to their files.
    """
    known = prompts()
    last = {prompt.kind: prompt.id for prompt in known}
    files = {}
    for split in ("train", "test"):
        kept = [p.model_dump(mode="json") for p in known if (p.id == last[p.kind]) == (split == "test")]
        for row in kept:
            row.pop("metadata")
        files[split] = folder / f"prompts-{split}.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        files[split].write_text(yaml.safe_dump(kept, sort_keys=False), "utf-8")
    return files


def write_templates(source: Path, target: Path) -> None:
    """Writes the samples about one clip again, a template's words in place of the backbone's.

    A template names what the backbone's reply names: so arms differ in the words alone.

    Args:
        source: OUTPUT of a synthesis.
        target: Folder that then looks like one.
    """
    if (target / "samples").exists():
        return
    partial = target / ".samples.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in sorted((source / "samples").glob("*.parquet")):
        table = pq.read_table(file, partitioning=None)
        rows = [row for row in table.to_pylist() if row["kind"] in TEMPLATES]
        if rows:
            kept = pa.Table.from_pylist([row | {"response": template(row)} for row in rows], schema=table.schema)
            pq.write_table(kept, partial / file.name)
    partial.replace(target / "samples")


def template(row: dict[str, Any]) -> str:
    """Returns a template's words for a sample."""
    lists = {key: in_words(row[key]) if row[key] else "none" for key in ("present", "absent")}
    return TEMPLATES[row["kind"]].format(**lists)


def reply_tokens(folder: Path, kinds: Sequence[str], tokenizer: Any) -> float:
    """Returns the mean number of tokens in the replies of these kinds, the end of the turn included."""
    tables = [pq.read_table(file, partitioning=None) for file in sorted((folder / "samples").glob("*.parquet"))]
    rows = [row for table in tables for row in table.select(["kind", "response"]).to_pylist()]
    replies = [row["response"] for row in rows if row["kind"] in kinds]
    return 1 + float(np.mean([len(ids) for ids in tokenizer(replies, add_special_tokens=False).input_ids]))
