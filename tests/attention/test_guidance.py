"""Guidance parts in diffusers' pipelines of many kinds: panels of a part share, parts never mix, doubt is refused."""

import diffusers
import pytest
import torch
from diffusers import ControlNetModel, DDPMScheduler, LCMScheduler, T2IAdapter

from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.guidance import check_parts, count_images, count_parts
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.errors import UserError
from tests.attention.conftest import (
    ATTENTION_SIZES,
    NO_SAFETY,
    common_parts,
    stable_diffusion_xl,
    tiny_unet,
)

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
MASKS = torch.ones(4, 1, 32, 32)
IMAGE = {"image": IMAGES}
IMAGE_ONLY = {"image": IMAGES, "latents": None, "strength": 1.0}
INPAINT = {"image": IMAGES, "mask_image": MASKS, "height": 32, "width": 32, "strength": 1.0}
BOX = {"gligen_phrases": ["fox"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]}
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 8,
    "cross_attention_dim": 32,
}


def controlnet(**changes):
    torch.manual_seed(3)
    blocks = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    sizes = {**ATTENTION_SIZES, **changes}
    return ControlNetModel(down_block_types=blocks, conditioning_embedding_out_channels=(4, 4), **sizes).eval()


def adapter():
    torch.manual_seed(4)
    return T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2)


def build(name, unet, **parts):
    return getattr(diffusers, name)(unet=tiny_unet(**unet), **{**common_parts(), **NO_SAFETY, **parts})


def build_xl(name, unet, **parts):
    plain = stable_diffusion_xl().components
    del plain["feature_extractor"], plain["image_encoder"], plain["unet"]
    return getattr(diffusers, name)(unet=tiny_unet(**XL, **unet), **plain, **parts, add_watermarker=False)


def build_upscaler(name, unet, **parts):
    unet = {"in_channels": 7, "num_class_embeds": 1000, **unet}
    return getattr(diffusers, name)(
        unet=tiny_unet(**unet), low_res_scheduler=DDPMScheduler(), **common_parts(), **NO_SAFETY_OF_UPSCALERS
    )


NO_SAFETY_OF_UPSCALERS = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
UPSCALE = {"image": IMAGES[:, :, ::2, ::2], "noise_level": 10}
GATED = {"attention_type": "gated"}

# name → (builder, changes of the U-Net, components, arguments, number of parts, the parts that read the prompt)
PIPELINES = {
    "StableDiffusionPipeline": (build, {}, {}, {}, 2, [1]),
    "StableDiffusionImg2ImgPipeline": (build, {}, {}, IMAGE_ONLY, 2, [1]),
    "StableDiffusionInpaintPipeline": (build, {"in_channels": 9}, {}, INPAINT, 2, [1]),
    "StableDiffusionInstructPix2PixPipeline": (build, {"in_channels": 8}, {}, IMAGE, 3, [0]),
    "StableDiffusionControlNetPipeline": (build, {}, {"controlnet": controlnet}, IMAGE, 2, [1]),
    "StableDiffusionSAGPipeline": (build, {}, {}, {}, 2, [1]),
    "StableDiffusionGLIGENPipeline": (build, GATED, {}, BOX, 2, [1]),
    "StableDiffusionPAGPipeline": (build, {}, {}, {"pag_scale": 3.0}, 3, [1, 2]),
    "StableDiffusionPipelineSafe": (build, {}, {}, {}, 3, [1]),
    "StableDiffusionModelEditingPipeline": (build, {}, {}, {}, 2, [1]),
    "StableDiffusionAdapterPipeline": (build, {}, {"adapter": adapter}, IMAGE, 2, [1]),
    "LatentConsistencyModelPipeline": (build, {"time_cond_proj_dim": 8}, {"scheduler": LCMScheduler}, {}, 1, [0]),
    "StableDiffusionUpscalePipeline": (build_upscaler, {}, {}, UPSCALE, 2, [1]),
    "StableDiffusionXLPipeline": (build_xl, {}, {}, {}, 2, [1]),
    "StableDiffusionXLImg2ImgPipeline": (build_xl, {}, {}, IMAGE_ONLY, 2, [1]),
    "StableDiffusionXLInpaintPipeline": (build_xl, {"in_channels": 9}, {}, INPAINT, 2, [1]),
    "StableDiffusionXLInstructPix2PixPipeline": (build_xl, {"in_channels": 8}, {}, IMAGE, 3, [0]),
    "StableDiffusionXLPAGPipeline": (build_xl, {}, {}, {"pag_scale": 3.0}, 3, [1, 2]),
    "StableDiffusionXLControlNetPipeline": (
        build_xl,
        {},
        {"controlnet": lambda: controlnet(**XL)},
        IMAGE,
        2,
        [1],
    ),
}  # fmt: skip


