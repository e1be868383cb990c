"""Transitions by sampling, at tiny random weights: what they start from, what is imposed, how they join to a story."""

import copy
import dataclasses

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from storydiffusion.errors import UserError
from storydiffusion.loaders.schedulers import SCHEDULERS, build_scheduler
from storydiffusion.models.video_model import VideoModel
from storydiffusion.pipelines import transition_sampling as transitions
from storydiffusion.pipelines.transition_sampling import (
    TransitionSampling,
    decode_frames,
    encode_images,
    keep_latents,
    sample_clips,
    sample_latents,
)
from tests.helpers.tiny_video_model import encode_text, tiny_predictor, tiny_video_model
from tests.models.test_video_unet import random

SAMPLING = TransitionSampling(frames=4, steps=3, guidance_scale=3.0)
SEMANTIC = dataclasses.replace(SAMPLING, boundary_frames="free")


def pictures(count: int, seed: int, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


START, END = pictures(2, 0), pictures(2, 1)
PROMPTS, SEEDS = ["a cat", "a red fox"], [5, 6]
NO_TEXT = [""] * len(PROMPTS)


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return tiny_video_model()


def sample(model, sampling=SAMPLING, start=START, end=END, prompts=PROMPTS, seeds=SEEDS):
    return sample_clips(model, start, end, prompts, seeds, sampling)


def test_clamped_boundary_frames_are_the_given_images_pixel_for_pixel(model):
    frames = sample(model)
    assert frames.shape == (2, 4, 3, 16, 16)
    assert frames.dtype == torch.uint8
    assert torch.equal(frames[:, 0], START)
    assert torch.equal(frames[:, -1], END)


def inputs_of_the_unet(model, monkeypatch, sampling):
    seen = []
    forward = model.video_unet.forward

    def recording(latents, timestep, text, semantic):
        seen.append((latents, text, semantic))
        return forward(latents, timestep, text, semantic)

    monkeypatch.setattr(model.video_unet, "forward", recording)
    sample(model, sampling)
    return seen


def test_clamped_boundary_frames_are_clean_in_every_step_and_in_both_halves(model, monkeypatch):
    ends = [encode_images(model.vae, images) for images in (START, END)]
    seen = inputs_of_the_unet(model, monkeypatch, SAMPLING)
    assert len(seen) == 3
    for latents, _, _ in seen:
        for half in latents.chunk(2):
            assert torch.equal(half[:, :, 0], ends[0])
            assert torch.equal(half[:, :, -1], ends[1])


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_noised_boundary_frames_have_the_noise_level_of_each_step(model, monkeypatch, scheduler):
    """With one noise for all steps; the clip ends on the given images."""
    if scheduler == "euler":
        model = dataclasses.replace(model, scheduler=EulerDiscreteScheduler.from_config(model.scheduler.config))
    noised = dataclasses.replace(SAMPLING, boundary_frames="noised", guidance_scale=1.0)
    seen = inputs_of_the_unet(model, monkeypatch, noised)
    schedule = copy.deepcopy(model.scheduler)
    schedule.set_timesteps(noised.steps)
    noise = torch.stack([torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    for (latents, _, _), timestep in zip(seen, schedule.timesteps, strict=True):
        level = schedule.alphas_cumprod[int(timestep)] if scheduler == "ddim" else None
        for images, at in ((START, 0), (END, -1)):
            clean = encode_images(model.vae, images)
            if level is None:  # x_t = x + σ ε, which the network reads divided by √(σ² + 1)
                sigma = schedule.sigmas[(schedule.timesteps == timestep).nonzero()[0, 0]]
                expected = (clean + sigma * noise[:, :, at]) / (sigma**2 + 1).sqrt()
            else:  # x_t = √ᾱ x + √(1 − ᾱ) ε
                expected = level.sqrt() * clean + (1 - level).sqrt() * noise[:, :, at]
            torch.testing.assert_close(latents[:, :, at], expected, rtol=1e-4, atol=1e-4)
    frames = sample(model, noised)
    assert torch.equal(frames[:, 0], START)
    assert torch.equal(frames[:, -1], END)
    assert not torch.equal(frames[:, 1:-1], sample(model, dataclasses.replace(noised, boundary_frames="free"))[:, 1:-1])


def test_free_boundary_frames_are_not_imposed(model, monkeypatch):
    ends = encode_images(model.vae, START)
    for latents, _, _ in inputs_of_the_unet(model, monkeypatch, SEMANTIC):
        assert not torch.allclose(latents[:2, :, 0], ends, atol=1e-2)
    assert not torch.equal(sample(model, SEMANTIC)[:, 0], START)


def test_the_unconditional_half_knows_neither_text_nor_tokens(model, monkeypatch):
    for latents, text, semantic in inputs_of_the_unet(model, monkeypatch, SAMPLING):
        without, prompted = latents.chunk(2)
        assert torch.equal(without, prompted)
        assert torch.equal(text, encode_text(["", "", *PROMPTS]))
        assert semantic[:2].abs().max() == 0
        assert semantic[2:].abs().amax((2, 3)).min() > 0


def test_a_negative_prompt_replaces_no_text_in_guidance(model, monkeypatch):
    seen, forward = [], model.video_unet.forward
    plain = sample(model)

    def recording(latents, timestep, text, semantic):
        seen.append(text)
        return forward(latents, timestep, text, semantic)

    monkeypatch.setattr(model.video_unet, "forward", recording)
    negatives = ["", "a hat"]
    avoided = sample_clips(model, START, END, PROMPTS, SEEDS, SAMPLING, negative_prompts=negatives)
    assert all(torch.equal(text, encode_text([*negatives, *PROMPTS])) for text in seen)
    assert (avoided[0].int() - plain[0].int()).abs().max() <= 1  # rounding
    assert not torch.equal(avoided[1], plain[1])


def test_without_guidance_a_negative_prompt_changes_nothing(model):
    sampling = dataclasses.replace(SAMPLING, guidance_scale=1.0)
    avoided = sample_clips(model, START, END, PROMPTS, SEEDS, sampling, negative_prompts=["a hat", "a hat"])
    assert torch.equal(avoided, sample(model, sampling))


def test_without_guidance_the_batch_is_not_doubled(model, monkeypatch):
    seen = inputs_of_the_unet(model, monkeypatch, dataclasses.replace(SAMPLING, guidance_scale=1.0))
    assert {len(latents) for latents, _, _ in seen} == {2}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_clip_depends_on_its_own_inputs_alone(model, name):
    """Also where every step adds noise."""
    model = dataclasses.replace(model, scheduler=build_scheduler(name, model.scheduler))
    together = sample(model)
    alone = sample(model, start=START[1:], end=END[1:], prompts=PROMPTS[1:], seeds=SEEDS[1:])
    assert (together[1].int() - alone[0].int()).abs().max() <= 1  # rounding
    again = sample(model)
    assert torch.equal(together, again)


@pytest.mark.parametrize("change", [{"prompts": ["a dog", "a hat"]}, {"seeds": [7, 8]}, {"end": START}])
def test_text_seed_and_images_all_matter_to_the_middle(model, change):
    assert not torch.equal(sample(model, **change)[:, 1:-1], sample(model)[:, 1:-1])


def test_semantic_tokens_matter(model):
    without = dataclasses.replace(model, predictor=None)
    assert not torch.equal(sample(without)[:, 1:-1], sample(model)[:, 1:-1])
    still = sample(model, SEMANTIC, end=START)
    moving = sample(model, SEMANTIC)
    assert not torch.equal(still, moving)  # the images reach the paper's form through the tokens alone


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_tokens_of_given_frames_replace_the_predicted_ones(model, guidance_scale):
    """Where they are equal, in a static clip without a transformer, nothing changes; elsewhere they do."""
    static = dataclasses.replace(model, predictor=tiny_predictor(layers=0))
    sampling = dataclasses.replace(SEMANTIC, guidance_scale=guidance_scale)

    def latents(frames: torch.Tensor | None, end: torch.Tensor) -> torch.Tensor:
        return sample_latents(static, START, end, PROMPTS, SEEDS, sampling, keep_latents, NO_TEXT, frames)

    shown = START[:, None].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(latents(shown, START), latents(None, START), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents(shown, END), latents(None, START), rtol=0, atol=1e-4)
    assert not torch.allclose(latents(shown, END), latents(None, END), atol=1e-4)


def test_a_perfect_model_gives_back_the_clip(model, monkeypatch):
    """Whatever the noise: with the true epsilon predicted at every step, DDIM ends on the true latents."""
    true = random(2, 4, 4, 8, 8)
    alphas = model.scheduler.alphas_cumprod

    def oracle(latents, timestep, text, semantic):
        signal, noise = alphas[timestep].sqrt(), (1 - alphas[timestep]).sqrt()
        return (latents - signal * true.repeat(len(latents) // 2, 1, 1, 1, 1)) / noise

    monkeypatch.setattr(model.video_unet, "forward", oracle)
    slow = dataclasses.replace(SEMANTIC, steps=10)
    latents = sample_latents(model, START, END, PROMPTS, SEEDS, slow, keep_latents, NO_TEXT, None)
    torch.testing.assert_close(latents, true, rtol=0, atol=1e-4)


class TextEncoder(torch.nn.Module):
    def forward(self, texts):
        return encode_text(texts)


def test_offloaded_networks_are_on_the_device_only_while_in_use(model, monkeypatch):
    device = torch.device("cpu:0")  # whose name differs from "cpu"
    own = tiny_video_model()
    offloaded = dataclasses.replace(own, encode_text=TextEncoder(), offload_onto=device)
    stages = {
        "vae": [own.vae.encoder, own.vae.decoder],
        "encode_text": [offloaded.encode_text],
        "predictor": [own.predictor],
        "image_encoder": [own.image_encoder.tower["vision_model"]],
        "video_unet": [own.video_unet],
    }
    placed, used = set(), {}
    for name, parts in stages.items():
        network = getattr(offloaded, name)
        monkeypatch.setattr(
            network, "to", lambda to, name=name: (placed.add if to == device else placed.discard)(name), raising=False
        )
        for part in parts:
            part.register_forward_pre_hook(lambda *_, name=name: used.update({name: set(placed)}))
    frames = sample(offloaded)
    conditions = {"encode_text", "predictor", "image_encoder"}
    assert used == {
        "vae": {"vae"}, **dict.fromkeys(conditions, conditions), "video_unet": {"video_unet"}
    }  # fmt: skip
    assert not placed
    assert torch.equal(frames, sample(model))


def test_sampling_leaves_the_scheduler_as_it_was(model):
    sample(model)
    assert model.scheduler.num_inference_steps is None


def test_each_step_is_reported(model):
    steps = []
    sample_clips(
        model, START, END, PROMPTS, SEEDS, SAMPLING, lambda step, timestep, latents: (steps.append(1), latents)[1]
    )
    assert len(steps) == 3


def test_decoding_in_parts_changes_nothing(model, monkeypatch):
    latents = random(2, 4, 5, 8, 8)
    whole = [decode_frames(model.vae, latents)]
    monkeypatch.setattr(transitions, "IMAGES_AT_ONCE", 3)
    whole.append(decode_frames(model.vae, latents))
    assert whole[0].shape == (2, 5, 3, 16, 16)
    assert (whole[0].int() - whole[1].int()).abs().max() <= 1


def test_images_survive_the_vaes_scaling(model):
    """Encoding divides and decoding multiplies by the same factor: seen against the VAE itself."""
    latents = encode_images(model.vae, START)
    with torch.no_grad():
        direct = model.vae(START / 127.5 - 1).sample
    expected = ((direct + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    decoded = decode_frames(model.vae, latents[:, :, None])[:, 0]
    assert (decoded.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("frames", [2, 6])
def test_as_few_and_as_many_frames_as_the_model_places(model, frames):
    assert sample(model, dataclasses.replace(SAMPLING, frames=frames)).shape[1] == frames


def test_what_cannot_be_sampled_is_refused_in_one_sentence(model):
    with pytest.raises(UserError, match=r"16 × 16 pixels, the end image 8 × 8.*one size"):
        sample(model, end=pictures(2, 1, size=8))
    with pytest.raises(UserError, match=r"15 × 15.*divisible by 2"):
        sample(model, start=pictures(2, 0, size=15), end=pictures(2, 1, size=15))
    with pytest.raises(UserError, match=r"frames is 7.*at most 6"):
        sample(model, dataclasses.replace(SAMPLING, frames=7))
    with pytest.raises(UserError, match=r"width 24, .* takes 16.*context_width=16"):
        dataclasses.replace(model, predictor=tiny_predictor(context_width=24))
    with pytest.raises(UserError, match=r"features of width 10, the image encoder gives 8"):
        dataclasses.replace(model, predictor=tiny_predictor(image_width=10))
    with pytest.raises(UserError, match="no image encoder"):
        dataclasses.replace(model, image_encoder=None)


@pytest.mark.parametrize(
    "change", [{"frames": 1}, {"steps": 0}, {"guidance_scale": float("nan")}, {"boundary_frames": "exact"}]
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        TransitionSampling(**change)
