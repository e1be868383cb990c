"""Load the networks that images and clips are evaluated with: image-text encoders, LPIPS, DreamSim and I3D.

Each has a label that accompanies every value that depends on it. A network is loaded completely or refused.

Shapes: P images or texts, F frames, H × W pixels, M tokens per frame, D channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config.loading import check_choice
from storydiffusion.errors import UserError, first_line
from storydiffusion.files.model_files import report_damage
from storydiffusion.loaders.sources import OPEN_CLIP_SCHEME, find_part_folder

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from storydiffusion.evaluation.emotion_readers import EmotionReader
    from storydiffusion.models.image_encoders import ImageEncoder

MINIATURE = "package://miniature/image_encoder"
FULL_SCALE = "open_clip://ViT-H-14/laion2b_s32b_b79k"

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
"""LPIPS backbone → torchvision's name"""
LPIPS_CHOICES = ("auto", *BACKBONES, "encoder")
SMALLEST_FOR_LPIPS = 64  # pixels; smaller frames do not fill the last layers

DREAMSIM_WEIGHTS = ("dino_vitb16_lora", "open_clip_vitb16_lora", "clip_vitb16_lora")

FEWEST_FOR_I3D = 10  # frames; its strides need as many
I3D_SIDE = 224
FRAMES_AT_ONCE = 16


@dataclass(frozen=True)
class ImageTextEncoder:
    """A CLIP: embeds images and texts into one space.

    Attributes:
        source: the value of the setting `encoder`.
        tokenize: texts → token ids (P, N), truncated to the window.
        encode_text: token ids → embeddings (P, D).
        length: the number of tokens of a text before truncation.
        window: the largest number of tokens that the encoder takes.
        unknown_words: the words of a text that its vocabulary cannot spell.
        scale: the factor of cosines before a softmax, as in training.
    """

    label: str
    source: str
    images: "ImageEncoder"
    tokenize: Callable[[list[str]], "Tensor"]
    encode_text: Callable[["Tensor"], "Tensor"]
    length: Callable[[str], int]
    window: int
    unknown_words: Callable[[str], list[str]]
    scale: float

    @property
    def device(self) -> "torch.device":
        return self.images.get_buffer("mean").device

    @property
    def width(self) -> int:
        return self.images.widths["pooled"]

    def embed_image(self, image: "np.ndarray") -> "np.ndarray":
        """Embed an image, uint8 (H, W, 3) → (D,), float32."""
        return self.embed_frames(image[None], "pooled")[0, 0]

    def embed_frames(self, frames: "np.ndarray", kind: Any) -> "np.ndarray":
        """Embed frames, uint8 (F, H, W, 3) → (F, M, D), all tokens, for `hidden`; (F, 1, D) for `pooled`; float32."""
        import numpy as np
        import torch

        parts = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).split(FRAMES_AT_ONCE)
        return np.concatenate([self.images.features(part, kind).cpu().numpy() for part in parts])

    def embed_texts(self, texts: Sequence[str]) -> "np.ndarray":
        """Embed texts → (P, D), float32."""
        import torch

        with torch.no_grad():
            return self.encode_text(self.tokenize(list(texts)).to(self.device)).cpu().numpy()


@dataclass(frozen=True)
class PerceptualDistance:
    """A distance of two frames, 0 for equal ones.

    Attributes:
        is_lpips: LPIPS proper rather than the distance of an encoder's tokens.
        prepare: frames uint8 (F, H, W, 3) → the features of each.
        compare: the features of two frames → their distance.
    """

    label: str
    is_lpips: bool
    prepare: "Callable[[np.ndarray], np.ndarray]"
    compare: "Callable[[np.ndarray, np.ndarray], float]"


@dataclass(frozen=True)
class Features:
    """A network whose `embed` maps an image uint8 (H, W, 3), or a clip uint8 (F, H, W, 3), to one vector (D,)."""

    label: str
    embed: "Callable[[np.ndarray], np.ndarray]"


@dataclass(frozen=True)
class Networks:
    """The networks of an evaluation; `distance` is there for clips."""

    encoder: ImageTextEncoder
    distance: PerceptualDistance | None
    emotion: "EmotionReader | None"
    dreamsim: Features | None
    i3d: Features | None

    @property
    def names(self) -> dict[str, str]:
        """The kind of network, as the registry of metrics names it → the label of the network used."""
        from storydiffusion.evaluation.metrics import optical_flow

        parts = {name: getattr(self, name) for name in ("encoder", "distance", "emotion", "dreamsim", "i3d")}
        labels = {name: part.label for name, part in parts.items() if part is not None}
        return labels | {"optical_flow": optical_flow.NAME}


