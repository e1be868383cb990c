"""The registry of metrics: benchmarks, `evaluate`, `compare`, plots, tables and claims read it.

To add a metric, write a pure function in this folder and one entry here. Each entry names the evidence that the
function takes; whoever has that evidence about an item (an image, a story, a clip, a set of clips) gets the metric:

    readings, prompted          attributes read from each image, and those expected: label → value
    named                       as prompted, where parts of the attire, moods and sides are measured one by one, too
    open_attributes             attributes of the character that no prompt names; open_looks, those of each character
    first_readings              as readings, of an earlier story of the same characters
    regions, masks              cells of each character in an image, as recorded and as drawn
    casts                       characters of each image, from left to right; images, uint8 (H, W, 3), and their places
    image_embeddings            (P, D), with text_embeddings (P, D) of the prompts, and the index pairs to compare
    crop_embeddings, crop_pairs the same for the crops around characters; dreamsim_embeddings, dreamsim_pairs too
    emotion_probabilities       (P, 8), and the emotion that was intended
    frames, reference           uint8 (F, H, W, 3) of a clip and its reference; boundary_frames: the given two
    distance                    a function of two frames' features; features and reference_features (F, …)
    pooled                      (F, D), one embedding per frame
    boundary_features           (2, …) of the given two; boundary_readings, boundary_labels of first and last frame
    middle_readings             of the frames in the middle of a clip; reference_middle_readings of the reference's
    central_readings            of the frame at the center of a clip; central_labels, what it should show
    second_reading              of the frame after the first; start_labels and end_labels of the given two
    flow, reference_flow        mean length of the optical flow
    boxes, reference_boxes      of the character in the frames between the boundary frames
    probed                      attribute → share of images whose value a linear probe reads from the encoder's tokens;
                                with position_error, the probe's of characters, and retrieved, the share of images
                                whose caption the encoder finds
    video_features              (N, D) of N clips, and reference_video_features
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from storydiffusion.evaluation.metrics import clips
from storydiffusion.evaluation.metrics.attribute_agreement import (
    alignment,
    consistency,
    consistency_between,
    early_end,
    named_alignment,
)
from storydiffusion.evaluation.metrics.embeddings import (
    cosines,
    image_text_clip_scores,
    pair_distance,
    pair_similarity,
)
from storydiffusion.evaluation.metrics.emotion import emotion_hits, emotion_scores, emotion_scores_of_two
from storydiffusion.evaluation.metrics.frechet import frechet_distance
from storydiffusion.evaluation.metrics.optical_flow import relative_flow
from storydiffusion.evaluation.metrics.scene_agreement import (
    hat_alignment,
    leak,
    looks_kept_apart,
    pair_alignment,
    pairs_shown,
    place_agreement,
    region_iou,
    value_alignment,
)
from storydiffusion.storyworld.scene import MOODS, SCENE_LABELS, split_label
from storydiffusion.storyworld.truth import ATTRIBUTES, LOOKS

Item = Literal["image", "story", "clip", "set"]
Direction = Literal["higher", "lower", "reference"]
"""Which values are better: higher ones, lower ones, or those close to the value of the reference clip"""
Network = Literal["encoder", "distance", "emotion", "dreamsim", "i3d", "optical_flow"]
"""What turned pixels into the evidence; values of different networks are not comparable"""

ARROWS: dict[Direction, str] = {"higher": "↑", "lower": "↓", "reference": "→ reference"}
PROMPTED_ATTRIBUTES = ("kind", "action", "place")
"""The attributes that every prompt of a benchmark story names"""
FRAME_ATTRIBUTES = ("shirt", "hat", "tone")
"""The attributes that a transition must keep"""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        label: as printed in tables and plots.
        item: what one value belongs to. Functions of image metrics return one value per image, (P,).
        direction: which values are better.
        unit: of the values.
        needs: the evidence that `compute` takes, in this order.
        compute: returns the value, or None where an item has none.
        network: the kind of network that the values depend on.
        static: the value of a clip whose frames are all the same, where it is known.
    """

    label: str
    item: Item
    direction: Direction
    unit: str
    needs: tuple[str, ...]
    compute: Callable[..., Any]
    network: Network | None = None
    static: float | None = None

    @property
    def title(self) -> str:
        """The label with an arrow that says which values are better."""
        return f"{self.label} {ARROWS[self.direction]}"


def _attribute_metric(item: Item, label: str, *attributes: str) -> Metric:
    compute = partial(alignment, attributes=attributes)
    unit = "share of frames" if item == "clip" else "share of images"
    return Metric(label, item, "higher", unit, ("readings", "prompted"), compute)


def _named_metric(label: str, compute: Callable[..., Any]) -> Metric:
    return Metric(label, "story", "higher", "share of images", ("readings", "named"), compute)


