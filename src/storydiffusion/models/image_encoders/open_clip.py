"""The image tower of an open_clip model, such as ViT-H-14 at full scale."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storydiffusion.errors import UserError, first_line
from storydiffusion.models.image_encoders.base import ImageEncoder, Kind
from storydiffusion.models.image_encoders.registry import register_image_encoder

RANDOM = "random"


class OpenClipImageEncoder(ImageEncoder):
    """The image tower of an open_clip CLIP, such as ViT-H-14: (B, 257, 1280) and (B, 1, 1024)."""

    def __init__(self, tower: Any) -> None:
        size = tower.image_size[0]
        widths: dict[Kind, int] = {"hidden": tower.class_embedding.shape[0], "pooled": tower.output_dim}
        super().__init__(tower, size, widths, tower.image_mean, tower.image_std)

    @classmethod
    def load(cls, weights: str | None = "laion2b_s32b_b79k", name: str = "ViT-H-14") -> "OpenClipImageEncoder":
        """Load the image tower of an architecture that open_clip knows by name; see `load_open_clip`."""
        return cls(load_open_clip(weights, name).visual)

    def hidden(self, pixels: Tensor) -> Tensor:
        features = self.tower.forward_intermediates(
            pixels, indices=[len(self.tower.transformer.resblocks) - 2], stop_early=True, intermediates_only=True,
            output_fmt="NLC", output_extra_tokens=True,
        )  # fmt: skip
        return torch.cat([features["image_intermediates_prefix"][0], features["image_intermediates"][0]], 1)

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels)


def load_open_clip(weights: str | None = "laion2b_s32b_b79k", name: str = "ViT-H-14") -> Any:
    """Load the whole CLIP of an architecture that open_clip knows by name, with its text tower.

    Args:
        weights: a tag of open_clip's, downloaded once; or a local file of the whole CLIP; None keeps random weights, to
            try the full scale without a download.

    Raises:
        UserError: for an unknown name or tag, an unreachable hub, or a file that does not fit.
    """
    import open_clip

    if name not in open_clip.list_models():
        raise UserError(f"open_clip has no model {name!r}: choose one of open_clip.list_models(), such as ViT-H-14.")
    if weights is not None and not Path(weights).is_file():
        _fetch(name, weights)
    try:
        return open_clip.create_model(name, pretrained=weights, require_pretrained=weights is not None)
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise UserError(
            f"cannot load {weights} as the weights of {name} ({first_line(error)}): fetch them again."
        ) from error


def _fetch(name: str, tag: str) -> None:
    """Download weights into open_clip's cache, so that an unreachable hub is not reported as damaged weights."""
    import open_clip

    if tag not in (tags := open_clip.list_pretrained_tags_by_model(name)):
        raise UserError(f"{tag} is neither a file nor weights of {name}: choose one of {', '.join(tags)}.")
    try:
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))
    except Exception as error:  # the libraries below have errors of their own for a hub out of reach
        raise UserError(
            f"cannot get {name}'s weights {tag} from the hub: connect, or download them elsewhere and give the file "
            f"instead ({first_line(error)})."
        ) from error


def split_open_clip_source(source: str) -> tuple[str, str | None]:
    """Return name and weights of `NAME/WEIGHTS`: an open_clip tag, a file (`NAME//path/of/file`), None for `random`.

    Raises:
        UserError: where one of them is missing.
    """
    name, _, weights = source.partition("/")
    if not name or not weights:
        raise UserError(f"open_clip://{source} is not complete: write open_clip://NAME/TAG-OR-FILE.")
    return name, None if weights == RANDOM else weights


@register_image_encoder("open_clip")
def load_open_clip_image_encoder(source: str) -> ImageEncoder:
    """Load the image tower of `NAME/WEIGHTS`; see `split_open_clip_source`."""
    name, weights = split_open_clip_source(source)
    return OpenClipImageEncoder.load(weights, name)
