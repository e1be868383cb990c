"""Denoise the panels of one story together, by the public call and step callback of a diffusers pipeline.

Consistent self-attention needs all panels of a story in one batch. A panel's noise depends only on its own seed: it is
the same in any batch and on any device.

Shapes: P panels, C latent channels, h × w latents (image size / the VAE's factor).
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from storydiffusion.attention.backbones import find_denoiser, get_backbone
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup, View
from storydiffusion.attention.finite import check_images
from storydiffusion.attention.kept_features import FeatureStore
from storydiffusion.attention.memory import GIB, CallMemory, choose_chunks, estimate_memory
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.attention.variants import get_read_panels
from storydiffusion.errors import UserError
from storydiffusion.models.prompt_encoding import find_character_tokens
from storydiffusion.pipelines.calls import draw_noise, is_unet
from storydiffusion.pipelines.delayed_guidance import call_pipeline

RESUMABLE = ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
"""schedulers whose step depends on its arguments, its own step number and its draws only: stored latents suffice"""

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]
"""diffusers' `callback_on_step_end(pipe, step, timestep, tensors)`; returns the tensors to change, or None"""


def panel_seeds(
    seed: int,
    characters: Sequence[Sequence[str]],
    noise: str = "own",
    given: Sequence[int | None] | None = None,
) -> list[int]:
    """Return the seed of each panel's starting noise: its own, or a function only of the story's seed and its number.

    Args:
        seed: of the story, 0 or more.
        characters: the names in each panel.
        noise: `own`, a seed for each panel; `shared`, panels of one character start from the noise of the first of them
            (a panel of several characters counts for the first it names, a panel of none has its own).
        given: the panels' own seeds, None for a panel without one; None: no panel has one.
    """
    first = {}
    for number, names in enumerate(characters):
        first.setdefault(names[0] if noise == "shared" and names else number, number)
    numbers = [first[names[0] if noise == "shared" and names else n] for n, names in enumerate(characters)]
    derived = [int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0]) for number in numbers]
    return [
        own if own is not None else other for own, other in zip(given or [None] * len(derived), derived, strict=True)
    ]


