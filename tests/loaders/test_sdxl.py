"""Files that users have for SDXL: one file of all weights, LoRAs and embeddings of both text encoders, ControlNets."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.loaders.text_to_image import load_story_model
from storydiffusion.models.prompt_encoding import encode_prompts
from storydiffusion.pipelines.story import StoryPipeline
from tests.helpers.controlnet import build_tiny_controlnet
from tests.helpers.sdxl_model import WIDTHS, build_tiny_sdxl
from tests.helpers.single_file import build_original_state, write_single_file
from tests.loaders.test_additions import draw
from tests.loaders.test_text_to_image import config

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def sdxl(tiny_model, tmp_path_factory) -> Path:
    return build_tiny_sdxl(tiny_model, tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture
def architecture(sdxl, tmp_path) -> Path:
    """The model folder without weights."""
    return shutil.copytree(sdxl, tmp_path / "architecture", ignore=shutil.ignore_patterns("*.safetensors"))


def load(folder: Path, **changes):
    return load_story_model(resolve_model(config(folder, "sdxl", **changes))).pipe


def test_a_single_file_gives_the_weights_of_its_folder(sdxl, architecture, tmp_path):
    file = write_single_file(sdxl, tmp_path / "whole.safetensors")
    found, expected = load(architecture, single_file=str(file)), load(sdxl)
    assert type(found).__name__ == "StableDiffusionXLPipeline"
    for part in PARTS:
        tensors = getattr(found, part).state_dict()
        stored = getattr(expected, part).state_dict()
        assert tensors.keys() == stored.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in stored.items()), part


@pytest.mark.parametrize(
    ("lacking", "part"),
    [
        ("model.diffusion_model.label_emb.0.2.bias", "unet"),
        ("model.diffusion_model.output_blocks.5.2.conv.weight", "unet"),
        ("conditioner.embedders.1.model.transformer.resblocks.2.attn.in_proj_weight", "text_encoder_2"),
        ("conditioner.embedders.1.model.text_projection", "text_encoder_2"),
        ("conditioner.embedders.0.", "text_encoder"),
        ("conditioner.embedders.1.", "text_encoder_2"),
    ],
)
def test_a_single_file_that_lacks_tensors_is_named_even_where_the_folder_has_them(sdxl, tmp_path, lacking, part):
    state = build_original_state(sdxl)
    kept = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith(lacking)}
    assert len(kept) < len(state)
    file = tmp_path / "part.safetensors"
    save_file(kept, file)
    with pytest.raises(UserError, match=rf"part\.safetensors .*/{part}\b") as error:
        load(sdxl, single_file=str(file))
    assert "\n" not in str(error.value)


def test_a_single_file_of_the_other_family_is_named(sdxl, tiny_model, tmp_path):
    for source, folder in ((tiny_model, sdxl), (sdxl, tiny_model)):
        file = write_single_file(source, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match=r"other\.safetensors .* set model\.path to a folder of its arch") as error:
            load(folder, single_file=str(file))
        assert "\n" not in str(error.value)


LORA_LAYERS = {
    ("unet", "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"): 16,
    ("unet", "mid_block.attentions.0.transformer_blocks.2.attn1.to_k"): 16,
    ("unet", "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_v"): 16,
    ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj"): 16,
    ("text_encoder", "text_model.encoder.layers.1.self_attn.out_proj"): 16,
    ("text_encoder_2", "text_model.encoder.layers.0.self_attn.v_proj"): 24,
    ("text_encoder_2", "text_model.encoder.layers.2.self_attn.out_proj"): 24,
}
"""(part, layer as diffusers names it) → width"""
KOHYA_BLOCKS = {
    "down_blocks.1.attentions.0": "input_blocks.4.1", "mid_block.attentions.0": "middle_block.1",
    "up_blocks.1.attentions.2": "output_blocks.5.1",
}  # fmt: skip
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def write_lora(file: Path, layout: str, rank: int = 2, alpha: float = 1.0) -> dict[tuple[str, str], Tensor]:
    """Write a LoRA of the U-Net and both text encoders, and return what it adds to each layer."""
    state, added = {}, {}
    for number, ((part, layer), width) in enumerate(LORA_LAYERS.items()):
        down, up = draw(rank, width, seed=2 * number), draw(width, rank, seed=2 * number + 1)
        added[part, layer] = up @ down * (alpha / rank if layout == "kohya" else 1)
        if layout == "kohya":
            for block, original in KOHYA_BLOCKS.items():
                layer = layer.replace(block, original)
            name = KOHYA_PREFIXES[part] + layer.replace(".", "_")
            state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            state[f"{name}.alpha"] = torch.tensor(alpha)
        else:
            state |= {f"{part}.{layer}.lora_A.weight": down, f"{part}.{layer}.lora_B.weight": up}
    save_file(state, file)
    return added


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_a_lora_is_added_to_the_weights_of_the_unet_and_both_text_encoders(sdxl, tmp_path, layout):
    pytest.importorskip("peft")
    file = tmp_path / f"{layout}.safetensors"
    added = write_lora(file, layout)
    plain, pipe = load(sdxl), load(sdxl, lora={str(file): 0.7})
    changed = set()
    for part in PARTS:
        expected = dict(getattr(plain, part).named_parameters())
        found = dict(getattr(pipe, part).named_parameters())
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            layer = name.removesuffix(".weight")
            layer = f"text_model.{layer}" if layer.startswith("encoder.") else layer
            delta = 0.7 * added[part, layer] if (part, layer) in added else 0.0
            torch.testing.assert_close(tensor, expected[name] + delta)
            changed |= {(part, layer)} if isinstance(delta, Tensor) else set()
    assert changed == added.keys()


def draw_embedding(vectors: int = 3) -> dict[str, Tensor]:
    return {"clip_l": draw(vectors, WIDTHS["text_encoder"]), "clip_g": draw(vectors, WIDTHS["text_encoder_2"], seed=1)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_embedding_is_read_by_both_text_encoders(sdxl, tmp_path, suffix):
    file, state = tmp_path / f"toy{suffix}", draw_embedding()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    pipe = load(sdxl, textual_inversion={"<toy>": str(file)})
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        tokenizer, encoder = getattr(pipe, f"tokenizer{end}"), getattr(pipe, f"text_encoder{end}")
        ids = tokenizer("<toy> <toy>_1 <toy>_2", add_special_tokens=False).input_ids
        assert torch.equal(encoder.get_input_embeddings().weight[ids], state[key])
    prompt = "a <toy> on the beach"
    with torch.no_grad():
        expected, _, pooled, _ = pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    found, plain = (encode_prompts(each, [prompt], [""]) for each in (pipe, load(sdxl)))
    torch.testing.assert_close(found.prompt_embeds, expected)
    torch.testing.assert_close(found.pooled_prompt_embeds, pooled)
    first = WIDTHS["text_encoder"]
    for place in (slice(first), slice(first, None)):
        assert not torch.allclose(found.prompt_embeds[..., place], plain.prompt_embeds[..., place])


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ({"clip_l": "clip_l"}, "it has no clip_g, SDXL's text encoders read clip_l and clip_g"),
        ({"toy": "clip_l"}, "it has no clip_l, SDXL's text encoders read clip_l and clip_g"),
        ({"clip_l": "clip_g", "clip_g": "clip_l"}, ""),
    ],
    ids=["no clip_g", "of SD1.5", "of other widths"],
)
def test_an_embedding_that_does_not_fit_both_text_encoders_is_named(sdxl, tmp_path, names, problem):
    file, state = tmp_path / "toy.safetensors", draw_embedding()
    save_file({name: state[key] for name, key in names.items()}, file)
    begin = r"model\.textual_inversion\.toy: .*toy\.safetensors does not fit this model or is damaged"
    with pytest.raises(UserError, match=rf"{begin} .*{problem}.*: choose one made for it") as error:
        load(sdxl, textual_inversion={"toy": str(file)})
    assert "\n" not in str(error.value)


STORY = """
title: Poses
characters: {Pip: a red cat}
panels:
  - {prompt: "[Pip] runs"}
  - {prompt: "[Pip] in the park", pose: pose.png}