def make(name):
    builder, unet, components, extra, parts, prompted = PIPELINES[name]
    pipe = builder(name, unet, **{key: component() for key, component in components.items()})
    pipe.set_progress_bar_config(disable=True)
    return pipe, extra, parts, prompted


def arguments(extra=None, prompts=("fox", "cat", "red fox", "a cat"), guidance=5.0) -> dict:
    generator = torch.Generator().manual_seed(5)
    given = {
        "prompt": list(prompts),
        "latents": torch.randn(4, 4, 16, 16, generator=generator)[: len(prompts)],
        "guidance_scale": guidance,
        "num_inference_steps": 2,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(6),
        **(extra or {}),
    }
    return {name: value for name, value in given.items() if value is not None}


def first_prediction(pipe, given, **sharing):
    """Return what the U-Net predicts in its first call, (parts · panels, C, h, w)."""
    seen = []
    with consistent_self_attention(pipe, **sharing):
        hook = pipe.unet.register_forward_hook(
            lambda unet, args, output: seen.append(output[0] if isinstance(output, tuple) else output.sample)
        )
        try:
            pipe(**given)
        finally:
            hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", PIPELINES)
def test_panels_share_within_a_part_and_parts_never_mix(name):
    pipe, extra, parts, prompted = make(name)
    one = first_prediction(pipe, arguments(extra))
    other = first_prediction(pipe, arguments(extra, ("z z z", "cat", "red fox", "a cat")))
    change = (one - other).abs().amax((1, 2, 3)).unflatten(0, (parts, 4))
    for part in range(parts):
        if part in prompted:
            assert (change[part] > 1e-6).all()  # the first panel's prompt reaches the others by attention
        else:
            assert change[part].max() == 0


@pytest.mark.parametrize("name", ["StableDiffusionSAGPipeline", "StableDiffusionInstructPix2PixPipeline"])
def test_two_stories_are_those_generated_alone(name):
    pipe, extra, _, _ = make(name)
    one = first_prediction(pipe, arguments(extra), stories=[PanelGroup(3, key=1), PanelGroup(1, key=2)])
    other = first_prediction(
        pipe, arguments(extra, ("fox", "cat", "red fox", "z")), stories=[PanelGroup(3, key=1), PanelGroup(1, key=2)]
    )
    change = (one - other).abs().amax((1, 2, 3)).unflatten(0, (-1, 4))
    assert change[:, :3].max() == 0
    assert change[:, 3].max() > 0


def test_three_images_of_instruct_pix2pix_are_one_story():
    pipe, extra, _, _ = make("StableDiffusionInstructPix2PixPipeline")
    assert len(first_prediction(pipe, arguments({"image": extra["image"][:3]}, ("fox", "cat", "a cat")))) == 9


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_several_images_of_a_prompt_are_panels(sd_pipe, guidance):
    more = {"num_images_per_prompt": 2, "latents": None}
    shared = sd_pipe(**arguments(more, ("fox", "cat"), guidance))
    with consistent_self_attention(sd_pipe) as story:
        assert not torch.equal(sd_pipe(**arguments(more, ("fox", "cat"), guidance)).images, shared.images)
    assert story.images.images == 4