def starting_noise(pipe: Any, seeds: Sequence[int], height: int, width: int) -> tuple[Tensor, list[torch.Generator]]:
    """Return standard normal noise of each panel, drawn on the CPU to be equal on every device; and its generators.

    Its shape is (P, C, h, w), or as `draw_noise` says.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return draw_noise(pipe, generators, height, width), generators


def shared_characters(characters: Sequence[Sequence[str]]) -> Tensor:
    """Return (P, P) booleans, true where two panels name a character in common."""
    return torch.tensor([[bool(set(a) & set(b)) for b in characters] for a in characters])


def group_panels(
    pipe: Any,
    csa: ConsistentSelfAttentionConfig,
    prompts: Sequence[str],
    words: Sequence[Mapping[str, Any]],
    places: Sequence[str] | None = None,
    views: Sequence[View] | None = None,
    key: int = 0,
    find_tokens: Callable[[Any, str, Mapping[str, Any]], dict[str, list[int]]] = find_character_tokens,
) -> PanelGroup:
    """Return the panels of a story, with the tokens of their characters where regions need them.

    Args:
        words: for each panel, a character's name → the words of the prompt that describe it.
        places: of the panels; None: unknown.
        views, key: see `PanelGroup`.
        find_tokens: pipeline, prompt and its words → tokens; `find_span_tokens` where the words are spans.
    """
    may_share = shared_characters([tuple(each) for each in words])
    group = PanelGroup(len(prompts), key, may_share, views=views, places=places)
    if not csa.uses_regions:
        return group
    group.characters = [find_tokens(pipe, *each) for each in zip(prompts, words, strict=True)]
    return group


def view_panels(story: int, panels: Sequence[int]) -> list[View]:
    """Return the views of some panels of a story, which are the images of a batch."""
    images = tuple(panels.index(panel) if panel in panels else -1 for panel in range(story))
    return [View(panel, images) for panel in panels]


def select_views(views: Sequence[View], computed: Sequence[int]) -> list[View]:
    """Return the views of some images of a batch, numbered among these."""
    numbers = {image: n for n, image in enumerate(computed)}
    return [views[n]._replace(images=tuple(numbers.get(image, -1) for image in views[n].images)) for n in computed]


def generate_panels(
    pipe: Any,
    arguments: dict[str, Any],
    seeds: Sequence[int],
    csa: ConsistentSelfAttentionConfig,
    group: PanelGroup | None = None,
    start: tuple[int, Tensor] | None = None,
    callback_on_step_end: StepCallback | None = None,
    at_step_end: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda step, tensors: tensors,
    given_noise: Tensor | None = None,
    features: FeatureStore | None = None,
) -> Any:
    """Generate the images of one story.

    Args:
        arguments: of the pipeline's call: prompts or their embeddings, one for each panel, `height` and `width` in
            pixels, `num_inference_steps`, and whatever else `call_pipeline` takes.
        seeds: one for each panel.
        group: the panels as a story; None: all may attend to all. Of given features it counts the images, too.
        start: (steps done, latents (P, C, h, w)) of an interrupted call; the remaining steps give the same pixels, bit
            for bit. Regions, which depend on all steps before, and a scheduler that keeps more state than its step
            number (see RESUMABLE) repeat all steps instead.
        callback_on_step_end: diffusers' callback, called after every step except those that `start` skips.
        at_step_end: `Conditions.at_step_end` of the panels' conditions, called after every step.
        given_noise: (R, C, h, w) starting noise of the first R images, in place of that of their seeds.
        features: see `consistent_self_attention`; they are recorded in a call without `start`.

    Returns:
        The pipeline's images: a list of PIL images, unless `arguments` sets another `output_type`.

    Raises:
        UserError: too little memory, latents or images that are not finite, or what `consistent_self_attention`
            refuses.
    """
    noise, generators = starting_noise(pipe, seeds, arguments["height"], arguments["width"])
    if given_noise is not None:
        noise[: len(given_noise)] = given_noise
    denoiser: Any = find_denoiser(pipe)
    resumed = start if type(pipe.scheduler).__name__ in RESUMABLE and not csa.uses_regions else None
    group = group or PanelGroup(len(seeds))
    csa = _announce_memory(pipe, csa, group, arguments, features.given if features else ())
    with (
        consistent_self_attention(pipe, csa, [group], features=features) as story,
        _skipping_to(pipe, resumed) as skip,
        finite_images(pipe.vae),
        _explaining_lack_of_memory(len(seeds), arguments),
        tqdm(desc=f"denoising {len(seeds)} panels", unit="step", initial=resumed[0] if resumed else 0) as bar,
    ):

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            tensors = at_step_end(step, skip(step, story.on_step_end(pipe, step, timestep, tensors)))
            if resumed is None or step >= resumed[0]:
                if callback_on_step_end is not None:
                    tensors = {**tensors, **(callback_on_step_end(pipe, step, timestep, tensors) or {})}
                bar.total = pipe.num_timesteps
                bar.update()
            return tensors

        given = {"latents": noise.to(denoiser.dtype), "generator": generators}
        return _collect_images(pipe, {**arguments, **given}, on_step_end, len(seeds))


def _collect_images(pipe: Any, arguments: dict[str, Any], on_step_end: Callable[..., Any], count: int) -> Any:
    """Call the pipeline and return its images, PIL images as soon as each is decoded where the pipeline allows it."""
    if not _decodes_one_by_one(pipe) or arguments.get("output_type", "pil") != "pil":
        return call_pipeline(pipe, arguments, on_step_end, count)
    with _converting_one_by_one(pipe) as images:
        call_pipeline(pipe, {**arguments, "output_type": "pt"}, on_step_end, count)
    return images


def _decodes_one_by_one(pipe: Any) -> bool:
    """Return whether a pipeline decodes image by image and only converts them: no safety checker, no watermark."""
    is_plain = not any(getattr(pipe, name, None) for name in ("safety_checker", "watermark"))
    return is_unet(pipe) and is_plain and getattr(pipe.vae, "use_slicing", False)


@contextmanager
def _converting_one_by_one(pipe: Any) -> Iterator[list[Image.Image]]:
    """Yield a list that gets each image as soon as it is decoded; the pipeline gets blank images of one pixel.

    Otherwise the pipeline would hold all images in floating point, several times.
    """
    vae, processor = pipe.vae, pipe.image_processor
    decode, own = vae.decode, vars(vae).get("decode")  # a hook of offloading, if any
    images: list[Image.Image] = []

    def run(latents: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        for latent in latents.split(1):
            (image,) = decode(latent, *args, **{**kwargs, "return_dict": False})
            images.extend(processor.postprocess(image, output_type="pil"))
        return (latents.new_zeros(len(latents), 3, 1, 1),)

    vae.decode = run
    try:
        yield images
    finally:
        if own is None:
            del vae.decode
        else:
            vae.decode = own


def _announce_memory(
    pipe: Any,
    csa: ConsistentSelfAttentionConfig,
    group: PanelGroup,
    arguments: dict[str, Any],
    given: Sequence[int],
) -> ConsistentSelfAttentionConfig:
    """Print what `plan_memory` finds; return `csa` with this number in place of `auto`, whatever is free later."""
    at_once, needed = plan_memory(pipe, csa, group, arguments, given)
    memory = "" if needed is None else f", in about {needed / GIB:.2f} GiB beside the weights"
    panels = group.panels - len(given)
    tqdm.write(f"denoising {at_once} of {panels} panels at once{memory}", file=sys.stderr)
    return replace(csa, panels_at_once=at_once) if csa.panels_at_once == "auto" else csa


@contextmanager
def _explaining_lack_of_memory(panels: int, arguments: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory for {panels} panels of {arguments['width']} × {arguments['height']}: "
            "choose csa.panels_at_once=auto, a smaller size, fewer panels or model.offload=model"
        ) from error


def plan_memory(
    pipe: Any,
    csa: ConsistentSelfAttentionConfig,
    group: PanelGroup,
    arguments: dict[str, Any],
    given: Sequence[int] = (),
) -> tuple[int, int | None]:
    """Return the most panels that `generate_panels` denoises at once, and the bytes that this needs beside the weights.

    A diffusion transformer denoises all panels at once, in memory that is not estimated (None).

    Args:
        given: images of the group whose features are given.

    Raises:
        UserError: for panels that `csa.panels_at_once` cannot divide, or that need more memory than is free.
    """
    if not is_unet(pipe):
        return group.panels, None
    sources, device = get_read_panels(csa, [group]), pipe._execution_device  # where offloading moves the U-Net
    memory = _estimate_call(pipe, csa, sources, arguments)
    chunks = choose_chunks(csa, sources, lambda: memory, device, given)
    return max(len(chunk.panels) for chunk in chunks), memory.of(chunks)


def open_feature_store(
    pipe: Any, csa: ConsistentSelfAttentionConfig, arguments: Mapping[str, Any], images: int, most_gib: float
) -> FeatureStore | None:
    """Return what records the features of all images of a call; None where they are not kept, see `fits_features`."""
    return FeatureStore(records=range(images)) if fits_features(pipe, csa, arguments, images, most_gib) else None


def fits_features(
    pipe: Any, csa: ConsistentSelfAttentionConfig, arguments: Mapping[str, Any], images: int, most_gib: float
) -> bool:
    """Return whether the features of images can be kept, in `most_gib` at most; print how large they are otherwise."""
    if most_gib == 0 or not (is_unet(pipe) and csa.keeps_features):
        return False
    steps = arguments["num_inference_steps"]
    shared = sum(csa.is_active(step, steps) for step in range(steps))
    memory = _estimate_call(pipe, csa, torch.zeros(images, images, dtype=torch.bool), arguments)
    needed = images * shared * memory.kept / GIB
    if needed > most_gib:
        print(
            f"the features of {images} images take about {needed:.1f} GiB, more than keep_features={most_gib:g}: "
            "they are not kept, and retakes compute them again",
            file=sys.stderr,
        )
    return needed <= most_gib


def _estimate_call(
    pipe: Any, csa: ConsistentSelfAttentionConfig, sources: Tensor, arguments: Mapping[str, Any]
) -> CallMemory:
    """Estimate the memory of a call of the U-Net for (P, P) `sources`."""
    size = (arguments["height"] // pipe.vae_scale_factor, arguments["width"] // pipe.vae_scale_factor)
    parts = 2 if (arguments.get("guidance_scale") or 0) > 1 else 1
    unet, device = pipe.unet, pipe._execution_device
    return estimate_memory(get_backbone(unet), csa, sources, parts, *size, unet.dtype.itemsize, device.type)


@contextmanager
def finite_images(vae: Any) -> Iterator[None]:
    """Check what the VAE decodes inside the context; a pipeline would turn NaN into black."""
    hook = vae.decoder.register_forward_hook(lambda decoder, args, images: check_images(images))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _skipping_to(
    pipe: Any, start: tuple[int, Tensor] | None
) -> Iterator[Callable[[int, dict[str, Any]], dict[str, Any]]]:
    """Run the pipeline's loop without its denoiser up to `start`, and insert the stored latents there.

    So the step numbers of scheduler, callback and story are those of an uninterrupted run. Yields a function of the
    step number and the callback's tensors, to be called at the end of every step.
    """
    denoiser: Any = find_denoiser(pipe)
    hidden = vars(denoiser).get("forward")  # a hook of offloading, if any

    def restore() -> None:
        if hidden is not None:
            denoiser.forward = hidden
        else:
            vars(denoiser).pop("forward", None)

    def at_step_end(step: int, tensors: dict[str, Any]) -> dict[str, Any]:
        if start is None or step != start[0] - 1:
            return tensors
        restore()
        stored = start[1].to(tensors["latents"])
        if stored.shape != tensors["latents"].shape:
            raise ValueError(f"stored latents have shape {stored.shape}, not {tensors['latents'].shape}")
        return {**tensors, "latents": stored}

    if start is not None:
        denoiser.forward = partial(_predict_zero, denoiser)
    try:
        yield at_step_end
    finally:
        restore()


def _predict_zero(denoiser: Any, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    """Return zeros in place of what a denoiser predicts from its latents, which are its first argument."""
    if "hidden_states" in kwargs:  # of a diffusion transformer
        return (torch.zeros_like(kwargs["hidden_states"]),)
    sample = args[0] if args else kwargs["sample"]
    return (torch.zeros_like(sample[:, : denoiser.config.out_channels]),)
