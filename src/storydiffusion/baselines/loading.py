"""Load what a baseline method adds to a pipeline, from a hub id or a local folder.

As in loaders/, nothing is loaded in part: one sentence names what is missing or does not fit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import IPAdapterConfig, ModelConfig, PhotoMakerConfig
from storydiffusion.errors import UserError, first_line
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.loaders.sources import HUB_ID, fetch_folder
from storydiffusion.loaders.text_to_image import StoryModel, load_network, place_pipeline

if TYPE_CHECKING:
    from storydiffusion.pipelines.conditioning import Baseline

BaselineConfig = IPAdapterConfig | PhotoMakerConfig
KEY = "baseline.weights"


def compute_baseline_checksums(config: BaselineConfig) -> dict[str, str]:
    """Return the weights files with their SHA-256; those on a hub map to its id.

    Raises:
        UserError: a missing file, as far as can be seen without fetching it.
    """
    folder = Path(config.weights).expanduser()
    if not folder.is_dir() and HUB_ID.fullmatch(config.weights):
        return {f"baseline/{config.file}": config.weights}
    return {f"baseline/{file.relative_to(folder)}": compute_sha256(file) for file in fetch_baseline(config)}


def add_baseline(model: StoryModel, model_config: ModelConfig, config: BaselineConfig) -> "Baseline":
    """Install the method of `config` in the model's pipeline for good.

    Raises:
        UserError: weights that are missing, damaged, or made for another model.
    """
    from transformers import CLIPVisionModelWithProjection

    from storydiffusion.baselines.ip_adapter import IPAdapter
    from storydiffusion.baselines.photomaker import PhotoMaker

    file, *encoders = fetch_baseline(config)
    pipe: Any = model.pipe
    if getattr(pipe, "unet", None) is None:
        raise UserError(
            f"baseline={config.kind} needs a U-Net, which {type(pipe).__name__} has not: leave out baseline"
        )
    pipe.remove_all_hooks()  # offloading installs them again once the new parts are in
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
    """Return the local weights files, the method's own first; fetch them from the hub if needed.

    Raises:
        UserError: missing weights, or a hub that cannot be reached.
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
    """Read the named parts, each name → tensor, from `{part: {name: tensor}}` or a .safetensors of names `part.name`.

    No code in the file is run.
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
        raise UserError(f"it is damaged or contains more than tensors: fetch it again ({first_line(error)})") from error
    for part in parts:
        if not isinstance(content, dict) or not isinstance(content.get(part), dict) or not content[part]:
            raise UserError(f"it has no {part}: use a file published by the method's authors")
    return {part: dict(content[part]) for part in parts}
