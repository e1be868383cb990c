"""New takes of a panel against the features of the other panels, whose images stay as they are.

A take reads the keys and values of the other panels' images as they were when these were generated: the story is
denoised again beside the takes, and only the takes are kept. So the story's other images do not read the take, and a
take is not what a fresh run with its seed would give. All takes share one computation of the story: P + T images
instead of T. Images whose features were kept are not computed: T images instead of P + T where all were.

Shape letters: P panels, T takes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup, View
from storydiffusion.attention.kept_features import Features, FeatureStore
from storydiffusion.attention.variants import get_read_panels
from storydiffusion.models.prompt_encoding import count_windows, get_tokenizers
from storydiffusion.output.manifest import Manifest, TakeRecord
from storydiffusion.pipelines.characters import choose_windows, place_characters
from storydiffusion.pipelines.conditioning import Conditions, text_conditions
from storydiffusion.pipelines.panels import (
    StepCallback,
    fits_features,
    generate_panels,
    group_panels,
    select_views,
    shared_characters,
)
from storydiffusion.pipelines.story import StoryPipeline
from storydiffusion.story import Story, character_words, panel_places
from storydiffusion.story.character_file import CharacterFile, SavedImage

Place = tuple[int, int]
"""(panel from 0, number of its take)"""


@dataclass
class KeptFeatures:
    """The features of a story's images.

    Attributes:
        read: returns those of an image; None where there are none.
        most_gib: that the features of a call's images may take to be added.
        added: by `generate_takes`, those of the images that it computed, and of no take, since most are never read.
    """

    read: Callable[[TakeRecord], Features | None]
    most_gib: float
    added: dict[Place, Features] = field(default_factory=dict)


def take_seed(seed: int, panel: int, number: int) -> int:
    """Return the seed of a take, a function only of the story's seed, the panel (from 0) and the take's number."""
    return int(np.random.SeedSequence(seed, spawn_key=(panel, 3, number)).generate_state(1)[0])


def collect_takes(manifest: Manifest) -> dict[Place, TakeRecord]:
    """Return all images of a finished story; a panel's first image is take 0."""
    characters = [tuple(panel["characters"]) for panel in manifest.config["script"]["panels"]]
    found = {(take.panel, take.number): take for take in manifest.takes}
    for number, panel in enumerate(manifest.panels):
        first = TakeRecord(number, 0, panel.file, panel.prompt, panel.negative_prompt, panel.seed, panel.sha256)
        found.setdefault((number, 0), first.seen_with(characters[number], [0] * len(manifest.panels)))
    return found


def get_chosen_takes(manifest: Manifest) -> list[int]:
    """Return the number of the take that each panel shows."""
    found = collect_takes(manifest).values()
    return [
        next(take.number for take in found if take.panel == number and take.sha256 == panel.sha256)
        for number, panel in enumerate(manifest.panels)
    ]


def generate_takes(
    pipe: StoryPipeline,
    script: Story,
    story: Mapping[Place, TakeRecord],
    takes: Sequence[TakeRecord],
    csa: ConsistentSelfAttentionConfig,
    settings: Mapping[str, Any],
    callback_on_step_end: StepCallback | None = None,
    files: Mapping[str, CharacterFile] | None = None,
    kept: KeptFeatures | None = None,
) -> list[Any]:
    """Return the images of new takes.

    Args:
        script: what the images show.
        story: the images that there are; `takes` read some of them, these others, and so on.
        settings: of the pipeline's call, such as `num_inference_steps`.
        callback_on_step_end: diffusers' callback.
        files: the saved characters of the story, by name; with them, features are computed and not kept.
        kept: features of the story's images; None: they are computed and not kept.
    """
    if files:
        return _generate_with_characters(pipe, story, takes, csa, settings, callback_on_step_end, files)
    images = [*story.values(), *takes]
    views = place_views(images)
    may_share = shared_characters([each.characters for each in images])
    places = panel_places(script)
    group = PanelGroup(len(images), may_share=may_share, views=views, places=[places[each.panel] for each in images])
    given, computed = _find_computed(csa, group, len(takes), _reader(kept, images, csa))
    used = [*given, *computed]
    images, first = [images[n] for n in used], len(given)
    sampling = {**pipe.defaults, **settings}
    others = range(first, len(images) - len(takes))
    keeps = kept is not None and others and fits_features(pipe.pipe, csa, sampling, len(others), kept.most_gib)
    features = FeatureStore(dict(enumerate(given.values())), others if keeps else ()) if given or keeps else None
    prompts, words = [each.prompt for each in images], character_words(script)
    conditions = _encode_takes(pipe.pipe, images, first)
    shown = replace(script, panels=tuple(script.panels[each.panel] for each in images[first:]))
    with pipe.posing(shown, (sampling["width"], sampling["height"]), csa.panels_at_once is not None) as poses:
        made = generate_panels(
            pipe.pipe,
            {**sampling, **poses, **conditions.arguments},
            [each.seed for each in images[first:]],
            csa,
            group_panels(
                pipe.pipe,
                csa,
                prompts,
                [{name: words[name] for name in each.characters} for each in images],
                [places[each.panel] for each in images],
                select_views(views, used),
            ),
            callback_on_step_end=callback_on_step_end,
            features=features,
        )
    if kept is not None and features is not None:
        kept.added |= {(images[n].panel, images[n].number): each for n, each in features.recorded.items() if each}
    return made[-len(takes) :]


