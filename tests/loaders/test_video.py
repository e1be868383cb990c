"""The video model takes over the networks of the image pipeline instead of loading them again."""

import pytest
import torch

from storydiffusion.loaders import video as video_loader
from storydiffusion.loaders.resolve import ResolvedModel, resolve_pretrained
from storydiffusion.loaders.text_to_image import load_story_model
from storydiffusion.pipelines.transition_sampling import TransitionSampling, sample_clips
from tests.pipelines.test_transition import pictures

SAMPLING = TransitionSampling(frames=4, steps=2, guidance_scale=3.0)


@pytest.fixture(params=[{}, {"guidance_start": 0.5, "guidance_rescale": 0.5}], ids=["plain", "sampled otherwise"])
def model(tiny_video_model, request) -> ResolvedModel:
    return resolve_pretrained(tiny_video_model, "miniature", video={"predictor": None}, **request.param)


def sample(model):
    return sample_clips(model, pictures(1, 0, 64), pictures(1, 1, 64), ["a cat"], [3], SAMPLING)


def test_networks_of_the_panels_pipeline_give_the_same_clip_without_being_loaded_again(model, monkeypatch):
    expected = sample(video_loader.load_video_model(model))
    pipe = load_story_model(model).pipe
    vae, text_encoder = pipe.vae, pipe.text_encoder
    monkeypatch.setattr(video_loader, "load_network", None)
    shared = video_loader.load_video_model(model, pipe)
    assert shared.vae is vae
    assert shared.encode_text.model is text_encoder  # type: ignore[attr-defined]
    assert (pipe.unet, pipe.vae, pipe.text_encoder) == (None, None, None)
    assert torch.equal(sample(shared), expected)


@pytest.mark.parametrize(("choice", "kind"), [("model", "LCMScheduler"), ("ddim", "DDIMScheduler")])
def test_clips_are_sampled_as_panels_or_by_ddim_on_the_same_noise_schedule(tiny_video_model, choice, kind):
    settings = {"predictor": None, "scheduler": choice}
    resolved = resolve_pretrained(tiny_video_model, "miniature", scheduler="lcm", video=settings)
    scheduler = video_loader.load_video_model(resolved).scheduler
    assert type(scheduler).__name__ == kind
    assert scheduler.alphas_cumprod.equal(load_story_model(resolved).pipe.scheduler.alphas_cumprod)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs a CUDA device")
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_gives_the_same_clip(tiny_video_model, offload):
    plain, offloaded = (
        resolve_pretrained(tiny_video_model, "miniature", video={"predictor": None}, device="cuda", offload=choice)
        for choice in ("none", offload)
    )
    pipe = load_story_model(offloaded).pipe
    pipe("a cat", height=64, width=64, num_inference_steps=1)
    shared = video_loader.load_video_model(offloaded, pipe)
    assert torch.equal(sample(shared), sample(video_loader.load_video_model(plain)))
    assert {weight.device.type for weight in shared.video_unet.parameters()} == {"cpu"}
