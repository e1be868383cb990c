"""Pairs of one character in two activities, used in a share of the text-to-image training's batches."""

import json
import shutil
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from storydiffusion.config import TrainConfig, load
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import find_model_folder, read_origin
from storydiffusion.storyworld.captions import PLACE_WORDS, caption, draw_pair_prompts, join_prompts
from storydiffusion.storyworld.edition import get_edition
from storydiffusion.storyworld.scene import sample_scene
from storydiffusion.storyworld.scene_captions import caption_scene
from storydiffusion.storyworld.truth import LOOKS, Truth, sample_pair_member, sample_truth
from storydiffusion.training.build_training import build_training
from storydiffusion.training.miniature.text_to_image import draw_embeddings, extend_text_encoder
from storydiffusion.training.miniature.tokenizer import build_tokenizer
from storydiffusion.training.miniature.world_cache import cover_world
from tests.helpers.world_model import build_world_model

ROOT = Path(__file__).resolve().parents[3]


def looks(truth: Truth) -> list[str | None]:
    return [getattr(truth, name) for name in LOOKS]


def test_pair_members_share_looks_and_have_independent_activities():
    pairs = [(sample_pair_member(5, 2 * k), sample_pair_member(5, 2 * k + 1)) for k in range(60)]
    assert all(looks(first) == looks(second) for first, second in pairs)
    assert len({(first.action, second.action) for first, second in pairs}) > 25  # of 36
    assert len({(first.place, second.place) for first, second in pairs}) > 25
    assert len({tuple(looks(first)) for first, _ in pairs}) == 60


def test_first_pair_member_is_the_worlds_truth():
    assert [sample_pair_member(5, k) for k in range(0, 20, 2)] == [sample_truth(5, k) for k in range(0, 20, 2)]


def test_pair_caption_names_both_activities_in_known_words():
    tokenizer = build_tokenizer(1)
    for k in range(300):
        first, second = sample_pair_member(5, 2 * k), sample_pair_member(5, 2 * k + 1)
        text = join_prompts(draw_pair_prompts(first, second, k)).text
        before, _, after = text.rpartition(", and ")
        assert PLACE_WORDS[first.place] in before
        assert PLACE_WORDS[second.place] in after
        tokens = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in tokens
        assert len(tokens) <= tokenizer.model_max_length


def build_first_edition(folder: Path) -> Path:
    """Write a miniature of the first edition: tiny, but for the shipped autoencoder."""
    if not folder.exists():
        build_world_model(folder)
        shutil.rmtree(folder / "vae")
        shutil.copytree(find_model_folder("package://miniature", None) / "vae", folder / "vae")
    return folder


def text2image(tmp_path: Path, *overrides: str):
    if "recipe.warm_start=true" not in overrides:
        overrides = (f"miniature={build_first_edition(tmp_path / 'first')}", *overrides)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose(
            "train",
            ["experiment=storyworld_text2image", "trainer=cpu", f"cache={tmp_path}", "recipe.batch_size=4", *overrides],
        )
    return build_training(load(TrainConfig, composed)).module


@pytest.fixture
def cover() -> np.ndarray:
    """Return shares of a character that covers nothing."""
    return np.zeros((10, 1, 16, 16), np.uint8)


@pytest.fixture
def latents() -> np.ndarray:
    """Return latents that encode their index: those of image k are all k."""
    return np.broadcast_to(np.arange(10, dtype=np.float16)[:, None, None, None], (10, 16, 16, 16)).copy()


def test_pair_batch_joins_two_images_of_one_character(tmp_path, latents, cover):
    module = text2image(tmp_path, "recipe.pair_probability=1")
    shapes = set()
    for step in range(8):
        clean = module.data.draw_pairs(len(latents), torch.Generator().manual_seed(step)).join(latents)
        shapes.add(tuple(clean.shape))
        first, second = clean[:, :, :16, :16], clean[:, :, -16:, -16:]
        assert torch.equal(second, first + 1)
        assert bool((first % 2 == 0).all())
        batch = module.noised(latents, cover, step)
        assert batch.noised.shape == batch.target.shape
        assert batch.tokens.shape == (2, 48)
    assert shapes == {(2, 16, 16, 32), (2, 16, 32, 16)}


