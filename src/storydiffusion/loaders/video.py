"""Loads the video model: a text-to-image model's U-Net, VAE and text encoder, motion modules, image encoder, predictor.

As in `models.py`, nothing is loaded half: what is missing or does not fit is named in one sentence.
"""

from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import ModelConfig, PredictorConfig, VideoConfig
from storydiffusion.errors import UserError
from storydiffusion.loaders.text_to_image import (
    HUB_ID,
    PACKAGE_SCHEME,
    ddim_of,
    fetched,
    load_network,
    model_folder,
    networks_of,
    pipeline_of,
    quiet,
    weights_of,
)
from storydiffusion.output.files import CHECKSUMS, check_checksums, compute_folder_sha256, compute_sha256

if TYPE_CHECKING:
    import torch

    from storydiffusion.models.image_encoders import ImageEncoder, Kind
    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor
    from storydiffusion.models.video_model import VideoModel

OPEN_CLIP_SCHEME = "open_clip://"
SENTENCES = tuple(
    f"a {who} is {doing} {where}"
    for who in ("girl", "boy", "cat", "bear")
    for doing in ("running", "sitting", "jumping", "reading")
    for where in ("in the park", "on the beach", "in the snow")
)
"""What every text encoder here understands."""
RANDOM = "random"
ON_HUB = ("motion_adapter", "sparse_control")


def load_video_model(config: ModelConfig, dtype: "torch.dtype", device: "torch.device") -> "VideoModel":
    """All parts of `config`, in one dtype on one device, frozen and in eval mode, ready to sample transitions.

    Raises:
        UserError: a model without a video part, a part that is missing or damaged, or parts that do not fit.
    """
    video = video_of(config)
    model = with_trained_predictor(load_drawing_parts(config, dtype), video, dtype)
    return on_device(with_sparse_control(model, video, dtype), device)


def on_device(model: "VideoModel", device: "torch.device") -> "VideoModel":
    """`model` with all its networks on one device, frozen and in eval mode."""
    control = model.sparse_control and model.sparse_control.network
    for network in (model.video_unet, model.vae, model.encode_text, model.predictor, model.image_encoder, control):
        if network is not None:
            network.to(device).requires_grad_(False).eval()  # type: ignore[union-attr]  # all are networks here
    return model


def load_drawing_parts(config: ModelConfig, dtype: "torch.dtype") -> "VideoModel":
    """Everything but predictor and image encoder, on the CPU in `dtype`.

    Without `video.motion_adapter` the motion modules are new, drawn from torch's global generator.
    """
    from storydiffusion.models.motion_adapters import animatediff_scheduler
    from storydiffusion.models.text_encoder import TextEncoder
    from storydiffusion.models.video_model import VideoModel
    from storydiffusion.models.video_unet import SemanticVideoUNet

    quiet()
    video, folder = video_of(config), model_folder(config.path, config.revision)
    weights_of(folder)  # names a damaged file before anything is loaded
    networks = {part: load_network(network, folder, part, dtype) for part, network in networks_of(folder).items()}
    adapter = _motion_adapter(video, networks["unet"].config, dtype)
    pipe: Any = pipeline_of(folder, networks, dtype)
    model_scheduler = ddim_of(pipe.scheduler) if config.scheduler == "ddim" else pipe.scheduler
    return VideoModel(
        SemanticVideoUNet.from_parts(pipe.unet, adapter, boundary_attention=video.boundary_attention),
        pipe.vae.requires_grad_(False).eval(),
        TextEncoder(pipe.tokenizer, pipe.text_encoder),
        animatediff_scheduler(pipe.scheduler) if video.scheduler == "animatediff" else model_scheduler,
    )


def with_trained_predictor(model: "VideoModel", video: VideoConfig, dtype: "torch.dtype") -> "VideoModel":
    """`model` with the predictor that the configuration names, and its image encoder; as it is where none is named."""
    from storydiffusion.models.predictor_files import load_predictor, read_settings

    if video.predictor is None:
        return model
    folder = part_folder(video.predictor, "model.video.predictor")
    _check_released(folder)
    return replace(
        model,
        predictor=load_predictor(folder, dtype),
        image_encoder=load_image_encoder(video.image_encoder, dtype),
        features=features_of(read_settings(folder).get("tokens", "resampler")),
    )


def with_sparse_control(model: "VideoModel", video: VideoConfig, dtype: "torch.dtype") -> "VideoModel":
    """`model` with the SparseCtrl that the configuration names; as it is where none is named.

    Raises:
        UserError: one that is not there, is damaged, or was made for another U-Net.
    """
    from diffusers.models.controlnets.controlnet_sparsectrl import SparseControlNetModel

    from storydiffusion.models.sparse_control import SparseControl

    if video.sparse_control is None:
        return model
    folder = fetched(
        video.sparse_control.weights,
        "model.video.sparse_control.weights",
        ["config.json", "diffusion_pytorch_model.safetensors"],
    )
    network = load_network(SparseControlNetModel, folder, ".", dtype)
    try:
        return replace(model, sparse_control=SparseControl(network, video.sparse_control.scale))
    except UserError as error:
        raise UserError(f"model.video.sparse_control.weights={video.sparse_control.weights}: {error}") from error


