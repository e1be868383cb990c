"""What changes a loaded pipeline: LoRA, textual inversion, skipped text layers, FreeU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from storydiffusion.config import FreeUConfig
from storydiffusion.config.model import load_model_config
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.loaders.text_to_image import load_story_model
from storydiffusion.loaders.video import load_video_backbone
from storydiffusion.models.prompt_encoding import encode_prompts, padded_windows
from tests.loaders.test_text_to_image import config

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYERS = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj")


def load(folder: Path, **changes):
    return load_story_model(resolve_model(config(folder, **changes))).pipe


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_lora(file: Path, layout: str, seed: int, rank: int = 2, alpha: float = 1.0) -> dict[str, Tensor]:
    """Write a LoRA of a layer of the U-Net and two of the text encoder, and return what it adds to each."""
    layers = {("unet", LAYER): 8, **{("text_encoder", f"text_model.{name}"): 16 for name in TEXT_LAYERS}}
    state, added = {}, {}
    for number, ((part, layer), width) in enumerate(layers.items()):
        down, up = draw(rank, width, seed=seed + 2 * number), draw(width, rank, seed=seed + 2 * number + 1)
        added[layer.removeprefix("text_model.")] = up @ down * (alpha / rank if layout == "kohya" else 1)
        if layout == "kohya":
            name = f"lora_{'unet' if part == 'unet' else 'te'}_{layer.replace('.', '_')}"
            state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            state[f"{name}.alpha"] = torch.tensor(alpha)
        else:
            state |= {f"{part}.{layer}.lora_A.weight": down, f"{part}.{layer}.lora_B.weight": up}
    save_file(state, file)
    return added


@pytest.mark.parametrize("layouts", [["kohya"], ["peft"], ["kohya", "peft"]])
def test_loras_are_added_to_the_weights_by_their_scales(tiny_model, tmp_path, layouts):
    pytest.importorskip("peft")
    plain, scales = load(tiny_model), [0.7, -0.5][: len(layouts)]
    files = [tmp_path / f"{layout}.safetensors" for layout in layouts]
    added = [write_lora(file, file.stem, seed=10 * number) for number, file in enumerate(files)]
    pipe = load(tiny_model, lora={str(file): scale for file, scale in zip(files, scales, strict=True)})
    changed = set()
    for part in ("unet", "text_encoder"):
        expected = dict(getattr(plain, part).named_parameters())
        found = dict(getattr(pipe, part).named_parameters())
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            layer = name.removesuffix(".weight").removeprefix("text_model.")
            delta = sum(scale * each[layer] for scale, each in zip(scales, added, strict=True) if layer in each)
            torch.testing.assert_close(tensor, expected[name] + delta)
            changed |= {layer} if isinstance(delta, Tensor) else set()
    assert changed == {LAYER, *TEXT_LAYERS}


def test_a_lora_for_another_model_is_named(tiny_model, tmp_path):
    pytest.importorskip("peft")
    file = tmp_path / "other.safetensors"
    for state in (
        {"unet.nowhere.lora_A.weight": draw(2, 8), "unet.nowhere.lora_B.weight": draw(8, 2)},
        {f"unet.{LAYER}.lora_A.weight": draw(2, 5), f"unet.{LAYER}.lora_B.weight": draw(5, 2)},
        {"weight": draw(2)},
    ):
        save_file(state, file)
        with pytest.raises(UserError, match=r"model\.lora") as error:
            load(tiny_model, lora={str(file): 1.0})
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", ["diffusers", "webui"])
def test_an_embedding_of_several_vectors_is_read_as_by_diffusers(tiny_model, tmp_path, layout):
    vectors = draw(3, 16)
    if layout == "diffusers":
        file = tmp_path / "toy.safetensors"
        save_file({"anything": vectors}, file)
    else:
        file = tmp_path / "toy.pt"
        torch.save({"string_to_param": {"*": vectors}, "name": "toy", "step": 100}, file)
    pipe = load(tiny_model, textual_inversion={"<toy>": str(file)})
    ids = pipe.tokenizer("<toy> <toy>_1 <toy>_2", add_special_tokens=False).input_ids
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], vectors)
    prompt = "a <toy> on the beach"
    expected, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    found = encode_prompts(pipe, [prompt], [""]).prompt_embeds
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, encode_prompts(load(tiny_model), [prompt], [""]).prompt_embeds)


def test_an_embedding_that_does_not_fit_is_named(tiny_model, tmp_path):
    file = tmp_path / "wide.safetensors"
    save_file({"toy": draw(1, 24)}, file)
    with pytest.raises(UserError, match=r"model\.textual_inversion\.toy: .*wide\.safetensors does not fit"):
        load(tiny_model, textual_inversion={"toy": str(file)})


def test_skipped_layers_leave_the_final_norm(tiny_model):
    plain, skipping = load(tiny_model), load(tiny_model, clip_skip=1)
    encoder = getattr(plain.text_encoder, "text_model", plain.text_encoder)
    ids = torch.tensor([padded_windows(plain.tokenizer, "a cat", 1)[0]])
    expected = encoder.final_layer_norm(plain.text_encoder(ids, output_hidden_states=True).hidden_states[-2])
    found = encode_prompts(skipping, ["a cat"], [""]).prompt_embeds
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, encode_prompts(plain, ["a cat"], [""]).prompt_embeds)
    with pytest.raises(UserError, match=r"model\.clip_skip=2, but the text encoder has 2 layers"):
        load(tiny_model, clip_skip=2)


def sample(pipe, **changes) -> bytes:
    draws = torch.Generator().manual_seed(0)
    images = pipe("a cat", height=64, width=64, num_inference_steps=2, generator=draws, **changes).images
    return images[0].tobytes()


def test_freeu_changes_the_image_and_factors_of_one_do_not(tiny_model):
    plain = sample(load(tiny_model))
    assert sample(load(tiny_model, freeu=FreeUConfig(s1=0.2, s2=0.2, b1=1.6, b2=1.6))) != plain
    pipe = load(tiny_model, freeu=FreeUConfig(s1=0.9, s2=0.2, b1=1.2, b2=1.4))
    assert [getattr(pipe.unet.up_blocks[0], name) for name in ("s1", "s2", "b1", "b2")] == [0.9, 0.2, 1.2, 1.4]
    pipe.disable_freeu()
    assert sample(pipe) == plain


def test_additions_leave_out_defaults(tiny_model):
    assert config(tiny_model).additions == {}
    changed = config(tiny_model, clip_skip=1, freeu=FreeUConfig(1.0, 1.0, 1.0, 1.0), lora={"a": 0.5})
    assert changed.additions == {
        "lora": {"a": 0.5}, "clip_skip": 1, "freeu": {"s1": 1.0, "s2": 1.0, "b1": 1.0, "b2": 1.0}
    }  # fmt: skip


def test_the_video_model_has_the_same_additions(tiny_video_model, tmp_path):
    file = tmp_path / "toy.safetensors"
    save_file({"toy": draw(1, 16)}, file)
    miniature = load_model_config("miniature")
    assert miniature.video is not None
    video = replace(miniature.video, motion_adapter=str(tiny_video_model / "motion_adapter"), predictor=None)
    changed = config(tiny_video_model, video=video, textual_inversion={"toy": str(file)})
    encoder = load_video_backbone(resolve_model(changed), torch.float32).encode_text
    assert torch.equal(encoder.model.get_input_embeddings().weight[-1], draw(1, 16)[0])  # type: ignore[attr-defined]
