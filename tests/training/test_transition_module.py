"""Training of the video model at tiny size: which weights learn, from which error, and the checkpoint's content."""

from dataclasses import replace

import pytest
import torch

from storydiffusion.models.boundary_frames import with_boundary_frames
from storydiffusion.training.build_training import build_trainer
from storydiffusion.training.build_transition import build_transition_module
from storydiffusion.training.clip_noise import draw_clip_noise
from storydiffusion.training.diffusion_loss import semantic_loss
from storydiffusion.training.transition_module import TransitionModule
from tests.helpers.processes import in_child
from tests.helpers.transition_module import step
from tests.helpers.video_model import FRAMES


def trained(module: TransitionModule) -> set[str]:
    return {name for name, weight in module.named_parameters() if weight.requires_grad}


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


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
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


def test_gradient_checkpointing_keeps_gradients(make, batch):
    gradients = []
    for checkpointing in (False, True):
        module = make("predictor", "motion_module", gradient_checkpointing=checkpointing)
        step(module, batch)["loss"].backward()
        gradients.append({name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
