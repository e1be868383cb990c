"""The objective of the video model, section 3.2 of arXiv 2405.01434: Loss = MSE(G, O), here on the diffusion target.

With a_t = √ᾱ_t, s_t = √(1 − ᾱ_t), clean latents x_0 and noise ε:

    x_t = a_t x_0 + s_t ε          noised latents                          (2006.11239, Eq. 4)
    v   = a_t ε − s_t x_0          the velocity                            (2202.00512, appendix D)

A network predicts ε or v; the error may be taken in ε, x_0 or v. With the noised latents known, each of the three gives
the other two exactly, so the choice is one of weights over the timesteps. With SNR = a_t² / s_t²:

    MSE(x_0) = MSE(ε) / SNR        MSE(v) = MSE(ε) · (1 + 1 / SNR)        MSE(v) = MSE(x_0) · (1 + SNR)

Shapes: B batch, … anything after it, (C, F, H, W) for a clip's latents.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from storydiffusion.errors import UserError

Objective = Literal["epsilon", "x0", "v"]
PredictionType = Literal["epsilon", "v_prediction"]  # the names of diffusers' schedulers


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class NoisedLatents:
    """`latents` x_t, `clean` x_0 and `noise` ε, all (B, …); `timesteps` int64 (B,)."""

    latents: Tensor
    clean: Tensor
    noise: Tensor
    timesteps: Tensor

    def frames(self, chosen: slice) -> "NoisedLatents":
        """Some frames of clips (B, C, F, H, W): `slice(1, -1)` where the end frames are given, not predicted."""
        latents, clean, noise = (whole[:, :, chosen] for whole in (self.latents, self.clean, self.noise))
        return NoisedLatents(latents, clean, noise, self.timesteps)


class DiffusionLoss:
    """Noises clean latents, and judges what a network predicts from them.

    Args:
        alphas_cumprod: (T,) ᾱ_t of the scheduler.
        prediction_type: what the network predicts, as its scheduler's config says.
        objective: the space in which the error is taken.

    Raises:
        UserError: for a prediction type or objective that is none of the above.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str, objective: str = "epsilon") -> None:
        if prediction_type not in get_args(PredictionType):
            raise UserError(
                f"the scheduler's prediction_type is {prediction_type!r}: take a model with "
                f"{' or '.join(get_args(PredictionType))}"
            )
        if objective not in get_args(Objective):
            raise UserError(f"the loss objective {objective!r} is unknown: choose {', '.join(get_args(Objective))}")
        self.alphas_cumprod = alphas_cumprod.float()
        self.predicts: Objective = "v" if prediction_type == "v_prediction" else "epsilon"
        self.objective: Objective = objective  # type: ignore[assignment]  # checked above

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> NoisedLatents:
        """Clean latents and standard normal noise (B, …), timesteps (B,) in [0, T), in the dtype of `clean`."""
        signal, sigma = self._amplitudes(timesteps, clean.ndim)
        latents = signal * clean.float() + sigma * noise.float()
        return NoisedLatents(latents.to(clean.dtype), clean, noise, timesteps)

    def target(self, noised: NoisedLatents) -> Tensor:
        """float32 (B, …): what a perfect prediction becomes in the objective's space."""
        clean, noise = noised.clean.float(), noised.noise.float()
        if self.objective == "x0":
            return clean
        if self.objective == "epsilon":
            return noise
        signal, sigma = self._amplitudes(noised.timesteps, clean.ndim)
        return signal * noise - sigma * clean

    def convert(self, predicted: Tensor, noised: NoisedLatents, to: Objective) -> Tensor:
        """The network's output (B, …) in another space, float32. From ε it divides by a_t: no schedule with a_T = 0."""
        predicted = predicted.float()
        if to == self.predicts:
            return predicted
        latents = noised.latents.float()
        signal, sigma = self._amplitudes(noised.timesteps, latents.ndim)
        if self.predicts == "v":
            return signal * latents - sigma * predicted if to == "x0" else signal * predicted + sigma * latents
        return (latents - sigma * predicted) / signal if to == "x0" else (predicted - sigma * latents) / signal

    def __call__(self, predicted: Tensor, noised: NoisedLatents) -> Tensor:
        """float32 (B,): the mean squared error of each sample over all its elements, in the objective's space."""
        if predicted.shape != noised.clean.shape:
            raise ValueError(f"predicted {tuple(predicted.shape)} for latents {tuple(noised.clean.shape)}")
        error = self.convert(predicted, noised, self.objective) - self.target(noised)
        return error.square().flatten(1).mean(1)

    def _amplitudes(self, timesteps: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
        """a_t and s_t, each (B, 1, …) with as many dimensions as the latents."""
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, *[1] * (dimensions - 1))
        return alphas.sqrt(), (1 - alphas).sqrt()


def semantic_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """float32 (B,): the mean squared error of semantic tokens P_1…P_F against the true frames' own, (B, F, N, width).

    Each token is normalised to mean 0 and variance 1 before: their scale is free, what reads them normalises them too.
    The authors train on the diffusion target alone; this term is optional and an addition.
    """
    if predicted.shape != true.shape:  # else they would be broadcast
        raise ValueError(f"semantic tokens {tuple(predicted.shape)} against true ones {tuple(true.shape)}")
    predicted, true = (F.layer_norm(tokens.float(), tokens.shape[-1:]) for tokens in (predicted, true))
    return (predicted - true).square().flatten(1).mean(1)
