"""Self-attention trained with sharing: stories of one character, what is trained, and what only other panels say."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hydra import compose, initialize_config_dir

from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.config import TrainConfig, load
from storydiffusion.errors import UserError
from storydiffusion.storyworld.edition import EDITIONS, get_edition
from storydiffusion.training.build_training import build_training
from storydiffusion.training.miniature.trained_csa import FOLDER, TrainedCSAModule
from storydiffusion.training.training_run import TrainingRun
from tests.conftest import ROOT
from tests.helpers.world_model import build_world_model


def training(model: Path, folder: Path, *overrides: str, edition: int = 2) -> TrainingRun:
    settings = [
        "experiment=storyworld_trained_csa", "trainer=cpu", "trainer.log_every=1", f"miniature={model}",
        f"cache={folder}/cache", f"run_dir={folder}/run", f"recipe.edition={edition}", "recipe.batch_size=4",
        "recipe.panels=2", "recipe.pictures=8", "recipe.steps=3",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build_training(load(TrainConfig, compose("train", [*settings, *overrides])))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Edition → a model folder of random weights."""
    folder = tmp_path_factory.mktemp("models")
    return {edition: build_world_model(folder / str(edition), edition) for edition in EDITIONS}


@pytest.fixture
def module(models, tmp_path) -> TrainedCSAModule:
    return training(models[2], tmp_path).module


def maps(module: TrainedCSAModule) -> tuple[np.ndarray, np.ndarray]:
    """Return latents that encode their index, those of image k being all k, and characters that cover nothing."""
    channels = module.unet.config["in_channels"]
    latents = np.broadcast_to(np.arange(8, dtype=np.float16)[:, None, None, None], (8, channels, 16, 16)).copy()
    return latents, np.zeros((8, 2, 16, 16), np.uint8)


def test_a_batch_has_whole_stories_of_one_timestep_each(module):
    latents, cover = maps(module)
    for step in range(6):
        batch = module.noised(latents, cover, step)
        assert [story.panels for story in batch.stories] == [2, 2]
        first, second = batch.timesteps.unflatten(0, (2, 2)).T
        assert torch.equal(first, second)
        clean = batch.noised.new_zeros(4)
        alphas = module.scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
        clean = (alphas.sqrt() * batch.noised - (1 - alphas).sqrt() * batch.target).mean((1, 2, 3)).round().int()
        assert torch.equal(clean[1::2], clean[::2] + 1)
        assert bool((clean[::2] % 2 == 0).all())


def test_no_two_stories_draw_alike_and_a_batch_depends_on_its_number_alone(module):
    latents, cover = maps(module)
    batches = [module.noised(latents, cover, step) for step in range(4)]
    keys = [story.key for batch in batches for story in batch.stories]
    assert len(set(keys)) == len(keys)
    again = module.noised(latents, cover, 3)
    for name in ("noised", "target", "timesteps", "tokens", "weights"):
        assert torch.equal(getattr(again, name), getattr(batches[3], name))
    assert (again.rate, [story.key for story in again.stories]) == (batches[3].rate, keys[-2:])


def test_rates_are_drawn_from_those_of_the_recipe(models, tmp_path):
    module = training(models[2], tmp_path, "recipe.rates=[0.25,0.75]").module
    assert {module.noised(*maps(module), step).rate for step in range(20)} == {0.25, 0.75}


def test_all_captions_of_a_story_are_dropped_together(models, tmp_path):
    module = training(models[2], tmp_path, "recipe.caption_dropout=0.5").module
    empty = module.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    dropped = [(module.noised(*maps(module), step).tokens == empty).all(1).unflatten(0, (2, 2)) for step in range(12)]
    assert all(torch.equal(one[:, 0], one[:, 1]) for one in dropped)
    assert {bool(value) for one in dropped for value in one[:, 0]} == {True, False}


@pytest.mark.parametrize("edition", EDITIONS)
def test_panels_share_where_they_show_a_character_in_common(models, tmp_path, edition):
    module = training(models[edition], tmp_path, edition=edition).module
    for story in range(40):
        truths = [module.truth(2 * story), module.truth(2 * story + 1)]
        common = set(module.edition.get_looks(truths[0])) & set(module.edition.get_looks(truths[1]))
        sources = module.group(truths, 0).sources()
        assert bool(sources.any()) == bool(common)
        assert len(common) == (len(module.edition.get_looks(truths[1])))


