"""The figures of a sweep as small plots side by side: curves over numbers, bars over anything else."""

from collections.abc import Mapping
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING

from storydiffusion.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4
SIDE = 3.0  # inches
DOTS = 110  # an inch


def plot_sweep(figures: Mapping[str, Mapping[str, Estimate]], swept: str) -> bytes:
    """A PNG with one plot for each figure: its means over the jobs' labels, with standard errors.

    Args:
        figures: title → label of a job → mean. One whose labels are all numbers becomes a curve, others bars.
        swept: what the labels are values of, written under the plots.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {title: means for title, means in figures.items() if means}
    columns = min(COLUMNS, max(1, len(shown)))
    rows = max(1, ceil(len(shown) / columns))
    page = Figure(figsize=(SIDE * columns, SIDE * rows), layout="constrained")
    FigureCanvasAgg(page)
    for index, (title, means) in enumerate(shown.items()):
        axes = page.add_subplot(rows, columns, index + 1)
        _draw(axes, means)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(swept, fontsize=8)
        axes.tick_params(labelsize=8)
    buffer = BytesIO()
    page.savefig(buffer, format="png", dpi=DOTS, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: "Axes", means: Mapping[str, Estimate]) -> None:
    heights, errors = [one.mean for one in means.values()], [one.standard_error for one in means.values()]
    try:
        places = [float(label) for label in means]
    except ValueError:
        axes.bar(range(len(means)), heights, yerr=errors, capsize=3)
        axes.set_xticks(range(len(means)), list(means), rotation=45, ha="right")
        return
    axes.errorbar(places, heights, yerr=errors, marker="o", capsize=3)
    axes.grid(alpha=0.3)
