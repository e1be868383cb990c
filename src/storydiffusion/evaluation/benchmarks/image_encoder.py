"""Benchmark `image_encoder`: what an image encoder's tokens say of StoryWorld's images, of either edition.

Linear probes read every attribute and the horizontal position from the tokens; an encoder with a text tower is also
asked for the full caption of each image among 64. One item is a block of 64 held-out images.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from storydiffusion.config import InferConfig
from storydiffusion.evaluation.benchmarks.benchmark import READ_SIZE, Benchmark
from storydiffusion.evaluation.metrics.registry import compute_metrics
from storydiffusion.loaders.checksums import compute_part_checksums
from storydiffusion.loaders.resolve import ResolvedModel, get_video_config
from storydiffusion.loaders.video import load_image_encoder
from storydiffusion.storyworld.scene import split_label

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from storydiffusion.evaluation.networks import ImageTextEncoder
    from storydiffusion.models.image_encoders import ImageEncoder
    from storydiffusion.storyworld.edition import Edition

BLOCK = 64
TRAINING_SEED = 1
"""Of the world whose images the probe is fitted on"""


def get_settings(config: InferConfig, model: ResolvedModel) -> dict[str, Any]:
    """Return the settings that only this benchmark depends on; `weights` are checksums."""
    source = get_video_config(config.model).image_encoder
    names = ("edition", "training_images", "retrieval")
    return {
        "weights": compute_part_checksums("image_encoder", source),
        "benchmark": {name: getattr(config.benchmark, name) for name in names},
    }


def load_benchmark(config: InferConfig, model: ResolvedModel, out: "Path") -> Benchmark:
    """Load the encoder and fit the probe.

    Raises:
        UserError: retrieval with an encoder that has no text tower or no tokenizer.
    """
    import torch

    from storydiffusion.evaluation.networks import load_image_text_encoder
    from storydiffusion.storyworld.edition import get_edition

    planned, source = config.benchmark, model.video.image_encoder
    text = load_image_text_encoder(source, torch.device("cpu")) if planned.retrieval else None
    encoder = load_image_encoder(source, torch.float32) if text is None else text.images
    reader = AttributeReader(get_edition(planned.edition), encoder, planned.training_images)

    def measure(blocks: Sequence[int]) -> list[dict[str, Any]]:
        return [{"block": block, "metrics": measure_block(block, reader, text)} for block in blocks]

    blocks = range(planned.blocks)
    return Benchmark(
        "block",
        blocks,
        [f"images {block * BLOCK} to {(block + 1) * BLOCK - 1}" for block in blocks],
        measure,
        {"encoder": source},
        [
            f"{planned.blocks * BLOCK} held-out images of StoryWorld's edition {planned.edition}. Logistic "
            f"regressions, fitted on the tokens of {planned.training_images} other images, read attributes, a ridge "
            "regression the position. What an image lacks does not count."
        ],
    )


class AttributeReader:
    """Linear probes of every attribute and position, fitted on the first `count` images of a world."""

    def __init__(self, edition: "Edition", encoder: "ImageEncoder", count: int) -> None:
        import torch
        from tqdm import tqdm

        from storydiffusion.evaluation.linear_probe import fit_classifiers, fit_ridge
        from storydiffusion.training.miniature.attribute_classifier import build_labels

        self.edition, self.encoder = edition, encoder
        truths = [edition.sample(TRAINING_SEED, index) for index in range(count)]
        batches = tqdm(range(0, count, BLOCK), "encoding images", unit="batch")
        features = torch.cat([self.encode(draw_images(edition, truths[i : i + BLOCK])) for i in batches])
        values = {name: len(known) for name, known in edition.labels.items()}
        self.attributes = fit_classifiers(features, build_labels(edition, truths), values)
        self.positions = []
        for x in collect_positions(edition, truths).unbind(1):
            there = ~x.isnan()
            self.positions.append(fit_ridge(features[there], x[there, None]))

    def encode(self, images: "Tensor") -> "Tensor":
        """Images uint8 (N, 3, H, W) → the features of their tokens, (N, D)."""
        from storydiffusion.models.image_encoders import flatten_tokens

        return flatten_tokens(self.encoder.features(images))

    def read_attributes(self, features: "Tensor") -> "dict[str, Tensor]":
        """Features (N, D) → the index of each attribute's most probable value, (N,)."""
        return {name: read(features).argmax(1) for name, read in self.attributes.items()}

    def read_positions(self, features: "Tensor") -> "Tensor":
        """Features (N, D) → the position of each character, (N, characters)."""
        import torch

        return torch.cat([read(features) for read in self.positions], 1)


def measure_block(block: int, reader: AttributeReader, text: "ImageTextEncoder | None") -> dict[str, float | None]:
    """Return the metrics of a block of held-out images, by name."""
    from storydiffusion.storyworld.images import HELD_OUT_SEED
    from storydiffusion.training.miniature.attribute_classifier import build_labels

    edition = reader.edition
    truths = [edition.sample(HELD_OUT_SEED, block * BLOCK + i) for i in range(BLOCK)]
    images = draw_images(edition, truths)
    features = reader.encode(images)
    errors = (reader.read_positions(features) - collect_positions(edition, truths)).abs()
    evidence = {
        "probed": pool_hits(reader.read_attributes(features), build_labels(edition, truths)),
        "position_error": errors.nanmean().item(),
    }
    if text is not None:
        evidence["retrieved"] = measure_retrieval(text, images, [edition.full_caption(truth) for truth in truths])
    return compute_metrics("set", evidence)


def pool_hits(read: "Mapping[str, Tensor]", labels: "Mapping[str, Tensor]") -> dict[str, float]:
    """Return the share of right readings of each attribute, of all characters together, without what images lack."""
    import torch

    hits: dict[str, list[Tensor]] = {}
    for name, true in labels.items():
        there = true >= 0
        hits.setdefault(split_label(name)[0], []).append((read[name] == true)[there].float())
    return {name: share for name, part in hits.items() if (share := torch.cat(part).mean().item()) == share}


def measure_retrieval(text: "ImageTextEncoder", images: "Tensor", captions: Sequence[str]) -> float:
    """Return the share of images whose own caption is the most similar one; a caption of two images counts for both."""
    import torch
    from torch.nn.functional import normalize

    with torch.no_grad():
        embedded = text.encode_text(text.tokenize(list(captions)))
    similarity = normalize(text.images.features(images, "pooled")[:, 0]) @ normalize(embedded).T
    chosen = [captions[index] for index in similarity.argmax(1).tolist()]
    return sum(found == own for found, own in zip(chosen, captions, strict=True)) / len(captions)


def draw_images(edition: "Edition", truths: Sequence[Any]) -> "Tensor":
    """Return the images of truths, uint8 (N, 3, 128, 128)."""
    import numpy as np
    import torch

    images = np.stack([edition.render(truth, READ_SIZE) for truth in truths])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def collect_positions(edition: "Edition", truths: Sequence[Any]) -> "Tensor":
    """Return the position of each character, (N, characters), in pixels of 128 from the middle; NaN where it is not."""
    import torch

    return torch.tensor([edition.get_positions(truth) for truth in truths])