def load_image_encoder(source: str, dtype: "torch.dtype") -> "ImageEncoder":
    """The image encoder in `source`: `package://…` or a folder of a CLIPModel; or `open_clip://NAME/WEIGHTS`, where
    WEIGHTS are a tag of open_clip's, a file (`open_clip://ViT-H-14//path/of/file`), or `random` to try out the scale.

    Raises:
        UserError: for a source that is none of these, or weights that cannot be had.
    """
    from storydiffusion.models.image_encoders import OpenClipImageEncoder, TransformersImageEncoder

    if not source.startswith(OPEN_CLIP_SCHEME):
        return TransformersImageEncoder.load(part_folder(source, "model.video.image_encoder")).to(dtype)
    name, weights = open_clip_source(source, "model.video.image_encoder")
    return OpenClipImageEncoder.load(weights, name).to(dtype)


def open_clip_source(source: str, key: str) -> tuple[str, str | None]:
    """Name and weights of `open_clip://NAME/WEIGHTS`, None for `random`; `key` is the setting that names it.

    Raises:
        UserError: where one of them is missing.
    """
    name, _, weights = source.removeprefix(OPEN_CLIP_SCHEME).partition("/")
    if not name or not weights:
        raise UserError(f"{key}={source} is not complete: write open_clip://NAME/TAG-OR-FILE")
    return name, None if weights == RANDOM else weights


def new_predictor(
    config: PredictorConfig, encoder: "ImageEncoder", context_width: int
) -> tuple["SemanticMotionPredictor", dict[str, Any]]:
    """A predictor to be trained, in float32, and its arguments: `config`'s, with the widths of the parts around it.

    New weights are drawn from torch's global generator; `config.start` gives those to go on from.

    Raises:
        UserError: sizes that cannot be, or a start of other sizes than the configuration's.
    """
    from storydiffusion.models.predictor_files import load_predictor, read_settings
    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor

    settings = asdict(config)
    start = settings.pop("start")
    settings |= {"image_width": encoder.widths[features_of(config.tokens)], "context_width": context_width}
    try:
        predictor = SemanticMotionPredictor(**settings)
    except UserError as error:
        raise UserError(f"predictor.{error}") from error
    if start is not None and (folder := package_path(start)).is_dir():
        known = read_settings(folder)
        for name, found in known.items():
            if settings.get(name) != found and not (name == "layers" and 0 in (found, config.layers)):
                raise UserError(
                    f"the predictor in predictor.start={start} has {name}={found}, not {settings.get(name)}: take one "
                    "of this model's and configuration's sizes, or one without layers"
                )
        # What tells pictures is kept where only one of the two has a transformer, which is new then, or left out.
        predictor.load_state_dict(load_predictor(folder).state_dict(), strict=known.get("layers") == config.layers)
    elif start is not None:
        predictor.load_ip_adapter(start)
    return predictor, settings


def word_tokens(model: "VideoModel") -> "torch.Tensor":
    """How the model's text encoder tells words: the tokens (count, D) behind the start token of simple sentences."""
    return model.encode_text(SENTENCES)[:, 1:7].flatten(0, 1).float()


def features_of(tokens: str) -> "Kind":
    """Which of the image encoder's features a predictor of such tokens reads."""
    return "pooled" if tokens == "pooled" else "hidden"


def part_folder(source: str, key: str) -> Path:
    """A local folder, or `package://…`; `key` is the setting that names it."""
    folder = package_path(source)
    if not folder.is_dir():
        where = "part of this installation" if source.startswith(PACKAGE_SCHEME) else "a folder here"
        raise UserError(f"{key}={source} is not {where}: name a folder with trained weights")
    return folder


def package_path(source: str) -> Path:
    """A path, where `package://…` is one inside this package."""
    if source.startswith(PACKAGE_SCHEME):
        return Path(str(files("storydiffusion"))) / source.removeprefix(PACKAGE_SCHEME)
    return Path(source).expanduser()


def video_of(config: ModelConfig) -> VideoConfig:
    if config.video is None:
        raise UserError(f"model={config.name} makes no video: take model=miniature or model=sd15_animatediff")
    return config.video


def _motion_adapter(video: VideoConfig, unet_config: Any, dtype: "torch.dtype") -> Any:
    from storydiffusion.models.motion_adapters import load_motion_adapter, new_motion_adapter

    source = video.motion_adapter
    if source is None:
        return new_motion_adapter(unet_config)
    _check_released(Path(source).expanduser())
    if source.startswith(PACKAGE_SCHEME):
        folder = part_folder(source, "model.video.motion_adapter")
        return load_motion_adapter(folder, dtype=dtype, unet_config=unet_config)
    hub_id, _, revision = source.partition("@")
    if revision and not Path(source).exists():
        return load_motion_adapter(hub_id, revision, dtype, unet_config)
    return load_motion_adapter(source, None, dtype, unet_config)


def _check_released(part: Path) -> None:
    """Whether a part that stands in a released folder is what was released."""
    if (part.parent / CHECKSUMS).is_file():
        check_checksums(part.parent, part.name)


def checksums_of_part(part: str, source: str) -> dict[str, str]:
    """The files of weights in `source` with their SHA-256; a part on a hub by its id.

    Raises UserError for a part that is not there, as far as can be seen without loading it.
    """
    path = package_path(source)
    if source.startswith(OPEN_CLIP_SCHEME):
        return {part: source}
    if part == "motion_adapter" and path.is_file():
        return {part: compute_sha256(path)}
    if part in ON_HUB and HUB_ID.fullmatch(source) and not path.exists():
        return {part: source}
    folder = part_folder(source, key_of_part(part))
    found = compute_folder_sha256(folder)
    if not found:
        raise UserError(f"{key_of_part(part)}={folder} holds no *.safetensors file: name a complete folder")
    return {f"{part}/{name}": checksum for name, checksum in found.items()}


def key_of_part(part: str) -> str:
    """The setting that names a part."""
    return f"model.video.{part}.weights" if part == "sparse_control" else f"model.video.{part}"