def test_embeddings_count_as_prompts(sd_pipe):
    text, empty = sd_pipe.encode_prompt(["fox", "cat"], "cpu", 1, True)
    given = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": empty}
    assert torch.equal(
        first_prediction(sd_pipe, arguments(given, ("", ""))), first_prediction(sd_pipe, arguments({}, ("fox", "cat")))
    )


def test_a_pipeline_that_hides_its_guidance_needs_parts():
    pipe = build("SemanticStableDiffusionPipeline", {})
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(UserError, match=r"2 equal parts.*parts=2"):
        first_prediction(pipe, arguments())
    one = first_prediction(pipe, arguments(), parts=2)
    other = first_prediction(pipe, arguments(None, ("z z z", "y", "x x", "w")), parts=2)
    assert torch.equal(one[:4], other[:4])


def test_a_pipeline_that_interleaves_its_parts_is_refused():
    pipe = build("StableDiffusionPanoramaPipeline", {})
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(UserError, match="guidance parts"):
        first_prediction(pipe, arguments({"height": 32, "width": 32}))


@pytest.mark.parametrize("parts", [0, -1, 1.5, True, "2"])
def test_unusable_parts_are_named(sd_pipe, parts):
    with pytest.raises(UserError, match=f"parts is {parts!r}"), consistent_self_attention(sd_pipe, parts=parts):
        pass


def test_encoders_are_restored_also_after_an_error(sd_pipe):
    given = vars(sd_pipe).setdefault("encode_prompt", sd_pipe.encode_prompt)
    with consistent_self_attention(sd_pipe), pytest.raises(ValueError, match="prompt"):
        sd_pipe(prompt=None)
    assert vars(sd_pipe)["encode_prompt"] is given
    assert "_encode_prompt" not in vars(sd_pipe)


def test_count_images():
    assert count_images({"prompt": "fox"}) == 1
    assert count_images({"prompt": ["fox", "cat"], "num_images_per_prompt": 3}) == 6
    assert count_images({"prompt": None, "prompt_embeds": torch.zeros(5, 7, 2), "num_images_per_prompt": 1}) == 5
    assert count_images({"batch_size": 4}) is None


@pytest.mark.parametrize(
    ("batch", "given", "images", "stated", "panels", "parts"),
    [
        (8, None, 4, 2, None, 2),
        (12, None, 4, 2, None, 3),
        (4, None, 4, 2, None, 1),
        (8, None, 4, None, 4, 2),
        (8, None, None, 2, None, 2),
        (8, None, None, None, 4, 2),
        (8, None, None, None, None, 1),
        (8, 4, 4, 2, None, 4),
    ],
)
def test_count_parts(batch, given, images, stated, panels, parts):
    assert count_parts(batch, given, images, stated, panels) == parts


@pytest.mark.parametrize(
    ("batch", "given", "images", "stated", "panels"),
    [(9, None, 4, 2, None), (8, None, 4, 1, None), (8, None, 4, 2, 3), (8, 3, 4, 2, None), (8, 2, None, None, 3)],
)
def test_a_batch_that_cannot_be_explained_is_refused(batch, given, images, stated, panels):
    with pytest.raises(UserError, match=rf"batch of {batch} .*guidance part"):
        count_parts(batch, given, images, stated, panels)


def test_parts_must_repeat_their_latents():
    latents = torch.arange(3.0)[:, None, None, None].expand(3, 4, 2, 2)
    check_parts(latents.repeat(2, 1, 1, 1), 2, known=False)
    check_parts(latents, 1, known=False)
    check_parts(latents.repeat(2, 1, 1, 1), 1, known=True)
    with pytest.raises(UserError, match="show different latents"):
        check_parts(latents.repeat_interleave(2, 0), 2, known=True)
    for count in (2, 3):
        with pytest.raises(UserError, match=f"consists of {count} equal parts"):
            check_parts(latents.repeat(count, 1, 1, 1), 1, known=False)
