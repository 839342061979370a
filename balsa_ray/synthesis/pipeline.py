"""A synthesis run on Ray Data: manifest -> planned samples -> vLLM -> gates -> Parquet.

Rows are read, planned, answered, judged and written in the workers; the driver sees counts. The manifest is read three
times (to check it, for samples of one clip, for samples of several): that costs less than keeping a copy, and spares a
shuffle across the cluster.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsa_ray.cluster import session
from balsa_ray.config import UserError
from balsa_ray.endpoint import KEY_VARIABLE
from balsa_ray.endpoint_engine import endpoint_chain
from balsa_ray.engine import (
    Share,
    chat_tokens,
    check_chat_template,
    cluster_nodes,
    failure,
    light_task,
    quiet_ray_data,
    sampling_params,
    share_cluster,
    vllm_chain,
)
from balsa_ray.identity import stable_hash
from balsa_ray.prompts.labels import affirmed_and_denied
from balsa_ray.schema import ERROR, REJECTED, SAMPLE
from balsa_ray.storage import absolute, sole_writer
from balsa_ray.synthesis import output
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.duplicates import set_duplicates_aside
from balsa_ray.synthesis.gates import PASSED, judge
from balsa_ray.synthesis.layouts import LAYOUTS
from balsa_ray.synthesis.manifest import Manifest, Piece, Source, read_class_labels, scan
from balsa_ray.synthesis.negatives import COUNTED, Occurrence
from balsa_ray.synthesis.pairing import pools
from balsa_ray.synthesis.plan import Planned, Recipe, plan_clip, plan_groups, stated_labels, user_turn
from balsa_ray.synthesis.progress import Progress, counts, tally_of
from balsa_ray.synthesis.recipe import JUDGING, Writer, identity, provenance, recipe_of, writer_of
from balsa_ray.synthesis.report import Standing, Work, figures, summary
from balsa_ray.synthesis.report_page import write
from balsa_ray.synthesis.resume import (
    changes,
    contents,
    contents_of,
    drop_others,
    is_among,
    look_into,
    row_numbers,
    take_stock,
    together,
    weigh,
)
from balsa_ray.synthesis.statistics import statistics
from balsa_ray.synthesis.survey import read_clips, survey

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from ray.data import Dataset

ROWS_PER_FILE = 1024
ROUNDS = 3
"""Ray makes blocks anew that a lost machine held, perhaps cut otherwise: what is then missing is made in another."""


def synthesize(config: SynthesizeConfig) -> dict[str, Any]:
    """Makes the samples of a recipe, or finds that they are made.

    Every planned row ends in exactly one of `samples/`, `rejected/` and `errors/`.

    Args:
        config: The recipe.

    Returns:
        The content of `report.json`; of a dry run what it says.

    Raises:
        UserError: The manifest, the model or the output folder can't be used, Ray has too little room, or the engine
            can't be started.
    """
    writer = writer_of(config)
    source = source_of(config)
    manifest = scan(config.input, config.limit, source)
    recipe = recipe_of(config)
    known = identity(config, recipe, writer, manifest)
    recipe = replace(recipe, fingerprint=known["recipe"], source=source)
    held = output.read(config.output)
    changed = changes(held.identity, known) if held else {}
    if held and held.report and not changed and not held.report["errors"]["engine"]:
        print(f"synthesis: {config.output} is complete ({held.report['samples']:,} samples); nothing to do", flush=True)
        return held.report
    if writer.model:
        check_chat_template(writer.model, config.system_prompt)
    with session(), nullcontext() if config.dry_run else _alone(config.output):
        share = share_cluster(cluster_nodes(), config.engine, config.concurrency)
        quiet_ray_data()
        try:
            report = _run(config, recipe, writer, manifest, known, share, held)
        except KeyboardInterrupt:
            print(
                f"synthesis: interrupted; what is written stands in {config.output}, the same command goes on",
                flush=True,
            )
            raise
        if config.dry_run:
            return report
    print(summary(report, config.output), flush=True)
    return report


def _alone(output: Path) -> AbstractContextManager[None]:
    output.mkdir(parents=True, exist_ok=True)
    return sole_writer(output, patience=0.0)


def source_of(config: SynthesizeConfig) -> Source:
    """Returns how a configuration wants its input to be read.

    Raises:
        UserError: The names of the labels are missing or can't be read.
    """
    if LAYOUTS[config.input_format].machine_ids and not config.class_labels:
        raise UserError(
            f"class_labels: missing; input_format={config.input_format} gives labels by id: "
            "name AudioSet's class_labels_indices.csv or ontology.json"
        )
    return Source(
        format=config.input_format,
        audio_root=absolute(config.audio_root) if config.audio_root else "",
        columns=dict(config.columns),
        class_labels=read_class_labels(config.class_labels) if config.class_labels else {},
        audio_check=config.audio_check,
        max_audio_seconds=config.max_audio_seconds,
    )


def _run(
    config: SynthesizeConfig,
    recipe: Recipe,
    writer: Writer,
    manifest: Manifest,
    known: dict[str, Any],
    share: Share,
    held: output.Held | None,
) -> dict[str, Any]:
    import ray
    from ray.exceptions import RayError

    began, folder, light = time.monotonic(), config.output, light_task(share, at_most=len(manifest.pieces))
    over = partial(_over, light)
    written = output.row_files(folder, errors=False)
    held = held if written else None  # Without rows there is nothing that a change could spoil.
    changed = changes(held.identity, known) if held else {}
    untouched = config.dry_run or (bool(changed) and config.on_change == "refuse")
    if not untouched and not changed:
        output.sign(folder, known, held.labels if held else "", held.kept if held else 0)
    if not untouched:
        output.reopen(folder)
    pieces = ray.data.from_items([asdict(piece) for piece in manifest.pieces])
    found = survey(pieces, manifest, recipe, None if untouched else folder / "errors", light)
    manifest = replace(manifest, pieces=found.pieces)
    recipe = replace(recipe, labels=_known_labels(found.labels, config.labels))
    if any(recipe.negatives.get(way) for way in COUNTED):
        pieces = ray.data.from_items([asdict(piece) for piece in manifest.pieces])
        recipe = replace(recipe, occurrence=_count_labels(pieces, recipe, light))
    assert recipe.relations.finder  # Worked out here and sent along: else every task would do it.
    labels, kept = stable_hash(list(recipe.labels)), held.kept if held else 0
    print(f"synthesis: {found.planned:,} samples planned of {found.clips:,} clips", flush=True)
    if changed and held:
        alike = held.labels == labels and not changed.keys() & {*JUDGING}
        kept = _change(config, recipe, manifest, written, changed, alike, light)
    if config.dry_run:
        looks = _over(light, look_into, written if config.on_change != "redo" or not changed else [])
        left = planned(manifest, recipe, light, together(looks, "ids"))
        return _dry_run(config, writer.model, found.clips, left, light)
    output.sign(folder, known, labels, kept)

    origin = provenance(config, writer, known)
    finish = partial(_finish, recipe, config.marks, origin, folder)
    total = found.planned + kept
    chain = _chain(config, writer, share, total)
    stock = take_stock(folder, over)
    if stock.rows:
        print(f"synthesis: {stock.rows:,} of {total:,} rows stand", flush=True)
    reading = time.monotonic() - began
    with Progress(total, stock.counts) as progress:
        for _ in range(ROUNDS):
            if stock.rows >= total:
                break
            rows = chain(planned(manifest, recipe, light, stock.ids))
            made = rows.map_batches(finish, batch_size=ROWS_PER_FILE, batch_format="pyarrow", **light_task(share))
            try:
                for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
                    progress.add(batch.to_pylist())
            except RayError as error:
                raise UserError(f"synthesis stopped: {failure(error)}", exit_code=1) from error
            stock = take_stock(folder, over)
    if stock.rows != total:
        raise UserError(f"synthesis: {stock.rows} rows came of {total}; the same command goes on", exit_code=1)
    set_duplicates_aside(folder, over, lambda numbers: partial(ray.get, ray.put(numbers)))
    progress.tally = tally_of(take_stock(folder, over).counts)
    files = output.row_files(folder, errors=False)
    standing = Standing(
        *(
            statistics([file for file in files if file.parent.name == name], config.seed, over)
            for name in ("samples", "rejected")
        )
    )
    work = Work(
        clips=found.clips,
        bad_rows=found.bad_rows,
        kept=kept,
        left_out=manifest.left_out,
        reading_seconds=reading,
        accelerators=0 if config.endpoint else _accelerators(config, share),
        unit="GPU" if share.gpu else "CPU",
        price_per_hour=config.price_per_hour,
    )
    report = figures(progress, work, standing, identity=known, provenance=origin)
    write(folder, report, standing, config.max_audio_seconds)
    return report


def _accelerators(config: SynthesizeConfig, share: Share) -> int:
    """Returns the GPUs, or CPUs, of the least number of engines."""
    workers = config.engine.tensor_parallel_size * config.engine.pipeline_parallel_size
    return share.replicas[0] * workers * (1 if share.gpu else config.engine.cpus)


def _chain(config: SynthesizeConfig, writer: Writer, share: Share, rows: int) -> Callable[["Dataset"], "Dataset"]:
    if config.endpoint is None:
        assert writer.model
        request = partial(_request, writer.model, config)
        return vllm_chain(writer.model, config.engine, share, rows=rows, request=request)
    return endpoint_chain(
        config.endpoint,
        os.environ.get(KEY_VARIABLE),
        config.sampling.request_fields(),
        light_task(share),
        rows=rows,
        request=partial(_conversation, config),
    )


def _change(
    config: SynthesizeConfig,
    recipe: Recipe,
    manifest: Manifest,
    files: Sequence[Path],
    changed: dict[str, str],
    alike: bool,
    light: dict[str, Any],
) -> int:
    """Says what a changed recipe means for the rows that are there, and does with them what `on_change` asks.

    Returns:
        The rows that are kept beside the planned ones.

    Raises:
        UserError: `on_change` is `refuse`.
    """
    import ray

    wanted = _work(manifest, recipe).map(partial(_contents, recipe), **light).take_all()
    change = weigh(_over(light, contents_of, files), wanted, alike)
    reasons = ", ".join(f"{name} ({how})" for name, how in changed.items())
    line = f"output: {config.output}: holds rows of another recipe; changed: {reasons}. "
    if config.on_change == "refuse":
        advice = "on_change=redo does so, on_change=keep keeps them all; or choose another output"
        raise UserError(f"{line}With on_change=redo {change.line('redo')}; {advice}")
    print(f"synthesis: {line}{change.line(config.on_change)}", flush=True)
    if config.dry_run or config.on_change == "keep":
        return change.rows - change.planned_before
    keys = ray.put(together(wanted if alike else [], "keys"))
    _over(light, partial(_drop_others, keys), files)
    return 0


def _dry_run(
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
    requests = (_request(model, config, row)["tokenized_prompt"] for row in batch.to_pylist()) if model else ()
    return pa.Table.from_pylist([{"rows": batch.num_rows, "tokens": sum(map(len, requests))}])


def _drop_others(keys: Any, file: str) -> dict[str, Any]:
    import ray

    return drop_others(file, ray.get(keys))


def _over(
    light: dict[str, Any], function: Callable[[str], dict[str, Any]], files: Sequence[Path]
) -> list[dict[str, Any]]:
    """Applies a function to files, in the workers."""
    import ray

    if not files:
        return []
    names = ray.data.from_items([{"file": str(file)} for file in files])
    return list(names.map(lambda row: function(row["file"]), **light).take_all())


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


def _count_labels(pieces: "Dataset", recipe: Recipe, light: dict[str, Any]) -> Occurrence:
    """Reads the manifest once more; the driver holds the counts of labels and of their pairs, never the clips."""
    total = Occurrence()
    counted = pieces.map(partial(_count_piece, recipe), **light)
    for row in counted.iter_rows():
        clips, together = json.loads(row["counts"])
        total.merge(Occurrence(Counter(clips), {label: Counter(counts) for label, counts in together.items()}))
    return total.cut()


def _count_piece(recipe: Recipe, piece: dict[str, Any]) -> dict[str, str]:
    counts = Occurrence()
    for _, clip in read_clips(Piece(**piece), recipe):
        if isinstance(clip, dict):
            counts.add(stated_labels(clip, recipe.relations.finder))
    return {"counts": json.dumps([counts.clips, counts.together])}


def _request(model: Path, config: SynthesizeConfig, row: dict[str, Any]) -> dict[str, Any]:
    sample = json.loads(row["planned"])
    return {
        "tokenized_prompt": chat_tokens(model, user_turn(sample, config.marks), config.system_prompt),
        "sampling_params": sampling_params(config.sampling, _seed(config, sample)),
    }


def _conversation(config: SynthesizeConfig, row: dict[str, Any]) -> dict[str, Any]:
    sample = json.loads(row["planned"])
    turns = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    turns.append({"role": "user", "content": user_turn(sample, config.marks)})
    return {"messages": turns, "fields": {"seed": _seed(config, sample)} if config.sampling.temperature else {}}


def _seed(config: SynthesizeConfig, sample: Planned) -> int:
    return int(stable_hash("sampling", config.seed, sample["id"], length=8), 16)


def _finish(
    recipe: Recipe, marks: tuple[str, str], origin: dict[str, Any], folder: Path, batch: "pa.Table"
) -> "pa.Table":
    """Judges and writes replies; returns the counts by kind, strategy and gate: arguments for `Tally.add`."""
    import pyarrow as pa

    samples: list[Planned] = []
    rejected: list[Planned] = []
    errors: list[Planned] = []
    for reply in batch.to_pylist():
        sample = json.loads(json.loads(reply["row"])["planned"])
        if reply["error"]:
            errors.append(sample | {"error": reply["error"], "gate": "error"})
            continue
        row = judged(sample, reply, recipe, marks) | {"provenance": origin}
        (samples if row["gate"] == PASSED else rejected).append(row)
    for name, rows, schema in (
        ("samples", samples, SAMPLE),
        ("rejected", rejected, REJECTED),
        ("errors", errors, ERROR),
    ):
        output.write_rows(folder / name, rows, schema)
    return pa.Table.from_pylist(counts([*samples, *rejected, *errors]))


def judged(sample: Planned, reply: dict[str, Any], recipe: Recipe, marks: tuple[str, str]) -> dict[str, Any]:
    """Returns a planned sample with its reply and what the gates say of it.

    Args:
        sample: As `plan_clip` or `plan_groups` made it.
        reply: `response`, `prompt_tokens`, `response_tokens` and `finish_reason`.
        recipe: The recipe that it was planned by.
        marks: What stood around the metadata.
    """
    kind, response, present = sample["kind"], reply["response"].strip(), sample["present"]
    affirmed, denied = affirmed_and_denied(response, recipe.relations.finder, about_absent=kind == "absent")
    implied = recipe.relations.implied_among(present, [*affirmed, *denied])
    gate = judge(
        kind,
        response,
        reply["finish_reason"],
        present,
        affirmed,
        denied,
        implied=implied,
        candidates=sample["candidates"],
        prompt=sample["prompt"],
        metadata=sample["metadata"],
        marks=marks,
    )
    return sample | {
        "response": response,
        "absent": denied,
        "gate": gate,
        "prompt_tokens": reply["prompt_tokens"],
        "response_tokens": reply["response_tokens"],
        "finish_reason": reply["finish_reason"],
    }


def _known_labels(of_manifest: tuple[str, ...], source: str) -> tuple[str, ...]:
    if source == "manifest":
        return of_manifest
    from balsa_ray.miniature.lexicon import lexicon

    return tuple(sorted({*of_manifest, *lexicon().labels}))
