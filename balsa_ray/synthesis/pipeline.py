"""A synthesis run on Ray Data: manifest -> planned samples -> vLLM -> gates -> Parquet.

Rows are read, planned, answered, judged and written in the workers; the driver sees counts.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsa_ray.cluster import session
from balsa_ray.config import UserError
from balsa_ray.endpoint import KEY_VARIABLE
from balsa_ray.endpoint_engine import endpoint_chain
from balsa_ray.engine import (
    Share,
    check_chat_template,
    failure,
    find_room,
    light_task,
    quiet_ray_data,
    room_for_tasks,
    vllm_chain,
)
from balsa_ray.identity import stable_hash
from balsa_ray.storage import absolute, sole_writer
from balsa_ray.synthesis import output
from balsa_ray.synthesis.change import dry_run, weigh_change
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.duplicates import set_duplicates_aside
from balsa_ray.synthesis.joining import join_files
from balsa_ray.synthesis.layouts import LAYOUTS
from balsa_ray.synthesis.manifest import Manifest, Source, read_class_labels, scan
from balsa_ray.synthesis.meters import Meters
from balsa_ray.synthesis.negatives import COUNTED
from balsa_ray.synthesis.plan import Recipe
from balsa_ray.synthesis.plan_tasks import count_labels, over_files, pieces_of, planned, planned_ids
from balsa_ray.synthesis.progress import Progress, tally_of
from balsa_ray.synthesis.recipe import JUDGING, Writer, identity, provenance, recipe_of, writer_of
from balsa_ray.synthesis.replies import conversation, finish, request
from balsa_ray.synthesis.report import OF_THE_LAST_ROWS, Standing, Work, figures, summary
from balsa_ray.synthesis.report_page import write
from balsa_ray.synthesis.resume import Stock, changes, is_among, look_into, take_stock, together
from balsa_ray.synthesis.stages import Stages
from balsa_ray.synthesis.statistics import statistics
from balsa_ray.synthesis.survey import survey

if TYPE_CHECKING:
    import numpy as np
    from ray.data import Dataset

ROWS_PER_FILE = 1024
UNUSABLE_SHOWN = 50


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
    config = _anywhere(config)
    writer = writer_of(config)
    source = source_of(config)
    manifest = scan(config.input, config.limit, source)
    recipe = recipe_of(config)
    known = identity(config, recipe, writer, manifest)
    recipe = replace(recipe, fingerprint=known["recipe"], source=source)
    held = output.read(config.output)
    changed = changes(held.identity, known) if held else {}
    if held and held.report and not changed and not any(held.report["errors"].values()):
        print(f"synthesis: {config.output} is complete ({held.report['samples']:,} samples); nothing to do", flush=True)
        return held.report
    if writer.model:
        check_chat_template(writer.model, config.system_prompt)
    with session(), nullcontext() if config.dry_run else _alone(config.output):
        share = room_for_tasks() if config.dry_run else find_room(config.engine, config.concurrency)
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


def _anywhere(config: SynthesizeConfig) -> SynthesizeConfig:
    """Returns a configuration whose paths hold in workers too, which start in folders of their own."""
    return config.model_copy(update={"output": config.output.expanduser().resolve(), "input": config.inputs})


def _alone(output: Path) -> AbstractContextManager[None]:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: {output}: can't be made: {error.strerror}") from error
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
    began, folder, light = time.monotonic(), config.output, light_task(share, at_most=len(manifest.pieces))
    over = partial(over_files, light)
    written = output.row_files(folder, errors=False)
    held = held if written else None  # Without rows there is nothing that a change could spoil.
    changed = changes(held.identity, known) if held else {}
    untouched = config.dry_run or (bool(changed) and config.on_change == "refuse")
    if not untouched and not changed:
        output.sign(folder, known, held.labels if held else "")
    if not untouched:
        output.reopen(folder)
    found = survey(pieces_of(manifest), manifest, recipe, None if untouched else folder / "errors", light)
    surveyed, manifest = manifest, replace(manifest, pieces=found.pieces)
    recipe = replace(recipe, labels=_known_labels(found.labels, config.labels), columns=found.columns)
    if any(recipe.negatives.get(way) for way in COUNTED):
        recipe = replace(recipe, occurrence=count_labels(manifest, recipe, light))
    assert recipe.relations.finder  # Worked out here and sent along: else every task would do it.
    labels = stable_hash(list(recipe.labels))
    bad = f"; {found.bad_rows:,} rows can't be used, first {found.first_error}" if found.bad_rows else ""
    print(f"synthesis: {found.planned:,} samples planned of {found.clips:,} clips{bad}", flush=True)
    standing = together(over(look_into, written), "ids") if config.dry_run else None
    if changed and held:
        alike = held.labels == labels and not changed.keys() & {*JUDGING}
        standing = weigh_change(config, recipe, manifest, written, changed, alike, light)
        if untouched and not config.dry_run:  # It was not refused after all, for every row stands.
            output.reopen(folder)
            survey(pieces_of(surveyed), surveyed, recipe, folder / "errors", light)
    if config.dry_run:
        left = planned(manifest, recipe, light, standing)
        return dry_run(config, writer.model, found.clips, left, light)
    output.sign(folder, known, labels)

    stock = take_stock(folder, over)
    # Rows that stand and are not planned: of an earlier recipe, or of clips that can't be used just now.
    kept = stock.rows and stock.rows - int(is_among(planned_ids(manifest, recipe, light), stock.ids).sum())
    origin, total, stages = provenance(config, writer, known), found.planned + kept, Stages()
    chain = _chain(config, writer, share, total)
    if stock.rows:
        print(f"synthesis: {stock.rows:,} of {total:,} rows stand", flush=True)
    reading, meters = time.monotonic() - began, Meters()
    with Progress(total, stock.counts) as progress:

        def make(standing: Stock) -> None:
            rows = chain(planned(manifest, recipe, light, standing.ids))
            done = partial(finish, recipe, config.marks, origin, folder)
            made = rows.map_batches(done, batch_size=ROWS_PER_FILE, batch_format="pyarrow", **light_task(share))
            for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
                counts = batch.to_pylist()
                progress.add(counts)
                meters.add(counts, left=total - progress.tally.done)
            stages.add(made)

        until_all_stand(make, total, stock, lambda: take_stock(folder, over))
    set_duplicates_aside(folder, over, _shared)
    join_files(folder, over)
    stock = take_stock(folder, over)
    if stock.rows != total:
        raise UserError(f"synthesis: {stock.rows:,} of {total:,} rows stand; the same command goes on", exit_code=1)
    progress.tally = tally_of(stock.counts)
    files = output.row_files(folder, errors=False)
    contents = Standing(
        *(
            statistics([file for file in files if file.parent.name == name], config.seed, over)
            for name in ("samples", "rejected")
        )
    )
    work = Work(
        clips=found.clips,
        bad_rows=found.bad_rows,
        unusable=output.unusable_rows(folder, UNUSABLE_SHOWN),
        kept=kept,
        left_out=manifest.left_out,
        reading_seconds=reading,
        stages=stages.figures(),
        accelerators=0 if config.endpoint else _accelerators(config, share),
        unit="GPU" if share.gpu else "CPU",
        price_per_hour=config.price_per_hour,
    )
    report = figures(progress, work, contents, identity=known, provenance=origin)
    if not progress.first and held and held.report:  # No row was made: the figures of speed are still the last ones.
        report |= {name: held.report[name] for name in OF_THE_LAST_ROWS}
    write(folder, report, contents, config.max_audio_seconds)
    return report


def until_all_stand(make: Callable[[Stock], None], total: int, stock: Stock, take: Callable[[], Stock]) -> None:
    """Makes what is missing, in as many rounds as it takes, as long as each round brings rows.

    Most runs need one. Ray gives up for good on an engine that is killed while it starts, and blocks that a lost
    machine held are made anew, perhaps cut otherwise: what is then missing is made in another round.

    Args:
        make: Makes the rows that a stock lacks; may raise a RayError.
        total: Rows that shall stand.
        stock: What stands.
        take: Takes stock again.

    Raises:
        UserError: A round brought nothing; what stands is kept.
    """
    from ray.exceptions import RayError

    while stock.rows < total:
        cause = None
        try:
            make(stock)
        except RayError as error:
            cause = error
        before, stock = stock, take()
        reason = f"stopped: {failure(cause)}" if cause else f"{stock.rows:,} rows came of {total:,}"
        if stock.rows <= before.rows:
            raise UserError(f"synthesis: {reason}; the same command goes on", exit_code=1) from cause
        if stock.rows < total:
            print(f"synthesis: {reason}; {stock.rows:,} of {total:,} rows stand, going on with the rest", flush=True)
    if stock.rows > total:
        raise UserError(f"synthesis: {stock.rows:,} rows stand and {total:,} were planned", exit_code=1)


def _shared(numbers: "np.ndarray") -> "Callable[[], np.ndarray]":
    """Puts an array into Ray's object store: one copy a machine, whatever the number of tasks."""
    import ray

    return partial(ray.get, ray.put(numbers))


def _accelerators(config: SynthesizeConfig, share: Share) -> int:
    """Returns the GPUs, or CPUs, of all engines; 0 if their number may change, and with it what a speed is worth."""
    least, most = share.replicas
    workers = config.engine.tensor_parallel_size * config.engine.pipeline_parallel_size
    return least * workers * (1 if share.gpu else config.engine.cpus) if least == most else 0


def _chain(config: SynthesizeConfig, writer: Writer, share: Share, rows: int) -> Callable[["Dataset"], "Dataset"]:
    if config.endpoint is None:
        assert writer.model
        ask = partial(request, writer.model, config)
        return vllm_chain(writer.model, config.engine, share, rows=rows, request=ask)
    return endpoint_chain(
        config.endpoint,
        os.environ.get(KEY_VARIABLE),
        config.sampling.request_fields(),
        light_task(share),
        rows=rows,
        request=partial(conversation, config),
    )


def _known_labels(of_manifest: tuple[str, ...], source: str) -> tuple[str, ...]:
    if source == "manifest":
        return of_manifest
    from balsa_ray.miniature.lexicon import lexicon

    return tuple(sorted({*of_manifest, *lexicon().labels}))
