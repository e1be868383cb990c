"""Measure images, stories and clips of any origin: collect the evidence about each that the registry's metrics take.

Shapes: P images, D channels, F frames, H × W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storydiffusion.errors import UserError
from storydiffusion.evaluation.inputs import Clip, Inputs, StoryImage
from storydiffusion.evaluation.measurements import Measurements
from storydiffusion.evaluation.metrics.embeddings import Pair, find_character_pairs, similarity_matrix
from storydiffusion.evaluation.networks import Networks


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of one image, (D,) each: of the image, of the crop around its character, and DreamSim's.

    emotions: the logits of the eight emotions, (8,).
    """

    image: np.ndarray
    crop: np.ndarray | None
    dreamsim: np.ndarray | None
    emotions: np.ndarray | None


def measure_stories(
    inputs: Inputs, networks: Networks, measured: Measurements, intended: str | None
) -> dict[str, np.ndarray]:
    """Measure all images and stories.

    Args:
        intended: the emotion that all images should evoke; None: none is measured.

    Returns:
        The cosines of each story's images with each other, (P, P), by story.
    """
    from tqdm import tqdm

    matrices = {}
    count = sum(map(len, inputs.stories.values()))
    with tqdm(desc="images", unit="image", total=count, disable=not count) as bar:
        for story, images in inputs.stories.items():
            found = []
            for image in images:
                found.append(embed(image, networks))
                bar.update()
            embeddings = np.stack([one.image for one in found])
            measure_images(images, embeddings, networks, measured)
            if intended is not None:
                logits = np.stack([one.emotions for one in found if one.emotions is not None])
                measure_emotions(images, logits, intended, measured)
            matrices[story] = similarity_matrix(embeddings)
            measure_pairs(story, images, found, measured)
    return matrices


def embed(image: StoryImage, networks: Networks) -> Embeddings:
    """Embed one image with every network that reads images."""
    from storydiffusion.evaluation.metrics.crops import square_crop

    pixels, encoder = image.pixels(), networks.encoder
    try:
        square = None if image.box is None else square_crop(pixels, image.box)
    except ValueError as error:
        raise UserError(f"{image.name}: {error}. Correct it in boxes=FILE") from error
    crop = None if square is None else encoder.embed_image(square)
    dreamsim = None if networks.dreamsim is None else networks.dreamsim.embed(pixels)
    whole = encoder.embed_image(pixels)
    emotions = None if networks.emotion is None else networks.emotion.read(pixels, whole)
    return Embeddings(whole, crop, dreamsim, emotions)


def measure_images(
    images: Sequence[StoryImage], embeddings: np.ndarray, networks: Networks, measured: Measurements
) -> None:
    """Measure each image against its text, where it has one; embeddings (P, D)."""
    captioned = [i for i, image in enumerate(images) if image.text is not None]
    if captioned:
        texts = networks.encoder.embed_texts([images[i].text or "" for i in captioned])
        evidence = {"image_embeddings": embeddings[captioned], "text_embeddings": texts}
        measured.add("image", [images[i].name for i in captioned], evidence)


def measure_emotions(images: Sequence[StoryImage], logits: np.ndarray, intended: str, measured: Measurements) -> None:
    """Measure whether images evoke the intended emotion, from the logits (P, 8) of the eight."""
    from storydiffusion.evaluation.metrics.emotion import probabilities

    evidence = {"emotion_probabilities": probabilities(logits), "emotion": intended}
    measured.add("image", [image.name for image in images], evidence)


def measure_pairs(
    story: str, images: Sequence[StoryImage], embeddings: Sequence[Embeddings], measured: Measurements
) -> None:
    """Measure the pairs of a story's images that show a character in common."""
    pairs = find_character_pairs([image.characters for image in images])
    evidence: dict[str, Any] = {}
    for prefix, pairs_name, vectors in (
        ("image", "pairs", [one.image for one in embeddings]),
        ("crop", "crop_pairs", [one.crop for one in embeddings]),
        ("dreamsim", "dreamsim_pairs", [one.dreamsim for one in embeddings]),
    ):
        known = [i for i, vector in enumerate(vectors) if vector is not None]
        if known:
            evidence[f"{prefix}_embeddings"] = np.stack([vectors[i] for i in known])  # type: ignore[misc]
            evidence[pairs_name] = _renumber(pairs, known)
    measured.add("story", [story], evidence)


def measure_clips(clips: Sequence[Clip], networks: Networks, measured: Measurements) -> None:
    """Measure all clips, one by one and as a set."""
    from tqdm import tqdm

    features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for clip in tqdm(clips, desc="clips", unit="clip", disable=not clips):
        frames, true = clip.read(), clip.reference and clip.reference()
        if true is not None and true.shape != frames.shape:
            (many, height, width), (count, high, wide) = true.shape[:3], frames.shape[:3]
            raise UserError(
                f"{clip.name} has {count} frames of {wide} × {high} pixels, its reference {many} of "
                f"{width} × {height}. Make them equal, or pass frames=N"
            )
        measured.add("clip", [clip.name], collect_clip_evidence(clip, frames, true, networks))
        if networks.i3d is not None and true is not None:
            for part, shown in zip(features, (frames, true), strict=True):
                part.append(networks.i3d.embed(shown))
    if networks.i3d is not None:
        if len(clips) < 2:
            raise UserError("FVD compares sets of clips, but there is only one. Add clips, or leave i3d out")
        ours, reference = map(np.stack, features)
        measured.add("set", ["all clips"], {"video_features": ours, "reference_video_features": reference})


def collect_clip_evidence(
    clip: Clip, frames: np.ndarray, true: np.ndarray | None, networks: Networks
) -> dict[str, Any]:
    """Return the evidence about one clip, uint8 (F, H, W, 3), and its reference."""
    from storydiffusion.evaluation.metrics.optical_flow import compute_motion

    encoder, distance = networks.encoder, networks.distance
    assert distance is not None
    evidence: dict[str, Any] = {
        "frames": frames,
        "flow": compute_motion(frames),
        "distance": distance.compare,
        "features": distance.prepare(frames),
        "pooled": encoder.embed_frames(frames, "pooled")[:, 0],
    }
    boundary = clip.boundary_frames() if clip.boundary_frames is not None else None if true is None else true[[0, -1]]
    if boundary is not None:
        if boundary.shape[1:] != frames.shape[1:]:
            raise UserError(f"{clip.name} and its boundary frames differ in size. Generate the video again")
        evidence["boundary_frames"] = boundary
    if true is not None:
        evidence |= {
            "reference": true,
            "reference_flow": compute_motion(true),
            "reference_features": distance.prepare(true),
        }
    return evidence


def _renumber(pairs: Sequence[Pair], known: Sequence[int]) -> list[Pair]:
    """Return the pairs of images in `known`, as places in that list."""
    return [(known.index(i), known.index(j)) for i, j in pairs if i in known and j in known]