"""


def test_a_controlnet_acts_on_panels_with_a_pose_alone(sdxl, tmp_path):
    controlnet = build_tiny_controlnet(sdxl, tmp_path / "controlnet")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "pose.png")
    story, plain_story = tmp_path / "story.yaml", tmp_path / "plain.yaml"
    story.write_text(STORY)
    plain_story.write_text(STORY.replace(", pose: pose.png", ""))

    def generate(file: Path, **changes) -> np.ndarray:
        pipe = StoryPipeline.from_model(resolve_model(config(sdxl, "sdxl", **changes)))
        alone = ConsistentSelfAttentionConfig(variant="off")
        return pipe(file, csa=alone, num_inference_steps=2, output_type="np").images

    plain, posed = generate(plain_story), generate(story, controlnet=str(controlnet))
    assert np.array_equal(posed[0], plain[0])
    assert not np.allclose(posed[1], plain[1], atol=1e-3)
    assert np.array_equal(generate(story, controlnet=str(controlnet), controlnet_scale=0.0), plain)


def test_a_controlnet_of_stable_diffusion_is_named(sdxl, tiny_model, tmp_path):
    controlnet = build_tiny_controlnet(tiny_model, tmp_path / "controlnet")
    with pytest.raises(UserError, match=r"model\.controlnet=.* has cross_attention_dim 16, but the U-Net expects 40"):
        load(sdxl, controlnet=str(controlnet))


def test_skipped_text_layers_are_refused(sdxl):
    with pytest.raises(UserError, match=r"SDXL reads the penultimate layers: set model\.clip_skip=null"):
        load(sdxl, clip_skip=1)
