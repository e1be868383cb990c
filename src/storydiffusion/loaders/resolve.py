"""Resolve a model configuration once per run: its folder, origin, weights with checksums, device and dtype.

Every stage of a run receives the same `ResolvedModel`. Weights are hashed and torch is imported only when a stage asks
for checksums or for the device, so a finished run answers at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import FreeUConfig, ModelConfig, VideoConfig
from storydiffusion.config.model import load_model_config
from storydiffusion.errors import UserError, first_line
from storydiffusion.files.json_file import read_object
from storydiffusion.loaders.added_files import AddedFiles, check_file, find_added_files
from storydiffusion.loaders.boundary_frames import choose_boundary_frames, read_boundary_frame_prob
from storydiffusion.loaders.checksums import compute_checksums, compute_part_checksums, get_part_key
from storydiffusion.loaders.devices import choose_device, choose_dtype
from storydiffusion.loaders.families import FAMILIES, PipelineFamily
from storydiffusion.loaders.schedulers import check_scheduler
from storydiffusion.loaders.sources import CONFIG_FILES, INDEX_FILES, find_model_folder, package_path
from storydiffusion.loaders.variants import choose_variant, find_variant, list_variants

if TYPE_CHECKING:
    import torch

PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
CARD = "storydiffusion.json"
"""of a model folder: {"kind": "miniature", "edition": 1} says what its weights are, and which StoryWorld they know"""
OF_UNETS = ("single_file", "unet", "textual_inversion", "controlnet", "guidance_rescale", "clip_skip", "freeu")
"""settings that only pipelines with a U-Net have"""
VIDEO_PARTS = ("motion_adapter", "image_encoder", "predictor")
ORIGINS = ("pretrained", "miniature", "random")


@dataclass(frozen=True)
class ResolvedModel:
    """A model with everything that a run derives from its configuration.

    Attributes:
        folder: the local folder in diffusers' format.
        origin: what the weights are: `pretrained`, `miniature` (trained on drawn images only) or `random`.
        weights: files of the weights that generate a story, by their names in the folder (`unet/….safetensors`).
        added: files beside the folder.
        variants: part → variant of its weights files, such as `fp16`; None: the full ones.
    """

    config: ModelConfig
    folder: Path
    origin: str
    weights: Mapping[str, Path]
    added: AddedFiles
    variants: Mapping[str, str | None]

    @cached_property
    def checksums(self) -> dict[str, str]:
        """The SHA-256 of each file of `weights`."""
        return compute_checksums(self.weights)

    @cached_property
    def device(self) -> "torch.device":
        """Where the networks run. Raises UserError for a device that this machine lacks."""
        device = choose_device(self.config.device, "model.device")
        if self.config.offload != "none" and device.type != "cuda":
            raise UserError(
                f"model.offload={self.config.offload} needs a CUDA device to load onto: set model.offload=none"
            )
        return device

    @cached_property
    def dtype(self) -> "torch.dtype":
        """The dtype of the networks' weights."""
        return choose_dtype(self.config.dtype, self.device)

    @cached_property
    def video(self) -> VideoConfig:
        """The settings of the video model; see `get_video_config`."""
        return get_video_config(self.config)

    @cached_property
    def video_checksums(self) -> dict[str, str]:
        """The weights files that only a video needs, with their SHA-256; a part on a hub maps to its id.

        Raises:
            UserError: no video part, a missing part, or parts made for another U-Net, as far as their files show.
        """
        check_video_parts(self.folder, self.video)
        return {
            name: checksum
            for part, source in get_video_sources(self.video).items()
            for name, checksum in compute_part_checksums(part, source).items()
        }


