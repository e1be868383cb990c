"""IP-Adapter for each panel of a batch, against diffusers' own call for one image at a time, at random weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.baselines.ip_adapter import IPAdapter
from storydiffusion.errors import UserError
from storydiffusion.pipelines.conditioning import CharacterReference
from tests.attention.conftest import stable_diffusion, stable_diffusion_xl
from tests.helpers.baseline_weights import image_encoder, ip_adapter_weights

PROMPTS = ["a cat", "fox", "no cat"]
STEPS = 2


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8))


ONE, OTHER = CharacterReference((image(1),)), CharacterReference((image(2),))


def adapted(make=stable_diffusion, plus=False, scale=0.8):
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    return IPAdapter(pipe, ip_adapter_weights(pipe.unet, plus), image_encoder(), scale)


def arguments(guidance: float, panels=range(3)) -> dict:
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    return {
        "latents": noise[list(panels)], "guidance_scale": guidance, "num_inference_steps": STEPS,
        "output_type": "latent",
    }  # fmt: skip


def generated(adapter: IPAdapter, references, guidance=3.0, prompts=PROMPTS) -> torch.Tensor:
    conditions = adapter.conditions(prompts, [""] * len(prompts), references, STEPS, guidance)
    return adapter.pipe(**conditions.arguments, **arguments(guidance)).images


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("plus", [False, True], ids=["", "plus"])
@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_xl])
def test_each_panel_is_that_of_diffusers_own_call(make, plus, guidance):
    adapter = adapted(make, plus)
    references = [ONE, OTHER, ONE]
    ours = generated(adapter, references, guidance)
    for panel, reference in enumerate(references):
        alone = adapter.pipe(PROMPTS[panel], ip_adapter_image=reference.images[0], **arguments(guidance, [panel]))
        torch.testing.assert_close(ours[panel], alone.images[0], rtol=1e-4, atol=1e-5)


def test_at_scale_zero_it_is_the_pipeline_itself():
    plain = stable_diffusion()
    plain.set_progress_bar_config(disable=True)
    expected = plain(PROMPTS, **arguments(3.0)).images
    assert torch.equal(generated(adapted(scale=0.0), [ONE, OTHER, None]), expected)
    assert not torch.allclose(generated(adapted(), [ONE, OTHER, None]), expected, atol=1e-3)


def test_a_panel_follows_its_own_image_alone():
    adapter = adapted()
    before, after = (generated(adapter, [ONE, reference, None]) for reference in (ONE, OTHER))
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]], rtol=1e-5, atol=1e-5)
    assert (before[1] - after[1]).abs().max() > 1e-2
    shown = generated(adapter, [ONE, OTHER, ONE])
    assert (shown[2] - after[2]).abs().max() > 1e-2  # nobody is not somebody


def test_it_goes_with_consistent_self_attention():
    adapter = adapted()
    conditions = adapter.conditions(PROMPTS, [""] * 3, [ONE, ONE, ONE], STEPS, 3.0)
    with consistent_self_attention(adapter.pipe, ConsistentSelfAttentionConfig()) as story:
        shared = adapter.pipe(
            **conditions.arguments, **arguments(3.0), callback_on_step_end=story.on_step_end
        ).images  # fmt: skip
    assert (shared - generated(adapter, [ONE, ONE, ONE])).abs().amax((1, 2, 3)).min() > 1e-3


def test_weights_of_another_model_are_refused():
    pipe, other = stable_diffusion(), stable_diffusion_xl()
    with pytest.raises(UserError, match="another U-Net or another image encoder"):
        IPAdapter(pipe, ip_adapter_weights(other.unet), image_encoder(), 1.0)
    with pytest.raises(UserError, match="another U-Net or another image encoder"):
        IPAdapter(pipe, ip_adapter_weights(pipe.unet, embedding=24), image_encoder(), 1.0)
    weights = ip_adapter_weights(pipe.unet)
    weights["ip_adapter"].popitem()
    with pytest.raises(UserError, match="attention weights"):
        IPAdapter(pipe, weights, image_encoder(), 1.0)
