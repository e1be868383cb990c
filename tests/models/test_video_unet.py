"""The video U-Net against diffusers' own at tiny size: AnimateDiff without semantic tokens, images without motion."""

import copy

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from storydiffusion.errors import UserError
from storydiffusion.models.boundary_frames import with_boundary_frames
from storydiffusion.models.motion_adapters import animatediff_scheduler, load_motion_adapter, new_motion_adapter
from storydiffusion.models.video_unet import SemanticVideoUNet
from tests.conftest import write_tokenizer

WIDTH = 16
SIZES = {
    "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "cross_attention_dim": WIDTH, "attention_head_dim": (2, 4),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def tiny_unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**SIZES, **changes}).eval()


def tiny_adapter(**changes) -> MotionAdapter:
    """Random everywhere, output projections too: it moves things."""
    torch.manual_seed(1)
    settings = {
        "block_out_channels": (16, 32), "motion_layers_per_block": 1, "motion_norm_num_groups": 8,
        "motion_num_attention_heads": 2, "motion_max_seq_length": 6,
    }  # fmt: skip
    return MotionAdapter(**{**settings, **changes}).eval()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LATENTS, TEXT, SEMANTIC = random(2, 4, 3, 8, 8), random(2, 5, WIDTH, seed=1), random(2, 3, 2, WIDTH, seed=2)
TIMESTEPS = torch.tensor([10, 700])


@pytest.fixture
def video_unet() -> SemanticVideoUNet:
    return SemanticVideoUNet.from_parts(tiny_unet(), tiny_adapter())


@torch.no_grad()
def predict(unet: SemanticVideoUNet, semantic=SEMANTIC, latents=LATENTS, text=TEXT) -> torch.Tensor:
    return unet(latents, TIMESTEPS, text, semantic)


@pytest.fixture
def animatediff(tmp_path) -> AnimateDiffPipeline:
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(2)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    pipe = AnimateDiffPipeline(
        vae=vae, text_encoder=text_encoder.eval(), tokenizer=tokenizer, unet=tiny_unet(), motion_adapter=tiny_adapter(),
        scheduler=animatediff_scheduler(DDIMScheduler()),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance", [1.0, 7.5])  # the pipeline leaves guidance out at 1
def test_without_semantic_tokens_it_is_the_animatediff_pipeline(animatediff, video_unet, guidance):
    prompts, noise = ["a red fox", "the cat runs"], random(2, 4, 3, 8, 8, seed=3)
    theirs = animatediff(
        prompts, negative_prompt=["blue", "a hat"], latents=noise, num_frames=3, num_inference_steps=4,
        guidance_scale=guidance, output_type="latent",
    ).frames  # fmt: skip
    text, negative = animatediff.encode_prompt(prompts, "cpu", 1, True, ["blue", "a hat"])
    scheduler = animatediff_scheduler(DDIMScheduler())
    scheduler.set_timesteps(4)
    latents = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            without, predicted = video_unet(torch.cat([latents, latents]), t, torch.cat([negative, text])).chunk(2)
            guided = without + guidance * (predicted - without)
            latents = scheduler.step(guided, t, latents).prev_sample
    torch.testing.assert_close(latents, theirs, rtol=1e-5, atol=1e-5)


def test_without_semantic_tokens_it_is_diffusers_motion_model(video_unet):
    plain = UNetMotionModel.from_unet2d(tiny_unet(), tiny_adapter()).eval()
    with torch.no_grad():
        expected = plain(LATENTS, TIMESTEPS, TEXT.repeat_interleave(3, dim=0)).sample
    torch.testing.assert_close(predict(video_unet, None), expected, rtol=0, atol=1e-5)


def test_tokens_of_the_text_again_are_a_longer_prompt(video_unet):
    plain = UNetMotionModel.from_unet2d(tiny_unet(), tiny_adapter()).eval()
    longer = torch.cat([TEXT, TEXT[:, 1:3]], dim=1)
    with torch.no_grad():
        expected = plain(LATENTS, TIMESTEPS, longer.repeat_interleave(3, dim=0)).sample
    semantic = TEXT[:, None, 1:3].expand(2, 3, 2, WIDTH)
    torch.testing.assert_close(predict(video_unet, semantic), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, predict(video_unet, None), atol=1e-4)


def assert_image_by_image(unet: UNet2DConditionModel, video_unet: SemanticVideoUNet, latents, text, semantic) -> None:
    clips = video_unet(latents, TIMESTEPS, text, semantic)
    for clip in range(2):
        for frame in range(latents.shape[2]):
            context = torch.cat([text[clip], semantic[clip, frame]])[None]
            image = unet(latents[clip, :, frame][None], TIMESTEPS[clip], context).sample[0]
            torch.testing.assert_close(clips[clip, :, frame], image, rtol=0, atol=1e-5)


@torch.no_grad()
def test_an_untrained_adapter_leaves_every_frame_to_the_image_model_and_its_own_tokens():
    unet = tiny_unet()
    video_unet = SemanticVideoUNet.from_parts(unet, new_motion_adapter(unet.config, frames=3))
    assert_image_by_image(unet, video_unet, LATENTS, TEXT, SEMANTIC)


@torch.no_grad()
def test_the_miniatures_unet_takes_a_new_adapter():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=16, out_channels=16, block_out_channels=(96, 160), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=192, attention_head_dim=(3, 5), norm_num_groups=16, use_linear_projection=True,
    ).eval()  # fmt: skip
    video_unet = SemanticVideoUNet.from_parts(unet, new_motion_adapter(unet.config, frames=8))
    assert_image_by_image(unet, video_unet, random(2, 16, 8, 8, 8), random(2, 5, 192), random(2, 8, 4, 192))
    assert video_unet.max_frames == 8


def test_clips_and_frames_keep_apart(video_unet):
    """Another clip changes nothing; another frame's tokens change its own frame most, others through motion."""
    before = predict(video_unet)
    semantic = SEMANTIC.clone()
    semantic[1, 2] += 3
    change = (predict(video_unet, semantic) - before).abs().amax((1, 3, 4))
    assert change[0].max() == 0
    assert change[1].min() > 1e-5
    assert change[1].argmax() == 2


def test_the_order_of_frames_matters_to_the_motion_modules(video_unet):
    backwards = predict(video_unet, SEMANTIC.flip(1), LATENTS.flip(2)).flip(2)
    assert not torch.allclose(backwards, predict(video_unet), atol=1e-4)


def gradients(video_unet: SemanticVideoUNet) -> torch.Tensor:
    semantic = SEMANTIC.clone().requires_grad_()
    video_unet(LATENTS, TIMESTEPS, TEXT, semantic).square().mean().backward()
    assert semantic.grad is not None
    return semantic.grad


def test_semantic_tokens_learn_through_frozen_weights(video_unet):
    before = copy.deepcopy(video_unet.state_dict())
    assert gradients(video_unet).abs().amax((2, 3)).min() > 0
    assert all(weight.grad is None for weight in video_unet.parameters())
    assert all(torch.equal(value, before[name]) for name, value in video_unet.state_dict().items())


@pytest.mark.parametrize("motion", [False, True])
def test_gradient_checkpointing_changes_no_gradient(video_unet, motion):
    for weight in video_unet.motion_parameters():
        weight.requires_grad_(motion)
    video_unet.train()
    plain = gradients(video_unet)
    weights = [weight.grad for weight in video_unet.motion_parameters()]
    video_unet.zero_grad()
    video_unet.unet.enable_gradient_checkpointing()
    assert any(getattr(module, "gradient_checkpointing", False) for module in video_unet.modules())
    torch.testing.assert_close(gradients(video_unet), plain, rtol=1e-5, atol=1e-7)
    for weight, expected in zip(video_unet.motion_parameters(), weights, strict=True):
        if motion:
            torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-7)
        else:
            assert weight.grad is None


