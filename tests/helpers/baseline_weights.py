"""Tiny weights of the baseline methods, random ones, in the layout of their authors' files."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from storydiffusion.baselines.photomaker import IDEncoder

Weights = dict[str, dict[str, torch.Tensor]]
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16,
    "projection_dim": 8,
}  # fmt: skip


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image_encoder() -> CLIPVisionModelWithProjection:
    torch.manual_seed(11)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, num_attention_heads=2)).eval()


def ip_adapter_weights(unet, plus: bool = False, embedding: int = 8) -> Weights:
    """Of IP-Adapter, or of IP-Adapter plus, whose resampler reads hidden states; `embedding` is the encoder's width."""
    width = unet.config.cross_attention_dim
    if plus:
        from diffusers.models.embeddings import IPAdapterPlusImageProjection

        torch.manual_seed(12)
        projection = _plus_names(
            IPAdapterPlusImageProjection(16, width, hidden_dims=64, depth=4, dim_head=64, heads=1, num_queries=2)
        )
    else:
        projection = {
            "proj.weight": random(4 * width, embedding, seed=12), "proj.bias": torch.zeros(4 * width),
            "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
        }  # fmt: skip
    layers, number = {}, 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for half in ("k", "v"):
                layers[f"{number}.to_{half}_ip.weight"] = 0.3 * random(hidden, width, seed=number + ord(half))
            number += 2
    return {"image_proj": projection, "ip_adapter": layers}


def write_ip_adapter(folder: Path, unet) -> Path:
    """adapter.safetensors and image_encoder/ in `folder`."""
    folder.mkdir(parents=True)
    parts = ip_adapter_weights(unet)
    save_file({f"{part}.{name}": tensor for part in parts for name, tensor in parts[part].items()},
              folder / "adapter.safetensors")  # fmt: skip
    image_encoder().save_pretrained(folder / "image_encoder")
    return folder


def photomaker_weights(unet, rank: int = 2) -> Weights:
    """An ID encoder for text encoders of half the U-Net's width each, and LoRA weights, some under their old names."""
    half = unet.config.cross_attention_dim // 2
    torch.manual_seed(13)
    encoder = IDEncoder(CLIPVisionConfig(**{**VISION, "projection_dim": half}, num_attention_heads=1), half)
    layers = [name for name in unet.attn_processors if name.startswith("up_blocks")]
    lora = {}
    for seed, name in enumerate(layers):
        layer = unet.get_submodule(name.removesuffix(".processor")).to_q
        down, up = random(rank, layer.in_features, seed=seed), random(layer.out_features, rank, seed=seed + 50)
        old = f"unet.{name}.to_q_lora"
        new = f"unet.{name.removesuffix('.processor')}.to_q.lora"
        names = (f"{old}.down.weight", f"{old}.up.weight") if seed % 2 else (f"{new}_A.weight", f"{new}_B.weight")
        lora |= dict(zip(names, (0.1 * down, 0.1 * up), strict=True))
    return {"id_encoder": {**encoder.state_dict()}, "lora_weights": lora}


def _plus_names(projection) -> dict[str, torch.Tensor]:
    """diffusers' names of the resampler's tensors → the authors'."""
    words = {
        ".ln0.": ".0.norm1.", ".ln1.": ".0.norm2.", ".attn.to_q.": ".0.to_q.", ".attn.to_out.0.": ".0.to_out.",
        ".ff.0.": ".1.0.", ".ff.1.net.0.proj.": ".1.1.", ".ff.1.net.2.": ".1.3.",
    }  # fmt: skip
    found = {}
    for name, tensor in projection.state_dict().items():
        for word, original in words.items():
            name = name.replace(word, original)
        if ".attn.to_k." in name:
            value = projection.state_dict()[name.replace("to_k", "to_v")]
            found[name.replace(".attn.to_k.", ".0.to_kv.")] = torch.cat([tensor, value])
        elif ".attn.to_v." not in name:
            found[name] = tensor
    return found
