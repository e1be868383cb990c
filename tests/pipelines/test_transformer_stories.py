"""Stories and benchmarks with diffusion transformers: a tiny FLUX of random weights that knows StoryWorld's words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import resolve_pretrained
from storydiffusion.loaders.text_to_image import load_story_model
from storydiffusion.models.prompt_encoding import find_character_tokens
from storydiffusion.pipelines.calls import build_text_arguments, draw_noise, pack, spell_guidance
from storydiffusion.pipelines.story import StoryPipeline
from storydiffusion.story import load_story
from tests.attention.transformers import FAMILIES
from tests.conftest import Outcome
from tests.helpers.dit_model import build_dit_model

SMALL = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "np"}
REGIONS = ("off", "characters")
OFF = ConsistentSelfAttentionConfig(variant="off")
STORY = """
characters: {Mia: a girl in a red shirt}
panels:
  - {prompt: "[Mia] is reading in the park", caption: One.}
  - {prompt: "[Mia] is running on the beach", caption: Two.}
  - {prompt: "[Mia] is waving in the room", caption: Three.}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dit_model(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> StoryPipeline:
    return StoryPipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def story(tmp_path: Path):
    file = tmp_path / "mia.yaml"
    file.write_text(STORY)
    return load_story(file)


def test_without_sharing_a_story_is_what_the_pipeline_makes_of_its_prompts(pipe, story):
    ours = pipe(story, csa=OFF, seed=3, guidance_scale=2.0, **SMALL)
    generators = [torch.Generator().manual_seed(seed) for seed in ours.seeds]
    theirs = pipe.pipe(
        ours.prompts,
        negative_prompt=[""] * 3,
        true_cfg_scale=2.0,
        max_sequence_length=64,
        latents=draw_noise(pipe.pipe, generators, 64, 64),
        **SMALL,
    ).images
    assert np.array_equal(ours.images, theirs)
    unguided = pipe(story, csa=OFF, seed=3, guidance_scale=1.0, **SMALL).images
    assert np.abs(unguided - theirs).max() > 1e-3


def test_positions_and_blocks_change_what_is_shared(pipe, story):
    settings: list[dict[str, Any]] = [{"positions": name} for name in ("same", "beside", "reference")]
    settings += [{"blocks": "joint"}, {"blocks": "single"}, {"rate": 0.0}]
    made = [pipe(story, csa=ConsistentSelfAttentionConfig(**each), **SMALL).images for each in settings]
    plain = pipe(story, csa=OFF, **SMALL).images
    assert np.array_equal(made[-1], plain)
    for n, one in enumerate(made[:-1]):
        assert all(np.abs(one - other).max() > 1e-4 for other in (plain, *made[:n]))
    assert np.array_equal(made[1], pipe(story, **SMALL).images)  # FLUX's default


def test_some_panels_come_out_as_in_the_whole_story(pipe, story):
    whole = pipe(story, csa=OFF, **SMALL).images
    some = pipe(story, csa=OFF, panels=[2, 0], **SMALL).images
    np.testing.assert_allclose(some, whole[[2, 0]], atol=1e-5)


def test_an_interrupted_story_resumes_bit_equal(pipe, story):
    stored = {}

    def keep(pipe, step, timestep, tensors):
        stored[step + 1] = tensors["latents"].clone()

    whole = pipe(story, callback_on_step_end=keep, **SMALL).images
    calls = []
    hook = pipe.pipe.transformer.register_forward_hook(lambda *each: calls.append(1))
    resumed = pipe(story, start=(2, stored[2]), **SMALL).images
    hook.remove()
    assert np.array_equal(resumed, whole)
    assert "forward" not in vars(pipe.pipe.transformer)


def test_what_needs_a_unet_is_refused_by_name(folder, story, pipe):
    with pytest.raises(UserError, match=r"model\.freeu needs a U-Net"):
        StoryPipeline.from_pretrained(folder, freeu={"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4})
    with pytest.raises(UserError, match=r"model\.clip_skip needs a U-Net"):
        StoryPipeline.from_pretrained(folder, clip_skip=1)
    with pytest.raises(UserError, match=r"model\.scheduler=ddim .*flow matching.*model\.scheduler=model"):
        StoryPipeline.from_pretrained(folder, scheduler="ddim")
    with pytest.raises(UserError, match="height=72: give a multiple of 16"):
        pipe(story, **{**SMALL, "height": 72})
    unet = StoryPipeline.from_pretrained(folder.parent / "unet", device="cpu")
    with pytest.raises(UserError, match=r"blocks is 'single', which a U-Net does not have"):
        unet(story, csa=ConsistentSelfAttentionConfig(blocks="single"), **SMALL)


def test_damaged_and_foreign_parts_are_named(folder, tmp_path):
    import shutil

    copy = tmp_path / "dit"
    shutil.copytree(folder, copy)
    index = json.loads((copy / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "SD3Transformer2DModel"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="makes transformer a SD3Transformer2DModel: it must be FluxTransformer2DModel"):
        load_story_model(resolve_pretrained(copy, device="cpu"))
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanPipeline"}))
    with pytest.raises(
        UserError, match=r"contains a WanPipeline: set model\.path to a folder of StableDiffusionPipeline"
    ):
        resolve_pretrained(copy, device="cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_noise_has_the_shape_that_the_pipeline_takes_and_does_not_depend_on_the_batch(name):
    family = FAMILIES[name]()
    arguments = family.arguments([0, 1])
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    noise = draw_noise(family.pipe, generators, arguments["height"], arguments["width"])
    assert noise.shape == arguments["latents"].shape
    alone = draw_noise(family.pipe, [torch.Generator().manual_seed(6)], arguments["height"], arguments["width"])
    assert torch.equal(alone[0], noise[1])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("flux", "true_cfg_scale"),
        ("qwen_image", "true_cfg_scale"),
        ("flux2", "guidance_scale"),
        ("klein", "guidance_scale"),
        ("stable_diffusion_3", "guidance_scale"),
    ],
)
def test_guidance_is_spelled_as_the_pipeline_guides(name, key):
    pipe = FAMILIES[name]().pipe
    assert spell_guidance(pipe, {"guidance_scale": 3.0, "height": 64}) == {key: 3.0, "height": 64}
    takes_negative = name in ("flux", "qwen_image", "stable_diffusion_3")
    assert ("negative_prompt" in build_text_arguments(pipe, ["a cat"], [""])) == takes_negative
    if takes_negative:
        return
    with pytest.warns(UserWarning, match="uses no negative prompts"):
        build_text_arguments(pipe, ["a cat"], ["a hat"])


def test_distilled_guidance_keeps_its_name(monkeypatch):
    pipe = FAMILIES["flux"]().pipe
    pipe.transformer.register_to_config(guidance_embeds=True)
    assert spell_guidance(pipe, {"guidance_scale": 3.5}) == {"guidance_scale": 3.5}
    assert "negative_prompt" not in build_text_arguments(pipe, ["a cat"], [""])


def test_stories_of_the_benchmark_are_generated_and_measured(folder, infer: Callable[..., Outcome], tmp_path):
    settings = (
        "model=miniature_dit", f"model.path={folder}", "model.device=cpu", "steps=2", "benchmark=stories",
        "benchmark.stories=2", "benchmark.batch=2", "csa.positions=reference", f"run_dir={tmp_path}/run",
    )  # fmt: skip
    outcome = infer(*settings)
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["items"]) == 2
    assert "consistency" in result["metrics"]


def test_stories_of_two_characters_share_by_region_whose_iou_is_measured(folder, infer, tmp_path):
    settings = (
        "model=miniature_dit", f"model.path={folder}", "model.device=cpu", "steps=2", "benchmark=stories",
        "benchmark.stories=2", "benchmark.characters=2", "benchmark.set=places", "csa=regions_places",
        f"run_dir={tmp_path}/run",
    )  # fmt: skip
    outcome = infer(*settings)
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"region_iou", "pairs_shown"} < set(result["metrics"])


def test_a_story_shares_by_region_with_the_words_of_its_descriptions(pipe, tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(
        "characters: {Mia: a girl in a red shirt, Tom: a cat}\n"
        "panels: [{prompt: '[Mia] and [Tom] wave in the park'}, {prompt: '[Tom] runs'}, {prompt: '[Mia] waves'}]\n"
    )
    story, words = load_story(file), {"Mia": "a girl in a red shirt", "Tom": "a cat"}
    prompt = "a cat and a girl in a red shirt"
    spelled = pipe.pipe.tokenizer_2.convert_ids_to_tokens(pipe.pipe.tokenizer_2(prompt).input_ids)
    for name, tokens in find_character_tokens(pipe.pipe, prompt, words).items():
        assert "".join(spelled[n] for n in tokens).replace("</w>", "") == words[name].replace(" ", "")
    made = [pipe(story, csa=ConsistentSelfAttentionConfig(regions=each), **SMALL).images for each in REGIONS]
    assert np.abs(made[0] - made[1]).max() > 1e-4


def test_a_story_of_a_transformer_is_a_run_folder(folder, infer: Callable[..., Outcome], tmp_path):
    file = tmp_path / "mia.yaml"
    file.write_text(STORY)
    settings = (
        "model=miniature_dit", f"model.path={folder}", "model.device=cpu", "steps=2", "height=64", "width=64",
        f"story={file}", f"run_dir={tmp_path}/run",
    )  # fmt: skip
    outcome = infer(*settings)
    assert outcome.code == 0, outcome.err
    assert "Expected types" not in outcome.err
    assert len(list((tmp_path / "run" / "panels").glob("*.png"))) == 3
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert any(name.startswith("transformer/") for name in manifest["weights"])
    assert "page.png already exists" in infer(*settings).out + infer(*settings).err


def test_packing_orders_tokens_row_by_row():
    latents = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pack(latents)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