def load_image_text_encoder(source: str, device: "torch.device") -> ImageTextEncoder:
    """Load the CLIP in `source` in float32: `package://…`, a folder, or `open_clip://NAME/TAG`.

    A folder holds a CLIPModel, with its tokenizer inside or in tokenizer/ beside it.

    Raises:
        UserError: the source is none of these, or its weights or tokenizer are missing or damaged.
    """
    if source.startswith(OPEN_CLIP_SCHEME):
        return _open_clip(source, device)
    return _clip_folder(source, device)


def _clip_folder(source: str, device: "torch.device") -> ImageTextEncoder:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from storydiffusion.models.image_encoders import ClipImageEncoder, load_clip, read_normalization
    from storydiffusion.models.prompt_encoding import unknown_words

    logging.disable_progress_bar()  # these weights load within a second
    folder = find_part_folder(source, "encoder")
    clip = load_clip(folder).to(device).requires_grad_(False).eval()
    places = (folder, folder.parent / "tokenizer")
    place = next((place for place in places if (place / "tokenizer_config.json").exists()), None)
    if place is None:
        raise UserError(f"encoder={source} has no tokenizer, neither inside nor in tokenizer/ beside it. Put it there")
    with report_damage(place, "tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=True)
    window = clip.config.text_config.max_position_embeddings
    if len(tokenizer) > clip.config.text_config.vocab_size:
        raise UserError(
            f"the tokenizer in {place} has {len(tokenizer)} words, encoder={source} takes "
            f"{clip.config.text_config.vocab_size}. Use the tokenizer of its training"
        )

    def tokenize(texts: list[str]) -> "Tensor":
        return tokenizer(texts, padding="max_length", truncation=True, max_length=window, return_tensors="pt").input_ids

    return ImageTextEncoder(
        label="miniature" if source == MINIATURE else folder.name if folder.name != "image_encoder" else str(folder),
        source=source,
        images=ClipImageEncoder(clip, *read_normalization(folder)).to(device),
        tokenize=tokenize,
        encode_text=lambda ids: clip.text_projection(clip.text_model(input_ids=ids).pooler_output),
        length=lambda text: len(tokenizer(text, truncation=False, verbose=False).input_ids),
        window=window,
        unknown_words=lambda text: unknown_words(tokenizer, text),
        scale=clip.logit_scale.exp().item(),
    )


def _open_clip(source: str, device: "torch.device") -> ImageTextEncoder:
    import open_clip

    from storydiffusion.models.image_encoders import OpenClipImageEncoder, load_open_clip, split_open_clip_source

    try:
        name, weights = split_open_clip_source(source.removeprefix(OPEN_CLIP_SCHEME))
    except UserError as error:
        raise UserError(f"encoder={error}") from error
    clip = load_open_clip(weights, name).to(device).requires_grad_(False).eval()
    tokenizer = open_clip.get_tokenizer(name)
    if not isinstance(tokenizer, open_clip.SimpleTokenizer):
        raise UserError(f"encoder={source} does not use CLIP's tokenizer. Use a model such as ViT-H-14")
    return ImageTextEncoder(
        label=source.removeprefix(OPEN_CLIP_SCHEME),
        source=source,
        images=OpenClipImageEncoder(clip.visual).to(device),
        tokenize=tokenizer,
        encode_text=clip.encode_text,
        length=lambda text: len(tokenizer.encode(text)) + 2,  # start and end
        window=tokenizer.context_length or 77,
        unknown_words=lambda text: [],  # byte-pair encoding spells every word
        scale=clip.logit_scale.exp().item(),
    )


def load_perceptual_distance(choice: str, encoder: ImageTextEncoder) -> PerceptualDistance:
    """Load LPIPS (1801.03924) with the backbone `choice`, or, for `encoder`, the distance of the encoder's tokens.

    `auto` is AlexNet where its weights are on this machine, otherwise the encoder. Nothing is downloaded.

    Raises:
        UserError: the choice is unknown, or the weights of the backbone are missing or damaged.
    """
    check_choice("lpips", choice, LPIPS_CHOICES)
    if choice == "encoder" or (choice == "auto" and not get_backbone_file("alex").is_file()):
        from storydiffusion.evaluation.metrics.clips import token_distance

        return PerceptualDistance(
            f"tokens of {encoder.label}", False, lambda frames: encoder.embed_frames(frames, "hidden"), token_distance
        )
    return _lpips("alex" if choice == "auto" else choice, encoder.device)


def get_backbone_file(choice: str) -> Path:
    """Return where torchvision looks for the weights of an LPIPS backbone, under TORCH_HOME."""
    import torch
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(BACKBONES[choice])
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.DEFAULT.url).name


