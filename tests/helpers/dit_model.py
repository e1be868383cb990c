"""A tiny diffusion transformer of random weights that looks like the miniature's, with StoryWorld's words."""

from pathlib import Path

from storydiffusion.config.miniature import DitRecipe
from tests.helpers.world_model import build_mood_model

RECIPE = DitRecipe(
    part="dit", steps=4, batch_size=4, learning_rate=0.02, adam_learning_rate=0.001, warmup_steps=2, decay=0.5,
    ema_decay=0.9, seed=1, edition=2, pictures=6, pair_probability=0.5, reference_probability=0.0,
    caption_dropout=0.1, unknown_word_probability=0.01, character_weight=3.0, timestep_shift=3.0, layers=1,
    single_layers=1, heads=2, head_width=16, text_tokens=64, sample_every=0,
)  # fmt: skip


def build_dit_model(folder: Path) -> Path:
    """Write `folder`/unet, a tiny miniature of the second edition, and return `folder`/dit, a FluxPipeline on it."""
    import torch

    from storydiffusion.training.miniature.diffusion_transformer import DiffusionTransformerModule

    module = DiffusionTransformerModule(RECIPE, build_mood_model(folder / "unet"), folder / "cache")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.transformer.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))  # new ones pass tokens through
    module.export(folder / "dit")
    return folder / "dit"
