"""The miniature's diffusion transformer at tiny size: its batches, its attention, its training and its export."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from hydra import compose, initialize_config_dir
from PIL import Image

from storydiffusion.config import TrainConfig, load
from storydiffusion.errors import UserError
from storydiffusion.pipelines.calls import pack
from storydiffusion.training.build_training import build_training
from storydiffusion.training.miniature.captioned_latents import shift_times
from storydiffusion.training.miniature.diffusion_transformer import (
    DiffusionTransformerModule,
    ExplicitFluxAttnProcessor,
    build_scheduler,
    get_positions,
)
from storydiffusion.training.training_run import TrainingRun
from tests.helpers.dit_model import RECIPE, build_dit_model
from tests.helpers.training_state import PowerCut, Steps, add, state
from tests.helpers.world_model import build_mood_model

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_mood_model(tmp_path_factory.mktemp("miniature") / "model")


@pytest.fixture
def module(miniature: Path, tmp_path: Path) -> DiffusionTransformerModule:
    return DiffusionTransformerModule(RECIPE, miniature, tmp_path)


def training(miniature: Path, run: Path, *overrides: str) -> TrainingRun:
    settings = [
        "experiment=storyworld_dit", "trainer=cpu", f"miniature={miniature}", f"run_dir={run}",
        f"cache={miniature.parent}/cache", "trainer.checkpoint_minutes=0", "recipe.steps=4",
        "recipe.batch_size=4", "recipe.pictures=6", "recipe.heads=2", "recipe.head_width=16", "recipe.layers=1",
        "recipe.single_layers=1", "recipe.sample_every=2", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = load(TrainConfig, compose("train", settings))
    torch.manual_seed(0)
    return build_training(config)


def test_tokens_are_packed_and_placed_as_flux_does():
    latents = torch.randn(2, 4, 6, 10)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(get_positions(3, 5), FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32))


def test_noised_tokens_lie_between_the_image_and_the_noise(module):
    latents = np.random.default_rng(0).normal(size=(6, 4, 16, 16)).astype(np.float16)
    shapes = set()
    for step in range(6):
        batch = module.noised(latents, np.zeros((6, 2, 16, 16), np.uint8), step)
        assert bool(((batch.times > 0) & (batch.times < 1)).all())
        clean = batch.noised - batch.times.view(-1, 1, 1) * batch.target  # z_t - t (noise - x)
        values = torch.from_numpy(latents).float().flatten()
        assert (clean[0, 0][:, None] - values).abs().amin(1).max() < 1e-4
        assert batch.positions.shape == (batch.noised.shape[1], 3)
        assert batch.words.shape == (len(batch.noised), 64)
        assert bool((batch.weights == 1).all())
        shapes.add(batch.noised.shape)
    assert shapes == {(4, 64, 16), (2, 128, 16)}


def test_reference_of_a_collage_has_less_noise_and_no_weight(module):
    latents, cover = np.full((6, 4, 16, 16), 5, np.float16), np.zeros((6, 2, 16, 16), np.uint8)
    for step in range(6):
        module.data.recipe = replace(RECIPE, pair_probability=1)
        plain = module.noised(latents, cover, step)
        module.data.recipe = replace(RECIPE, pair_probability=1, reference_probability=1)
        batch = module.noised(latents, cover, step)
        assert sorted(batch.weights.unique().tolist()) == [0, 1]
        assert batch.weights.mean().item() == 0.5
        assert torch.equal(batch.noised[batch.weights == 1], plain.noised[batch.weights == 1])
        assert batch.noised[batch.weights == 0].mean() > plain.noised[batch.weights == 0].mean()
    module.data.recipe = RECIPE


def test_collages_show_one_character_in_both_images(module):
    get_looks = module.data.edition.get_looks
    for step in range(10):
        layout = module.data.draw_pairs(RECIPE.pictures, torch.Generator().manual_seed(step))
        for first, second in module.data.draw_captions(layout, step, torch.Generator()).truths:
            assert len(get_looks(first)) == 1
            assert get_looks(second) == get_looks(first)


def test_collages_need_an_image_of_one_character(module):
    empty = next(k for k in range(0, 1000, 2) if len(module.data.edition.get_looks(module.data._truth(k))) != 1)
    module.data.recipe = replace(RECIPE, pictures=2)
    module.data._truth = lambda index: module.data.edition.sample_pair_member(RECIPE.seed, empty + index)
    with pytest.raises(UserError, match=r"recipe\.pictures=2 has one character"):
        module.data.draw_pairs(2, torch.Generator())


def test_times_are_shifted_logit_normal(miniature, tmp_path):
    module = DiffusionTransformerModule(RECIPE, miniature, tmp_path)
    module.recipe.pair_probability = 0.0
    latents, cover = np.zeros((6, 4, 16, 16), np.float16), np.zeros((6, 2, 16, 16), np.uint8)
    times = torch.cat([module.noised(latents, cover, step).times for step in range(100)])
    module.recipe.pair_probability = RECIPE.pair_probability
    logits = times.logit()
    assert logits.mean().item() == pytest.approx(math.log(RECIPE.timestep_shift), abs=0.05)
    assert logits.std().item() == pytest.approx(1, abs=0.07)


def test_sampling_steps_are_shifted_as_in_training():
    scheduler = build_scheduler(RECIPE)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])  # as FLUX's pipeline spaces four steps
    expected = shift_times(torch.tensor([1.0, 0.75, 0.5, 0.25]), RECIPE.timestep_shift)
    assert torch.allclose(scheduler.sigmas[:-1], expected)
    assert expected[2] == 0.75


def test_new_transformer_predicts_zero_and_learns_from_every_layer(module):
    latents = np.random.default_rng(0).normal(size=(6, 4, 16, 16)).astype(np.float16)
    batch = module.noised(latents, np.zeros((6, 2, 16, 16), np.uint8), 0)
    terms = module.loss(batch)
    assert terms["loss"].item() == pytest.approx(batch.target.square().mean().item())
    optimizer = torch.optim.SGD(module.transformer.parameters(), lr=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        module.loss(batch)["loss"].backward()
        optimizer.step()
    still = {name for name, p in module.transformer.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()
    assert all(p.grad is None for p in module.text_encoder.parameters())


def test_explicit_attention_equals_that_of_diffusers(tmp_path):
    pipe = FluxPipeline.from_pretrained(build_dit_model(tmp_path), torch_dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    arguments = {
        "hidden_states": torch.randn(2, 64, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, 8, 16, generator=generator),
        "pooled_projections": torch.randn(2, 16, generator=generator),
        "timestep": torch.tensor([0.3, 0.9]),
        "img_ids": get_positions(8, 8),
        "txt_ids": torch.zeros(8, 3),
        "return_dict": False,
    }
    outputs = []
    for processor in (FluxAttnProcessor(), ExplicitFluxAttnProcessor()):
        pipe.transformer.set_attn_processor(processor)
        with torch.no_grad():
            outputs.append(pipe.transformer(**arguments)[0])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    assert outputs[0].std() > 0.01


def test_training_resumes_bit_equal_writes_samples_and_exports(miniature, tmp_path):
    whole = training(miniature, tmp_path / "whole")
    whole.fit()
    cut = training(miniature, tmp_path / "cut")
    add(cut, PowerCut(2))
    with pytest.raises(ConnectionAbortedError):
        cut.fit()
    resumed = training(miniature, tmp_path / "cut")
    with torch.no_grad():
        for parameter in resumed.module.transformer.parameters():
            parameter.add_(1)  # so that only the checkpoint can restore them
    steps = add(resumed, Steps())
    resumed.fit()
    assert steps.seen == [2, 3]
    assert state(resumed).keys() == state(whole).keys()
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[name]), name
    for step in (2, 4):
        with Image.open(tmp_path / "whole" / "samples" / f"{step:06d}.png") as sheet:
            assert sheet.size == (8 * 128, 128)
    whole.export(tmp_path / "model")
    pipe = FluxPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    average = whole.ema.average["transformer.proj_out.weight"]
    torch.testing.assert_close(pipe.transformer.proj_out.weight, average, atol=1e-3, rtol=1e-3)
    assert json.loads((tmp_path / "model" / "storydiffusion.json").read_text()) == {"kind": "miniature", "edition": 2}
    assert {"dit", "attribute_classifier"} <= json.loads((tmp_path / "model" / "training.json").read_text()).keys()
    assert (tmp_path / "model" / "image_encoder").is_dir()


def test_transformer_is_not_exported_among_the_parts_of_the_unet(miniature, tmp_path):
    with pytest.raises(UserError, match=rf"export={miniature}.*folder of its own"):
        training(miniature, tmp_path, f"export={miniature}")


def test_a_folder_of_other_words_is_refused(miniature, tmp_path):
    with pytest.raises(UserError, match="knows other words than edition 1"):
        training(miniature, tmp_path, "recipe.edition=1")


def test_longer_captions_than_the_text_encoder_takes_are_refused(miniature, tmp_path):
    with pytest.raises(UserError, match=r"recipe\.text_tokens=78.*77"):
        training(miniature, tmp_path, "recipe.text_tokens=78")


@pytest.mark.parametrize(
    ("override", "value"), [("layers=-1", "-1"), ("heads=0", "0"), ("head_width=24", "24"), ("text_tokens=1", "1")]
)
def test_error_names_invalid_values(miniature, tmp_path, override, value):
    with pytest.raises(UserError, match=rf"recipe\.{override.split('=')[0]}={value}"):
        training(miniature, tmp_path, f"recipe.{override}")
