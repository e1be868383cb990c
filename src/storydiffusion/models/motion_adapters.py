"""AnimateDiff's motion modules (2307.04725) as diffusers' MotionAdapter: loaded from any source, or new.

The authors' files (such as mm_sd_v15_v2.ckpt) hold one state dict without a version; the keys show it:

    version    longest clip    motion module in the mid block    parameters at SD1.5's size
    v1         24              no                                417,137,600
    v2         32              yes                               453,209,280
    v3         32              no                                417,137,600

Their keys differ from diffusers' in a few words only. diffusers' own conversion of single files ignores missing keys;
here names are translated one by one and every key must match.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D, MotionAdapter
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.model_files import read_config, report_damage

SD15_UNET = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "norm_num_groups": 32}
ANIMATEDIFF_HEADS = 8  # in every block, whatever its width
VERSIONS = {(24, False): "v1", (32, True): "v2", (32, False): "v3"}  # (longest clip, mid block)
FIRST_ENCODING = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
)
ORIGINAL_WORDS = {
    ".attn1.": ".attention_blocks.0.", ".attn2.": ".attention_blocks.1.",
    ".norm1.": ".norms.0.", ".norm2.": ".norms.1.", ".norm3.": ".ff_norm.",
}  # fmt: skip
FOLDER_FILES = ["config.json", "diffusion_pytorch_model.safetensors"]


def load_motion_adapter(
    source: str | Path,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    unet_config: Mapping[str, Any] = SD15_UNET,
) -> MotionAdapter:
    """Load the motion modules in `source`, in eval mode.

    Args:
        source: a folder in diffusers' format, a file in AnimateDiff's own (.ckpt, or .safetensors of the same keys), or
            `owner/name` on the hub.
        revision: of a hub id; None is its main branch.
        dtype: of the weights.
        unet_config: of the U-Net that an AnimateDiff file was trained on, which the file itself does not record.

    Raises:
        UserError: nothing there, an unreachable hub, a damaged file or one that holds more than tensors, or weights
            other than those of the architecture; names the first wrong key.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, dtype)
    if path.is_file():
        try:
            return convert_original(_read_original(path), dtype, unet_config)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not str(source).startswith("."):
        return _from_folder(_download(str(source), revision), dtype)
    raise UserError(f"no motion adapter at {source}: give a diffusers folder, an AnimateDiff .ckpt file, or a hub id")


def new_motion_adapter(unet_config: Mapping[str, Any], frames: int = 32) -> MotionAdapter:
    """Create motion modules for a U-Net, with its number of heads, in all blocks but the middle one, as v1 and v3.

    Their output projections are set to zero: until trained, every frame is that of the image model. The other weights
    are drawn from torch's global generator.

    Args:
        unet_config: of a UNet2DConditionModel.
        frames: largest number of frames.
    """
    heads = unet_config.get("num_attention_heads") or unet_config["attention_head_dim"]  # the NUMBER of heads
    adapter = MotionAdapter(
        **_settings_of_unet(unet_config),
        motion_num_attention_heads=heads,
        motion_max_seq_length=frames,
        use_motion_mid_block=False,
    )
    for module in adapter.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    return adapter


