"""Plots as inline images."""

import base64
import io
from collections.abc import Mapping, Sequence
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


def spectrogram(samples: npt.NDArray[np.float32], rate: int) -> Markup:
    """Returns a small spectrogram of mono samples at `rate` Hz."""
    figure, axes = _figure(2.6, 1.3)
    axes.specgram(samples + 1e-6, NFFT=400, Fs=rate, noverlap=240, cmap="magma", vmin=-120, vmax=-30)
    axes.tick_params(labelsize=6)
    axes.set_xlabel("s", fontsize=6)
    axes.set_ylabel("Hz", fontsize=6)
    return _image(figure, "spectrogram", dpi=80)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
