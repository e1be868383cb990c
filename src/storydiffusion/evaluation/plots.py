"""Plots of evaluations and sweeps, as PNG in memory, without matplotlib's global state."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from storydiffusion.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MEAN, TRUTH = "#2b2230", "#c0392b", "#27805a"
COLUMNS = 4


def plot_metrics(metrics: Mapping[str, Sequence[float]]) -> bytes:
    """Plot every value of every metric as a dot, one plot per metric, with the mean as a line."""
    columns = min(COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    canvas = _figure(3.4 * columns, 2.4 * rows)
    for place, (name, values) in enumerate(metrics.items(), 1):
        axes = canvas.add_subplot(rows, columns, place)
        axes.plot(range(1, len(values) + 1), values, "o", color=INK, markersize=4, alpha=0.7)
        axes.axhline(float(np.mean(values)), color=MEAN, linewidth=1)
        axes.set_title(name, fontsize=8, wrap=True)
        axes.tick_params(labelsize=7)
        axes.set_xticks([])
        axes.set_xlabel(f"n = {len(values)}; the line is the mean", fontsize=7)
    return _png(canvas)


def plot_similarity(matrix: np.ndarray, labels: Sequence[str], title: str) -> bytes:
    """Plot the cosines of a story's images with each other, (P, P)."""
    side = 2.5 + 0.45 * len(labels)
    canvas = _figure(side + 1, side)
    axes = canvas.add_subplot()
    image = axes.imshow(matrix, vmin=min(0.0, float(matrix.min())), vmax=1, cmap="viridis")
    axes.set_xticks(range(len(labels)), labels, fontsize=7, rotation=90)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_title(title, fontsize=8, wrap=True)
    canvas.colorbar(image, ax=axes, shrink=0.8)
    return _png(canvas)


def plot_motion(motion: Sequence[float], change: Sequence[float], change_name: str, true: Sequence[float]) -> bytes:
    """Plot each clip by its motion and by a metric that the paper takes as better when smaller; static clips are at 0.

    Args:
        true: the motion of each clip's reference, to which lines lead; empty without references.
    """
    canvas = _figure(5, 4)
    axes = canvas.add_subplot()
    if true:
        axes.hlines(change, motion, true, color=TRUTH, linewidth=0.7)
        axes.plot(true, change, "|", color=TRUTH, label="motion of the reference")
    axes.plot(motion, change, "o", color=INK, markersize=4, alpha=0.7, label="clips")
    axes.plot([0], [0], "x", color=MEAN, label="a static clip")
    axes.set_xlabel("motion, diagonals per frame", fontsize=8)
    axes.set_ylabel(change_name, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
    return _png(canvas)


def plot_sweep(
    metrics: Mapping[str, Mapping[str, Estimate]], swept: str, trade_off: tuple[str, str] | None = None
) -> bytes:
    """Return a PNG with one plot per metric: its means over the jobs' labels, with standard errors.

    Args:
        metrics: title → label of a job → mean. Where all labels are numbers the plot is a curve, otherwise bars.
        swept: the name of the horizontal axis.
        trade_off: the titles of two metrics that are also plotted against each other, one point per job.
    """
    shown = {title: means for title, means in metrics.items() if means}
    count = len(shown) + (trade_off is not None)
    columns = min(COLUMNS, max(1, count))
    rows = max(1, math.ceil(count / columns))
    canvas = _figure(3 * columns, 3 * rows)
    for index, (title, means) in enumerate(shown.items()):
        axes = canvas.add_subplot(rows, columns, index + 1)
        _draw_means(axes, means)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(swept, fontsize=7, wrap=True)
        axes.tick_params(labelsize=8)
    if trade_off is not None:
        _draw_trade_off(canvas.add_subplot(rows, columns, count), shown, trade_off)
    return _png(canvas)


def _draw_trade_off(axes: "Axes", metrics: Mapping[str, Mapping[str, Estimate]], titles: tuple[str, str]) -> None:
    across, up = (metrics[title] for title in titles)
    for label in across.keys() & up.keys():
        x, y = across[label], up[label]
        axes.errorbar(x.mean, y.mean, xerr=x.standard_error, yerr=y.standard_error, marker="o", color=INK, capsize=3)
        axes.annotate(label, (x.mean, y.mean), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_title(" against ".join(reversed(titles)), fontsize=10)
    axes.set_xlabel(titles[0], fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _draw_means(axes: "Axes", means: Mapping[str, Estimate]) -> None:
    heights, errors = [one.mean for one in means.values()], [one.standard_error for one in means.values()]
    try:
        places = [float(label) for label in means]
    except ValueError:
        axes.bar(range(len(means)), heights, yerr=errors, capsize=3)
        axes.set_xticks(range(len(means)), list(means), rotation=45, ha="right")
        return
    axes.errorbar(places, heights, yerr=errors, marker="o", capsize=3)
    axes.grid(alpha=0.3)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _png(canvas: "Figure") -> bytes:
    buffer = BytesIO()
    canvas.savefig(buffer, format="png")
    return buffer.getvalue()
