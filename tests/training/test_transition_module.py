"""Training of the video model at tiny size: which weights learn, from which error, and the checkpoint's content."""

import copy
from dataclasses import replace

import pytest
import torch

from storydiffusion.commands.train import build_trainer
from storydiffusion.data.loader import ClipBatch
from storydiffusion.errors import UserError
from storydiffusion.loaders.video import SENTENCES, encode_example_words
from storydiffusion.models.boundary_frames import with_boundary_frames
from storydiffusion.models.predictor_files import load_predictor, save_predictor
from storydiffusion.training.build_transition import build_transition_module, build_video_model
from storydiffusion.training.clip_noise import _get_seed, draw_clip_noise
from storydiffusion.training.diffusion_loss import semantic_loss
from storydiffusion.training.run_config import check_same_config
from storydiffusion.training.transition_module import TransitionModule
from tests.helpers.processes import in_child
from tests.helpers.video_model import FRAMES, SIZE, composed, overrides


@pytest.fixture(scope="module")
def config(tiny_video_model, tmp_path_factory):
    return composed(
        *overrides(tiny_video_model, tmp_path_factory.mktemp("cache")),
        "recipe.boundary_frame_prob=0.5",
        "recipe.teacher_forcing=0",
        "recipe.semantic_weight=0",
    )


@pytest.fixture(scope="module")
def untouched(config):
    """Load the parts once; tests get copies."""
    torch.manual_seed(0)
    model, settings = build_video_model(config, torch.float32)
    with torch.no_grad():  # an untrained predictor's transformer is the identity, and most of its gradients are zero
        for weight in model.predictor.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model, settings


@pytest.fixture
def make(config, untouched):
    """Return a factory of TransitionModules that train `trainable`, with further recipe settings by name."""

    def module(*trainable: str, **recipe) -> TransitionModule:
        model, settings = copy.deepcopy(untouched)
        return TransitionModule(model, replace(config.recipe, trainable=list(trainable), **recipe), settings, {})

    return module


@pytest.fixture(scope="module")
def batch() -> ClipBatch:
    frames = torch.randint(0, 256, (2, FRAMES, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    return ClipBatch(frames.to(torch.uint8), ["a red cat", "the fox runs"], ["a", "b"])


class OneProcess:
    """The trainer's attributes that a step reads; tests/commands/test_train.py uses a real Trainer."""

    world_size, global_rank = 1, 0


def step(module: TransitionModule, batch: ClipBatch) -> dict[str, torch.Tensor]:
    """Compute the first training step of a run, without its optimizer."""
    module.batches = 0
    module._fabric = None
    module._trainer = OneProcess()  # type: ignore[assignment]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module.training_step(batch, 0)


def trained(module: TransitionModule) -> set[str]:
    return {name for name, weight in module.named_parameters() if weight.requires_grad}


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


TRAINABLE = [("predictor",), ("motion_module",), ("predictor", "motion_module")]


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_gradients_reach_exactly_the_trained_weights(make, batch, trainable):
    module = make(*trainable)
    step(module, batch)["loss"].backward()
    moved = {name for name, weight in module.named_parameters() if weight.grad is not None and weight.grad.any()}
    # biases of keys cancel in the softmax: their gradients are rounding or zero
    assert moved <= trained(module)
    assert {name for name in trained(module) - moved if not name.endswith("bias")} == set()
    held = {name for name, weight in module.named_parameters() if weight.grad is not None}
    assert held == trained(module)


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_trained_weights_are_those_of_recipe_trainable(make, trainable):
    names = trained(make(*trainable))
    assert any(name.startswith("predictor.") for name in names) == ("predictor" in trainable)
    assert any(".motion_modules." in name for name in names) == ("motion_module" in trainable)
    assert all(name.startswith("predictor.") or ".motion_modules." in name for name in names)


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_state_dict_has_trained_weights_only_and_loads_strictly(make, trainable):
    module, other = make(*trainable), make(*trainable)
    state = {name: weight + 1 for name, weight in module.state_dict().items()}
    assert set(state) == trained(module)
    other.load_state_dict(state)
    assert all(torch.equal(weight, state[name]) for name, weight in other.state_dict().items())
    missing = dict(list(state.items())[1:])
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(missing)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**state, "other": torch.zeros(1)})


def test_frozen_parts_stay_in_eval_mode(make):
    for trainable in TRAINABLE:
        module = make(*trainable).train()
        assert module.training
        assert module.predictor.training == ("predictor" in trainable)
        training = {name for name, part in module.named_modules() if part.training}
        assert not [name for name in training if name.startswith(("vae", "text_encoder", "image_encoder"))]
        motion = [name for name in training if ".motion_modules." in name]
        assert bool(motion) == ("motion_module" in trainable)
        assert not [name for name in training if name.startswith("video_unet.unet.") and name not in motion]
        module.eval()
        assert not [name for name, part in module.named_modules() if part.training]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trainable", TRAINABLE)