def test_motion_and_image_parameters_are_the_adapters_and_the_unets(video_unet):
    def sizes(weights):
        return sorted(tuple(weight.shape) for weight in weights)

    assert sizes(video_unet.motion_parameters()) == sizes(tiny_adapter().parameters())
    assert sizes(video_unet.image_parameters()) == sizes(tiny_unet().parameters())


def test_motion_modules_train_and_the_image_layers_never_do(video_unet):
    assert not any(weight.requires_grad for weight in video_unet.parameters())
    assert not any(module.training for module in video_unet.train().unet.modules())
    for weight in video_unet.motion_parameters():
        weight.requires_grad_()
    video_unet.train()
    training = {name for name, module in video_unet.unet.named_modules() if module.training}
    assert training
    assert all(".motion_modules." in name for name in training)
    gradients(video_unet)
    assert all(weight.grad is not None for weight in video_unet.motion_parameters())
    assert all(weight.grad is None for weight in video_unet.image_parameters())
    assert not any(module.training for module in video_unet.eval().modules())


def test_trained_motion_modules_are_saved_as_an_adapter(video_unet, tmp_path):
    with torch.no_grad():
        for weight in video_unet.motion_parameters():
            weight.mul_(1.5)
    video_unet.unet.save_motion_modules(tmp_path)
    again = SemanticVideoUNet.from_parts(tiny_unet(), load_motion_adapter(tmp_path))
    assert torch.equal(predict(again), predict(video_unet))


