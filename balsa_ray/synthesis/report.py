"""What remains of a run: the figures of `report.json`, and a closing line."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balsa_ray.synthesis.gates import PASSED, REASONS
from balsa_ray.synthesis.progress import Progress
from balsa_ray.synthesis.statistics import EDGES, Statistics, most_frequent

OF_THE_LAST_ROWS = ("seconds", "stages", "rows_per_second", "response_tokens_per_second", "cost")
"""Of the report: what tells of the last command that made rows."""
GATES = (PASSED, *REASONS, "error")
CORPORA = 50
"""Corpora that are reported; the rest is counted together."""


@dataclass(frozen=True)
class Work:
    """What the last command that made rows had to work with.

    Attributes:
        clips: Clips that can be used.
        bad_rows: Rows of the input that can't.
        unusable: Why not, of the first of them.
        kept: Rows that stand and are not planned: of earlier recipes, or of clips that can't be used now.
        left_out: Rows of the input behind `limit`.
        reading_seconds: Time in which the input was read, its recordings checked, and the samples planned.
        stages: What each stage did, as `Stages.figures` returns it.
        accelerators: GPUs, or CPUs where there are none, of all engines; 0 if that is not known, as of an endpoint.
        unit: `GPU` or `CPU`.
        price_per_hour: Of one of them.
    """

    clips: int
    bad_rows: int = 0
    unusable: Sequence[str] = ()
    kept: int = 0
    left_out: int = 0
    reading_seconds: float = 0.0
    stages: Sequence[dict[str, Any]] = ()
    accelerators: int = 0
    unit: str = "GPU"
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Standing:
    """What stands in the output.

    Attributes:
        samples: Statistics of `samples/`.
        rejected: Statistics of `rejected/`.
    """

    samples: Statistics = field(default_factory=Statistics)
    rejected: Statistics = field(default_factory=Statistics)


def figures(
    progress: Progress, work: Work, held: Standing, *, identity: dict[str, Any], provenance: dict[str, Any]
) -> dict[str, Any]:
    """Returns the content of `report.json`; seconds, speeds and costs are of the last command that made rows."""
    tally = progress.tally
    rows, tokens = progress.speed()
    first = progress.first[0] if progress.first else None
    corpora = held.samples.corpora + held.rejected.corpora
    return {
        "identity": identity,
        "provenance": provenance,
        "clips": work.clips,
        "planned": progress.planned - work.kept + work.bad_rows,
        "kept": work.kept,
        "samples": tally.count(PASSED),
        "rejected": tally.rejected,
        "errors": {"manifest": work.bad_rows, "engine": tally.errors},
        "unusable": list(work.unusable),
        "by_kind": _by_gate(tally.rows),
        "by_strategy": _by_gate(tally.strategies),
        "by_corpus": _by_gate(_largest(corpora)),
        "labels": {"present": most_frequent(held.samples.present), "absent": most_frequent(held.samples.absent)},
        "together": [[*pair, number] for pair, number in sorted(held.samples.together.items())],
        "histograms": {"bins_begin_at": list(EDGES), **held.samples.histograms},
        "tokens": {"prompt": tally.prompt_tokens, "response": tally.response_tokens},
        "seconds": {
            "total": round(time.monotonic() - progress.started + work.reading_seconds, 2),
            "reading": round(work.reading_seconds, 2),
            "until_first_rows": round(first - progress.started, 2) if first else None,
        },
        "stages": list(work.stages),
        "rows_per_second": round(rows, 1),
        "response_tokens_per_second": round(tokens, 1),
        "cost": cost(work, tokens, tally.response_tokens / max(1, work.clips)),
    }


def cost(work: Work, tokens_per_second: float, tokens_per_clip: float) -> dict[str, Any] | None:
    """Returns what writing costs at a speed; None if none was measured.

    Args:
        work: What there was to work with.
        tokens_per_second: Tokens of replies that all engines write in a second.
        tokens_per_clip: Tokens of replies about one clip.

    Returns:
        Tokens an hour of one GPU (or CPU), and for 100,000 clips and for what `limit` left out the hours and the price.
    """
    if not tokens_per_second or not work.accelerators:
        return None
    projected = {}
    for name, clips in (("100000_clips", 100_000), ("left_out_clips", work.left_out)):
        hours = clips * tokens_per_clip / tokens_per_second / 3600 * work.accelerators
        price = None if work.price_per_hour is None else round(hours * work.price_per_hour, 2)
        projected[name] = {"clips": clips, "hours": round(hours, 3), "price": price}
    per_hour = round(tokens_per_second * 3600 / work.accelerators)
    return {"unit": work.unit, "number": work.accelerators, "tokens_per_hour": per_hour, **projected}


def summary(report: dict[str, Any], output: Path) -> str:
    """Returns the closing line, or two if rows could not be made."""
    ways = report["by_kind"].values()
    by_reason = {gate: sum(way.get(gate, 0) for way in ways) for gate in REASONS}
    reasons = ", ".join(f"{gate} {rows:,}" for gate, rows in by_reason.items() if rows)
    lines = [
        f"synthesis: {report['samples']:,} samples of {report['clips']:,} clips, {report['rejected']:,} rejected"
        f"{f' ({reasons})' if reasons else ''} in {report['seconds']['total']:.0f} s -> {output}"
    ]
    bad, failed = report["errors"]["manifest"], report["errors"]["engine"]
    if bad:
        lines.append(f"synthesis: {bad:,} rows of the manifest can't be used; {output / 'errors'} says why")
    if failed:
        lines.append(f"synthesis: the engine failed on {failed:,} rows ({output / 'errors'}); the same command retries")
    return "\n".join(lines)


def _by_gate(rows: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """Returns the rows of each name by gate, in the order of the gates and without those that are 0."""
    names = sorted({name for name, _ in rows})
    return {name: {gate: rows[name, gate] for gate in GATES if rows.get((name, gate))} for name in names}


def _largest(corpora: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    sizes: dict[str, int] = {}
    for (corpus, _), rows in corpora.items():
        sizes[corpus] = sizes.get(corpus, 0) + rows
    shown = set(sorted(sizes, key=lambda corpus: (-sizes[corpus], corpus))[:CORPORA])
    found: dict[tuple[str, str], int] = {}
    for (corpus, gate), rows in corpora.items():
        name = corpus if corpus in shown else f"{len(sizes) - CORPORA:,} more"
        found[name, gate] = found.get((name, gate), 0) + rows
    return found
