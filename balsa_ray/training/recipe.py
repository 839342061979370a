"""What the result of a run depends on, and whether an OUTPUT belongs to it."""

import json
from pathlib import Path
from typing import Any

from balsa_ray.checkpoints import resolve, weights_hash
from balsa_ray.config import UserError
from balsa_ray.identity import file_hash, stable_hash
from balsa_ray.training.config import TrainConfig

RECIPE = "recipe.json"
# Where and how fast a run computes, not what. Data and models count by content, not by where they lie, and `max_steps`
# cuts a run short without changing a step of it.
NOT_IN_RECIPE = {
    "output", "data", "text_model", "audio_model", "device", "num_workers", "cpus_per_worker", "micro_batch_tokens",
    "gradient_checkpointing", "data_workers", "max_steps", "deepspeed", "checkpoint_every", "keep_checkpoints",
    "max_failures", "encoder_cache", "cache_gb", "trackers", "export", "export_checkpoint", "checkpoint_minutes",
    "dry_run", "mfu", "peak_tflops",
}  # fmt: skip


def recipe_of(config: TrainConfig, samples_hash: str) -> dict[str, Any]:
    """Returns everything that the trained weights depend on, under dotted keys."""
    values = _flat(config.model_dump(mode="json", exclude=NOT_IN_RECIPE))
    values = {key: value for key, value in values.items() if key not in ("validation.samples", "validation.replies")}
    return values | {
        "data": samples_hash,
        **({"data_weights": config.source_weights} if len(config.source_weights) > 1 else {}),
        "text_model": weights_hash(resolve(config.text_model)),
        "audio_model": weights_hash(resolve(config.audio_model)),
        "tokenizer": _tokenizer_hash(resolve(config.text_model)),
    }


def _tokenizer_hash(folder: Path) -> str:
    """Of what turns words into tokens, the chat template included."""
    files = sorted(
        {*folder.glob("tokenizer*"), *folder.glob("chat_template*"), *folder.glob("vocab*"), *folder.glob("merges*")}
    )
    return stable_hash([[file.name, file_hash(file)] for file in files if file.is_file()])


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """`{"adapter": {"taps": [3]}}` → `{"adapter.taps.0": 3}`."""
    if not isinstance(value, dict | list):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for name, child in items for key, leaf in _flat(child, f"{prefix}.{name}".lstrip(".")).items()}


def check(output: Path, recipe: dict[str, Any]) -> None:
    """Checks that OUTPUT is new or holds a run of this recipe.

    Raises:
        UserError: If it holds a run of another one; the line names what has changed.
    """
    path = output / RECIPE
    if not path.exists():
        return
    old = json.loads(path.read_text("utf-8"))
    changed = [
        f"{key} {old.get(key)} -> {recipe.get(key)}"
        for key in sorted({*old, *recipe})
        if old.get(key) != recipe.get(key)
    ]
    if changed:
        raise UserError(f"{output} holds a run of another recipe ({', '.join(changed)}); choose another output")


def fingerprint(recipe: dict[str, Any]) -> str:
    """Returns the hash of a recipe."""
    return stable_hash(recipe)


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is never seen half-written."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)
