"""How a training of the video model starts: new weights, given ones, and what does not fit."""

from dataclasses import replace

import pytest
import torch

from storydiffusion.errors import UserError
from storydiffusion.loaders.video import SENTENCES, encode_example_words
from storydiffusion.models.predictor_files import load_predictor, save_predictor
from storydiffusion.training.build_transition import build_transition_module, build_video_model
from storydiffusion.training.run_config import check_same_config
from tests.helpers.video_model import FRAMES


def test_new_predictor_has_the_statistics_of_word_tokens(config, tmp_path):
    model, settings = build_video_model(config, torch.float32)
    words = encode_example_words(model)
    assert words.shape == (len(SENTENCES) * 6, settings["context_width"])
    torch.testing.assert_close(model.predictor.context_norm.weight, words.std(0), check_stride=False)
    torch.testing.assert_close(model.predictor.context_norm.bias, words.mean(0))
    torch.nn.init.ones_(model.predictor.context_norm.weight)
    save_predictor(model.predictor, settings, tmp_path)
    started = replace(config, predictor=replace(config.predictor, start=str(tmp_path)))
    assert (build_video_model(started, torch.float32)[0].predictor.context_norm.weight == 1).all()


def test_predictor_starts_from_one_without_layers(config, tmp_path):
    still = replace(config, predictor=replace(config.predictor, layers=0))
    model, settings = build_video_model(still, torch.float32)
    for weight in model.predictor.parameters():
        torch.nn.init.normal_(weight)
    save_predictor(model.predictor, settings, tmp_path)
    started = build_video_model(
        replace(config, predictor=replace(config.predictor, start=str(tmp_path))), torch.float32
    )[0]
    assert len(started.predictor.layers) == 1
    for name, weight in model.predictor.state_dict().items():
        assert torch.equal(weight, started.predictor.state_dict()[name]), name


def test_interpolation_starts_from_a_predictor(config, tmp_path):
    model, settings = build_video_model(config, torch.float32)
    save_predictor(model.predictor, settings, tmp_path)
    started = replace(config, predictor=replace(config.predictor, layers=0, start=str(tmp_path)))
    interpolation = build_video_model(started, torch.float32)[0].predictor
    assert len(interpolation.layers) == 0
    for name, weight in interpolation.state_dict().items():
        assert torch.equal(weight, model.predictor.state_dict()[name]), name


def test_more_tokens_than_a_caption_has_states_are_refused(config):
    many = replace(config.predictor, tokens_per_frame=500)
    recipe = replace(config.recipe, text_weight=1.0)
    with pytest.raises(UserError, match=r"predictor\.tokens_per_frame=500"):
        build_transition_module(replace(config, predictor=many, recipe=recipe))


def test_new_weights_depend_on_the_seed_alone(config):
    torch.manual_seed(1)
    first = build_transition_module(config).state_dict()
    torch.manual_seed(2)
    second = build_transition_module(config).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_predictor_survives_saving_and_loading(untouched, tmp_path):
    model, settings = untouched
    save_predictor(model.predictor, settings, tmp_path / "predictor")
    again = load_predictor(tmp_path / "predictor")
    features = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model.predictor(*features, FRAMES), again(*features, FRAMES)
    assert torch.equal(expected.tokens, found.tokens)
    assert torch.equal(expected.context, found.context)
    (tmp_path / "predictor" / "config.json").write_text('{"width": 32}')
    with pytest.raises(UserError, match=r"cannot load the predictor in .* differs between"):
        load_predictor(tmp_path / "predictor")
    with pytest.raises(UserError, match="give the folder of a predictor"):
        load_predictor(tmp_path)


def test_error_names_the_key_of_another_configuration():
    stored = {"recipe": {"seed": 1, "steps": 5}, "data": {"frames": 8}}
    check_same_config(stored, {"recipe": {"seed": 1, "steps": 9}, "data": {"frames": 8}}, ("recipe.steps",))
    for wrong, key in (({"seed": 2, "steps": 5}, "recipe.seed=1, not 2"), ({"seed": 1}, "recipe.steps=5, not None")):
        with pytest.raises(UserError, match=key):
            check_same_config(stored, {"recipe": wrong, "data": {"frames": 8}}, ("data",))
    with pytest.raises(UserError, match="another kind"):
        check_same_config(None, stored, ())
