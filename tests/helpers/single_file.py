"""Write a tiny Stable Diffusion 1.5 or SDXL model as one file, in the original layout of shared fine-tuned models."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj", "self_attn": "attn", "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
}  # fmt: skip
VAE_BLOCKS = 4


def build_original_state(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a tiny model folder under their original names."""
    settings = json.loads((folder / "unet" / "config.json").read_text())
    is_xl = (folder / "text_encoder_2").is_dir()
    text = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
    names: dict[str, tuple[str, Callable[[str], str]]] = {
        "unet/diffusion_pytorch_model.safetensors": ("model.diffusion_model.", partial(name_in_unet, settings)),
        "vae/diffusion_pytorch_model.safetensors": ("first_stage_model.", name_in_vae),
        "text_encoder/model.safetensors": (text, name_in_text_encoder),
    }
    state = {}
    for file, (prefix, rename) in names.items():
        for name, tensor in load_file(folder / file).items():
            is_projection = prefix == "first_stage_model." and "attentions" in name and tensor.ndim == 2
            state[prefix + rename(name)] = tensor[:, :, None, None] if is_projection else tensor
    return state | build_second_state(load_file(folder / "text_encoder_2" / "model.safetensors")) if is_xl else state


def build_second_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return SDXL's second text encoder as open_clip's, with the tensors of SDXL's file that no network has."""
    state = {
        "text_projection": tensors["text_projection.weight"].T,
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "logit_scale": torch.tensor(4.6),
    }
    for name, tensor in tensors.items():
        layer = rename(name.removeprefix("text_model."), OPEN_CLIP)
        if ".q_proj." in name:
            joint = torch.cat([tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            state[layer.replace("q_proj.", "in_proj_")] = joint
        elif not any(part in name for part in ("k_proj", "v_proj", "text_projection", "position_embedding")):
            state[layer] = tensor
    unused = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(16)[None],
        "denoiser.sigmas": torch.linspace(0, 1, 1000),
    }
    return {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in state.items()} | unused


def name_in_unet(settings: dict[str, Any], name: str) -> str:
    length = settings["layers_per_block"] + 1  # blocks that a down or up block has in the original
    for new, old in ENDS.items():
        if name.startswith(f"{new}."):
            return name.replace(new, old, 1)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, number, rest = match.groups()
        is_resnet = kind == "resnets"
        return f"middle_block.{2 * int(number) if is_resnet else 1}.{rename(rest, RESNET) if is_resnet else rest}"
    match = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    assert match, name
    side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * length}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        has_attention = settings["up_block_types"][block].startswith("CrossAttn")
        return f"output_blocks.{(block + 1) * length - 1}.{1 + has_attention}.{rest}"
    first, stem = (1, "input_blocks") if side == "down" else (0, "output_blocks")
    place = f"{stem}.{first + block * length + layer}"
    return f"{place}.0.{rename(rest, RESNET)}" if kind == "resnets" else f"{place}.1.{rest}"


def name_in_vae(name: str) -> str:
    name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{VAE_BLOCKS - 1 - int(match[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = name.replace("down_blocks", "down").replace(".resnets.", ".block.").replace("conv_norm_out", "norm_out")
    name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    name = name.replace("conv_shortcut", "nin_shortcut")
    return rename(name.replace("mid_block.attentions.0", "mid.attn_1"), ATTENTION) if "attentions" in name else name


def name_in_text_encoder(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def rename(name: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        name = re.sub(rf"(^|\.){re.escape(new)}\.", rf"\g<1>{old}.", name)
    return name


def write_single_file(folder: Path, file: Path) -> Path:
    """Write the model of `folder` as .safetensors, or as .ckpt with the layout of Lightning."""
    state = {name: tensor.contiguous() for name, tensor in build_original_state(folder).items()}
    if file.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, file)
    else:
        torch.save({"state_dict": state, "global_step": 1}, file)
    return file
