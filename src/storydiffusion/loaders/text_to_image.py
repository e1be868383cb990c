"""Loads every pretrained part: from a hub id, a local folder in diffusers' format, or the folder inside this package.

Nothing is loaded half: a weights file that is missing, truncated, or holds other tensors than the network wants is
refused in one sentence, never filled up with fresh random numbers.
"""

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import ModelConfig
from storydiffusion.errors import UserError, first_line

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

PACKAGE_SCHEME = "package://"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
CARD = "storydiffusion.json"  # {"kind": "miniature"}: what a viewer of the pictures must know of the weights
ORIGINS = ("pretrained", "miniature", "random")
UNUSED = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@.+)?")  # owner/name, or owner/name@revision


@dataclass(frozen=True)
class StoryModel:
    """A pipeline ready to be called, and where its networks work."""

    pipe: "DiffusionPipeline"
    device: "torch.device"
    dtype: "torch.dtype"
    seconds: float  # that loading took


def load_story_model(config: ModelConfig) -> StoryModel:
    """The pipeline of `config` on its device, in its dtype, with its scheduler and only the parts that tell a story.

    Raises:
        UserError: no such folder, hub out of reach, unusable weights, or a device that this machine lacks.
    """
    clock = time.perf_counter()
    device = device_of(config)
    dtype = dtype_of(config.dtype, device)
    quiet()
    folder = model_folder(config.path, config.revision)
    weights_of(folder)  # names a damaged file before anything is loaded
    networks = {part: load_network(network, folder, part, dtype) for part, network in networks_of(folder).items()}
    pipe = pipeline_of(folder, networks, dtype)
    if config.scheduler == "ddim":
        pipe.scheduler = ddim_of(pipe.scheduler)
    pipe.vae.enable_slicing()  # panels are decoded one by one: the memory of one picture, the same pixels
    pipe.set_progress_bar_config(disable=True)  # `generate_panels` shows its own
    place(pipe, config.offload, device)
    return StoryModel(pipe, device, dtype, time.perf_counter() - clock)


def model_folder(path: str, revision: str | None) -> Path:
    """The local folder of `path`: `package://NAME`, an existing folder, or `owner/name` on the hub (fetched once)."""
    if path.startswith(PACKAGE_SCHEME):
        name = path.removeprefix(PACKAGE_SCHEME)
        folder = Path(str(files("storydiffusion"))) / name
        if not folder.is_dir():
            raise UserError(f"this installation carries no model {name!r} ({folder} is missing): set model.path=FOLDER")
        return folder
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    looks_like_hub_id = path.count("/") == 1 and not path.startswith((".", "~", "/", os.sep))
    if not looks_like_hub_id:
        raise UserError(f"model.path={path} is no folder here: give a model folder in diffusers' format or a hub id")
    return _download(path, revision)


def fetched(source: str, key: str, files: Sequence[str]) -> Path:
    """The local folder of `source`: a folder, or `owner/name@revision` on the hub, of which `files` are fetched once.

    Args:
        key: the setting that names it.
        files: their paths in it; a pattern such as `image_encoder/*` stands for several.

    Raises:
        UserError: neither a folder nor to be had from the hub.
    """
    import httpx
    from huggingface_hub import snapshot_download

    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(source):
        raise UserError(f"{key}={source} is no folder here: give a folder with its weights, or a hub id")
    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise UserError(
            f"cannot get {key}={source} from the hub, nor is it a folder here: connect, or download it elsewhere and "
            f"set {key}=FOLDER ({first_line(error)})"
        ) from error


def origin_of(folder: Path) -> str:
    """What the weights are, as the folder's storydiffusion.json says: `miniature` or `random`; else `pretrained`."""
    if not (folder / CARD).exists():
        return "pretrained"
    kind = _read_json(folder / CARD).get("kind")
    if kind not in ORIGINS:
        raise UserError(f"{folder / CARD} says kind {kind!r}: write one of {', '.join(ORIGINS)}")
    return kind


def weights_of(folder: Path) -> dict[str, Path]:
    """The files of weights that tell a story: name in the folder (`unet/….safetensors`) → file, each one opened.

    Raises:
        UserError: no model folder, or a file of weights that is missing, damaged or truncated.
    """
    index = _read_json(folder / "model_index.json")
    parts = [part for part in PARTS if _class_of(index, part)]
    return {f"{part}/{file.name}": file for part in parts for file in _weights(folder / part)}