def get_adapter_arguments(unet_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the MotionAdapter whose modules a UNetMotionModel holds, as plain data."""
    own = ("motion_num_attention_heads", "motion_max_seq_length", "use_motion_mid_block")
    arguments = _settings_of_unet(unet_config) | {name: unet_config[name] for name in own}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}


def check_fits(adapter: Any, unet_config: Mapping[str, Any]) -> None:
    """Check that the adapter was made for such a U-Net.

    No shape shows the number of norm groups: diffusers would use the U-Net's and silently compute something else.

    Raises:
        UserError: names the setting that differs.
    """
    blocks = len(unet_config["block_out_channels"])
    for name, wanted in (_settings_of_unet(unet_config) | {"conv_in_channels": None}).items():
        found = adapter.config[name]
        if _per_block(found, blocks) != _per_block(wanted, blocks):
            raise UserError(
                f"the motion adapter's {name} is {found}, but this U-Net needs {wanted}: use one made for it"
            )


def animatediff_scheduler(model_scheduler: Any) -> DDIMScheduler:
    """Return DDIM on the noise schedule that AnimateDiff was trained with, which is not that of Stable Diffusion.

    Only for AnimateDiff's adapters: one trained with a model's own scheduler keeps that.

    Args:
        model_scheduler: of the model folder; it gives the prediction type.

    Raises:
        UserError: a model with another prediction type than epsilon, or other than 1000 steps.
    """
    config = model_scheduler.config
    if (config.prediction_type, config.num_train_timesteps) != ("epsilon", 1000):
        raise UserError(
            f"AnimateDiff's noise schedule needs a model that predicts epsilon over 1000 steps, not "
            f"{config.prediction_type} over {config.num_train_timesteps}: keep the model's own scheduler"
        )
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="epsilon",
        timestep_spacing="leading",
    )


def detect_version(state: Mapping[str, Any]) -> str:
    """Return `v1`, `v2` or `v3` for an AnimateDiff state dict without the prefix `module.`; UserError for others."""
    encoding = state.get(FIRST_ENCODING)
    if not isinstance(encoding, Tensor) or encoding.ndim != 3:
        raise UserError(f"lacks the tensor {FIRST_ENCODING}: use an AnimateDiff motion module")
    found = (encoding.shape[1], any(name.startswith("mid_block.") for name in state))
    if found not in VERSIONS:
        raise UserError(
            f"{FIRST_ENCODING} is {tuple(encoding.shape)}, and there is {'a' if found[1] else 'no'} mid block, as in "
            "no version of AnimateDiff: use a v1, v2 or v3 file"
        )
    return VERSIONS[found]


def convert_original(
    state: Mapping[str, Any], dtype: torch.dtype = torch.float32, unet_config: Mapping[str, Any] = SD15_UNET
) -> MotionAdapter:
    """Convert an AnimateDiff state dict to an adapter in eval mode; position encodings are checked and recomputed.

    Raises:
        UserError: names the first key that is missing, unexpected, or of another shape.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state.pop("animatediff_config", None)  # some files describe their training
    version = detect_version(state)
    with torch.device("meta"):
        adapter = MotionAdapter(
            **_settings_of_unet(unet_config),
            motion_num_attention_heads=ANIMATEDIFF_HEADS,
            motion_max_seq_length=24 if version == "v1" else 32,
            use_motion_mid_block=version == "v2",
        )
    weights = {}
    for name, wanted in adapter.state_dict().items():
        originals = [_take(state, key, wanted.shape) for key in original_keys(name)]
        weights[name] = originals[0]
        if name.endswith("pos_embed.pe"):
            weights[name] = SinusoidalPositionalEmbedding(wanted.shape[2], wanted.shape[1]).pe
            _check_encodings(original_keys(name), originals, weights[name])
    if state:
        raise UserError(
            f"AnimateDiff {version} has no key {next(iter(state))} (and {len(state) - 1} more): use an unmodified file"
        )
    adapter.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    return adapter.eval()


def original_keys(name: str) -> list[str]:
    """Return AnimateDiff's keys for a key of MotionAdapter: two for the position encodings, one per attention."""
    name = re.sub(r"(motion_modules\.\d+\.)", r"\1temporal_transformer.", name)
    for word, original in ORIGINAL_WORDS.items():
        name = name.replace(word, original)
    stem = name.removesuffix("pos_embed.pe")
    return [name] if stem == name else [f"{stem}attention_blocks.{i}.pos_encoder.pe" for i in (0, 1)]


def _take(state: dict[str, Any], key: str, shape: torch.Size) -> Tensor:
    """Remove a tensor from the state dict, so that the unexpected ones remain at the end."""
    tensor = state.pop(key, None)
    if tensor is None:
        raise UserError(f"the key {key} is missing: fetch the file again")
    if not isinstance(tensor, Tensor) or tensor.shape != shape:
        found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UserError(f"{key} is {found}, but this U-Net needs {tuple(shape)}: use a file made for it")
    return tensor


def _check_encodings(keys: list[str], encodings: list[Tensor], expected: Tensor) -> None:
    """Check for the only sinusoids that diffusers supports, with room for half precision."""
    for key, encoding in zip(keys, encodings, strict=True):
        if not torch.allclose(encoding.float(), expected, rtol=0, atol=5e-3):
            raise UserError(f"{key} holds no sinusoidal position encoding: use an AnimateDiff file")


def _settings_of_unet(unet_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a MotionAdapter that its U-Net determines."""
    return {
        "block_out_channels": unet_config["block_out_channels"],
        "motion_layers_per_block": unet_config["layers_per_block"],
        "motion_norm_num_groups": unet_config["norm_num_groups"],
    }


def _per_block(value: Any, blocks: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * blocks


def _read_original(file: Path) -> Mapping[str, Any]:
    """Read the state dict in a file without running any code in it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            "damaged, or it holds more than tensors, which could run code: download it from its authors"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"damaged or truncated, fetch it again ({first_line(error)})") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"holds a {type(content).__name__} instead of named tensors: use an AnimateDiff file")
    return content


def _from_folder(folder: Path, dtype: torch.dtype) -> MotionAdapter:
    for name in FOLDER_FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: use a motion adapter in diffusers' format")
    read_config(folder / "config.json", MotionAdapter)
    with report_damage(folder, "weights and config.json"):
        loaded: Any = MotionAdapter.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    adapter, info = loaded
    for problem in ("missing", "unexpected"):
        if names := sorted(info[f"{problem}_keys"]):
            raise UserError(f"{names[0]} is {problem} in the weights in {folder}: fetch them and config.json again")
    return adapter.eval()


def _download(hub_id: str, revision: str | None) -> Path:
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=FOLDER_FILES))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise UserError(
            f"cannot get the motion adapter {hub_id} (revision {revision or 'main'}) from the hub, and it is not a "
            f"local folder or file: connect, or download it elsewhere and give its path ({first_line(error)})"
        ) from error