def test_without_pairs_every_batch_has_single_images(tmp_path, latents, cover):
    module = text2image(tmp_path, "recipe.pair_probability=0")
    assert {module.noised(latents, cover, step).noised.shape for step in range(8)} == {(4, 16, 16, 16)}


@pytest.mark.parametrize(("shift", "noisiest"), [(1, 0.1), (3, 0.25), (0.5, 1 / 19)])
def test_shifted_timesteps_multiply_the_odds_of_noise(tmp_path, latents, cover, shift, noisiest):
    """Of t = s·u / (1 + (s − 1)·u), a share 1 − 0.9 / (s − 0.9·(s − 1)) is above 0.9."""
    module = text2image(tmp_path, "recipe.pair_probability=0", f"recipe.timestep_shift={shift}")
    timesteps = torch.cat([module.noised(latents, cover, step).timesteps for step in range(300)])
    assert (timesteps >= 900).float().mean().item() == pytest.approx(noisiest, abs=0.02)
    assert 0 <= timesteps.min() < 20
    assert 980 < timesteps.max() < 1000


def test_one_image_of_a_collage_is_clearer_and_not_predicted(tmp_path, latents, cover):
    def noised(step: int, share: float):
        keys = f"recipe.pair_probability=1 recipe.timestep_shift=100 recipe.reference_probability={share}".split()
        return text2image(tmp_path, *keys).noised(latents, cover, step)

    chosen = set()
    for step in range(12):
        batch, plain = noised(step, 1), noised(step, 0)
        assert bool((plain.weights == 1).all())
        for name in ("target", "timesteps", "tokens"):
            assert torch.equal(getattr(batch, name), getattr(plain, name))
        weights = batch.weights.expand_as(batch.noised)
        assert torch.equal(batch.noised[weights == 1], plain.noised[weights == 1])
        halves = batch.weights.chunk(2, dim=2 if batch.weights.shape[2] == 32 else 3)
        assert sorted(half.unique().tolist() for half in halves) == [[0], [1]]
        reference = batch.noised[weights == 0].view(2, -1), plain.noised[weights == 0].view(2, -1)
        assert reference[0].mean() > reference[1].mean() + 0.3  # latents are positive and vanish in noise at this shift
        chosen.add((batch.weights.shape[2], halves[0].unique().item()))
    assert len(chosen) == 4


def test_single_images_have_no_clearer_one(tmp_path, latents, cover):
    keys = "recipe.pair_probability=0 recipe.reference_probability="
    batches = [text2image(tmp_path, *f"{keys}{share}".split()).noised(latents, cover, 3) for share in (0, 1)]
    assert torch.equal(batches[0].noised, batches[1].noised)
    assert bool((batches[1].weights == 1).all())


@pytest.mark.parametrize("share", [0, 1])
def test_errors_on_characters_weigh_more_where_they_are_covered(tmp_path, latents, cover, share):
    module = text2image(tmp_path, f"recipe.pair_probability={share}", "recipe.character_weight=3")
    nowhere = cover.copy()
    cover[:, :, :8], cover[::2, :, 8:12] = 255, 51
    for step in range(4):
        weights = module.noised(latents, cover, step).weights
        assert {round(value, 4) for value in weights.unique().tolist()} <= {3.0, 1.4, 1.0}
        assert bool((weights[..., :8, :16] == 3).all())
        assert bool((weights[:, 0, 12:16] == 1).all())
    plain = text2image(tmp_path, f"recipe.pair_probability={share}")
    assert bool((plain.noised(latents, nowhere, 0).weights == 1).all())


def test_weighted_loss_is_the_mean_of_weighted_squared_errors(tmp_path, latents):
    module = text2image(tmp_path, "recipe.character_weight=3")
    batch = module.noised(latents, np.full((10, 1, 16, 16), 255, np.uint8), 0)
    terms = module.loss(batch)
    assert terms["loss"].item() == pytest.approx(3 * terms["error"].item())