def test_the_loss_of_a_panel_depends_on_another_only_through_sharing(module):
    latents, cover = maps(module)
    batch = module.noised(latents, cover, 0)
    alone = replace(batch, noised=batch.noised[:2], target=batch.target[:2], timesteps=batch.timesteps[:2])
    alone = replace(alone, tokens=batch.tokens[:2], weights=batch.weights[:2], stories=[PanelGroup(2)])
    changed = replace(alone, noised=torch.cat([alone.noised[:1], alone.noised[1:] + 1]))

    def error_of_first(batch, rate):
        target = torch.cat([batch.target[:1], batch.target[1:].zero_()])
        only_first = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
        with torch.no_grad():
            return module.loss(replace(batch, target=target, weights=only_first, rate=rate))["loss"].item()

    assert error_of_first(changed, 0.0) == pytest.approx(error_of_first(alone, 0.0), rel=1e-6)
    assert error_of_first(changed, 0.5) != pytest.approx(error_of_first(alone, 0.5), rel=1e-6)


def test_training_changes_the_projections_that_share_alone_and_lowers_the_loss(models, tmp_path):
    trained = training(models[2], tmp_path, "recipe.steps=8", "recipe.warmup_steps=1", "recipe.ema_decay=0")
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    trained.fit()
    changed = {name for name, value in trained.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "up_blocks" in name and ".attn1." in name}
    batch = trained.module.noised(*maps(trained.module), 100)
    after = trained.module.loss(batch)["loss"].item()
    trained.module.load_state_dict(before)
    assert after < trained.module.loss(batch)["loss"].item()


def test_the_export_is_a_unet_folder_beside_the_models_own(models, tmp_path):
    trained = training(models[2], tmp_path)
    trained.fit()
    trained.export(tmp_path / "model")
    loaded: Any = UNet2DConditionModel.from_pretrained(tmp_path / "model" / FOLDER, output_loading_info=True)
    unet, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    own = UNet2DConditionModel.from_pretrained(models[2] / "unet").state_dict()
    assert {name for name, value in unet.state_dict().items() if not torch.equal(value, own[name].half().float())} <= {
        name for name in own if ".attn1." in name
    }
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["trained_csa"]["recipe"]["rates"] == [0.25, 0.5, 0.75]
    assert json.loads((tmp_path / "model" / FOLDER / "config.json").read_text())["_name_or_path"] == ""


@pytest.mark.parametrize("edition", EDITIONS)
def test_captions_of_a_story_name_a_part_in_all_panels_one_or_none(edition):
    world, seen = get_edition(edition), set()
    for story in range(60):
        truths = [world.sample_story_member(3, 4 * story + panel, 4) for panel in range(4)]
        captions = world.draw_story_captions(truths, story)
        assert captions == world.draw_story_captions(truths, story)
        looks = [world.get_looks(truth) for truth in truths]
        if [len(each) for each in looks] != [1] * 4:
            continue
        shirt = looks[0][0][3]
        seen.add(sum(bool(re.search(rf"\b{shirt} (\w+ )?shirt", caption)) for caption in captions))
    assert seen == {0, 1, 4}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe.batch_size=5", r"recipe\.batch_size=5 is not a whole number of stories: .* recipe\.panels=2"),
        ("recipe.pictures=1", r"recipe\.pictures=1 is not a whole number of stories"),
        ("recipe.panels=1", r"recipe\.panels=1"),
        ("recipe.rates=[]", r"recipe\.rates=\[\] shares nothing"),
        ("recipe.rates=[0.5,1.5]", r"recipe\.rates=1\.5"),
        ("recipe.caption_dropout=2", r"recipe\.caption_dropout=2"),
        ("recipe.character_weight=-1", r"recipe\.character_weight=-1"),
    ],
)
def test_wrong_settings_are_refused_by_their_values(models, tmp_path, override, said):
    with pytest.raises(UserError, match=said):
        training(models[2], tmp_path, override)


def test_a_model_of_another_edition_is_refused(models, tmp_path):
    with pytest.raises(UserError, match=r"knows other words than edition 2.*recipe\.edition"):
        training(models[1], tmp_path)