def test_a_module_cast_to_half_precision_trains_without_autocast(make, batch, trainable, dtype):
    """DeepSpeed's engine casts all parameters, frozen ones included but no buffers, and computes outside autocast."""
    weights = {"semantic_weight": 1.0, "text_weight": 1.0} if "predictor" in trainable else {}
    recipe = {"joint_dropout": 0.5, "teacher_forcing": 0.5, **weights}
    exact = step(make(*trainable, **recipe), batch)
    module = make(*trainable, **recipe)
    for weight in module.parameters():
        weight.data = weight.data.to(dtype)
    module.on_fit_start()
    assert module.trained_dtype == dtype
    outputs = step(module, batch)
    assert outputs.keys() == exact.keys()
    for name, value in outputs.items():
        assert value.dtype == exact[name].dtype, name
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.02, msg=name)
    outputs["loss"].backward()
    gradients = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    assert gradients.keys() == trained(module)
    assert all(gradient.dtype == dtype and gradient.isfinite().all() for gradient in gradients.values())


@in_child
def test_fast_kernels_compute_the_same_in_another_layout(config, batch, tmp_path):
    configs = [
        replace(config, run_dir=str(tmp_path), trainer=replace(config.trainer, kernels=kernels))
        for kernels in ("exact", "fast")
    ]
    exact, fast = (build_transition_module(each) for each in configs)
    weight = fast.video_unet.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not exact.video_unet.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(step(fast, batch)["loss"], step(exact, batch)["loss"], rtol=1e-4, atol=1e-5)
    fast.export(tmp_path)
    for each, precision in zip(configs, ("highest", "high"), strict=True):
        build_trainer(each, "auto", [])
        assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