@pytest.mark.parametrize("frames", [1, 6])
def test_any_number_of_frames_that_the_motion_modules_support(video_unet, frames):
    latents, semantic = random(2, 4, frames, 8, 8), random(2, frames, 2, WIDTH)
    assert torch.isfinite(predict(video_unet, semantic, latents)).all()


def test_what_does_not_fit_is_refused(video_unet):
    with pytest.raises(UserError, match=r"7 frames requested.*at most 6"):
        predict(video_unet, None, random(2, 4, 7, 8, 8))
    with pytest.raises(UserError, match=r"width 24 .* width 16: .*context_width=16"):
        predict(video_unet, random(2, 3, 2, 24))
    with pytest.raises(ValueError, match="2 clips of 3 frames"):
        predict(video_unet, SEMANTIC[:, :2])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mid_block_type", {"mid_block_type": None}),
        ("upcast_attention", {"upcast_attention": True}),
        ("flip_sin_to_cos", {"flip_sin_to_cos": False}),
        (
            "addition_embed_type",
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
        ),
    ],
)
def test_a_unet_that_would_be_computed_differently_is_refused(name, change):
    with pytest.raises(UserError, match=name):
        SemanticVideoUNet.from_parts(tiny_unet(**change), tiny_adapter())


def test_an_adapter_for_another_unet_is_refused():
    with pytest.raises(UserError, match="motion_norm_num_groups is 4"):
        SemanticVideoUNet.from_parts(tiny_unet(), tiny_adapter(motion_norm_num_groups=4))
    with pytest.raises(UserError, match="block_out_channels"):
        SemanticVideoUNet.from_parts(tiny_unet(), tiny_adapter(block_out_channels=(16, 16)))


def test_boundary_frames_are_imposed_and_the_others_attend_to_them(video_unet):
    start, end = random(2, 4, 8, 8, seed=5), random(2, 4, 8, 8, seed=6)
    imposed = with_boundary_frames(LATENTS, start, end)
    assert torch.equal(imposed[:, :, 0], start)
    assert torch.equal(imposed[:, :, 2], end)
    assert torch.equal(imposed[:, :, 1], LATENTS[:, :, 1])
    middle = (predict(video_unet, latents=imposed) - predict(video_unet))[:, :, 1]
    assert middle.abs().amax((1, 2, 3)).min() > 1e-3


def test_boundary_frames_that_do_not_fit_are_refused():
    start, end = random(2, 4, 8, 8), random(2, 4, 8, 6)
    with pytest.raises(UserError, match=r"end frame's latents are \(2, 4, 8, 6\)"):
        with_boundary_frames(LATENTS, start, end)
    with pytest.raises(UserError, match="clip of 1 frame"):
        with_boundary_frames(LATENTS[:, :, :1], start, start)


def test_loading_logs_no_warning(caplog):
    SemanticVideoUNet.from_parts(tiny_unet(), tiny_adapter())
    assert caplog.text == ""
