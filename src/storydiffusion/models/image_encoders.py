"""The frozen image encoder E of the semantic motion predictor (arXiv 2405.01434, section 3.2).

Two libraries' CLIP towers behind one interface: open_clip's (ViT-H-14 at full scale) and transformers' (the
miniature's). Only the tower for images is kept, in eval mode and without gradients.

Shape letters: B pictures, M tokens of a picture, H × W pixels.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storydiffusion.errors import UserError, first_line

Kind = Literal["hidden", "pooled"]

HALF = (0.5, 0.5, 0.5)
"""mean and deviation that put pictures in [−1, 1]"""


class ImageEncoder(nn.Module):
    """A frozen vision transformer that reads uint8 pictures; its two kinds of features are the subclasses'.

    Attributes:
        size: side of the square that it reads, in pixels.
        widths: channels of each kind of features.
    """

    def __init__(
        self, tower: nn.Module, size: int, widths: dict[Kind, int], mean: Sequence[float], std: Sequence[float]
    ):
        super().__init__()
        self.tower: Any = tower.requires_grad_(False).eval()
        self.size = size
        self.widths = widths
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Stays in eval mode: a trainer puts everything it holds into train mode."""
        return super().train(False)

    @torch.no_grad()  # not inference_mode, whose tensors the predictor could not be trained on
    def features(self, frames: Tensor, kind: Kind = "hidden") -> Tensor:
        """uint8 (B, 3, H, W) → (B, M, widths[kind]), in the dtype of the weights.

        `hidden` are all tokens, the class token first, behind the last block but one, before any closing norm
        (transformers' hidden_states[-2]); `pooled` is the one embedding (M = 1) that CLIP compares with text's.

        Raises:
            UserError: for frames of another shape or type, or an unknown kind.
        """
        if kind not in get_args(Kind):
            raise UserError(f"the kind of image features is {kind!r}: choose one of {', '.join(get_args(Kind))}.")
        pixels = self.preprocess(frames)
        return self.hidden(pixels) if kind == "hidden" else self.pooled(pixels)[:, None]

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) → (B, 3, size, size): shorter side resized, centre cropped, normalised as in training."""
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
            raise UserError(
                f"the image encoder got {tuple(frames.shape)} of {frames.dtype}: give uint8 pictures (B, 3, H, W)."
            )
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        pixels = centre_square(frames.to(mean.device, torch.float32) / 255, self.size)
        return ((pixels - mean.float()) / std.float()).to(mean.dtype)

    def hidden(self, pixels: Tensor) -> Tensor:
        """Preprocessed (B, 3, size, size) → (B, M, widths["hidden"])."""
        raise NotImplementedError

    def pooled(self, pixels: Tensor) -> Tensor:
        """Preprocessed (B, 3, size, size) → (B, widths["pooled"]), not normalised to length 1."""
        raise NotImplementedError


def centre_square(pictures: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) in [0, 1] → (B, 3, size, size): shorter side to `size`, bicubic with antialias, then the centre."""
    height, width = pictures.shape[2:]
    if min(height, width) != size:
        shape = [side * size // min(height, width) for side in (height, width)]  # rounded down, as torchvision does
        pictures = F.interpolate(pictures, shape, mode="bicubic", antialias=True).clamp(0, 1)  # bicubic overshoots
    top, left = (round((side - size) / 2) for side in pictures.shape[2:])
    return pictures[:, :, top : top + size, left : left + size]


class OpenClipImageEncoder(ImageEncoder):
    """The image tower of an open_clip CLIP, such as ViT-H-14: (B, 257, 1280) and (B, 1, 1024)."""

    def __init__(self, tower: Any) -> None:
        size = tower.image_size[0]
        widths: dict[Kind, int] = {"hidden": tower.class_embedding.shape[0], "pooled": tower.output_dim}
        super().__init__(tower, size, widths, tower.image_mean, tower.image_std)

    @classmethod
    def load(cls, weights: str | None = "laion2b_s32b_b79k", name: str = "ViT-H-14") -> "OpenClipImageEncoder":
        """The image tower of an architecture that open_clip knows by name; see `load_open_clip`."""
        return cls(load_open_clip(weights, name).visual)

    def hidden(self, pixels: Tensor) -> Tensor:
        features = self.tower.forward_intermediates(
            pixels, indices=[len(self.tower.transformer.resblocks) - 2], stop_early=True, intermediates_only=True,
            output_fmt="NLC", output_extra_tokens=True,
        )  # fmt: skip
        return torch.cat([features["image_intermediates_prefix"][0], features["image_intermediates"][0]], 1)

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels)


class TransformersImageEncoder(ImageEncoder):
    """The image tower of a transformers CLIPModel, such as the miniature's: (B, 65, 192) and (B, 1, 128)."""

    def __init__(self, clip: Any, mean: Sequence[float] = HALF, std: Sequence[float] = HALF) -> None:
        """The default mean and std put pictures in [−1, 1], as the miniature's encoder was trained."""
        config = clip.config.vision_config
        widths: dict[Kind, int] = {"hidden": config.hidden_size, "pooled": clip.visual_projection.out_features}
        tower = nn.ModuleDict({"vision_model": clip.vision_model, "projection": clip.visual_projection})
        super().__init__(tower, config.image_size, widths, mean, std)

    @classmethod
    def load(cls, folder: str | Path) -> "TransformersImageEncoder":
        """The image tower of a folder that CLIPModel.save_pretrained wrote; see `load_clip_folder`."""
        return cls(load_clip_folder(folder), *normalisation(folder))

    def hidden(self, pixels: Tensor) -> Tensor:
        return self.tower["vision_model"](pixel_values=pixels, output_hidden_states=True).hidden_states[-2]

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.tower["projection"](self.tower["vision_model"](pixel_values=pixels).pooler_output)


def load_open_clip(weights: str | None = "laion2b_s32b_b79k", name: str = "ViT-H-14") -> Any:
    """The whole CLIP of an architecture that open_clip knows by name.

    Args:
        weights: a tag of open_clip's, fetched from the hub once; or a local file of the whole CLIP; None leaves the
            weights random, to try out the full scale without them.

    Raises:
        UserError: for an unknown name or tag, a hub that cannot be reached, or a file that does not fit.
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


def load_clip_folder(folder: str | Path) -> Any:
    """The CLIPModel of a folder that its save_pretrained wrote, in float32.

    Raises:
        UserError: for a folder that holds no complete CLIPModel.
    """
    from transformers import CLIPModel

    model: Any = CLIPModel
    try:
        clip, info = model.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"cannot load an image encoder from {folder} ({first_line(error)}): fetch it again.") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"the image encoder in {folder} lacks the tensor {missing[0]}: fetch it again.")
    return clip


def normalisation(folder: str | Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of pixels in a CLIPModel's preprocessor_config.json; without it those to [−1, 1].

    Raises:
        UserError: for a file that does not tell them.
    """
    file = Path(folder) / "preprocessor_config.json"
    if not file.exists():
        return HALF, HALF
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return settings["image_mean"], settings["image_std"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} tells no image_mean and image_std ({first_line(error)}): fetch it again.") from error


def _fetch(name: str, tag: str) -> None:
    """Puts weights of open_clip's into its cache, so that what fails later is not the hub's fault."""
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