NOT_ATTIRE = (*PROMPTED_ATTRIBUTES, "object", "characters", "mood", "side")
PROBED_ATTRIBUTES = tuple(dict.fromkeys(split_label(label)[0] for label in (*ATTRIBUTES, *SCENE_LABELS)))
"""The attributes of both editions of StoryWorld"""


def _probe_metric(attribute: str) -> Metric:
    label = f"probe, {attribute.replace('_', ' ')}"
    return Metric(
        label, "set", "higher", "share of images", ("probed",), lambda probed: probed.get(attribute), "encoder"
    )


METRICS: dict[str, Metric] = {
    "consistency": Metric(
        "consistency", "story", "higher", "share of pairs", ("readings", "open_attributes"), consistency
    ),
    "neighbor_consistency": Metric(
        "neighbor consistency", "story", "higher", "share of pairs", ("readings", "open_attributes"),
        partial(consistency, reach=1),
    ),
    "first_consistency": Metric(
        "consistency of the first story", "story", "higher", "share of pairs", ("first_readings", "open_attributes"),
        consistency,
    ),
    "consistency_between": Metric(
        "consistency between the stories", "story", "higher", "share of pairs",
        ("first_readings", "readings", "open_attributes"), consistency_between,
    ),
    "alignment": _attribute_metric("story", "alignment", *PROMPTED_ATTRIBUTES),
    **{name: _attribute_metric("story", name, name) for name in (*PROMPTED_ATTRIBUTES, "object")},
    "named_attire": Metric(
        "named attire", "story", "higher", "share of images", ("readings", "prompted"),
        partial(named_alignment, excluded=NOT_ATTIRE),
    ),
    "named_shirt": _attribute_metric("story", "named shirt", "shirt"),
    **{
        f"named_{name}": _named_metric(f"named {label}", partial(alignment, attributes=(name,)))
        for name, label in (
            ("pattern", "pattern"), ("bottom", "bottom"), ("tone", "tone"), ("hair", "hair"),
            ("accessory", "accessory"), ("hat_color", "hat, color"),
        )
    },
    "named_hat": _named_metric("named hat, shape and color", hat_alignment),
    "named_no_hat": _named_metric("named absence of a hat", partial(value_alignment, attribute="hat", value="none")),
    "side": _named_metric("named side", partial(alignment, attributes=("side",))),
    "mood": _named_metric("named mood", partial(alignment, attributes=("mood",))),
    **{
        f"mood_{mood}": _named_metric(f"named mood, {mood}", partial(value_alignment, attribute="mood", value=mood))
        for mood in MOODS
    },
    "characters": _named_metric("number of characters", partial(alignment, attributes=("characters",))),
    "empty": _named_metric("empty places", partial(value_alignment, attribute="characters", value="0")),
    "pair_kinds": _named_metric("two characters, both kinds", partial(pair_alignment, attributes=("kind",))),
    "pair_sides": _named_metric("two characters, both sides", partial(pair_alignment, attributes=("side",))),
    "pair_kinds_and_sides": _named_metric(
        "two characters, both kinds and sides", partial(pair_alignment, attributes=("kind", "side"))
    ),
    "pair_looks": _named_metric("two characters, looks kept apart", looks_kept_apart),
    "leak": Metric(
        "two characters, looks of the other", "story", "lower", "share of looks", ("readings", "casts"), leak
    ),
    "leak_open": Metric(
        "two characters, open looks of the other", "story", "lower", "share of looks",
        ("readings", "casts", "open_looks"), leak,
    ),
    "pairs_shown": Metric(
        "two characters, both shown", "story", "higher", "share of images", ("readings", "casts"), pairs_shown
    ),
    "place_agreement": Metric(
        "agreement in one place", "story", "higher", "share of pixels", ("images", "places"), place_agreement
    ),
    "region_iou": Metric(
        "recorded regions", "story", "higher", "IoU with true masks", ("regions", "masks"), region_iou
    ),
    "text_image_similarity": Metric(
        "text-image similarity", "image", "higher", "cosine", ("image_embeddings", "text_embeddings"), cosines,
        "encoder",
    ),
    "clip_score": Metric(
        "CLIPScore, 2.5 × cosine", "image", "higher", "score", ("image_embeddings", "text_embeddings"),
        image_text_clip_scores, "encoder",
    ),
    "character_similarity": Metric(
        "character similarity", "story", "higher", "cosine", ("image_embeddings", "pairs"), pair_similarity, "encoder"
    ),
    "character_crop_similarity": Metric(
        "character similarity, crops", "story", "higher", "cosine", ("crop_embeddings", "crop_pairs"), pair_similarity,
        "encoder",
    ),
    "dreamsim": Metric(
        "DreamSim distance", "story", "lower", "1 − cosine", ("dreamsim_embeddings", "dreamsim_pairs"), pair_distance,
        "dreamsim",
    ),
    "emo_score": Metric(
        "Emo-Score", "image", "higher", "probability", ("emotion_probabilities", "emotion"), emotion_scores, "emotion"
    ),
    "emo_a": Metric(
        "Emo-A", "image", "higher", "share of images", ("emotion_probabilities", "emotion"), emotion_hits, "emotion"
    ),
    "emo_score_2": Metric(
        "Emo-Score, 2 classes", "image", "higher", "probability", ("emotion_probabilities", "emotion"),
        emotion_scores_of_two, "emotion",
    ),
    "perceptual_error": Metric(
        "perceptual error", "clip", "lower", "distance", ("distance", "features", "reference_features"),
        clips.perceptual_error, "distance",
    ),
    "place_error": Metric(
        "place error", "clip", "lower", "1 − IoU", ("boxes", "reference_boxes"), clips.place_error
    ),
    "pixel_error": Metric(
        "pixel error", "clip", "lower", "share of 255", ("frames", "reference"), clips.pixel_error
    ),
    "boundary_frame_error": Metric(
        "boundary frame error", "clip", "lower", "share of 255", ("frames", "boundary_frames"),
        clips.boundary_frame_error,
    ),
    "pixel_change": Metric(
        "pixel change", "clip", "reference", "× reference", ("frames", "reference"), clips.pixel_change, static=0
    ),
    "motion": Metric(
        "motion", "clip", "reference", "diagonals per frame", ("flow",), float, "optical_flow", static=0
    ),
    "reference_motion": Metric(
        "motion of the reference", "clip", "reference", "diagonals per frame", ("reference_flow",), float,
        "optical_flow",
    ),
    "relative_motion": Metric(
        "relative motion", "clip", "reference", "× reference", ("flow", "reference_flow"), relative_flow,
        "optical_flow", static=0,
    ),
    **{name: _attribute_metric("clip", name, name) for name in FRAME_ATTRIBUTES},
    **{
        f"frame_{name}": _attribute_metric("clip", f"{name.replace('_', ' ')} of frames", name)
        for name in PROBED_ATTRIBUTES
        if name not in FRAME_ATTRIBUTES
    },
    "frame_looks": _attribute_metric("clip", "looks and mood of frames", *LOOKS, "mood"),
    "middle_action": Metric(
        "action in the middle", "clip", "higher", "share of frames", ("middle_readings", "reference_middle_readings"),
        partial(alignment, attributes=("action",)),
    ),
    "central_action": Metric(
        "action of the central frame", "clip", "higher", "share of frames", ("central_readings", "central_labels"),
        partial(alignment, attributes=("action",)),
    ),
    "boundary_attributes": Metric(
        "attributes of the boundary frames", "clip", "higher", "share of frames",
        ("boundary_readings", "boundary_labels"), partial(alignment, attributes=PROBED_ATTRIBUTES),
    ),
    "boundary_perceptual_error": Metric(
        "perceptual error of the boundary frames", "clip", "lower", "distance",
        ("distance", "features", "boundary_features"), clips.boundary_perceptual_error, "distance",
    ),
    "early_end": Metric(
        "end shown in the second frame", "clip", "lower", "share of attributes",
        ("second_reading", "start_labels", "end_labels"), early_end,
    ),
    "lpips_first": Metric(
        "LPIPS-first", "clip", "reference", "distance", ("distance", "features"), clips.from_first, "distance", 0
    ),
    "lpips_frames": Metric(
        "LPIPS-frames", "clip", "reference", "distance", ("distance", "features"), clips.from_previous, "distance", 0
    ),
    "clipsim_first": Metric(
        "CLIPSIM-first", "clip", "reference", "cosine", ("pooled",), partial(clips.from_first, clips.cosine),
        "encoder", 1,
    ),
    "clipsim_frames": Metric(
        "CLIPSIM-frames", "clip", "reference", "cosine", ("pooled",), partial(clips.from_previous, clips.cosine),
        "encoder", 1,
    ),
    "probe": Metric(
        "probe, mean of the attributes", "set", "higher", "share of images", ("probed",),
        lambda probed: sum(probed.values()) / len(probed), "encoder",
    ),
    **{f"probe_{name}": _probe_metric(name) for name in PROBED_ATTRIBUTES},
    "probe_position_error": Metric(
        "probe, position error", "set", "lower", "pixels of 128", ("position_error",), float, "encoder"
    ),
    "retrieval": Metric(
        "retrieval of captions", "set", "higher", "share of images", ("retrieved",), float, "encoder"
    ),
    "fvd": Metric(
        "FVD", "set", "lower", "squared distance", ("video_features", "reference_video_features"), frechet_distance,
        "i3d",
    ),
}  # fmt: skip
"""By the name that result.json uses, in the order of tables.

LPIPS and CLIPSIM over time are best for a static clip. They follow motion here, aim at the reference's value, and carry
the value of a static clip.
"""


def compute_metrics(item: Item, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return every metric of `item` whose evidence is there, by name, in the order of METRICS."""
    return {
        name: metric.compute(*(evidence[part] for part in metric.needs))
        for name, metric in METRICS.items()
        if metric.item == item and all(part in evidence for part in metric.needs)
    }
