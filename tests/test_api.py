"""The public Python API: what `import storydiffusion` offers, and that it generates what the commands generate."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import storydiffusion
from storydiffusion import (
    ConsistentSelfAttentionConfig,
    SemanticMotionPredictor,
    StoryPipeline,
    TransitionPipeline,
    load_story,
)
from storydiffusion.errors import UserError
from storydiffusion.pipelines.story_video import transition_seed
from tests.conftest import build_tiny_model
from tests.helpers.video_model import add_video_parts

SMALL = {"height": 64, "width": 64, "num_inference_steps": 3}


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def files_in(folder: Path) -> np.ndarray:
    return pixels(Image.open(file) for file in sorted(folder.iterdir()))


@pytest.fixture(scope="module")
def pipe(tiny_model) -> StoryPipeline:
    return StoryPipeline.from_pretrained(tiny_model, device="cpu", scheduler="ddim", guidance_start=0.0)


def test_the_package_imports_without_torch():
    code = (
        "import sys, storydiffusion; from storydiffusion import load_story, ConsistentSelfAttentionConfig; "
        "assert not {'torch', 'diffusers', 'transformers', 'hydra'} & set(sys.modules), 'heavy'; "
        "assert storydiffusion.__version__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    assert set(storydiffusion.__all__) <= set(dir(storydiffusion))
    assert all(getattr(storydiffusion, name) is not None for name in storydiffusion.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        storydiffusion.Nothing  # noqa: B018
    assert (Path(storydiffusion.__file__).parent / "py.typed").exists()


def test_a_user_error_is_a_value_error(pipe, story_file):
    with pytest.raises(ValueError, match="output_type"):
        pipe(story_file, output_type="latent")


def test_a_story_has_an_image_a_prompt_and_a_seed_for_each_panel(pipe, story_file):
    output = pipe(story_file, seed=5, **SMALL)
    assert [image.size for image in output.images] == [(64, 64)] * 3
    assert output.prompts[0] == "a red cat runs on the beach"
    assert len(set(output.seeds)) == 3
    assert output.page.width > 3 * 64
    again = pipe(load_story(story_file), seed=5, output_type="np", **SMALL)
    assert again.images.shape == (3, 64, 64, 3)
    assert np.array_equal((again.images * 255).round().astype(np.uint8), pixels(output.images))
    assert again.page.tobytes() == output.page.tobytes()


def test_images_and_frames_equal_those_of_infer(infer, story_file, tmp_path):
    """Of the miniature, bit for bit."""
    settings = ("height=64", "width=64", "steps=2", "seed=4", "csa.rate=0.3", "model.device=cpu")
    video = ("video=on", "cuts=script", "model.video.frames=3", "model.video.steps=1")
    outcome = infer(f"story={story_file}", "run_dir=run", *settings, *video)
    assert outcome.code == 0, outcome.err
    pipe = StoryPipeline.from_pretrained("package://miniature", device="cpu")
    defaults = {"num_inference_steps": 20, "guidance_scale": 3.0, "height": 128, "width": 128}
    assert pipe.defaults.items() >= defaults.items()
    csa = ConsistentSelfAttentionConfig(rate=0.3)
    output = pipe(story_file, seed=4, csa=csa, height=64, width=64, num_inference_steps=2)
    assert np.array_equal(pixels(output.images), files_in(tmp_path / "run" / "panels"))
    assert output.page.tobytes() == Image.open(tmp_path / "run" / "page.png").tobytes()

    transition = TransitionPipeline.from_pretrained("package://miniature", device="cpu")
    clip = transition(
        *output.images[:2], prompt=output.prompts[1], seed=transition_seed(4, 0), num_frames=3, num_inference_steps=1
    )
    strip = np.asarray(Image.open(tmp_path / "run" / "transitions" / "001-002.png"))
    assert np.array_equal(np.concatenate(pixels(clip.frames), axis=1), strip)


def test_a_diffusers_pipeline_is_wrapped_as_it_is(tiny_model, story_file):
    plain = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    output = StoryPipeline(plain)(story_file, csa=ConsistentSelfAttentionConfig(variant="off"), num_inference_steps=2)
    own = plain(
        output.prompts, num_inference_steps=2, generator=[torch.Generator().manual_seed(seed) for seed in output.seeds]
    )
    assert np.array_equal(pixels(output.images), pixels(own.images))


def test_a_callback_sees_every_step_and_may_change_the_latents(pipe, story_file):
    steps = []

    def clear(pipe, step, timestep, tensors):
        steps.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])}

    images = pixels(pipe(story_file, callback_on_step_end=clear, **SMALL).images)
    assert steps == [0, 1, 2]
    assert np.array_equal(images[0], images[1])


def test_a_generator_draws_the_seed(pipe, story_file):
    first, second = (pipe(story_file, generator=torch.Generator().manual_seed(1), **SMALL) for _ in range(2))
    assert first.seeds == second.seeds != pipe(story_file, **SMALL).seeds


@pytest.fixture(scope="module")
def transition(tmp_path_factory) -> TransitionPipeline:
    folder = build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    add_video_parts(folder)
    sizes = {
        "image_width": 16, "width": 8, "layers": 1, "heads": 1, "head_width": 8, "context_width": 16,
        "tokens_per_frame": 2, "resampler_layers": 1, "frames": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    SemanticMotionPredictor(**sizes).save_pretrained(folder / "predictor")
    return TransitionPipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def ends() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(2)]


def test_a_transition_leads_from_start_to_end(transition, ends, tmp_path):
    small = {"num_frames": 4, "num_inference_steps": 2}
    output = transition(*ends, prompt="a cat", seed=3, **small)
    assert len(output.frames) == 4
    assert np.array_equal(output.frames[0], ends[0])
    assert np.array_equal(output.frames[-1], ends[1])
    free = transition(*map(np.asarray, ends), prompt="a cat", seed=3, boundary_frames="free", output_type="np", **small)
    assert free.frames.shape == (4, 64, 64, 3)
    assert not np.array_equal(free.frames[0], np.asarray(ends[0]) / np.float32(255))
    for number, end in enumerate(ends):
        end.save(tmp_path / f"{number}.png")
    again = transition(tmp_path / "0.png", str(tmp_path / "1.png"), "a cat", seed=3, **small)
    assert np.array_equal(pixels(again.frames), pixels(output.frames))
    output.save(tmp_path / "clip.mp4", fps=8)
    assert (tmp_path / "clip.mp4").stat().st_size > 0


def test_a_transition_calls_back_and_draws_its_seed(transition, ends):
    seen = []
    transition(
        *ends, num_frames=4, num_inference_steps=2, generator=torch.Generator().manual_seed(1),
        callback_on_step_end=lambda pipe, step, timestep, tensors: seen.append((step, tensors["latents"].shape)),
    )  # fmt: skip
    assert [step for step, _ in seen] == [0, 1]
    assert transition.to("cpu").to(torch.float32) is transition


def test_wrong_arguments_are_named(tiny_model, transition, ends):
    with pytest.raises(UserError, match="no setting 'speed'"):
        TransitionPipeline.from_pretrained(tiny_model, speed=2)
    with pytest.raises(UserError, match="at most 8"):
        transition(*ends, num_frames=9)
    with pytest.raises(UserError, match="not a local folder"):
        StoryPipeline.from_pretrained("nowhere")
    with pytest.raises(UserError, match="conf/model has no 'sd9'"):
        StoryPipeline.from_pretrained(tiny_model, config="sd9")


def test_a_predictor_is_saved_and_loaded(tmp_path):
    predictor = SemanticMotionPredictor(
        image_width=8, width=8, layers=1, heads=1, head_width=8, context_width=8, tokens_per_frame=2, resampler_layers=1
    ).eval()
    predictor.save_pretrained(tmp_path / "predictor")
    loaded = SemanticMotionPredictor.from_pretrained(tmp_path / "predictor", dtype=torch.float16)
    assert next(loaded.parameters()).dtype == torch.float16
    again = SemanticMotionPredictor.from_pretrained(tmp_path / "predictor")
    for name, tensor in predictor.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
