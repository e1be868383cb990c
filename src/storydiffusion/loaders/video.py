"""Load the video model: a text-to-image model's U-Net, VAE and text encoder, motion modules, image encoder, predictor.

As in `text_to_image.py`, nothing is loaded in part: one sentence names what is missing or does not fit.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import PredictorConfig, VideoConfig
from storydiffusion.errors import UserError
from storydiffusion.files.checksums import CHECKSUMS, check_checksums
from storydiffusion.loaders.resolve import ResolvedModel
from storydiffusion.loaders.schedulers import build_scheduler
from storydiffusion.loaders.sources import (
    PACKAGE_SCHEME,
    fetch_folder,
    find_part_folder,
    names_registered_encoder,
    package_path,
)
from storydiffusion.loaders.text_to_image import (
    decode_large_images_by_tiles,
    get_networks,
    hide_loading_bars,
    load_cpu_pipeline,
    load_network,
    load_pipeline,
)

if TYPE_CHECKING:
    import torch

    from storydiffusion.models.image_encoders import ImageEncoder, Kind
    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor
    from storydiffusion.models.video_model import VideoModel

SENTENCES = tuple(
    f"a {who} is {doing} {where}"
    for who in ("girl", "boy", "cat", "bear")
    for doing in ("running", "sitting", "jumping", "reading")
    for where in ("in the park", "on the beach", "in the snow")
)
"""texts that every text encoder here understands"""


def load_video_model(model: ResolvedModel, image_pipe: Any = None) -> "VideoModel":
    """Load all parts in one dtype on one device, frozen and in eval mode, ready to sample transitions.

    With `offload` the networks stay on the CPU, and each is on the device only while in use.

    Args:
        image_pipe: the loaded text-to-image pipeline of the same model, unchanged, whose networks are taken over: it
            cannot be called again. None loads them.

    Raises:
        UserError: a model without a video part, a part that is missing or damaged, or parts that do not fit.
    """
    networks = None if image_pipe is None else take_networks(image_pipe, model.folder)
    parts = add_predictor(load_video_backbone(model, model.dtype, networks), model.video, model.dtype)
    parts = add_sparse_control(parts, model.video, model.dtype)
    if model.config.offload != "none":
        return replace(move_to_device(parts, "cpu"), offload_onto=model.device)
    return move_to_device(parts, model.device)


def take_networks(pipe: Any, folder: Path) -> dict[str, Any]:
    """Remove the networks from a pipeline and return them as `load_network` does: on the CPU, without hooks."""
    pipe.remove_all_hooks()
    pipe.vae.disable_slicing()
    networks = {part: getattr(pipe, part).to("cpu") for part in get_networks(folder)}
    pipe.register_modules(**dict.fromkeys(networks))
    return networks


def move_to_device(model: "VideoModel", target: "str | torch.device | torch.dtype") -> "VideoModel":
    """Move all networks to one device (or dtype), frozen and in eval mode."""
    control = model.sparse_control and model.sparse_control.network
    for network in (model.video_unet, model.vae, model.encode_text, model.predictor, model.image_encoder, control):
        if network is not None:
            network.to(target).requires_grad_(False).eval()  # type: ignore[union-attr]  # all are networks here
    return model


def load_video_backbone(
    model: ResolvedModel, dtype: "torch.dtype", networks: dict[str, Any] | None = None
) -> "VideoModel":
    """Load everything but predictor and image encoder, on the CPU in `dtype`.

    Without `video.motion_adapter` the motion modules are new, drawn from torch's global generator.

    Args:
        networks: of the text-to-image model, part → network; None loads them.

    Raises:
        UserError: a model without a video part, a part that is missing or damaged, or parts that do not fit.
    """
    from storydiffusion.models.text_encoder import TextEncoder
    from storydiffusion.models.video_model import VideoModel
    from storydiffusion.models.video_unet import SemanticVideoUNet

    hide_loading_bars()
    video = model.video
    if networks is None or model.config.has_other_networks:  # networks with additions fit only tokenizers with theirs
        pipe = load_cpu_pipeline(model, dtype)
    else:
        pipe = load_pipeline(model.folder, networks, dtype)
    adapter = _load_motion_adapter(video, pipe.unet.config, dtype)
    decode_large_images_by_tiles(pipe.vae)
    return VideoModel(
        SemanticVideoUNet.from_parts(pipe.unet, adapter, boundary_attention=video.boundary_attention),
        pipe.vae.requires_grad_(False).eval(),
        TextEncoder(pipe.tokenizer, pipe.text_encoder),
        _build_video_scheduler(model, pipe.scheduler),
    )


def _build_video_scheduler(model: ResolvedModel, scheduler: Any) -> Any:
    from storydiffusion.models.motion_adapters import animatediff_scheduler

    if model.video.scheduler == "animatediff":
        return animatediff_scheduler(scheduler)
    return build_scheduler(model.config.scheduler if model.video.scheduler == "model" else "ddim", scheduler)


def add_predictor(model: "VideoModel", video: VideoConfig, dtype: "torch.dtype") -> "VideoModel":
    """Return `model` with the trained predictor of the configuration and its image encoder; unchanged without one."""
    from storydiffusion.models.predictor_files import load_predictor, read_settings

    if video.predictor is None:
        return model
    folder = find_part_folder(video.predictor, "model.video.predictor")
    _check_released(folder)
    return replace(
        model,
        predictor=load_predictor(folder, dtype),
        image_encoder=load_image_encoder(video.image_encoder, dtype),
        features=choose_features(read_settings(folder).get("tokens", "resampler")),
    )


def add_sparse_control(model: "VideoModel", video: VideoConfig, dtype: "torch.dtype") -> "VideoModel":
    """Return `model` with the SparseCtrl of the configuration; unchanged without one.

    Raises:
        UserError: weights that are missing, damaged, or made for another U-Net.
    """
    if video.sparse_control is None:
        return model
    from diffusers.models.controlnets.controlnet_sparsectrl import SparseControlNetModel

    from storydiffusion.models.sparse_control import SparseControl

    folder = fetch_folder(
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
    """Load the image encoder in `source`: `package://…`, a folder, or `NAME://…`, see `models.image_encoders`.

    Raises:
        UserError: for a source that is none of these, or weights that cannot be loaded.
    """
    from storydiffusion.models import image_encoders

    key = "model.video.image_encoder"
    if not names_registered_encoder(source):
        source = str(find_part_folder(source, key))
    try:
        return image_encoders.load_image_encoder(source).to(dtype)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def build_predictor(
    config: PredictorConfig, encoder: "ImageEncoder", context_width: int
) -> tuple["SemanticMotionPredictor", dict[str, Any]]:
    """Build a predictor for training, in float32, with its arguments: those of `config` and the widths around it.

    New weights are drawn from torch's global generator, or copied from `config.start`.

    Raises:
        UserError: invalid sizes, or a start with other sizes than the configuration's.
    """
    from storydiffusion.models.predictor_files import load_predictor, read_settings
    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor

    settings = asdict(config)
    start = settings.pop("start")
    settings |= {"image_width": encoder.widths[choose_features(config.tokens)], "context_width": context_width}
    try:
        predictor = SemanticMotionPredictor(**settings)
    except UserError as error:
        raise UserError(f"predictor.{error}") from error
    if start is not None and (folder := package_path(start)).is_dir():
        known = read_settings(folder)
        for name, found in known.items():
            if settings.get(name) != found and not (name == "layers" and 0 in (found, config.layers)):
                raise UserError(
                    f"the predictor in predictor.start={start} has {name}={found}, not {settings.get(name)}: choose "
                    "one with the sizes of this model and configuration, or one without layers"
                )
        # If only one of the two has a transformer, it is new or left out; the weights that read images are kept.
        predictor.load_state_dict(load_predictor(folder).state_dict(), strict=known.get("layers") == config.layers)
    elif start is not None:
        predictor.load_ip_adapter(start)
    return predictor, settings


def encode_example_words(model: "VideoModel") -> "torch.Tensor":
    """Return how the text encoder represents words: tokens (count, D) after the start token of simple sentences."""
    return model.encode_text(SENTENCES)[:, 1:7].flatten(0, 1).float()


def choose_features(tokens: str) -> "Kind":
    """Return which of the image encoder's features a predictor with these `tokens` reads."""
    return "pooled" if tokens == "pooled" else "hidden"


def _load_motion_adapter(video: VideoConfig, unet_config: Any, dtype: "torch.dtype") -> Any:
    from storydiffusion.models.motion_adapters import load_motion_adapter, new_motion_adapter

    source = video.motion_adapter
    if source is None:
        return new_motion_adapter(unet_config)
    _check_released(Path(source).expanduser())
    if source.startswith(PACKAGE_SCHEME):
        folder = find_part_folder(source, "model.video.motion_adapter")
        return load_motion_adapter(folder, dtype=dtype, unet_config=unet_config)
    hub_id, _, revision = source.partition("@")
    if revision and not Path(source).exists():
        return load_motion_adapter(hub_id, revision, dtype, unet_config)
    return load_motion_adapter(source, None, dtype, unet_config)


def _check_released(part: Path) -> None:
    """Check a part inside a released folder against the release's checksums."""
    if (part.parent / CHECKSUMS).is_file():
        check_checksums(part.parent, part.name)
