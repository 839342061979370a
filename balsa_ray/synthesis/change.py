"""What there is to do, told before anything is done: a changed recipe, and a dry run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsa_ray.config import UserError
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.manifest import Manifest
from balsa_ray.synthesis.plan import Recipe
from balsa_ray.synthesis.plan_tasks import over_files, planned_contents
from balsa_ray.synthesis.replies import request
from balsa_ray.synthesis.resume import contents_of, drop_others, ids_with, together, weigh

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from ray.data import Dataset


def weigh_change(
    config: SynthesizeConfig,
    recipe: Recipe,
    manifest: Manifest,
    files: Sequence[Path],
    changed: dict[str, str],
    alike: bool,
    light: dict[str, Any],
) -> "np.ndarray":
    """Says what a changed recipe means for the rows that are there, and does with them what `on_change` asks.

    Returns:
        Ids of the rows that stand then, as sorted numbers.

    Raises:
        UserError: `on_change` is `refuse`, and rows would go.
    """
    import ray

    wanted = planned_contents(manifest, recipe, light)
    there = over_files(light, contents_of, files)
    change = weigh(there, wanted, alike)
    reasons = ", ".join(f"{name} ({how})" for name, how in changed.items())
    line = f"output: {config.output}: holds rows of another recipe; changed: {reasons}. "
    if config.on_change == "refuse" and change.stand < change.rows:
        advice = "on_change=redo does so, on_change=keep keeps them all; or choose another output"
        raise UserError(f"{line}With on_change=redo {change.line('redo')}; {advice}")
    print(f"synthesis: {line}{change.line(config.on_change)}", flush=True)
    if config.on_change == "keep":
        return together(there, "ids")
    keys = together(wanted if alike else [], "keys")
    if not config.dry_run:
        over_files(light, partial(_drop_others, ray.put(keys)), files)
    return ids_with(there, keys)


def dry_run(
    config: SynthesizeConfig, model: Path | None, clips: int, rows: "Dataset", light: dict[str, Any]
) -> dict[str, Any]:
    """Counts what there is to make, and says so. How long replies are is known only to the LLM: this is the most."""
    batches = rows.map_batches(partial(_prompt_tokens, model, config), batch_format="pyarrow", **light).take_all()
    number, read = (sum(batch[name] for batch in batches) for name in ("rows", "tokens"))
    most = number * config.sampling.max_tokens
    hours = most / config.tokens_per_second / 3600 if config.tokens_per_second else None
    duration = "" if hours is None else f", which takes at most {hours:,.2f} h"
    print(
        f"synthesis: dry run: {number:,} rows of {clips:,} clips, {f'{read:,} tokens to read and ' if model else ''}"
        f"at most {most:,} to write{duration}; nothing was written",
        flush=True,
    )
    return {"rows": number, "prompt_tokens": read, "response_tokens_at_most": most, "hours_at_most": hours}


def _prompt_tokens(model: Path | None, config: SynthesizeConfig, batch: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    # Only an endpoint knows its tokens.
    requests = (request(model, config, row)["tokenized_prompt"] for row in batch.to_pylist()) if model else ()
    return pa.Table.from_pylist([{"rows": batch.num_rows, "tokens": sum(map(len, requests))}])


def _drop_others(keys: Any, file: str) -> dict[str, Any]:
    import ray

    return drop_others(file, ray.get(keys))
