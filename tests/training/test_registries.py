"""The registries of training agree with the choices that the configuration offers."""

from storydiffusion.config.miniature import RECIPES
from storydiffusion.config.train import LOSSES, OPTIMIZERS, TRANSITION
from storydiffusion.training import diffusion_loss, modules
from storydiffusion.training.optim import optimizers


def test_every_part_has_a_module():
    assert set(modules.MODULES) == {TRANSITION, *RECIPES}


def test_every_loss_has_an_error_space():
    assert tuple(diffusion_loss.ERROR_SPACES) == LOSSES


def test_every_optimizer_is_registered():
    assert tuple(optimizers.OPTIMIZERS) == OPTIMIZERS