def resolve_model(config: ModelConfig) -> ResolvedModel:
    """Find the model's folder, fetched from the hub if needed, and check that its weights files are whole.

    Raises:
        UserError: no such scheduler or folder, hub out of reach, or a file of weights that is missing, damaged or
            truncated.
    """
    check_scheduler(config.scheduler)
    added = find_added_files(config)
    if added.single_file is not None:
        folder = find_model_folder(config.path, config.revision, files=CONFIG_FILES)
        check_additions(config, folder)
        return ResolvedModel(config, folder, "pretrained", added.weights, added, {})
    folder = find_model_folder(config.path, config.revision, lambda: list_variants(config))
    check_additions(config, folder)
    parts = [part for part in find_parts(folder) if part not in added.replaced_parts]
    variants = {part: choose_variant(folder / part, config) for part in parts}
    weights = {f"{part}/{file.name}": file for part in parts for file in find_variant(folder / part, variants[part])}
    for file in weights.values():
        check_file(file)
    return ResolvedModel(config, folder, read_origin(folder), weights | added.weights, added, variants)


def resolve_pretrained(
    path: str | Path,
    config: str | None = None,
    revision: str | None = None,
    video: Mapping[str, Any] | None = None,
    **changes: Any,
) -> ResolvedModel:
    """Resolve a model only by its path, with the defaults of conf/model.

    Args:
        path: `package://miniature`, a folder in diffusers' format, or a hub id.
        config: the file of conf/model; None chooses it by what the folder contains.
        video: settings of the video model that replace the defaults; folders motion_adapter/, predictor/ and
            image_encoder/ in the model's folder do so too.
        changes: fields of `ModelConfig`, such as `device`, `dtype` and `lora`; None leaves the default.

    Raises:
        UserError: no such model, or a wrong setting.
    """
    folder = find_model_folder(str(path), revision, files=INDEX_FILES)
    defaults = load_model_config(config or _choose_defaults(folder))
    known = {field.name for field in fields(ModelConfig)} - {"name", "path", "revision", "video"}
    if unknown := sorted(changes.keys() - known):
        raise UserError(f"a model has no setting {unknown[0]!r}: choose among {', '.join(sorted(known))}")
    given: dict[str, Any] = {name: _spell(value) for name, value in changes.items() if value is not None}
    if defaults.video is not None:
        parts = {name: str(folder / name) for name in VIDEO_PARTS if (folder / name).is_dir()}
        given["video"] = replace(defaults.video, **{**parts, **_check_names(video or {})})
    return resolve_model(replace(defaults, path=str(path), revision=revision, **given))


def _spell(value: Any) -> Any:
    """Return paths, devices and dtypes of torch as text, as a configuration has them; other values as they are."""
    return value if isinstance(value, str | int | float | dict | FreeUConfig) else str(value).removeprefix("torch.")


