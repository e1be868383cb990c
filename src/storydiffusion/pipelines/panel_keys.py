"""Digests of all that a panel's image depends on, by which an edited story keeps the images that do not change.

A panel depends on the settings, on its own prompts and seed, and on those of every panel whose features reach it: the
panels that it reads, those that these read, and so on. Where a panel reads others, its draw of tokens also depends on
its number and on the number of panels. Prompts longer than the text encoder pad those of all panels, so the number of
its windows counts too. So with all panels reading each other any changed prompt changes every image;
with sharing off, each image depends only on its own panel.

Shape letter: P panels.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.variants import get_read_panels
from storydiffusion.config import InferConfig
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.loaders.resolve import find_family
from storydiffusion.loaders.text_to_image import load_tokenizer
from storydiffusion.models.prompt_encoding import token_windows
from storydiffusion.output.manifest import Manifest, PanelRecord
from storydiffusion.pipelines.panels import panel_seeds, shared_characters
from storydiffusion.story import Story, panel_places, panel_prompts

IMAGE_SETTINGS = ("steps", "guidance_scale", "height", "width", "baseline")


def plan_panels(config: InferConfig, story: Story, planned: Manifest, folder: Path) -> tuple[PanelRecord, ...]:
    """Return the records of the panels to generate, without file and checksum of the image.

    Args:
        folder: of the model, whose tokenizer counts the windows of the prompts.
    """
    if config.frames is not None:
        return _plan_given_images(config, story, planned)
    names = [panel.characters for panel in story.panels]
    seeds = panel_seeds(config.seed, names, config.noise, [panel.seed for panel in story.panels])
    inputs = [[each.prompt, each.negative_prompt, seed] for each, seed in zip(panel_prompts(story), seeds, strict=True)]
    texts = [text for prompt, negative, _ in inputs for text in (prompt, negative)]
    settings = [*_describe_settings(config, planned), _count_windows(folder, texts)]
    if files := planned.config["script"].get("character_files"):  # which change every panel's draw of tokens
        settings += [files, describe_sharing(config)]
    places = panel_places(story) if config.csa.regions == "characters+places" else [""] * len(story.panels)
    poses = [[compute_sha256(panel.pose)] if panel.pose else [] for panel in story.panels]
    inputs = [[*each, *pose, *filter(None, [place])] for each, pose, place in zip(inputs, poses, places, strict=True)]
    keys = compute_keys(inputs, find_read_panels(config, story), settings, describe_sharing(config))
    return tuple(
        PanelRecord("", prompt, negative, panel.caption, seed, "", key, panel.says)
        for (prompt, negative, seed, *_), panel, key in zip(inputs, story.panels, keys, strict=True)
    )


def _count_windows(folder: Path, texts: Sequence[str]) -> int:
    """Return the windows of the longest text; 1 where the pipeline encodes texts itself, up to one length."""
    if find_family(folder).denoiser != "unet":
        return 1
    tokenizer = load_tokenizer(folder)
    return max(len(token_windows(tokenizer, text)) for text in texts)


def find_read_panels(config: InferConfig, story: Story) -> Tensor:
    """Return (P, P) booleans, row i true at the other panels that panel i may read."""
    may_share = shared_characters([panel.characters for panel in story.panels])
    group = PanelGroup(len(may_share), may_share=may_share, places=panel_places(story))
    return get_read_panels(config.csa.build(config.seed), [group])


def find_computed(config: InferConfig, story: Story, generated: Sequence[int]) -> list[int]:
    """Return the panels to compute, so that `generated` are as in the whole story: with them those that reach them.

    A baseline, saved characters, and a sampler that reads features, compute all panels.
    """
    panels = range(len(story.panels))
    is_saved = any(character.file for character in story.characters)
    if config.baseline is not None or is_saved or config.csa.build(config.seed).needs:
        return list(panels) if generated else []
    reach = find_reach(find_read_panels(config, story))
    return [panel for panel in panels if any(reach[each, panel] for each in generated)]


def find_reach(sources: Tensor) -> Tensor:
    """Return (P, P) booleans, row i true at panel i and at all panels whose features reach it by `sources`."""
    reach = sources | torch.eye(len(sources), dtype=torch.bool)
    while not torch.equal(further := reach.float() @ reach.float() > 0, reach):
        reach = further
    return reach


def compute_keys(inputs: Sequence[Any], sources: Tensor, settings: Any, sharing: Any) -> list[str]:
    """Return the key of each panel.

    Args:
        inputs: of each panel, plain data.
        sources: (P, P) booleans, row i true at the panels that panel i reads.
        settings: plain data that every image depends on.
        sharing: plain data that the images of panels with sources depend on.
    """
    keys = []
    for number, row in enumerate(find_reach(sources).tolist()):
        depends: list[Any] = [settings, inputs[number]]
        if sources[number].any():
            read = [[n, inputs[n], sources[n].nonzero()[:, 0].tolist()] for n, reads in enumerate(row) if reads]
            depends += [number, len(inputs), sharing, read]
        keys.append(hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest())
    return keys


def describe_sharing(config: InferConfig) -> dict[str, Any]:
    """Return the settings of shared attention that images depend on."""
    sharing = asdict(replace(config.csa.build(config.seed), panels_at_once=None))  # which computes the same
    unused = ("regions", "isolate_until") if config.csa.regions == "off" else ()  # in keys as old as these settings
    return {name: value for name, value in sharing.items() if name not in unused}


def _describe_settings(config: InferConfig, planned: Manifest) -> list[Any]:
    """Return what the images of all panels depend on; with a baseline also its portraits of the characters."""
    plain = json.loads(json.dumps(planned.config))
    settings = {name: plain[name] for name in IMAGE_SETTINGS}
    settings["model"] = {name: value for name, value in plain["model"].items() if name != "video"}
    portraits = None
    if config.baseline is not None:
        script = plain["script"]
        portraits = [config.seed, script["characters"], script["portraits"], script["style"]]
    return [settings, planned.weights, portraits]


def _plan_given_images(config: InferConfig, story: Story, planned: Manifest) -> tuple[PanelRecord, ...]:
    """Return the records of the user's own images, in the configured size."""
    size = [config.width, config.height]
    keys = [
        hashlib.sha256(json.dumps([sha256, size]).encode()).hexdigest() for sha256 in planned.config["script"]["images"]
    ]
    return tuple(PanelRecord("", "", story.negative, "", config.seed, "", key) for key in keys)
