"""Loads what the baseline methods (the paper's baselines for images) add to a pipeline: hub id or local folder.

As in `models.py`, nothing is loaded half: what is missing or does not fit is named in one sentence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import IPAdapterConfig, ModelConfig, PhotoMakerConfig
from storydiffusion.errors import UserError, first_line
from storydiffusion.loaders.sources import HUB_ID, fetch_folder
from storydiffusion.loaders.text_to_image import StoryModel, load_network, place_pipeline
from storydiffusion.output.files import compute_sha256

if TYPE_CHECKING:
    from storydiffusion.pipelines.conditioning import Baseline

BaselineConfig = IPAdapterConfig | PhotoMakerConfig
KEY = "baseline.weights"


def checksums_of_baseline(config: BaselineConfig) -> dict[str, str]:
    """The files of weights with their SHA-256; those on a hub by its id.

    Raises UserError for a file that is not there, as far as can be seen without fetching it.
    """
    folder = Path(config.weights).expanduser()
    if not folder.is_dir() and HUB_ID.fullmatch(config.weights):
        return {f"baseline/{config.file}": config.weights}
    return {f"baseline/{file.relative_to(folder)}": compute_sha256(file) for file in fetch_baseline(config)}


def add_baseline(model: StoryModel, model_config: ModelConfig, config: BaselineConfig) -> "Baseline":
    """The method of `config`, put into the model's pipeline for good.

    Raises:
        UserError: weights that are not there, are damaged, or were made for another model.
    """
    from transformers import CLIPVisionModelWithProjection

    from storydiffusion.baselines.ip_adapter import IPAdapter
    from storydiffusion.baselines.photomaker import PhotoMaker

    file, *encoders = fetch_baseline(config)
    pipe: Any = model.pipe
    pipe.remove_all_hooks()  # of offloading, which do not know of new parts
    try:
        if isinstance(config, PhotoMakerConfig):
            baseline = PhotoMaker(pipe, _read(file, ("id_encoder", "lora_weights")), config.text_steps)
        else:
            encoder = load_network(CLIPVisionModelWithProjection, encoders[0].parent, ".", model.dtype)
            baseline = IPAdapter(pipe, _read(file, ("image_proj", "ip_adapter")), encoder, config.scale)
    except UserError as error:
        raise UserError(f"{KEY}={config.weights}, {config.file}: {error}") from error
    place_pipeline(pipe, model_config.offload, model.device)
    return baseline


def fetch_baseline(config: BaselineConfig) -> list[Path]:
    """The files of weights, here: the method's own first.

    Raises:
        UserError: weights that are not there, nor on a hub in reach.
    """
    wanted = [config.file]
    if isinstance(config, IPAdapterConfig):
        wanted += [f"{config.image_encoder}/{name}" for name in ("config.json", "*.safetensors")]
    folder = fetch_folder(config.weights, KEY, wanted)
    file = folder / config.file
    if not file.is_file():
        raise UserError(f"{KEY}={config.weights} has no file {config.file}: fetch it, or set baseline.file")
    if isinstance(config, PhotoMakerConfig):
        return [file]
    encoder = sorted((folder / config.image_encoder).glob("*.safetensors"))
    if not encoder:
        raise UserError(
            f"{KEY}={config.weights} has no *.safetensors file in {config.image_encoder}: fetch that image encoder, or "
            "set baseline.image_encoder"
        )
    return [file, *encoder]


def _read(file: Path, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The named parts, each name → tensor, of `{part: {name: tensor}}` or of a .safetensors with names `part.name`.

    Nothing in the file is run.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            whole = load_file(file)
            content = {
                part: {name.removeprefix(f"{part}."): whole[name] for name in whole if name.startswith(f"{part}.")}
                for part in parts
            }
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise UserError(f"damaged, or more than tensors: fetch it again ({first_line(error)})") from error
    for part in parts:
        if not isinstance(content, dict) or not isinstance(content.get(part), dict) or not content[part]:
            raise UserError(f"it has no {part}: take a file of the method's authors")
    return {part: dict(content[part]) for part in parts}
