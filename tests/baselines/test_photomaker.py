"""PhotoMaker's stacked ID embedding at random weights: what is fused where, from which step on; and LoRA weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.baselines.photomaker import Fuse, PhotoMaker, add_lora, stack
from storydiffusion.errors import UserError
from storydiffusion.models.prompt_encoding import encode_prompts
from storydiffusion.pipelines.conditioning import CharacterReference
from storydiffusion.pipelines.panels import generate_panels
from tests.attention.conftest import stable_diffusion, stable_diffusion_xl, tiny_tokenizer, tiny_unet
from tests.helpers.baseline_weights import photomaker_weights, random

PROMPTS, STEPS = ["a cat reads", "a cat", "no"], 4
OFF = ConsistentSelfAttentionConfig(variant="off")


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8))


ONE, OTHER = CharacterReference((image(1),), "cat"), CharacterReference((image(2),), "cat")
BOTH = CharacterReference((image(1), image(2)), "cat")


def photomaker(text_steps=0.25, lora=True) -> PhotoMaker:
    pipe = stable_diffusion_xl()
    pipe.set_progress_bar_config(disable=True)
    weights = photomaker_weights(pipe.unet)
    if not lora:
        weights["lora_weights"] = {name: 0 * tensor for name, tensor in weights["lora_weights"].items()}
    return PhotoMaker(pipe, weights, text_steps)


def generated(method: PhotoMaker, references, guidance=3.0, start=None, callback=None):
    conditions = method.conditions(PROMPTS, [""] * 3, references, STEPS, guidance)
    sampling = {"height": 32, "width": 32, "num_inference_steps": STEPS, "guidance_scale": guidance}
    images = generate_panels(
        method.pipe, {**conditions.arguments, **sampling, "output_type": "np"}, [1, 2, 3], OFF, None, start, callback,
        conditions.at_step_end,
    )  # fmt: skip
    return torch.from_numpy(np.asarray(images))


def plain(guidance=3.0):
    pipe = stable_diffusion_xl()
    pipe.set_progress_bar_config(disable=True)
    sampling = {"height": 32, "width": 32, "num_inference_steps": STEPS, "guidance_scale": guidance}
    embeddings = encode_prompts(pipe, PROMPTS, [""] * 3).as_arguments()
    return torch.from_numpy(
        np.asarray(generate_panels(pipe, {**embeddings, **sampling, "output_type": "np"}, [1, 2, 3], OFF))
    )


def test_the_word_stands_once_for_each_image():
    tokenizer = tiny_tokenizer()
    cat = tokenizer("cat", add_special_tokens=False).input_ids
    (plain_ids,), nowhere = stack(tokenizer, "a cat ran", None, 1)
    assert nowhere == slice(0, 0)
    assert stack(tokenizer, "a cat ran", ONE, 1) == ([plain_ids], slice(4, 5))  # start, a, c, a, t
    (ids,), place = stack(tokenizer, "a cat ran", BOTH, 1)
    assert ids[place] == [cat[-1]] * 2
    assert len(ids) == len(plain_ids)
    assert ids[: place.stop - 1] + ids[place.stop :] == plain_ids[:-1]  # what gives way is padding
    windows, place = stack(tokenizer, "abcdefgh ijkl cat", BOTH, 2)
    assert [token for window in windows for token in window][place] == [cat[-1]] * 2
    assert place.start >= 16
    with pytest.raises(UserError, match=r"'a fox' has no word 'cat'"):
        stack(tokenizer, "a fox", ONE, 1)
    with pytest.raises(UserError, match=r"no room for 3 images of the cat"):
        stack(tokenizer, "abcdefghij cat", CharacterReference((image(1),) * 3, "cat"), 1)


def test_fusing_without_its_layers_is_a_norm_of_the_words():
    torch.manual_seed(0)
    fuse, words, images = Fuse(6), random(2, 6, seed=1), random(2, 6, seed=2)
    assert not torch.allclose(fuse(words, images), fuse(words, -images), atol=1e-3)
    with torch.no_grad():
        for mlp in (fuse.mlp1, fuse.mlp2):
            mlp.fc2.weight.zero_()
            mlp.fc2.bias.zero_()
    torch.testing.assert_close(fuse(words, images), torch.nn.functional.layer_norm(words, (6,)))


def test_only_the_words_own_places_are_fused_and_each_with_its_image():
    method = photomaker()
    text = encode_prompts(method.pipe, PROMPTS, [""] * 3)
    fused, _ = method._fused(PROMPTS, [ONE, OTHER, None], 16)
    changed = (fused != text.prompt_embeds).any(-1)
    assert [row.nonzero().flatten().tolist() for row in changed] == [[4], [4], []]
    words, ids = text.prompt_embeds[0, 4:5], method.encoder.id_embeddings(ONE.images)
    torch.testing.assert_close(fused[0, 4:5], method.encoder.fuse_module(words, ids), rtol=1e-5, atol=1e-5)
    assert ids.shape == (1, 32)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_first_steps_go_by_text_alone(guidance):
    method, seen = photomaker(text_steps=0.25), []
    method.pipe.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs["encoder_hidden_states"], kwargs["added_cond_kwargs"])),
        with_kwargs=True,
    )
    generated(method, [ONE, OTHER, None], guidance)
    text = encode_prompts(method.pipe, PROMPTS, [""] * 3)
    fused, _ = method._fused(PROMPTS, [ONE, OTHER, None], 16)
    for step, (context, added) in enumerate(seen):
        assert torch.equal(context[-3:], text.prompt_embeds if step < 2 else fused)
        assert torch.equal(added["text_embeds"][-3:], text.pooled_prompt_embeds)
        if guidance > 1:
            assert torch.equal(context[:3], text.negative_prompt_embeds)
    assert len(seen) == STEPS


def test_a_panel_follows_its_own_image_alone():
    method = photomaker()
    before, after = (generated(method, [ONE, reference, None]) for reference in (ONE, OTHER))
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]], rtol=1e-5, atol=1e-5)
    assert (before[1] - after[1]).abs().max() > 1e-3
    assert (generated(method, [ONE, BOTH, None])[1] - before[1]).abs().max() > 1e-3


def test_by_text_alone_and_without_lora_it_is_the_pipeline_itself():
    assert torch.equal(generated(photomaker(text_steps=1.0, lora=False), [ONE, OTHER, None]), plain())
    assert (generated(photomaker(text_steps=1.0), [ONE, OTHER, None]) - plain()).abs().max() > 1e-3


def test_an_interrupted_run_ends_with_the_same_pixels():
    method, kept = photomaker(text_steps=0.25), []
    keep = lambda pipe, step, timestep, tensors: kept.append((step + 1, tensors["latents"].clone()))  # noqa: E731
    whole = generated(method, [ONE, OTHER, None], callback=keep)
    for start in (kept[0], kept[2]):
        assert torch.equal(generated(method, [ONE, OTHER, None], start=start), whole)


def test_lora_weights_are_added_whatever_their_names():
    unet = tiny_unet()
    lora = photomaker_weights(unet)["lora_weights"]
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    add_lora(unet, lora)
    changed = {name for name, weight in unet.state_dict().items() if not torch.equal(weight, before[name])}
    assert len(changed) == len(lora) // 2
    name = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"
    down, up = (lora[f"unet.{name}.processor.to_q_lora.{half}.weight"] for half in ("down", "up"))
    torch.testing.assert_close(unet.get_submodule(name).to_q.weight, before[f"{name}.to_q.weight"] + up @ down)


def test_weights_of_another_model_are_refused():
    pipe = stable_diffusion_xl()
    weights = photomaker_weights(pipe.unet)
    with pytest.raises(UserError, match="needs the two text encoders of SDXL"):
        PhotoMaker(stable_diffusion(), weights, 0.2)
    with pytest.raises(UserError, match="width 16, the U-Net reads 32"):
        PhotoMaker(pipe, photomaker_weights(tiny_unet()), 0.2)
    odd = {**weights["lora_weights"]}
    name, tensor = odd.popitem()
    with pytest.raises(UserError, match=r"one half of its LoRA weight of .* is missing"):
        PhotoMaker(pipe, {**weights, "lora_weights": odd}, 0.2)
    strange = {name.replace("up_blocks", "side_blocks"): tensor}
    with pytest.raises(UserError, match="fits no layer"):
        PhotoMaker(pipe, {**weights, "lora_weights": {**weights["lora_weights"], **strange}}, 0.2)
    with pytest.raises(UserError, match="use weights made for this U-Net"):
        PhotoMaker(pipe, {**weights, "lora_weights": {**odd, name: random(7, 2, seed=0)}}, 0.2)
    del weights["id_encoder"]["visual_projection_2.weight"]
    with pytest.raises(UserError, match="no ID encoder"):
        PhotoMaker(pipe, weights, 0.2)