def ddim_of(scheduler: Any) -> Any:
    """DDIM [Song et al. 2021] on the noise schedule of `scheduler`, as the paper samples; never clips latents."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler.from_config(scheduler.config, clip_sample=False)


def _download(hub_id: str, revision: str | None) -> Path:
    import httpx
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(hub_id, revision=revision, use_safetensors=True, **UNUSED))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise UserError(
            f"cannot get model.path={hub_id} (revision {revision or 'main'}) from the hub, nor is it a folder here: "
            f"connect, or download it elsewhere and set model.path=FOLDER ({first_line(error)})"
        ) from error


def networks_of(folder: Path) -> dict[str, Any]:
    """The networks that the folder's model_index.json names: part → its class."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    classes = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection)
    index = _read_json(folder / "model_index.json")
    if index.get("_class_name") not in PIPELINES:
        raise UserError(
            f"{folder} holds a {index.get('_class_name')}: stories are told by {' or '.join(PIPELINES)}, set model.path"
        )
    networks = {part: network for part, network in zip(PARTS, classes, strict=True) if _class_of(index, part)}
    for part, network in networks.items():
        if _class_of(index, part) != network.__name__:
            raise UserError(
                f"{folder}/model_index.json makes {part} a {_class_of(index, part)}: it must be {network.__name__}"
            )
    return networks


def _class_of(index: dict[str, Any], part: str) -> str | None:
    """What model_index.json says of a part, [library, class]; None where it is absent."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _weights(folder: Path) -> list[Path]:
    """The weights files of a part; safetensors checks that header and length agree."""
    from safetensors import SafetensorError, safe_open

    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise UserError(f"{folder} holds no *.safetensors file: take a complete model folder in that format")
    for file in found:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged or truncated ({first_line(error)}): fetch it again") from error
    return found


def load_network(network: Any, folder: Path, part: str, dtype: "torch.dtype") -> Any:
    """One network, with exactly the tensors that its config.json asks for; `part` is its folder in `folder`."""
    try:
        model, info = network.from_pretrained(
            folder, subfolder=part, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"the weights in {folder / part} do not fit its config.json: fetch both again ({first_line(error)})"
        ) from error
    strange = [key for key in info["unexpected_keys"] if not key.endswith("position_ids")]  # a buffer of old CLIP files
    for problem, names in (("lack", info["missing_keys"]), ("have, unasked,", strange)):
        if names:
            raise UserError(
                f"the weights in {folder / part} {problem} {len(names)} tensors such as {sorted(names)[0]}: "
                "fetch them and config.json again"
            )
    return model.eval()


def pipeline_of(folder: Path, networks: dict[str, Any], dtype: "torch.dtype") -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(folder, dtype=dtype, **networks, **_unused_in(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a complete model folder: fetch it again ({first_line(error)})") from error


def _unused_in(folder: Path) -> dict[str, Any]:
    """The optional parts that the folder names: handed over as None, they are not loaded."""
    index = _read_json(folder / "model_index.json")
    unused: dict[str, Any] = {part: None for part in UNUSED if part in index}
    return unused | ({"requires_safety_checker": False} if "requires_safety_checker" in index else {})


def quiet() -> None:
    """No progress bars for files that are read in a moment; downloads keep theirs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def device_of(config: ModelConfig) -> "torch.device":
    """Where the networks work. Raises UserError where this machine lacks it."""
    device = device_named(config.device, "model.device")
    if config.offload != "none" and device.type == "cpu":
        raise UserError(f"model.offload={config.offload} needs a CUDA device to load onto: set model.offload=none")
    return device


def device_named(name: str, key: str) -> "torch.device":
    """`auto` is CUDA where there is one; `key` is the setting that names it.

    Raises UserError for `cuda` where this machine has none.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError(f"{key}=cuda, but torch finds no CUDA device here: set {key}=cpu")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def dtype_of(name: str, device: "torch.device") -> "torch.dtype":
    """Of the networks' weights; `auto` is half precision on CUDA."""
    import torch

    if name == "auto":
        name = "float16" if device.type == "cuda" else "float32"
    return getattr(torch, name)


def place(pipe: Any, offload: str, device: "torch.device") -> None:
    """Puts the pipeline's networks where they shall work; also once parts have joined them."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file.parent} is no model folder: it has no {file.name}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file} ({first_line(error)}): fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object: fetch it again")
    return content
