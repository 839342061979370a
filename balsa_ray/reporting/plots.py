"""Plots as inline images."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

COLOURS = ("#3b6fb6", "#d1772f", "#4c956c", "#8a5a9e", "#b5483f", "#6b7280")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _image(figure: Any, text: str, dpi: int = 110) -> Markup:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(text, data)


def write_png(plot: Markup, path: Path) -> None:
    """Writes a plot as a file of its own."""
    path.write_bytes(base64.b64decode(plot.rpartition(";base64,")[2].removesuffix('">')))


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> Markup:
    """Returns a line plot.

    Args:
        series: Name to x values and y values.
        x: Label of the x axis, with its unit.
        y: Label of the y axis, with its unit.
    """
    figure, axes = _figure(7.5, 3.2)
    for colour, (name, (xs, ys)) in zip(_cycle(len(series)), series.items(), strict=True):
        axes.plot(xs, ys, color=colour, linewidth=1.3, label=name)
    axes.set(xlabel=x, ylabel=y)
    if len(series) > 1:
        axes.legend(frameon=False)
    return _image(figure, f"{y} against {x}")


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    y: str,
    reference: float | None = None,
) -> Markup:
    """Returns grouped bars with intervals.

    Args:
        groups: Names along the x axis.
        series: Name to a (value, low, high) for each group.
        y: Label of the y axis, with its unit.
        reference: Height of a dotted line, such as chance.
    """
    figure, axes = _figure(7.5, 3.4)
    width = 0.8 / len(series)
    for k, (colour, (name, values)) in enumerate(zip(_cycle(len(series)), series.items(), strict=True)):
        at = np.arange(len(groups)) + (k - (len(series) - 1) / 2) * width
        middle, low, high = (np.array(column) for column in zip(*values, strict=True))
        errors = np.clip([middle - low, high - middle], 0, None)
        axes.bar(at, middle, width * 0.92, yerr=errors, color=colour, label=name, error_kw={"linewidth": 1})
    if reference is not None:
        axes.axhline(reference, color="#666", linestyle=":", linewidth=1)
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.set(ylabel=y)
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    return _image(figure, y)


def scatter(points: Sequence[tuple[float, float]], x: str, y: str) -> Markup:
    """Returns a point for each (x, y)."""
    figure, axes = _figure(5.0, 3.0)
    axes.scatter(*zip(*points, strict=True), s=14, color=COLOURS[0], alpha=0.7)
    axes.set(xlabel=x, ylabel=y)
    return _image(figure, f"{y} against {x}")


def counts(numbers: Mapping[str, int], x: str) -> Markup:
    """Returns a bar for each name, the first one on top.

    Args:
        numbers: Name to number.
        x: What is counted.
    """
    figure, axes = _figure(5.0, 0.9 + 0.22 * len(numbers))
    names = [_short(name) for name in numbers]
    drawn = axes.barh(np.arange(len(names)), list(numbers.values()), color=COLOURS[0], height=0.75)
    axes.bar_label(drawn, [f"{number:,}" for number in numbers.values()], padding=3, fontsize=8)
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(x)
    return _image(figure, x)


def histogram(edges: Sequence[int], numbers: Sequence[int], x: str, y: str) -> Markup:
    """Returns a histogram whose bins are drawn equally wide, without the empty ones at its ends.

    Args:
        edges: Where each bin begins; the last has no end.
        numbers: What each bin holds.
        x: Label of the x axis, with its unit.
        y: Label of the y axis.
    """
    used = np.flatnonzero(numbers)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
    figure, axes = _figure(5.0, 2.6)
    axes.bar(np.arange(first, last + 1) + 0.5, numbers[first : last + 1], width=0.95, color=COLOURS[0])
    ends = [f"{edge}" for edge in edges] + ["∞"]
    axes.set_xticks(np.arange(first, last + 2), ends[first : last + 2], fontsize=8)
    axes.set(xlabel=x, ylabel=y, xlim=(first - 0.2, last + 1.4))  # so that the last number has room
    return _image(figure, f"{y} by {x}")


def heatmap(names: Sequence[str], values: npt.NDArray[np.int64], title: str) -> Markup:
    """Returns a square of numbers, the darker the larger.

    Args:
        names: Of rows and of columns.
        values: `[names, names]`.
        title: What the numbers are.
    """
    size = 1.8 + 0.42 * len(names)
    figure, axes = _figure(size + 1, size)
    axes.imshow(values, cmap="Blues")
    shown = [_short(name, 22) for name in names]
    axes.set_xticks(np.arange(len(names)), shown, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(np.arange(len(names)), shown, fontsize=8)
    dark = values.max(initial=0) / 2
    for row, column in np.ndindex(values.shape):
        colour = "white" if values[row, column] > dark else "#333"
        axes.text(column, row, f"{values[row, column]}", ha="center", va="center", fontsize=6, color=colour)
    return _image(figure, title)


def spectrogram(samples: npt.NDArray[np.float32], rate: int) -> Markup:
    """Returns a small spectrogram of mono samples at `rate` Hz."""
    figure, axes = _figure(2.6, 1.3)
    axes.specgram(samples + 1e-6, NFFT=400, Fs=rate, noverlap=240, cmap="magma", vmin=-120, vmax=-30)
    axes.tick_params(labelsize=6)
    axes.set_xlabel("s", fontsize=6)
    axes.set_ylabel("Hz", fontsize=6)
    return _image(figure, "spectrogram", dpi=80)


def _short(name: str, limit: int = 32) -> str:
    # A dollar would begin a formula.
    name = name.replace("$", r"\$")
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
