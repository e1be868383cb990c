"""The video model's loss, section 3.2 of arXiv 2405.01434: Loss = MSE(G, O), here on the diffusion target.

With a_t = √ᾱ_t, s_t = √(1 − ᾱ_t), clean latents x_0 and noise ε:

    x_t = a_t x_0 + s_t ε          noised latents                          (2006.11239, Eq. 4)
    v   = a_t ε − s_t x_0          the velocity                            (2202.00512, appendix D)

A network predicts ε or v; the error may be measured in ε, x_0 or v. Given the noised latents, each of the three
determines the other two, so the choice only weights the timesteps. With SNR = a_t² / s_t²:

    MSE(x_0) = MSE(ε) / SNR        MSE(v) = MSE(ε) · (1 + 1 / SNR)        MSE(v) = MSE(x_0) · (1 + SNR)

Shapes: B batch, … anything after it, (C, F, H, W) for a clip's latents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from storydiffusion.errors import UserError

Convert = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ErrorSpace:
    """A quantity in which the error can be measured, from float32 tensors and the amplitudes a_t and s_t.

    target: (x_0, ε, a_t, s_t) → its true value. from_epsilon, from_v: (prediction, x_t, a_t, s_t) → its value for a
    network that predicts ε or v. Conversion from ε divides by a_t, so the schedule must not reach a_T = 0.
    """

    target: Convert
    from_epsilon: Convert
    from_v: Convert


ERROR_SPACES: Mapping[str, ErrorSpace] = {
    "epsilon": ErrorSpace(
        target=lambda clean, noise, signal, sigma: noise,
        from_epsilon=lambda predicted, latents, signal, sigma: predicted,
        from_v=lambda predicted, latents, signal, sigma: signal * predicted + sigma * latents,
    ),
    "x0": ErrorSpace(
        target=lambda clean, noise, signal, sigma: clean,
        from_epsilon=lambda predicted, latents, signal, sigma: (latents - sigma * predicted) / signal,
        from_v=lambda predicted, latents, signal, sigma: signal * latents - sigma * predicted,
    ),
    "v": ErrorSpace(
        target=lambda clean, noise, signal, sigma: signal * noise - sigma * clean,
        from_epsilon=lambda predicted, latents, signal, sigma: (predicted - sigma * latents) / signal,
        from_v=lambda predicted, latents, signal, sigma: predicted,
    ),
}
"""recipe.loss → the space in which the error is measured; one entry adds a loss."""

PREDICTION_TYPES: Mapping[str, str] = {"epsilon": "epsilon", "v_prediction": "v"}
"""prediction_type of diffusers' schedulers → the space of the network's output."""


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class NoisedLatents:
    """`latents` x_t, `clean` x_0 and `noise` ε, all (B, …); `timesteps` int64 (B,)."""

    latents: Tensor
    clean: Tensor
    noise: Tensor
    timesteps: Tensor

    def frames(self, chosen: slice) -> "NoisedLatents":
        """Return some frames of clips (B, C, F, H, W): `slice(1, -1)` where the boundary frames are given."""
        latents, clean, noise = (whole[:, :, chosen] for whole in (self.latents, self.clean, self.noise))
        return NoisedLatents(latents, clean, noise, self.timesteps)


class DiffusionLoss:
    """Add noise to clean latents and compute the error of a network's prediction.

    Args:
        alphas_cumprod: (T,) ᾱ_t of the scheduler.
        prediction_type: what the network predicts, a key of `PREDICTION_TYPES`.
        objective: where the error is measured, a key of `ERROR_SPACES`.

    Raises:
        UserError: unknown prediction type or objective.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str, objective: str = "epsilon") -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"the scheduler's prediction_type is {prediction_type!r}: use a model with "
                f"{' or '.join(PREDICTION_TYPES)}"
            )
        if objective not in ERROR_SPACES:
            raise UserError(f"the loss objective {objective!r} is unknown: choose {', '.join(ERROR_SPACES)}")
        self.alphas_cumprod = alphas_cumprod.float()
        self.predicts = PREDICTION_TYPES[prediction_type]
        self.objective = objective

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> NoisedLatents:
        """Noise clean latents (B, …) by standard normal noise at timesteps (B,) in [0, T), in the dtype of `clean`."""
        signal, sigma = self._amplitudes(timesteps, clean.ndim)
        latents = signal * clean.float() + sigma * noise.float()
        return NoisedLatents(latents.to(clean.dtype), clean, noise, timesteps)

    def target(self, noised: NoisedLatents) -> Tensor:
        """Return the true value in the objective's space, float32 (B, …)."""
        clean, noise = noised.clean.float(), noised.noise.float()
        return ERROR_SPACES[self.objective].target(clean, noise, *self._amplitudes(noised.timesteps, clean.ndim))

    def convert(self, predicted: Tensor, noised: NoisedLatents, to: str) -> Tensor:
        """Convert the network's output (B, …) to the space `to`, a key of `ERROR_SPACES`, in float32."""
        convert = ERROR_SPACES[to].from_v if self.predicts == "v" else ERROR_SPACES[to].from_epsilon
        latents = noised.latents.float()
        return convert(predicted.float(), latents, *self._amplitudes(noised.timesteps, latents.ndim))

    def __call__(self, predicted: Tensor, noised: NoisedLatents) -> Tensor:
        """Return each sample's mean squared error over all elements in the objective's space, float32 (B,)."""
        if predicted.shape != noised.clean.shape:
            raise ValueError(f"predicted {tuple(predicted.shape)} for latents {tuple(noised.clean.shape)}")
        error = self.convert(predicted, noised, self.objective) - self.target(noised)
        return error.square().flatten(1).mean(1)

    def _amplitudes(self, timesteps: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
        """Return a_t and s_t, each (B, 1, …) with `dimensions` dimensions."""
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, *[1] * (dimensions - 1))
        return alphas.sqrt(), (1 - alphas).sqrt()


def semantic_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Return the mean squared error of semantic tokens P_1…P_F against the true frames' own, (B, F, N, width) → (B,).

    Each token is first normalized to mean 0 and variance 1: their scale is free, because the cross-attention normalizes
    them too. The paper trains only on the diffusion target; this optional term is an addition.
    """
    if predicted.shape != true.shape:  # broadcasting would hide the mismatch
        raise ValueError(f"semantic tokens {tuple(predicted.shape)} against true ones {tuple(true.shape)}")
    predicted, true = (F.layer_norm(tokens.float(), tokens.shape[-1:]) for tokens in (predicted, true))
    return (predicted - true).square().flatten(1).mean(1)


def text_loss(context: Tensor, states: Tensor, variance: float) -> Tensor:
    """Return the mean squared error of the frames' semantic context against the text encoder's states, over `variance`.

    Both are (B, F, N, D); the result is (B,): about 1 for tokens that say nothing, 0 for tokens that stand for the
    caption. An addition to the paper: with the diffusion loss only, tokens learn one attribute after another, the
    largest area first.
    """
    if context.shape != states.shape:  # broadcasting would hide the mismatch
        raise ValueError(f"semantic context {tuple(context.shape)} against text states {tuple(states.shape)}")
    return (context.float() - states.float()).square().flatten(1).mean(1) / variance