def _lpips(choice: Any, device: "torch.device") -> PerceptualDistance:
    import numpy as np
    import torch
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    file = get_backbone_file(choice)
    if not file.is_file():
        raise UserError(f"lpips={choice} needs torchvision's weights in {file}. Put them there, or pass lpips=encoder")
    try:
        network = LearnedPerceptualImagePatchSimilarity(choice).net.to(device)
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise UserError(f"cannot load {file} ({first_line(error)}). Download it again") from error

    def prepare(frames: "np.ndarray") -> "np.ndarray":
        if min(frames.shape[1:3]) < SMALLEST_FOR_LPIPS:
            raise UserError(
                f"frames of {frames.shape[2]} × {frames.shape[1]} pixels are too small for LPIPS. Pass lpips=encoder"
            )
        return frames

    @torch.no_grad()
    def compare(a: "np.ndarray", b: "np.ndarray") -> float:
        pixels = torch.from_numpy(np.stack([a, b])).permute(0, 3, 1, 2).to(device) / 255
        return network(pixels[:1], pixels[1:], normalize=True).item()

    return PerceptualDistance(f"LPIPS {choice}", True, prepare, compare)


def load_dreamsim(folder: Path, device: "torch.device") -> Features:
    """Load DreamSim's ensemble (2306.09344) from its authors' package and the weights in `folder`, without downloads.

    The distance of two images is 1 − cosine of their embeddings.

    Raises:
        UserError: the package or its weights are missing.
    """
    try:
        from dreamsim import dreamsim  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"dreamsim={folder} needs the package dreamsim, which is not installed. Install it, or leave dreamsim out"
        ) from error
    if missing := [name for name in DREAMSIM_WEIGHTS if not (folder / name).exists()]:
        raise UserError(f"dreamsim={folder} has no {missing[0]}. Unpack the weights of DreamSim's ensemble there")
    model, preprocess = dreamsim(pretrained=True, device=str(device), cache_dir=str(folder))

    def embed(image: "np.ndarray") -> "np.ndarray":
        from PIL import Image

        return model.embed(preprocess(Image.fromarray(image)).to(device)).flatten().cpu().numpy()

    return Features("DreamSim ensemble", embed)


def load_i3d(file: Path, device: "torch.device") -> Features:
    """Load I3D from a TorchScript file with FVD's usual call: (video, rescale, resize, return_features).

    The shorter side of a clip is resized to 224 pixels by a bicubic filter with antialiasing (others use bilinear
    ones), then its center is cropped. Such a file is a program: load only files that you trust.

    Raises:
        UserError: the file is missing or not TorchScript; when called, the clip has too few frames, or the network
            has another signature.
    """
    import torch

    try:
        network = torch.jit.load(file, map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"cannot load i3d={file} ({first_line(error)}). Pass I3D as a TorchScript file") from error

    @torch.no_grad()
    def embed(frames: "np.ndarray") -> "np.ndarray":
        from storydiffusion.models.image_encoders import centre_square

        if len(frames) < FEWEST_FOR_I3D:
            raise UserError(f"I3D takes clips of {FEWEST_FOR_I3D} frames or more, not {len(frames)}. Leave i3d out")
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).to(device, torch.float32) / 255
        video = 2 * centre_square(pixels, I3D_SIDE).transpose(0, 1)[None] - 1
        try:
            return network(video, rescale=False, resize=False, return_features=True)[0].flatten().cpu().numpy()
        except RuntimeError as error:
            raise UserError(
                f"i3d={file} cannot be called as (video, rescale, resize, return_features): {first_line(error)}"
            ) from error

    return Features(f"I3D {file.name}", embed)
