"""All figures of one evaluation: collected subject by subject, told as a table in Markdown.

No figure names a winner, and no sum of them does. LPIPS and CLIPSIM over time, the paper's figures of video, are best
for a clip in which nothing happens: so the table says of each what a still clip would have, motion stands above them,
and clips that hardly move are counted in words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from storydiffusion.evaluation.metrics.optical_flow import STILL
from storydiffusion.evaluation.result import Better, Figure, Result


@dataclass(frozen=True)
class Kind:
    """What a figure measures: of pictures, stories or clips, one by one, or of the set of all.

    `still` is what a clip has that stands still, where that can be said.
    """

    name: str
    of: Literal["picture", "story", "clip", "set"]
    better: Better
    still: float | None = None


NAMED = 5  # clips that a remark names

KINDS = (
    TEXT_IMAGE := Kind("text-image similarity", "picture", "higher"),
    CLIP_SCORE := Kind("text-image similarity, 2.5 ×", "picture", "higher"),
    CHARACTER := Kind("character similarity", "story", "higher"),
    CROPS := Kind("character similarity, crops", "story", "higher"),
    DREAMSIM := Kind("DreamSim distance", "story", "lower"),
    EMO_SCORE := Kind("Emo-Score", "picture", "higher"),
    EMO_A := Kind("Emo-A", "picture", "higher"),
    MOTION := Kind("motion", "clip", "truth", 0),
    TRUE_MOTION := Kind("motion of the reference", "clip", "truth", 0),
    RELATIVE_MOTION := Kind("motion, × reference", "clip", "truth", 0),
    END_ERROR := Kind("end-frame error", "clip", "lower"),
    MIDDLE_ERROR := Kind("middle-frame error", "clip", "lower"),
    LPIPS_FIRST := Kind("LPIPS-first", "clip", "lower", 0),
    LPIPS_FRAMES := Kind("LPIPS-frames", "clip", "lower", 0),
    CLIPSIM_FIRST := Kind("CLIPSIM-first", "clip", "higher", 1),
    CLIPSIM_FRAMES := Kind("CLIPSIM-frames", "clip", "higher", 1),
    FVD := Kind("FVD", "set", "lower"),
)  # fmt: skip
"""in the order of the table"""


@dataclass
class Measured:
    """Values by kind and by the network that gave them, subject by subject."""

    values: dict[tuple[Kind, str], dict[str, float]] = field(default_factory=dict)

    def add(self, kind: Kind, network: str, subject: str, value: float) -> None:
        self.values.setdefault((kind, network), {})[subject] = value

    def of(self, kind: Kind) -> dict[str, float]:
        """CharacterReference → value, by whatever network; empty where it was not measured."""
        return next((values for (other, _), values in self.values.items() if other == kind), {})

    def in_order(self) -> list[tuple[Kind, str, dict[str, float]]]:
        ordered = sorted(self.values.items(), key=lambda entry: KINDS.index(entry[0][0]))
        return [(kind, network, values) for (kind, network), values in ordered]


def title(kind: Kind, network: str) -> str:
    """The figure's name, which names the network too: figures of different ones are never taken for the same."""
    return f"{kind.name} ({network})"


def result_of(measured: Measured, settings: Mapping[str, Any], remarks: Sequence[str]) -> Result:
    """Everything as the content of result.json."""
    subjects = list(dict.fromkeys(subject for _, _, values in measured.in_order() for subject in values))
    figures = {
        title(kind, network): Figure([values.get(subject) for subject in subjects], kind.better)
        for kind, network, values in measured.in_order()
    }
    return Result(subjects, figures, dict(settings), list(remarks))


def table(measured: Measured) -> str:
    """Mean ± standard error of each figure, over how many of what, which way is better, and what a still clip has."""
    from storydiffusion.evaluation.statistics import estimate
    from storydiffusion.evaluation.tables import markdown_table

    def cell(values: Sequence[float]) -> str:
        if len(values) < 2:
            return f"{values[0]:.4f}"
        found = estimate(values)
        return f"{found.mean:.4f} ± {found.standard_error:.4f}"

    return markdown_table(
        ["figure", "mean", "over", "better", "a still clip has"],
        [
            [
                title(kind, network),
                cell(list(values.values())),
                _many(len(values), kind.of),
                "near the truth's" if kind.better == "truth" else kind.better,
                "–" if kind.still is None else f"{kind.still:g}",
            ]
            for kind, network, values in measured.in_order()
        ],
    )


def _many(count: int, of: str) -> str:
    if of == "set":
        return "the set"
    return f"{count} {of}" if count == 1 else f"{count} {'stories' if of == 'story' else of + 's'}"


def remarks_on_motion(measured: Measured) -> list[str]:
    """What must be said beside LPIPS and CLIPSIM; nothing where there are no clips."""
    motion = measured.of(MOTION)
    if not motion:
        return []
    remarks = [
        "Motion is the mean length of the optical flow from frame to frame, as a share of the picture's diagonal.",
        "No figure here names a winner: a clip that stands still has the best LPIPS and CLIPSIM of all (last column). "
        "Compare these only between clips whose motion is like the truth's.",
    ]
    if still := [clip for clip, value in motion.items() if value < STILL]:
        remarks.append(
            f"{len(still)} of {len(motion)} clips hardly move (motion below {STILL}), whose LPIPS and CLIPSIM are no "
            f"merit: {', '.join(still[:NAMED])}{', …' if len(still) > NAMED else ''}."
        )
    return remarks