def test_coverage_is_the_share_of_a_latent_position_that_characters_cover():
    edition = get_edition(2)
    covered = cover_world(edition, partial(edition.sample_pair_member, 7), 12)
    for index in range(12):
        masks = edition.character_masks(edition.sample_pair_member(7, index), 128)
        for slot in range(2):
            area = masks[slot].sum() if slot < len(masks) else 0
            assert covered[index, slot].sum() / 255 * 64 == pytest.approx(area, abs=256 * 64 / 510)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("pictures=7", "7"),
        ("pictures=0", "0"),
        ("batch_size=5", "5"),
        ("pair_probability=1.5", "1.5"),
        ("reference_probability=-0.1", "-0.1"),
        ("timestep_shift=0", "0"),
        ("character_weight=-1", "-1"),
        ("binding_weight=-1", "-1"),
    ],
)
def test_error_names_invalid_values(tmp_path, override, value):
    with pytest.raises(UserError, match=rf"recipe\.{override.split('=')[0]}={value}"):
        text2image(tmp_path, f"recipe.{override}")


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    ).eval()  # fmt: skip


def test_extended_text_encoder_encodes_known_captions_alike():
    first, second = build_tokenizer(1), build_tokenizer(2)
    encoder = text_encoder(first)
    extended = extend_text_encoder(encoder, first, second).eval()
    assert len(second) > len(first)
    for index in range(20):
        text = caption(sample_truth(3, index), index)
        states = [
            network(**tokenizer(text, return_tensors="pt")).last_hidden_state
            for network, tokenizer in ((encoder, first), (extended, second))
        ]
        assert torch.equal(*states)


def test_text_encoder_extended_by_nothing_is_unchanged():
    tokenizer = build_tokenizer(2)
    encoder = text_encoder(tokenizer)
    extended = extend_text_encoder(encoder, tokenizer, build_tokenizer(2))
    assert all(torch.equal(value, extended.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_new_words_use_the_directions_of_known_words():
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(40, 4, generator=generator) @ torch.randn(4, 16, generator=generator) + 0.3
    drawn = draw_embeddings(known, 5000)
    torch.testing.assert_close(drawn.mean(0), known.mean(0), atol=0.15, rtol=0)
    assert torch.linalg.matrix_rank(drawn - known.mean(0), rtol=1e-4) == 4
    assert (drawn.norm(dim=1).median() / known.norm(dim=1).median() - 1).abs() < 0.1
    assert torch.equal(drawn, draw_embeddings(known, 5000))


def test_unet_alone_is_trained_where_the_text_encoder_is_frozen(tmp_path):
    frozen = ("recipe.edition=2", "recipe.warm_start=true", "recipe.freeze_text_encoder=true", "recipe.pictures=4")
    module = text2image(tmp_path, *frozen)
    module.prepare_data()
    module.loss(next(iter(module.train_dataloader())))["loss"].backward()
    assert all(weight.grad is None for weight in module.text_encoder.parameters())
    assert all(weight.grad is not None for weight in module.unet.parameters())
    with pytest.raises(UserError, match=r"recipe\.freeze_text_encoder=true .*recipe\.warm_start=true"):
        text2image(tmp_path, "recipe.freeze_text_encoder=true")


def test_second_edition_trains_from_the_first_and_exports_its_words(tmp_path):
    module = text2image(tmp_path, "recipe.edition=2", "recipe.warm_start=true", "recipe.pictures=8")
    module.prepare_data()
    batches = list(islice(module.train_dataloader(), 6))
    assert {batch.tokens.shape[1] for batch in batches} == {77}
    assert all(torch.isfinite(module.loss(batch)["loss"]) for batch in batches[:2])
    module.export(tmp_path / "export")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "export" / "tokenizer")
    for index in range(50):
        tokens = tokenizer(caption_scene(sample_scene(0, index), index)).input_ids
        assert tokenizer.unk_token_id not in tokens
    assert json.loads((tmp_path / "export" / "storydiffusion.json").read_text()) == {"kind": "miniature", "edition": 2}
    assert read_origin(tmp_path / "export") == "miniature"


def test_image_encoder_of_other_words_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"knows other words than edition 2.*warm_start=true"):
        text2image(tmp_path, "recipe.edition=2")
