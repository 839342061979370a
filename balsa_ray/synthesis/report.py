"""What remains of a run: `report.json`, `report.html` with some of its samples, and a closing line."""

import json
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from balsa_ray.identity import unit
from balsa_ray.reporting.page import Section, paragraph, table, write_page
from balsa_ray.synthesis.gates import PASSED, REASONS
from balsa_ray.synthesis.output import REPORT, write_whole
from balsa_ray.synthesis.progress import Progress

GATES = (PASSED, *REASONS, "error")
EXAMPLES_PER_KIND = 3
_FILES_LOOKED_AT = 4


def figures(
    progress: Progress, *, identity: dict[str, Any], provenance: dict[str, Any], clips: int, bad_rows: int, kept: int
) -> dict[str, Any]:
    """Returns the content of `report.json`; seconds and speeds are of the last command that made rows."""
    tally = progress.tally
    rows, tokens = progress.speed()
    return {
        "identity": identity,
        "provenance": provenance,
        "clips": clips,
        "planned": progress.planned - kept + bad_rows,
        "kept": kept,
        "samples": tally.count(PASSED),
        "rejected": tally.rejected,
        "errors": {"manifest": bad_rows, "engine": tally.errors},
        "by_kind": _by_gate(tally.rows),
        "by_strategy": _by_gate(tally.strategies),
        "tokens": {"prompt": tally.prompt_tokens, "response": tally.response_tokens},
        "seconds": {
            "total": round(time.monotonic() - progress.started, 2),
            "until_first_rows": round(progress.first[0] - progress.started, 2) if progress.first else None,
        },
        "rows_per_second": round(rows, 1),
        "response_tokens_per_second": round(tokens, 1),
    }


def write(folder: Path, report: dict[str, Any], seed: int) -> None:
    """Writes `report.html` and, last, `report.json`: where that stands, all of the run is there.

    Args:
        folder: The run's folder, with `samples/` and `rejected/` in it.
        report: What `figures` returned.
        seed: Keys the choice of the samples that are shown.
    """
    reasons = [[gate, meaning] for gate, meaning in REASONS.items()]
    speed = (
        f"{report['tokens']['prompt']:,} tokens read and {report['tokens']['response']:,} written in "
        f"{report['seconds']['total']:.0f} s, the engine's start included; "
        f"{report['response_tokens_per_second']:,.0f} tokens/s once it ran."
    )
    sections = [
        Section("Rows by kind and gate", [_gate_table(report["by_kind"]), paragraph(speed)]),
        Section("Rows by how absent sounds and partners were chosen", [_gate_table(report["by_strategy"])]),
        Section("What the gates mean", [table(["gate", "a reply is rejected because"], reasons)]),
        *(Section(f"Some {name}", [_examples(folder / name, seed)]) for name in ("samples", "rejected")),
        Section("Made by", [table(["", ""], [[name, str(value)] for name, value in report["provenance"].items()])]),
    ]
    lead = f"{report['samples']:,} samples of {report['clips']:,} clips, written by {report['provenance']['model']}."
    write_page(folder / "report.html", "Synthesis", lead, sections)
    text = json.dumps(report, indent=1) + "\n"
    write_whole(folder / REPORT, lambda path: path.write_text(text, "utf-8"))


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


def _gate_table(rows: Mapping[str, Mapping[str, int]]) -> str:
    """Returns a table with a column for each gate that any row ended in."""
    gates = [gate for gate in GATES if any(ways.get(gate) for ways in rows.values())]
    return table(["", *gates], [[name, *(f"{ways.get(gate, 0):,}" for gate in gates)] for name, ways in rows.items()])


def _examples(folder: Path, seed: int) -> str:
    """A few rows of each kind, from some of the files: their names are hashes, so these are as good as any."""
    rows = sorted(_rows(folder), key=lambda row: (row["kind"], unit(seed, "example", row["id"])))
    shown: list[list[str]] = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for row in islice((row for row in rows if row["kind"] == kind), EXAMPLES_PER_KIND):
            shown.append([kind, row["gate"], "; ".join(row["metadata"]), row["prompt"], row["response"]])
    header = ["kind", "gate", "read in place of the audio", "prompt", "reply"]
    return table(header, shown) if shown else paragraph("There are none.")


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    columns = ["id", "kind", "gate", "metadata", "prompt", "response"]
    for file in sorted(folder.glob("*.parquet"))[:_FILES_LOOKED_AT]:
        yield from parquet.read_table(file, columns=columns).to_pylist()
