"""Noise, targets and conversions: algebra, parity with diffusers' schedulers, weights over the timesteps."""

import pytest
import torch
from diffusers import DDIMScheduler

from storydiffusion.errors import UserError
from storydiffusion.training.diffusion_loss import DiffusionLoss, NoisedLatents, semantic_loss

OBJECTIVES = ["epsilon", "x0", "v"]
PREDICTIONS = ["epsilon", "v_prediction"]
SCHEDULERS = {
    "animatediff": DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False),
    "cosine": DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
}


@pytest.fixture(params=SCHEDULERS)
def scheduler(request):
    return SCHEDULERS[request.param]


def noised_clips(loss: DiffusionLoss, timesteps=(3, 500, 900), seed=0) -> NoisedLatents:
    generator = torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(len(timesteps), 4, 5, 6, 6, generator=generator) for _ in range(2))
    return loss.add_noise(clean, noise, torch.tensor(timesteps))


def prediction_for(noised: NoisedLatents, seed=1) -> torch.Tensor:
    return torch.randn(noised.clean.shape, generator=torch.Generator().manual_seed(seed))


def snr(scheduler, timesteps: torch.Tensor) -> torch.Tensor:
    alphas = scheduler.alphas_cumprod[timesteps]
    return alphas / (1 - alphas)


def test_noise_equals_the_schedulers(scheduler):
    noised = noised_clips(DiffusionLoss(scheduler.alphas_cumprod, "epsilon"))
    torch.testing.assert_close(
        noised.latents, scheduler.add_noise(noised.clean, noised.noise, noised.timesteps), rtol=1e-5, atol=1e-6
    )


