"""Regions that a model's attention to text shows in drawn images of two characters, beside the characters' true masks.

The pipeline runs as for a story, but its denoiser always sees the true image, noised to the level of the step. So the
maps are those of generation, and where each character is is known.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from storydiffusion.config import ModelConfig
from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import Prompt
from storydiffusion.storyworld.descriptions import find_descriptions
from storydiffusion.storyworld.scene import Scene, sample_scene
from storydiffusion.storyworld.scene_captions import draw_scene_prompt
from storydiffusion.storyworld.scene_renderer import figure_masks, render_scene
from storydiffusion.storyworld.scene_stories import HELD_OUT_SEED

if TYPE_CHECKING:
    from torch import Tensor

    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.attention.consistent_self_attention import PanelGroup
    from storydiffusion.attention.grids import Grid
    from storydiffusion.loaders.text_to_image import StoryModel

READ_AT = 0.5  # of the schedule


def draw_pair_scene(number: int) -> Scene:
    """Return a held-out scene of two characters of different kinds, a function only of its number."""
    for index in range(1000 * number, 1000 * (number + 1)):
        scene = sample_scene(HELD_OUT_SEED, index, count=2)
        if scene.characters[0].kind != scene.characters[1].kind:
            return scene
    raise AssertionError("a thousand scenes of equal kinds")


def read_regions(
    model: "StoryModel",
    config: ModelConfig,
    numbers: Sequence[int],
    attention: "ConsistentSelfAttentionConfig",
    seed: int,
) -> list[dict[str, Any]]:
    """Return the evidence of `region_iou` for one scene of each number: regions, int (h, w), and masks, bool (2, h, w).

    Each is as if computed alone.

    Raises:
        UserError: images that are not square, as the drawn ones are.
    """
    if config.height != config.width:
        raise UserError(
            f"scenes are drawn in squares, not in {config.width} × {config.height}: set model.height={config.width}"
        )
    scenes = [draw_pair_scene(number) for number in numbers]
    prompts = [draw_scene_prompt(scene, number) for scene, number in zip(scenes, numbers, strict=True)]
    seeds = [seed + number for number in numbers]
    grid, found = _record_regions(model.pipe, config, scenes, prompts, seeds, attention)
    return [
        {"regions": regions.view(grid.height, grid.width).numpy(), "masks": pool_masks(scene, config.height, grid)}
        for regions, scene in zip(found, scenes, strict=True)
    ]


def _record_regions(
    pipe: Any,
    config: ModelConfig,
    scenes: Sequence[Scene],
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    attention: "ConsistentSelfAttentionConfig",
) -> "tuple[Grid, list[Tensor]]":
    """Return the finest grid of tokens, and the region of each at `READ_AT`, int (h · w,) for each scene."""
    from storydiffusion.attention.grids import Grid
    from storydiffusion.attention.plugin import consistent_self_attention
    from storydiffusion.pipelines.calls import find_grid
    from storydiffusion.pipelines.conditioning import text_conditions
    from storydiffusion.pipelines.delayed_guidance import call_pipeline
    from storydiffusion.pipelines.panels import starting_noise
    from storydiffusion.pipelines.story import get_sampling_defaults

    noise, generators = starting_noise(pipe, seeds, config.height, config.width)
    truth = _encode_scenes(pipe, scenes, config.height)
    noise = noise.to(truth)
    grid, found = Grid(1, *find_grid(pipe, config.height, config.width)), []
    given = text_conditions(pipe, [prompt.text for prompt in prompts], [""] * len(prompts))
    groups = [_group_characters(pipe, prompt) for prompt in prompts]
    with consistent_self_attention(pipe, replace(attention, regions="characters"), groups) as state:

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            tensors = state.on_step_end(pipe, step, timestep, tensors)
            if step + 1 == max(1, round(READ_AT * pipe.num_timesteps)):
                assert state.recorder is not None
                found.extend(state.recorder.get_regions(grid))
            if step + 1 == pipe.num_timesteps:
                return tensors
            return {**tensors, "latents": _add_noise(pipe.scheduler, truth, noise, step + 1)}

        start = {"latents": noise, "generator": generators, "output_type": "latent"}
        arguments = {**given.arguments, **get_sampling_defaults(config), **start}
        call_pipeline(pipe, arguments, on_step_end, len(prompts))
    return grid, found


def _add_noise(scheduler: Any, truth: "Tensor", noise: "Tensor", step: int) -> "Tensor":
    """Return latents noised to the level of a step of the schedule."""
    timesteps = scheduler.timesteps[step].expand(len(truth))
    if hasattr(scheduler, "scale_noise"):  # flow matching, with other names and another order
        return scheduler.scale_noise(truth, timesteps, noise)
    return scheduler.add_noise(truth, noise, timesteps)


def _encode_scenes(pipe: Any, scenes: Sequence[Scene], size: int) -> "Tensor":
    """Return the scaled latents of drawn images, as the pipeline takes its noise."""
    import numpy as np
    import torch

    from storydiffusion.pipelines.calls import is_unet, pack
    from storydiffusion.pipelines.transition_sampling import encode_images

    pixels = np.stack([render_scene(scene, size) for scene in scenes])
    latents = encode_images(pipe.vae, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return latents if is_unet(pipe) else pack(latents)


def _group_characters(pipe: Any, prompt: Prompt) -> "PanelGroup":
    """Return a story of only this panel, with the tokens of its characters, named 0 and 1."""
    from storydiffusion.attention.consistent_self_attention import PanelGroup
    from storydiffusion.models.prompt_encoding import find_span_tokens

    spans = {str(n): each for n, each in enumerate(find_descriptions(prompt.text, prompt.stated))}
    return PanelGroup(1, characters=[find_span_tokens(pipe, prompt.text, spans)])


def pool_masks(scene: Scene, size: int, grid: "Grid") -> Any:
    """Return where more than half of a cell shows each character, bool (2, h, w)."""
    masks = figure_masks(scene, size)
    cells = masks.reshape(len(masks), grid.height, size // grid.height, grid.width, -1)
    return cells.mean((2, 4)) > 0.5