def _check_names(video: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings of the video model whose names are all known, with paths as text."""
    known = [field.name for field in fields(VideoConfig)]
    for name in video:
        if name not in known:
            raise UserError(f"the video model has no setting {name!r}: choose among {', '.join(known)}")
    return {name: str(value) if isinstance(value, Path) else value for name, value in video.items()}


def _choose_defaults(folder: Path) -> str:
    """Return the file of conf/model that fits a model folder."""
    family = find_family(folder)
    return (family.miniature if read_origin(folder) == "miniature" else None) or family.defaults


def get_video_config(config: ModelConfig) -> VideoConfig:
    """Return the settings of the video model, with `boundary_frames` as its motion modules were trained.

    Raises:
        UserError: a model that generates images only.
    """
    if config.video is None:
        raise UserError(f"model={config.name} makes no video: choose model=miniature or model=sd15_animatediff")
    trained = read_boundary_frame_prob(config.video.motion_adapter)
    return replace(config.video, boundary_frames=choose_boundary_frames(config.video.boundary_frames, trained))


def read_origin(folder: Path) -> str:
    """Return the kind of weights in the folder's storydiffusion.json; `pretrained` if it has none."""
    if not (folder / CARD).exists():
        return "pretrained"
    kind = read_json(folder / CARD).get("kind")
    if kind not in ORIGINS:
        raise UserError(f"{folder / CARD} has kind {kind!r}: write one of {', '.join(ORIGINS)}")
    return kind


def read_edition(folder: Path) -> int | None:
    """Return the edition of StoryWorld that the folder's weights were trained on; None if they were not.

    Folders of the miniature without one are older than the second edition.
    """
    if read_origin(folder) != "miniature":
        return None
    edition = read_json(folder / CARD).get("edition", 1)
    if not isinstance(edition, int) or isinstance(edition, bool):
        raise UserError(f"{folder / CARD} has edition {edition!r}: write a whole number")
    return edition


def find_family(folder: Path) -> PipelineFamily:
    """Return the family of the pipeline that model_index.json names. Raises UserError for an unknown class."""
    name = read_json(folder / "model_index.json").get("_class_name")
    if name not in FAMILIES:
        raise UserError(f"{folder} contains a {name}: set model.path to a folder of {' or '.join(FAMILIES)}")
    return FAMILIES[name]


def check_additions(config: ModelConfig, folder: Path) -> None:
    """Raise UserError for settings of pipelines with a U-Net where the folder has a diffusion transformer."""
    given = [name for name in OF_UNETS if name in config.additions]
    if given and find_family(folder).denoiser != "unet":
        raise UserError(f"model.{given[0]} needs a U-Net, but {folder} has a diffusion transformer: leave it out")


def find_parts(folder: Path) -> list[str]:
    """Return the networks that generate a story. Raises UserError for a folder without model_index.json."""
    index = read_json(folder / "model_index.json")
    return [part for part in PARTS if get_class_name(index, part)]


def get_class_name(index: Mapping[str, Any], part: str) -> str | None:
    """Return the class that model_index.json gives a part as [library, class]; None if it has no such part."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def get_video_sources(video: VideoConfig) -> dict[str, str]:
    """Return the sources of the parts that only a video needs, by part.

    Raises:
        UserError: no trained motion modules.
    """
    if video.motion_adapter is None:
        raise UserError("model.video.motion_adapter=null makes new motion modules: name trained ones, or train them")
    sources = {"motion_adapter": video.motion_adapter}
    if video.predictor is not None:
        sources |= {"predictor": video.predictor, "image_encoder": video.image_encoder}
    if video.sparse_control is not None:
        sources |= {"sparse_control": video.sparse_control.weights}
    return sources


def check_video_parts(model: Path, video: VideoConfig) -> None:
    """Check that parts in local folders were made for this U-Net, as far as their config.json files say.

    Raises:
        UserError: a part of another width; the message names its setting.
    """
    unet = _read_part_config(model / "unet")
    sparse_control = video.sparse_control and video.sparse_control.weights
    pairs = (
        ("motion_adapter", video.motion_adapter, "block_out_channels", "block_out_channels"),
        ("predictor", video.predictor, "context_width", "cross_attention_dim"),
        ("sparse_control", sparse_control, "block_out_channels", "block_out_channels"),
        ("sparse_control", sparse_control, "cross_attention_dim", "cross_attention_dim"),
    )
    for part, source, name, name_in_unet in pairs:
        settings = _read_part_config(package_path(source)) if source is not None else {}
        found, expected = settings.get(name), unet.get(name_in_unet)
        if found is not None and expected is not None and found != expected:
            raise UserError(
                f"{get_part_key(part)}={source} has {name} {found}, but the U-Net of {model} expects {expected}: "
                f"set {get_part_key(part)} to one that was trained with it"
            )


def _read_part_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a part; empty if there is none to read, which loading the part reports."""
    try:
        return read_object(folder / "config.json")
    except (OSError, ValueError):
        return {}


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model folder.

    Raises:
        UserError: a file that is missing, unreadable or no object.
    """
    try:
        return read_object(file)
    except FileNotFoundError as error:
        raise UserError(f"{file.parent} is not a model folder: it has no {file.name}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file} ({first_line(error)}): fetch it again") from error
