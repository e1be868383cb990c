"""Load the text-to-image pipeline of a resolved model.

Nothing is loaded in part: a weights file that is missing, truncated, or contains other tensors than the network
expects is refused with one sentence, never filled with random numbers.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.errors import UserError
from storydiffusion.files.model_files import read_config, report_damage
from storydiffusion.loaders.resolve import PARTS, ResolvedModel, find_family, get_class_name, read_json
from storydiffusion.loaders.schedulers import build_scheduler, load_scheduler
from storydiffusion.loaders.sources import UNUSED_PARTS

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
LARGEST_TILE = 1024  # pixels


@dataclass(frozen=True)
class StoryModel:
    """A pipeline ready to be called, with the device and dtype of its networks."""

    pipe: "DiffusionPipeline"
    device: "torch.device"
    dtype: "torch.dtype"
    seconds: float  # that loading took


def load_story_model(model: ResolvedModel) -> StoryModel:
    """Load the pipeline on its device, in its dtype, with its scheduler and only the parts that generate a story.

    Raises:
        UserError: unusable weights, or a device that this machine lacks.
    """
    clock = time.perf_counter()
    device, dtype = model.device, model.dtype
    pipe = load_cpu_pipeline(model, dtype)
    if model.added.controlnet is not None:
        from storydiffusion.loaders.controlnet import add_controlnet

        pipe = add_controlnet(pipe, model.added.controlnet, dtype)
    pipe.scheduler = build_scheduler(model.config.scheduler, pipe.scheduler)
    pipe.vae.enable_slicing()  # decodes panels one by one: the memory of one image, the same pixels
    decode_large_images_by_tiles(pipe.vae)
    pipe.set_progress_bar_config(disable=True)  # `generate_panels` shows its own
    place_pipeline(pipe, model.config.offload, device)
    return StoryModel(pipe, device, dtype, time.perf_counter() - clock)


def decode_large_images_by_tiles(vae: Any) -> None:
    """Let the VAE decode images above 1024 × 1024 in tiles of that size, blended where they overlap.

    Smaller images are decoded whole, also by a VAE that diffusers would tile from its own sample size on.
    """
    if "block_out_channels" not in vae.config:  # Qwen-Image's, whose tiles have a fixed size
        return
    vae.enable_tiling()
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_sample_min_size, vae.tile_latent_min_size = LARGEST_TILE, LARGEST_TILE // factor


def load_cpu_pipeline(model: ResolvedModel, dtype: "torch.dtype") -> Any:
    """Load the pipeline on the CPU, with all additions and the model folder's scheduler.

    Raises:
        UserError: unusable weights, or an addition that does not fit.
    """
    from storydiffusion.loaders.additions import apply_additions

    hide_loading_bars()
    pipe = load_pipeline(model.folder, load_networks(model, dtype), dtype)
    apply_additions(pipe, model)
    return pipe


def load_networks(model: ResolvedModel, dtype: "torch.dtype") -> dict[str, Any]:
    """Load the networks that generate a story, by part, from the folder or from `model.single_file`.

    Raises:
        UserError: weights that are missing or do not match.
    """
    from storydiffusion.loaders.single_file import load_single_file, load_vae_file

    classes, added, folder = get_networks(model.folder), model.added, model.folder
    networks = {}
    if added.unet is not None:
        networks["unet"] = load_network(classes.pop("unet"), added.unet, ".", dtype)
    if added.vae is not None:
        vae = classes.pop("vae")
        is_file = added.vae.is_file()
        networks["vae"] = (
            load_vae_file(added.vae, vae, folder, dtype) if is_file else load_network(vae, added.vae, ".", dtype)
        )
    if added.single_file is not None:
        return networks | load_single_file(added.single_file, folder, classes, dtype)
    return networks | {
        part: load_network(network, folder, part, dtype, model.variants[part]) for part, network in classes.items()
    }


def load_tokenizer(folder: Path, part: str = "tokenizer") -> Any:
    """Load one tokenizer of a model folder. Raises UserError for files that cannot be read."""
    from transformers import CLIPTokenizer

    with report_damage(folder / part):
        return CLIPTokenizer.from_pretrained(folder / part, local_files_only=True)


def has_clip_tokenizer(folder: Path, part: str = "tokenizer") -> bool:
    """Return whether a part of the folder is a CLIPTokenizer; diffusers loads tokenizers of other classes."""
    return str(get_class_name(read_json(folder / "model_index.json"), part)).startswith("CLIPTokenizer")


def get_networks(folder: Path) -> dict[str, Any]:
    """Return the networks that the folder's model_index.json names, part → class.

    Raises:
        UserError: a pipeline or a network of another class.
    """
    import diffusers
    import transformers

    index, known = read_json(folder / "model_index.json"), find_family(folder).networks
    networks = {part: name for part in PARTS if part in known and (name := get_class_name(index, part))}
    for part, name in networks.items():
        if name not in known[part]:
            raise UserError(f"{folder}/model_index.json makes {part} a {name}: it must be {' or '.join(known[part])}")
    return {part: getattr(diffusers, name, None) or getattr(transformers, name) for part, name in networks.items()}


def load_network(network: Any, folder: Path, part: str, dtype: "torch.dtype", variant: str | None = None) -> Any:
    """Load one network with exactly the tensors that its config.json requires; `part` is its folder in `folder`.

    Args:
        variant: of the weights files, such as `fp16`; None: the full ones.

    Raises:
        UserError: weights that are missing or do not match.
    """
    read_config(folder / part / "config.json", network)
    with report_damage(folder / part, "weights and config.json"):
        model, info = network.from_pretrained(
            folder, subfolder=part, dtype=dtype, variant=variant, use_safetensors=True, output_loading_info=True
        )
    unexpected = [key for key in info["unexpected_keys"] if not key.endswith("position_ids")]  # of old CLIP files
    for problem, names in (("lack", info["missing_keys"]), ("have unexpectedly", unexpected)):
        if names:
            raise UserError(
                f"the weights in {folder / part} {problem} {len(names)} tensors such as {sorted(names)[0]}: "
                "fetch them and config.json again"
            )
    return model.eval()


def load_pipeline(folder: Path, networks: dict[str, Any], dtype: "torch.dtype") -> Any:
    """Load the pipeline around networks that are already loaded.

    Raises:
        UserError: an incomplete model folder, or a damaged file in it.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    index = read_json(folder / "model_index.json")
    parts = {part: load_tokenizer(folder, part) for part in TOKENIZERS if has_clip_tokenizer(folder, part)}
    parts |= {"scheduler": load_scheduler(folder, get_class_name(index, "scheduler"))}
    with report_damage(folder, "pipeline"), _own_types_only():
        return DiffusionPipeline.from_pretrained(folder, dtype=dtype, **networks, **parts, **_get_unused_parts(folder))


@contextmanager
def _own_types_only() -> Iterator[None]:
    """Hide diffusers' warnings of parts that its annotations do not expect: `get_networks` has checked the classes."""
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Expected types for")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _get_unused_parts(folder: Path) -> dict[str, Any]:
    """Return the optional parts that the folder names, as None: passed on so, they are not loaded."""
    index = read_json(folder / "model_index.json")
    unused: dict[str, Any] = {part: None for part in UNUSED_PARTS if part in index}
    return unused | ({"requires_safety_checker": False} if "requires_safety_checker" in index else {})


def hide_loading_bars() -> None:
    """Hide the progress bars of files that load in a moment; downloads keep theirs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def place_pipeline(pipe: Any, offload: str, device: "torch.device") -> None:
    """Move the pipeline's networks to their device, or offload them to the CPU; call again after adding parts."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