def test_targets_equal_the_schedulers(scheduler):
    losses = {objective: DiffusionLoss(scheduler.alphas_cumprod, "epsilon", objective) for objective in OBJECTIVES}
    noised = noised_clips(losses["v"])
    velocity = scheduler.get_velocity(noised.clean, noised.noise, noised.timesteps)
    torch.testing.assert_close(losses["v"].target(noised), velocity, rtol=1e-5, atol=1e-6)
    assert torch.equal(losses["epsilon"].target(noised), noised.noise)
    assert torch.equal(losses["x0"].target(noised), noised.clean)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_convert_to_x0_as_in_the_schedulers_step(prediction):
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, prediction_type=prediction
    )
    scheduler.set_timesteps(1000)
    loss = DiffusionLoss(scheduler.alphas_cumprod, prediction)
    for timestep in (1, 400, 999):
        noised = noised_clips(loss, (timestep,))
        predicted = prediction_for(noised)
        step = scheduler.step(predicted, timestep, noised.latents, return_dict=True)
        ours = loss.convert(predicted, noised, "x0")
        torch.testing.assert_close(ours, step.pred_original_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", OBJECTIVES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_perfect_prediction_has_no_error_in_any_space(scheduler, prediction, to):
    loss = DiffusionLoss(scheduler.alphas_cumprod, prediction, to)
    noised = noised_clips(loss)
    perfect = DiffusionLoss(scheduler.alphas_cumprod, prediction, loss.predicts).target(noised)
    torch.testing.assert_close(loss.convert(perfect, noised, to), loss.target(noised), rtol=1e-4, atol=1e-5)
    assert loss(perfect, noised).max() < 1e-8
    assert loss(perfect + 1, noised).min() > 1e-4


@pytest.mark.parametrize("to", OBJECTIVES)
def test_loss_is_the_same_for_a_prediction_converted_to_the_other_type(scheduler, to):
    of_noise = DiffusionLoss(scheduler.alphas_cumprod, "epsilon", to)
    of_velocity = DiffusionLoss(scheduler.alphas_cumprod, "v_prediction", to)
    noised = noised_clips(of_noise)
    velocity = prediction_for(noised)
    noise = of_velocity.convert(velocity, noised, "epsilon")
    torch.testing.assert_close(of_noise.convert(noise, noised, "v"), velocity, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_noise(noise, noised), of_velocity(velocity, noised), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_objectives_differ_by_their_timestep_weights_alone(scheduler, prediction):
    epsilon, x0, v = (DiffusionLoss(scheduler.alphas_cumprod, prediction, objective) for objective in OBJECTIVES)
    noised = noised_clips(epsilon)
    predicted = prediction_for(noised)
    ratio = snr(scheduler, noised.timesteps)
    torch.testing.assert_close(x0(predicted, noised), epsilon(predicted, noised) / ratio, rtol=1e-3, atol=0)
    torch.testing.assert_close(v(predicted, noised), epsilon(predicted, noised) * (1 + 1 / ratio), rtol=1e-3, atol=0)
    torch.testing.assert_close(v(predicted, noised), x0(predicted, noised) * (1 + ratio), rtol=1e-3, atol=0)


def test_default_is_the_papers_loss_for_each_sample():
    loss = DiffusionLoss(SCHEDULERS["animatediff"].alphas_cumprod, "epsilon")
    noised = noised_clips(loss)
    predicted = prediction_for(noised)
    by_hand = [torch.nn.functional.mse_loss(predicted[i], noised.noise[i]) for i in range(3)]
    torch.testing.assert_close(loss(predicted, noised), torch.stack(by_hand))


def test_loss_of_a_sample_is_independent_of_its_batch():
    loss = DiffusionLoss(SCHEDULERS["cosine"].alphas_cumprod, "v_prediction", "x0")
    noised = noised_clips(loss)
    alone = NoisedLatents(noised.latents[1:2], noised.clean[1:2], noised.noise[1:2], noised.timesteps[1:2])
    predicted = prediction_for(noised)
    torch.testing.assert_close(loss(predicted[1:2], alone)[0], loss(predicted, noised)[1])


def test_boundary_frames_can_be_excluded_from_the_loss():
    loss = DiffusionLoss(SCHEDULERS["animatediff"].alphas_cumprod, "epsilon")
    noised = noised_clips(loss)
    predicted = noised.noise.clone()
    predicted[:, :, 0] = predicted[:, :, -1] = 7.0
    middle = slice(1, -1)
    assert loss(predicted[:, :, middle], noised.frames(middle)).max() == 0
    assert loss(predicted, noised).min() > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loss_is_float32_and_gradients_flow(dtype):
    loss = DiffusionLoss(SCHEDULERS["animatediff"].alphas_cumprod, "epsilon", "x0")
    exact = noised_clips(loss)
    noised = loss.add_noise(exact.clean.to(dtype), exact.noise.to(dtype), exact.timesteps)
    assert noised.latents.dtype == dtype
    predicted = prediction_for(noised).to(dtype).requires_grad_()
    value = loss(predicted, noised)
    assert value.dtype == torch.float32
    value.mean().backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()
    assert predicted.grad.abs().sum() > 0


def test_any_shape_after_the_batch_works():
    loss = DiffusionLoss(SCHEDULERS["cosine"].alphas_cumprod, "v_prediction")
    clean, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    noised = loss.add_noise(clean, noise, torch.tensor([0, 999]))
    assert loss(torch.randn(2, 4, 8, 8), noised).shape == (2,)


def test_semantic_loss_is_the_mean_squared_error_of_normalised_tokens():
    predicted, true = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    normal = [
        (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        for x in (predicted, true)
    ]
    by_hand = torch.stack([torch.nn.functional.mse_loss(normal[0][i], normal[1][i]) for i in range(2)])
    torch.testing.assert_close(semantic_loss(predicted, true), by_hand)
    torch.testing.assert_close(semantic_loss(3 * predicted + 1, true), by_hand, rtol=1e-3, atol=1e-3)
    assert semantic_loss(true, true).max() == 0


def test_mismatched_shapes_and_unknown_types_are_refused():
    alphas = SCHEDULERS["cosine"].alphas_cumprod
    with pytest.raises(UserError, match="'sample'"):
        DiffusionLoss(alphas, "sample")
    with pytest.raises(UserError, match="'pixels'"):
        DiffusionLoss(alphas, "epsilon", "pixels")
    loss = DiffusionLoss(alphas, "epsilon")
    noised = noised_clips(loss)
    with pytest.raises(ValueError, match="predicted"):
        loss(noised.noise[:, :, :1], noised)  # would be broadcast
    with pytest.raises(ValueError, match="semantic tokens"):
        semantic_loss(torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5))
