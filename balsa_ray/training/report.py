"""`OUTPUT/report.html`: what was trained on, and the curves of the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from balsa_ray.reporting.page import Section, paragraph, recording_player, table, write_page
from balsa_ray.reporting.plots import lines

POINTS = 200  # a curve's points: each the mean of the steps between two

Curve = tuple[list[float], list[float]]


def curves(metrics: Sequence[dict[str, Any]]) -> list[Section]:
    """Returns loss, loss by kind, learning rate, gradient norm and speed against the step.

    Args:
        metrics: Lines of `metrics.jsonl`, at least one.
    """
    kinds = sorted({kind for line in metrics for kind in line["loss_by_kind"]})
    by_kind = {
        kind: curve([(line["step"], line["loss_by_kind"][kind]) for line in metrics if kind in line["loss_by_kind"]])
        for kind in kinds
    }
    return [
        Section("Loss", [_plot(metrics, "loss", "loss per reply token")]),
        Section("Loss by kind", [lines(by_kind, "step", "loss per reply token")]),
        Section("Learning rate", [_plot(metrics, "lr", "learning rate")]),
        Section("Gradient norm", [_plot(metrics, "grad_norm", "norm before clipping")]),
        Section("Speed", [_plot(metrics, "tokens_per_second", "tokens per second")]),
    ]


def curve(points: Sequence[tuple[float, float]]) -> Curve:
    """Returns x and y of at most `POINTS` points: means over neighbours, so that a trend shows through the noise."""
    parts = np.array_split(np.asarray(points, dtype=float), min(POINTS, len(points)))
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0].tolist(), means[:, 1].tolist()


def _plot(metrics: Sequence[dict[str, Any]], key: str, label: str) -> Markup:
    """One quantity, a line a stage."""
    stages = dict.fromkeys(line["stage"] for line in metrics)
    of_stage = {name: [(line["step"], line[key]) for line in metrics if line["stage"] == name] for name in stages}
    return lines({name: curve(points) for name, points in of_stage.items()}, "step", label)


def _validation(metrics: Sequence[dict[str, Any]]) -> list[Section]:
    measured = [line for line in metrics if "validation_loss" in line]
    if not measured:
        return []
    kinds = sorted({kind for line in measured for kind in line["validation_by_kind"]})
    series: dict[str, Curve] = {"all": curve([(line["step"], line["validation_loss"]) for line in measured])}
    for kind in kinds:
        series[kind] = curve([(line["step"], line["validation_by_kind"][kind]) for line in measured])
    return [Section("Loss on held-out recordings", [lines(series, "step", "loss per reply token")])]


def _replies(replies: Sequence[dict[str, Any]]) -> list[Section]:
    """What the model said about the same samples at each checkpoint, the newest on top."""
    if not replies:
        return []
    shown: dict[str, list[dict[str, Any]]] = {}
    for reply in replies:
        shown.setdefault(reply["id"], []).append(reply)
    rows: list[list[str | Markup]] = []
    for said in shown.values():
        last = said[-1]
        players = Markup("<br>").join(recording_player(audio) for audio in last["audio"])
        answers = Markup("<br>").join(
            Markup("<span class=quiet>{}</span> {}").format(reply["step"], reply["reply"]) for reply in reversed(said)
        )
        rows.append([last["kind"], players, answers, last["target"]])
    return [
        Section("Replies about held-out recordings", [table(["kind", "recording", "step and reply", "target"], rows)])
    ]


def write_report(
    path: Path, metrics: Sequence[dict[str, Any]], summary: dict[str, Any], replies: Sequence[dict[str, Any]] = ()
) -> None:
    """Writes the page.

    Args:
        path: `OUTPUT/report.html`.
        metrics: Lines of `metrics.jsonl`.
        summary: What stands in `report.json`.
        replies: Lines of `replies.jsonl`.
    """
    rows = [(key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value))
            for key, value in summary.items()]  # fmt: skip
    hours = sum(line["audio_seconds"] for line in metrics) / 3600
    lead = f"{len(metrics)} steps, {sum(line['samples'] for line in metrics)} samples, {hours:.1f} hours of audio."
    figures = Section("Figures", [table(["", ""], rows), paragraph("Loss is the mean of the last 20 steps.")])
    write_page(path, "Training", lead, [figures, *_validation(metrics), *curves(metrics), *_replies(replies)])
