"""Poses of panels: the ControlNet acts on panels with a pose and on no others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.config import InferConfig, load
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.output.manifest import read_manifest
from storydiffusion.pipelines.story import StoryPipeline
from storydiffusion.pipelines.takes import collect_takes, generate_takes
from storydiffusion.story import load_story
from tests.conftest import ROOT
from tests.helpers.controlnet import build_tiny_controlnet
from tests.loaders.test_text_to_image import config

ALONE = ConsistentSelfAttentionConfig(variant="off")
STORY = """
title: Poses
characters: {{Pip: a red cat}}
panels:
  - {{prompt: "[Pip] runs"}}
  - {{prompt: "[Pip] in the park"{pose}}}
"""


@pytest.fixture(scope="module")
def controlnet(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet for the tiny model, whose residuals are not zero."""
    return build_tiny_controlnet(tiny_model, tmp_path_factory.mktemp("controlnet"))


@pytest.fixture
def write_story(tmp_path: Path):
    """Return a function that writes a story whose second panel has a pose, or none."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "pose.png")

    def write(pose: str | None) -> Path:
        file = tmp_path / "story.yaml"
        file.write_text(STORY.format(pose="" if pose is None else f", pose: {pose}"))
        return file

    return write


def generate(folder: Path, story: Path, **changes) -> np.ndarray:
    model = resolve_model(config(folder, **changes))
    output = StoryPipeline.from_model(model)(story, csa=ALONE, num_inference_steps=2, output_type="np")
    return output.images


def test_a_controlnet_acts_on_panels_with_a_pose_alone(tiny_model, controlnet, write_story):
    posed, plain = write_story("pose.png"), generate(tiny_model, write_story(None))
    write_story("pose.png")
    images = generate(tiny_model, posed, controlnet=str(controlnet))
    assert np.array_equal(images[0], plain[0])
    assert not np.allclose(images[1], plain[1], atol=1e-3)
    faint = generate(tiny_model, posed, controlnet=str(controlnet), controlnet_scale=0.0)
    assert np.array_equal(faint, plain)


def test_a_controlnet_computes_the_panels_of_a_chunk_alone(tiny_model, controlnet, write_story):
    pipeline = StoryPipeline.from_model(resolve_model(config(tiny_model, controlnet=str(controlnet))))
    story, sizes = write_story("pose.png"), []
    pipeline.pipe.controlnet.mid_block.register_forward_hook(lambda block, args, output: sizes.append(len(output)))

    def run(panels_at_once: int | None) -> tuple[np.ndarray, set[int]]:
        sizes.clear()
        csa = ConsistentSelfAttentionConfig(anchor_panels=1, panels_at_once=panels_at_once)
        return pipeline(story, csa=csa, num_inference_steps=2, output_type="np").images, set(sizes)

    (joint, whole), (same, one_chunk), (chunked, halves) = run(None), run(2), run(1)
    assert np.array_equal(same, joint)
    assert np.abs(chunked - joint).max() < 1e-4
    assert whole == one_chunk == {2 * size for size in halves}
    assert "forward" not in vars(pipeline.pipe.controlnet)


def test_a_controlnet_in_guess_mode_computes_all_panels_at_once(tiny_model, controlnet, write_story):
    pipeline = StoryPipeline.from_model(resolve_model(config(tiny_model, controlnet=str(controlnet))))
    story = write_story("pose.png")
    joint, chunked = (
        pipeline(
            story,
            csa=ConsistentSelfAttentionConfig(anchor_panels=1, panels_at_once=panels_at_once),
            num_inference_steps=2,
            output_type="np",
            guess_mode=True,
        ).images
        for panels_at_once in (None, 1)
    )
    assert np.abs(chunked - joint).max() < 1e-4


def test_a_pose_lies_beside_its_story(write_story, tmp_path):
    assert load_story(write_story("pose.png")).panels[1].pose == str(tmp_path / "pose.png")


def test_poses_and_controlnet_come_together(infer, tiny_model, controlnet, write_story):
    model = (f"model.path={tiny_model}", "height=64", "width=64", "steps=2", "video=off")
    for pose, given, problem in (
        ("pose.png", (), "panel 2 has a pose, but model.controlnet=null"),
        (None, (f"model.controlnet={controlnet}",), "model.controlnet is set, but no panel has a pose"),
        ("nowhere.png", (f"model.controlnet={controlnet}",), "cannot read the image"),
    ):
        outcome = infer(f"story={write_story(pose)}", *model, *given)
        assert outcome.code == 1
        assert len(outcome.sentences) == 1
        assert problem in outcome.sentences[0]


def test_another_pose_is_another_story(infer, tiny_model, controlnet, write_story, tmp_path):
    story = write_story("pose.png")
    small = ("height=64", "width=64", "steps=2", "video=off", "run_dir=run")
    command = (f"story={story}", f"model.path={tiny_model}", f"model.controlnet={controlnet}", *small)
    assert infer(*command).code == 0
    assert "already exists" in infer(*command).out
    Image.new("RGB", (64, 64), "white").save(tmp_path / "pose.png")
    assert "another story or configuration" in infer(*command).err


@pytest.mark.parametrize("csa", ["csa=off", "csa.panels_at_once=1", "csa.rate=0.5"])
def test_takes_and_edited_panels_have_the_poses_of_their_panels(infer, tiny_model, controlnet, write_story, csa):
    """A take with the prompt and seed of its panel is that panel, with its pose or without one."""
    story = write_story("pose.png")
    csa = [csa, *(["csa.anchor_panels=1"] if "once" in csa else [])]
    plain = ("model.scheduler=ddim", "model.guidance_start=0")
    small = ("height=64", "width=64", "steps=2", "guidance_scale=2.0", "video=off", "run_dir=run", *plain, *csa)
    command = (f"story={story}", f"model.path={tiny_model}", f"model.controlnet={controlnet}", *small)
    assert infer(*command).code == 0
    found = read_manifest(Path("run/manifest.json"))
    for panel in (1, 2):
        assert infer(*command, f"retake={panel}").code == 0
    pipe = StoryPipeline.from_pretrained(tiny_model, controlnet=str(controlnet), scheduler="ddim", guidance_start=0.0)
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 64, "width": 64}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        sharing = load(InferConfig, compose("infer", list(command))).csa.build(0)
    takes = collect_takes(found)
    again = [replace(take, number=1) for take in takes.values()]
    images = generate_takes(pipe, load_story(story), takes, again, sharing, settings)
    for image, panel in zip(images, found.panels, strict=True):
        difference = np.asarray(image, int) - np.asarray(Image.open(Path("run") / panel.file), int)
        assert np.abs(difference).max() <= 1
    story.write_text(story.read_text().replace("runs", "jumps"))  # regenerates a panel without a pose
    assert infer(*command, "overwrite=true").code == 0


def test_a_controlnet_for_another_model_is_named(tiny_model, controlnet, write_story, tmp_path):
    from diffusers import ControlNetModel

    ControlNetModel(
        block_out_channels=(8, 16, 24), norm_num_groups=4, layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, conditioning_embedding_out_channels=(4, 4, 8, 8),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    ).save_pretrained(tmp_path / "other")  # fmt: skip
    with pytest.raises(UserError, match=r"model\.controlnet=.* has block_out_channels \[8, 16, 24\]"):
        generate(tiny_model, write_story("pose.png"), controlnet=str(tmp_path / "other"))


def test_guidance_is_rescaled(tiny_model, write_story):
    story = write_story(None)
    plain, rescaled = generate(tiny_model, story), generate(tiny_model, story, guidance_rescale=0.7)
    assert not np.array_equal(plain, rescaled)
    assert np.array_equal(plain, generate(tiny_model, story, guidance_rescale=0.0))