def _find_computed(
    csa: ConsistentSelfAttentionConfig,
    group: PanelGroup,
    takes: int,
    read: Callable[[int], Features | None],
) -> tuple[dict[int, Features], list[int]]:
    """Return the features that are given, and the images to compute.

    Computed are the last `takes` images, and those whose features reach them and are not given; all images, for a
    sampler that reads layers.

    Args:
        read: returns the features of an image; None where there are none.
    """
    if csa.needs:
        return {}, list(range(group.panels))
    sources, given = get_read_panels(csa, [group]), {}
    computed = list(range(group.panels - takes, group.panels))
    for image in computed:  # which grows
        for source in sources[image].nonzero()[:, 0].tolist():
            if source in given or source in computed:
                continue
            if (features := read(source)) is None:
                computed.append(source)
            else:
                given[source] = features
    return dict(sorted(given.items())), sorted(computed)


def _reader(
    kept: KeptFeatures | None, images: Sequence[TakeRecord], csa: ConsistentSelfAttentionConfig
) -> Callable[[int], Features | None]:
    """Return the function that `_find_computed` reads features with."""
    return lambda n: kept.read(images[n]) if kept is not None and csa.keeps_features else None


def _encode_takes(pipe: Any, images: Sequence[TakeRecord], given: int) -> Conditions:
    """Return the text conditions of all but the first `given` images, in windows that suffice for all."""
    prompts, negative_prompts = [each.prompt for each in images], [each.negative_prompt for each in images]
    windows = count_windows(get_tokenizers(pipe), [*prompts, *negative_prompts]) if given else 1
    return text_conditions(pipe, prompts[given:], negative_prompts[given:], windows)


def _generate_with_characters(
    pipe: StoryPipeline,
    story: Mapping[Place, TakeRecord],
    takes: Sequence[TakeRecord],
    csa: ConsistentSelfAttentionConfig,
    settings: Mapping[str, Any],
    callback_on_step_end: StepCallback | None,
    files: Mapping[str, CharacterFile],
) -> list[Any]:
    """Return the images of new takes, which read saved characters, too."""
    own = [*story.values(), *takes]
    windows = choose_windows(
        pipe.pipe.tokenizer, files, [text for each in own for text in (each.prompt, each.negative_prompt)]
    )
    cast = place_characters(files, [each.characters for each in own], place_views(own))
    images: list[TakeRecord | SavedImage] = [*cast.images, *own]
    group = PanelGroup(len(images), may_share=cast.may_share, views=cast.views)
    _, computed = _find_computed(csa, group, len(takes), lambda image: None)
    images = [images[n] for n in computed]
    conditions = text_conditions(
        pipe.pipe, [each.prompt for each in images], [each.negative_prompt for each in images], windows
    )
    made = generate_panels(
        pipe.pipe,
        {**pipe.defaults, **settings, **conditions.arguments},
        [each.seed for each in images],
        csa,
        PanelGroup(
            len(images),
            may_share=cast.may_share[computed][:, computed],
            views=select_views(cast.views, computed),
        ),
        callback_on_step_end=callback_on_step_end,
        given_noise=cast.noise[[n for n in computed if n < len(cast.noise)]],
    )
    return made[-len(takes) :]


def place_views(images: Sequence[TakeRecord]) -> list[View]:
    """Return the story as each image saw it: the takes that it read, and itself in its own place."""
    places = {(each.panel, each.number): n for n, each in enumerate(images)}
    return [
        View(
            each.panel,
            tuple(n if panel == each.panel else places[panel, read] for panel, read in enumerate(each.reads)),
        )
        for n, each in enumerate(images)
    ]
