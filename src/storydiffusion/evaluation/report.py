"""What an evaluation reports beside result.json: a Markdown table, plots, and remarks.

No metric declares a winner, and no sum of metrics does. LPIPS and CLIPSIM over time, the paper's metrics of video, are
best for a static clip. The table therefore gives the value of a static clip, motion precedes them, and remarks name the
clips that are nearly static.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from storydiffusion.evaluation.measurements import Measurements
from storydiffusion.evaluation.metrics.optical_flow import STILL
from storydiffusion.evaluation.metrics.registry import METRICS, Item
from storydiffusion.evaluation.networks import MINIATURE, Networks

if TYPE_CHECKING:
    import numpy as np

    from storydiffusion.evaluation.inputs import Inputs

LARGEST_MATRIX = 40  # images of a story whose similarities are plotted
NAMED = 5  # clips that a remark names
PLURALS: dict[Item, str] = {"image": "images", "story": "stories", "clip": "clips"}


def write_table(measured: Measurements) -> str:
    """Return mean ± standard error of each metric, its network and unit, n, and which values are better."""
    from storydiffusion.evaluation.tables import escape_markdown, markdown_table

    rows = []
    for name, values in measured.in_order().items():
        metric = METRICS[name]
        better = "close to the reference" if metric.direction == "reference" else metric.direction
        rows.append(
            [
                metric.label,
                escape_markdown(measured.get_network(name) or "–"),
                _format_values(list(values.values())),
                metric.unit,
                _count(len(values), metric.item),
                better,
                "–" if metric.static is None else f"{metric.static:g}",
            ]
        )
    return markdown_table(["metric", "network", "mean", "unit", "n", "better", "static clip"], rows)


def plot_measurements(measured: Measurements, matrices: "Mapping[str, np.ndarray]", encoder: str) -> dict[str, bytes]:
    """Return file name → PNG; `matrices` are the cosines (P, P) of each story's images, of the network `encoder`."""
    from storydiffusion.evaluation.plots import plot_metrics, plot_motion, plot_similarity

    values = {METRICS[name].label: list(found.values()) for name, found in measured.in_order().items()}
    plots = {"metrics.png": plot_metrics(values)}
    for story, matrix in matrices.items():
        if len(matrices) == 1 and 2 <= len(matrix) <= LARGEST_MATRIX:
            labels = [str(i) for i in range(1, len(matrix) + 1)]
            plots["similarity.png"] = plot_similarity(matrix, labels, f"{story}: cosines ({encoder})")
    if motion := measured.get_values("motion"):
        true, change = measured.get_values("reference_motion"), measured.get_values("lpips_frames")
        label = f"{METRICS['lpips_frames'].label} ({measured.get_network('lpips_frames')})"
        plots["motion.png"] = plot_motion(list(motion.values()), list(change.values()), label, list(true.values()))
    return plots


def write_remarks(
    inputs: "Inputs", networks: Networks, measured: Measurements, lpips: str, emotion: str | None
) -> list[str]:
    """Return what a reader must know of the networks, the inputs and the motion; `lpips`, `emotion` are settings."""
    encoder, remarks = networks.encoder, list(inputs.remarks)
    if encoder.source == MINIATURE:
        remarks.append(
            "“miniature” is the miniature's own CLIP, trained on StoryWorld only. Compare its values only with each "
            "other."
        )
    if networks.distance is not None and not networks.distance.is_lpips:
        why = ", since AlexNet's weights are not under TORCH_HOME" if lpips == "auto" else ""
        remarks.append(
            f"LPIPS here is not LPIPS proper but the distance of the encoder's tokens, without learned weights{why}."
        )
    texts = [image.text for story in inputs.stories.values() for image in story if image.text is not None]
    if cut := sum(encoder.length(text) > encoder.window for text in texts):
        remarks.append(
            f"{cut} of {len(texts)} texts are longer than the encoder's {encoder.window} tokens and were truncated."
        )
    if unknown := list(dict.fromkeys(word for text in texts for word in encoder.unknown_words(text))):
        remarks.append(f"The encoder does not know these words of the texts: {', '.join(unknown)}.")
    if networks.emotion is not None:
        remarks.append(
            f"Emo-Score and Emo-A: the intended emotion is {emotion}; chance is 0.125, and 0.5 with two classes. "
            f"{networks.emotion.remark}"
        )
    if inputs.stories:
        remarks.append("± is the standard error over items; images of one story are dependent, stories are not.")
    return [*remarks, *write_motion_remarks(measured)]


def write_motion_remarks(measured: Measurements) -> list[str]:
    """Return what LPIPS and CLIPSIM must be read with; empty without clips."""
    motion = measured.get_values("motion")
    if not motion:
        return []
    remarks = [
        "Motion is the mean length of the optical flow from frame to frame, in image diagonals.",
        "No metric here declares a winner: a static clip has the best LPIPS and CLIPSIM (last column). Compare these "
        "only between clips whose motion is like the reference's.",
    ]
    if still := [clip for clip, value in motion.items() if value < STILL]:
        remarks.append(
            f"{len(still)} of {len(motion)} clips are nearly static (motion below {STILL}); their LPIPS and CLIPSIM "
            f"carry no merit: {', '.join(still[:NAMED])}{', …' if len(still) > NAMED else ''}."
        )
    return remarks


def _format_values(values: Sequence[float]) -> str:
    from storydiffusion.evaluation.statistics import estimate
    from storydiffusion.evaluation.tables import format_mean

    return f"{values[0]:.4f}" if len(values) < 2 else format_mean(estimate(values), 4)


def _count(count: int, item: Item) -> str:
    if item == "set":
        return "the set"
    return f"{count} {item if count == 1 else PLURALS[item]}"
