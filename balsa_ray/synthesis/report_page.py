"""The page of a synthesis: counts, plots, and samples to listen to."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from balsa_ray.reporting.page import Section, paragraph, recording_player, table, write_page
from balsa_ray.reporting.plots import counts, heatmap, histogram
from balsa_ray.synthesis.gates import REASONS
from balsa_ray.synthesis.output import REPORT, write_whole
from balsa_ray.synthesis.report import GATES, Standing
from balsa_ray.synthesis.statistics import EDGES, LABELS_TOGETHER, rows_at

BARS = 20
_LENGTHS = {
    "response_tokens": "tokens of a reply",
    "response_words": "words of a reply",
    "prompt_tokens": "tokens of a prompt with its metadata",
}
_COLUMNS = ("kind", "gate", "strategy", "audio", "metadata", "prompt", "response")


def write(folder: Path, report: dict[str, Any], held: Standing, max_seconds: float) -> None:
    """Writes `report.html` and, last, `report.json`: where that stands, all of the run is there.

    Args:
        folder: The run's folder, with `samples/` and `rejected/` in it.
        report: What `figures` returned.
        held: What stands in the folder.
        max_seconds: Longest recording of the run.
    """
    sections = [
        Section("Rows by kind and gate", [_gate_table(report["by_kind"])]),
        Section("By how absent sounds and partners were chosen", [_gate_table(report["by_strategy"])]),
        Section(
            "By corpus",
            [
                paragraph("The folder, or the tar or Parquet file, of a row's first recording."),
                _gate_table(report["by_corpus"]),
            ],
        ),
        *_unusable(report),
        Section("What the gates mean", [table(["gate", "a reply is rejected because"], [*map(list, REASONS.items())])]),
        Section("Labels of the samples", _labels(report)),
        Section("Lengths of the samples", [_histogram(report, name, x) for name, x in _LENGTHS.items()]),
        Section("Speed and cost", [table([], _speed(report)), *_stages(report), *_cost(report)]),
        Section("Samples, drawn at random", [_examples(held.samples.examples, max_seconds)]),
        Section("Rejected replies, drawn at random", [_examples(held.rejected.examples, None)]),
        Section("Made by", [table([], [[name, str(value)] for name, value in report["provenance"].items()])]),
    ]
    lead = f"{report['samples']:,} samples of {report['clips']:,} clips, written by {report['provenance']['model']}."
    write_page(folder / "report.html", "Synthesis", lead, sections)
    text = json.dumps(report, indent=1) + "\n"
    write_whole(folder / REPORT, lambda path: path.write_text(text, "utf-8"))


def _gate_table(rows: Mapping[str, Mapping[str, int]]) -> Markup:
    """Returns a table with a column for each gate that any row ended in."""
    gates = [gate for gate in GATES if any(ways.get(gate) for ways in rows.values())]
    if not gates:
        return paragraph("There are none.")
    return table(["", *gates], [[name, *(f"{ways.get(gate, 0):,}" for gate in gates)] for name, ways in rows.items()])


def _unusable(report: dict[str, Any]) -> list[Section]:
    number, shown = report["errors"]["manifest"], report["unusable"]
    if not number:
        return []
    more = "" if number == len(shown) else f" The first {len(shown)}:"
    lead = paragraph(f"{number:,} rows of the input became no samples; errors/ names all of them.{more}")
    return [Section("Rows that can't be used", [lead, table([], [[reason] for reason in shown])])]


def _labels(report: dict[str, Any]) -> list[Markup]:
    parts = []
    for name, meaning in (("present", "samples whose metadata states it"), ("absent", "samples that call it absent")):
        if found := report["labels"][name]:
            parts.append(counts(dict(islice(found.items(), BARS)), meaning))
    pairs = {(a, b): number for a, b, number in report["together"]}
    # In the order of their frequency, which the diagonal holds.
    names = sorted({a for a, _ in pairs}, key=lambda label: (-pairs[label, label], label))
    if names:
        values = np.array([[pairs.get((min(a, b), max(a, b)), 0) for b in names] for a in names])
        parts.append(
            paragraph(
                f"In how many samples two of the {min(LABELS_TOGETHER, len(names))} most frequent labels stand "
                "together; on the diagonal, each label alone or with others. Samples of several clips count "
                "the labels of all of them."
            )
        )
        parts.append(heatmap(names, values, "samples with both labels"))
    return parts or [paragraph("There are none.")]


def _histogram(report: dict[str, Any], name: str, x: str) -> Markup:
    return histogram(EDGES, report["histograms"][name], f"{x} (bins grow to the right)", "samples")


def _speed(report: dict[str, Any]) -> list[list[str]]:
    seconds = report["seconds"]
    rows = [["reading the input, checking recordings, planning", f"{seconds['reading']:.1f} s"]]
    if seconds["until_first_rows"] is not None:
        rows.append(["start of the engines until the first rows were written", f"{seconds['until_first_rows']:.1f} s"])
    return [
        *rows,
        ["all of the last command that made rows", f"{seconds['total']:.1f} s"],
        ["rows a second once the engines ran", f"{report['rows_per_second']:,.1f}"],
        ["tokens written a second once the engines ran", f"{report['response_tokens_per_second']:,.1f}"],
        ["tokens read and written in all", f"{report['tokens']['prompt']:,} and {report['tokens']['response']:,}"],
    ]


def _stages(report: dict[str, Any]) -> list[Markup]:
    if not report["stages"]:
        return []
    rows = [
        [one["stage"], f"{one['rows']:,}", f"{one['seconds']:,.1f}", f"{one['rows'] / max(one['seconds'], 1e-3):,.0f}"]
        for one in report["stages"]
    ]
    note = "Seconds are summed over tasks that run side by side; of an engine, over the batches that it has at once."
    return [table(["stage", "rows", "seconds in its tasks", "rows a second of a task"], rows), paragraph(note)]


def _cost(report: dict[str, Any]) -> list[Markup]:
    cost = report["cost"]
    if cost is None:
        return []
    unit = f"{cost['unit']}-hours"
    rows = [[f"tokens written in an hour of one {cost['unit']}", f"{cost['tokens_per_hour']:,}", ""]]
    left_out = f"{cost['left_out_clips']['clips']:,} clips that `limit` left out"
    for name, what in (("100000_clips", "100,000 clips like these"), ("left_out_clips", left_out)):
        price = "" if cost[name]["price"] is None else f"price {cost[name]['price']:,.2f}"
        if cost[name]["clips"]:
            rows.append([what, f"{cost[name]['hours']:,.3f} {unit}", price])
    note = f"Projected from the speed of this run with {cost['number']} {cost['unit']}; start-up does not count."
    return [table([], rows), paragraph(note)]


def _examples(places: Sequence[tuple[float, str, int]], max_seconds: float | None) -> Markup:
    """Returns a table of rows; with players if the longest recording is told."""
    shown: list[list[str | Markup]] = []
    for row in rows_at(places, _COLUMNS):
        metadata = Markup("<br>").join(row["metadata"])
        way = Markup("{}<br><span class=quiet>{}</span>").format(row["kind"], row["strategy"] or "")
        about = [metadata, row["prompt"], row["response"]]
        if max_seconds is None:
            shown.append([way, row["gate"], *about])
        else:
            shown.append(
                [way, Markup("<br>").join(recording_player(audio, max_seconds) for audio in row["audio"]), *about]
            )
    second = "gate" if max_seconds is None else "recording"
    header = ["kind", second, "read in place of the audio", "prompt", "reply"]
    return table(header, shown) if shown else paragraph("There are none.")