@in_child
def test_compiled_networks_have_no_graph_breaks_and_the_same_gradients(make, batch, checkpointing):
    recipe = {"semantic_weight": 1.0, "gradient_checkpointing": checkpointing}
    plain, compiled = (make("predictor", "motion_module", **recipe) for _ in range(2))
    for network in compiled.trained_networks():
        network.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    losses = [step(module, batch)["loss"] for module in (plain, compiled)]
    for loss in losses:
        loss.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= len(compiled.trained_networks()) - 1
    torch.testing.assert_close(losses[1], losses[0])
    for weight, other in zip(compiled.trained_weights(), plain.trained_weights(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", ["epsilon", "x0", "v"])
def test_loss_falls_on_one_batch(make, batch, loss):
    module = make("predictor", "motion_module", loss=loss)
    optimizer = torch.optim.Adam(module.trained_weights(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = step(module, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]
    assert losses[-1] == min(losses)


def test_given_boundary_frames_are_clean_and_have_no_error(make, batch):
    module = make("predictor")
    clips = module.encode(batch)
    noise = draw_clip_noise(0, range(2), clips.latents.shape[1:], 1000)
    noised = module.diffusion.add_noise(clips.latents, noise.noise, noise.timesteps)
    seen = with_boundary_frames(noised.latents, clips.latents[:, :, 0], clips.latents[:, :, -1])
    predicted = [module.video_unet(x, noise.timesteps, clips.text, None) for x in (seen, noised.latents)]
    between = slice(1, -1)
    given = module.diffusion(predicted[0][:, :, between], noised.frames(between))
    whole = module.diffusion(predicted[1], noised)
    errors = module.errors(noised, torch.tensor([True, False]), clips.text, None)
    torch.testing.assert_close(errors, torch.stack([given[0], whole[1]]))


def test_dropped_semantic_tokens_are_zero(make, batch):
    module = make("predictor", semantic_dropout=1.0)
    dropped = step(module, batch)["errors"]
    clips = module.encode(batch)
    module.batches = 0
    noise = module.noise(clips)
    noised = module.diffusion.add_noise(clips.latents, noise.noise, noise.timesteps)
    zeros = torch.zeros(2, FRAMES, 2, clips.text.shape[-1])
    torch.testing.assert_close(dropped, module.errors(noised, noise.boundary < 0.5, clips.text, zeros))
    assert not torch.allclose(dropped, step(make("predictor", semantic_dropout=0.0), batch)["errors"])


def test_teacher_forced_clips_are_conditioned_on_their_true_frames(make, batch):
    module = make("predictor", teacher_forcing=0.5, semantic_dropout=0.0)
    clips = module.encode(batch)
    noise = draw_clip_noise(0, range(2), clips.latents.shape[1:], 1000)
    context = module.semantic_context(
        module.semantic_tokens(batch.frames), replace(noise, forcing=torch.tensor([0.4, 0.6]))
    )
    features = module.image_encoder.features(batch.frames.flatten(0, 1), module.model.features).unflatten(0, (2, -1))
    torch.testing.assert_close(context[0], module.predictor.context(module.predictor.encode(features[0])))
    predicted = module.predictor(features[:, 0], features[:, -1], FRAMES).context
    torch.testing.assert_close(context[1], predicted[1])
    assert not torch.allclose(context[0], predicted[0])


def test_teacher_forcing_trains_the_token_encoder_and_not_the_transformer(make, batch):
    module = make("predictor", teacher_forcing=1.0)
    step(module, batch)["loss"].backward()
    learning = {name.split(".")[0] for name, weight in module.predictor.named_parameters() if weight.grad.any()}
    assert learning == {"to_tokens", "context_projection", "context_norm"}


def test_under_full_teacher_forcing_other_gradients_ignore_the_transformer(make, batch):
    gradients = []
    for has_transformer in (True, False):
        module = make("predictor", "motion_module", teacher_forcing=1.0, semantic_weight=0.5 * has_transformer)
        if not has_transformer:
            module.predictor = module.predictor.without_transformer()
        step(module, batch)["loss"].backward()
        gradients.append({name: weight.grad for name, weight in module.named_parameters() if weight.requires_grad})
    with_it, without = gradients
    assert {name.split(".")[1] for name in with_it.keys() - without.keys()} == {"layers", "positions"}
    for name, gradient in without.items():
        torch.testing.assert_close(with_it[name], gradient, msg=name)


def test_semantic_error_is_added(make, batch):
    weighted = make("predictor", semantic_weight=2.0)
    outputs = step(weighted, batch)
    assert outputs["semantic"].shape == (2,)
    torch.testing.assert_close(outputs["losses"], outputs["errors"] + 2 * outputs["semantic"])
    torch.testing.assert_close(outputs["loss"], outputs["losses"].mean())
    torch.testing.assert_close(outputs["errors"], step(make("predictor"), batch)["errors"])


def test_semantic_error_compares_with_tokens_of_the_true_frames(make, batch):
    module = make("predictor", semantic_weight=1.0)
    features = module.image_encoder.features(batch.frames.flatten(0, 1), module.model.features).unflatten(0, (2, -1))
    motion = module.predictor(features[:, 0], features[:, -1], FRAMES)
    true = module.semantic_tokens(batch.frames)
    torch.testing.assert_close(true[1], module.predictor.encode(features[1]))
    torch.testing.assert_close(module.semantic_errors(true), semantic_loss(motion.tokens, true))


def test_errors_are_weighted_and_those_of_weight_zero_not_computed(make, batch, monkeypatch):
    both = step(make("predictor", semantic_weight=1.0), batch)
    weighted = step(make("predictor", semantic_weight=1.0, diffusion_weight=0.25), batch)
    torch.testing.assert_close(weighted["losses"], 0.25 * both["errors"] + both["semantic"])

    semantic_only = make("predictor", semantic_weight=1.0, diffusion_weight=0.0)
    monkeypatch.setattr(semantic_only.video_unet, "forward", None)
    outputs = step(semantic_only, batch)
    assert outputs.keys() == {"loss", "losses", "semantic"}
    torch.testing.assert_close(outputs["losses"], both["semantic"])


def test_semantic_error_trains_the_transformer_alone(make, batch):
    module = make("predictor", semantic_weight=1.0)
    module.semantic_errors(module.semantic_tokens(batch.frames)).sum().backward()
    learning = {name.split(".")[0] for name, weight in module.predictor.named_parameters() if weight.grad is not None}
    assert "layers" in learning
    assert learning <= {"layers", "positions"}


def text_only(make, **recipe) -> TransitionModule:
    return make("predictor", diffusion_weight=0.0, text_weight=1.0, **recipe)


def test_text_error_is_that_of_the_frames_tokens_against_the_caption(make, batch, monkeypatch):
    module = text_only(make)
    monkeypatch.setattr(module.video_unet, "forward", None)  # the U-Net is skipped
    outputs = step(module, batch)
    features = module.image_encoder.features(batch.frames.flatten(0, 1), module.model.features)
    context = module.predictor.context(module.predictor.encode(features)).unflatten(0, (2, FRAMES))
    states = module.text_encoder(batch.captions)[:, 1:3]  # of the two words after the start token
    words = encode_example_words(module.model)
    expected = (context - states[:, None]).square().mean((1, 2, 3)) / words.var()
    torch.testing.assert_close(outputs["text"], expected)
    assert outputs.keys() == {"loss", "losses", "text"}
    torch.testing.assert_close(outputs["losses"], outputs["text"])


def test_text_error_of_captioned_frames(make, batch):
    module = text_only(make)
    tokens = module.semantic_tokens(batch.frames)
    of_clips = module.text_errors(tokens, batch.captions)
    repeated = [text for text in batch.captions for _ in range(FRAMES)]
    torch.testing.assert_close(module.text_errors(tokens, repeated), of_clips)
    one = module.text_errors(tokens[:, :1], [repeated[0], repeated[FRAMES]])
    changed = module.text_errors(tokens, [*repeated[:1], *["the fox runs"] * (FRAMES - 1), *repeated[FRAMES:]])
    assert changed[0] != of_clips[0]
    assert changed[1] == of_clips[1]
    assert one.shape == (2,)


def test_a_dropped_caption_has_no_text_error(make, batch):
    module = text_only(make)
    tokens = module.semantic_tokens(batch.frames)
    errors = module.text_errors(tokens, ["", batch.captions[1]])
    assert errors.tolist() == [0, module.text_errors(tokens, batch.captions)[1].item()]


def test_text_error_trains_all_but_the_transformer_and_falls(make, batch):
    module = text_only(make)
    optimizer = torch.optim.Adam(module.trained_weights(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = step(module, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    learning = {name.split(".")[0] for name, weight in module.predictor.named_parameters() if weight.grad is not None}
    assert learning == {"to_tokens", "context_projection", "context_norm"}
    assert losses[-1] < 0.2 * losses[0]


def test_more_tokens_than_a_caption_has_states_are_refused(config):
    many = replace(config.predictor, tokens_per_frame=500)
    recipe = replace(config.recipe, text_weight=1.0)
    with pytest.raises(UserError, match=r"predictor\.tokens_per_frame=500"):
        build_transition_module(replace(config, predictor=many, recipe=recipe))


def test_joint_dropout_takes_text_and_tokens_of_the_same_clips(make, batch):
    module = make("predictor", joint_dropout=0.3, semantic_dropout=0.0)
    clips, tokens = module.encode(batch), module.semantic_tokens(batch.frames)
    noise = replace(draw_clip_noise(0, range(2), clips.latents.shape[1:], 1000), joint=torch.tensor([0.2, 0.4]))
    text, context = module.text(clips, noise), module.semantic_context(tokens, noise)
    empty = module.text_encoder([""])[0]
    assert torch.equal(text[0], empty)
    assert not context[0].any()
    assert torch.equal(text[1], clips.text[1])
    assert torch.equal(
        context[1], module.predictor.context(module.predictor.predict(*tokens[1:, [0, -1]].unbind(1), 4))[0]
    )
    kept = make("predictor", semantic_dropout=0.0)
    assert kept.text(clips, noise) is clips.text
    assert kept.semantic_context(tokens, noise).flatten(1).any(1).all()


def test_joint_draws_occur_at_their_probability_and_leave_the_noise_as_it_was():
    noise = draw_clip_noise(3, range(2000), (2,), 1000)
    assert (noise.joint < 0.1).double().mean().item() == pytest.approx(0.1, abs=0.02)
    both = (noise.joint < 0.5) & (noise.dropout < 0.5)
    assert both.double().mean().item() == pytest.approx(0.25, abs=0.03)
    generator = torch.Generator().manual_seed(_get_seed(3, 0))
    torch.rand(3, generator=generator, dtype=torch.float64)
    assert torch.equal(noise.noise[0], torch.randn(2, generator=generator))


def test_gradient_checkpointing_keeps_gradients(make, batch):
    gradients = []
    for checkpointing in (False, True):
        module = make("predictor", "motion_module", gradient_checkpointing=checkpointing)
        step(module, batch)["loss"].backward()
        gradients.append({name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_noise_depends_on_the_position_not_on_the_processes():
    whole = draw_clip_noise(3, range(8, 12), (2, 3), 1000)
    halves = [draw_clip_noise(3, positions, (2, 3), 1000) for positions in (range(8, 10), range(10, 12))]
    for name in ("noise", "timesteps", "boundary", "dropout", "forcing"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves])), name
    assert len(whole.noise.unique()) == whole.noise.numel()
    other = draw_clip_noise(4, range(8, 12), (2, 3), 1000)
    assert not torch.equal(whole.noise, other.noise)


def test_timesteps_of_consecutive_clips_are_spread_and_all_occur():
    drawn = torch.cat([draw_clip_noise(0, range(8 * i, 8 * i + 8), (1,), 1000).timesteps for i in range(60)])
    gaps = drawn.view(-1, 8).sort().values.diff().float()
    assert gaps.max() < 240, "consecutive timesteps leave a gap"
    assert drawn.view(-1, 8).float().mean(1).sub(500).abs().max() < 110
    assert len(set((drawn // 10).tolist())) == 100


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
