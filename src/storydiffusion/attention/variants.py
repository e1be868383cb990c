"""Variants of consistent self-attention, by name: how the panels of a story attend to each other, and when.

A new variant is one class, registered under the name that `csa.variant` then accepts:

    @register_variant("previous_panel")
    class PreviousPanel(Variant):
        def select(self, context, sampler):
            previous = torch.eye(context.panels).roll(1, 0).tril().bool()
            return super().select(replace(context, sources=context.sources & previous), sampler)

This module imports torch only when it draws: commands check names before they import anything heavy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from storydiffusion.attention.token_samplers import Need, SamplingContext, TokenSampler, get_token_sampler
from storydiffusion.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.attention.consistent_self_attention import AttendedTokens, PanelGroup

# The official code bypasses sharing in steps 0–4 of 50, then in a layer with probability 0.3, and 0.1 from step 20 on.
OFFICIAL_BYPASS = ((0.0, 1.0), (0.1, 0.3), (0.4, 0.1))


class Variant:
    """A panel attends to its own tokens and to those that the sampler draws for it. Base class of all variants.

    Attributes:
        shares: False where no panel ever attends to another.
        takes_regions: tokens may be drawn by region; `select` is then not called.
        shared_draw: all panels get the same tokens of a source.
        uses_sampler: False where the variant draws by itself; it then goes with sampler `uniform` only.
        uses_tile_size: the variant reads the setting `tile_size`, which the others refuse.
        needs_schedule: `bypasses` needs the number of denoising steps.
        needs: inputs of the layer that `select` itself reads, beside the sampler's.
    """

    shares: ClassVar[bool] = True
    takes_regions: ClassVar[bool] = False
    shared_draw: ClassVar[bool] = False
    uses_sampler: ClassVar[bool] = True
    uses_tile_size: ClassVar[bool] = False
    needs_schedule: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    def select(self, context: SamplingContext, sampler: TokenSampler) -> "list[AttendedTokens]":
        """Return the tokens that each panel attends to, at least one entry a panel."""
        from storydiffusion.attention.consistent_self_attention import own_and_sampled_tokens

        return own_and_sampled_tokens(sampler(context))

    def bypasses(
        self, config: "ConsistentSelfAttentionConfig", step: int, steps: int | None, story: int, layer: str
    ) -> bool:
        """Return whether a layer leaves out sharing at a step (0…steps-1); `story` is the story's key."""
        return False


VARIANTS: dict[str, Variant] = {}


def register_variant(name: str) -> Callable[[type[Variant]], type[Variant]]:
    """Return a decorator that registers a subclass of `Variant` as `name`.

    Raises:
        UserError: for a name that is taken.
    """
    if name in VARIANTS:
        raise UserError(f"variant {name} is already registered: choose another name.")

    def register(kind: type[Variant]) -> type[Variant]:
        VARIANTS[name] = kind()
        return kind

    return register


def get_variant(name: str) -> Variant:
    """Return the variant registered as `name`.

    Raises:
        UserError: for an unknown name; lists the known ones.
    """
    if name not in VARIANTS:
        raise UserError(f"variant is {name!r}: choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def select_tokens(
    config: "ConsistentSelfAttentionConfig",
    story: "PanelGroup",
    tokens: int,
    rate: float,
    step: int,
    regions: "Tensor | None" = None,
    isolated: bool = False,
    **inputs: Any,
) -> "list[AttendedTokens]":
    """Return the tokens that each panel of a story attends to: a function only of the arguments.

    Args:
        regions: (P, N), the region of each token, see `regions`; None: panels share as a whole.
        isolated: characters do not attend to each other in their own panel.
        inputs: of the layer, where the sampler or the variant needs them: `layer`, `features`, `attention_maps`,
            `masks`, as in `SamplingContext`.
    """
    from storydiffusion.attention.consistent_self_attention import random_stream

    if story.views is not None:
        return _select_by_views(config, story, tokens, rate, step, {**inputs, "regions": regions, "isolated": isolated})
    variant = get_variant(config.variant)
    context = SamplingContext(
        config=config,
        sources=get_sources(config, story),
        tokens=tokens,
        rate=rate,
        step=step,
        generator=random_stream(config.seed, story.key, step, tokens),
        shared=variant.shared_draw,
        **inputs,
    )
    if regions is not None:
        from storydiffusion.attention.regions import draw_in_regions, select_by_region

        drawn = draw_in_regions(regions, rate, variant.shared_draw, context.generator)
        return select_by_region(story, regions, drawn, context.sources, get_same_place(config, story), isolated)
    return variant.select(context, get_token_sampler(config.sampler))


def _select_by_views(
    config: "ConsistentSelfAttentionConfig",
    story: "PanelGroup",
    tokens: int,
    rate: float,
    step: int,
    inputs: Mapping[str, Any],
) -> "list[AttendedTokens]":
    """Return the tokens that each image attends to, drawn for the whole story that it sees."""
    from torch import Tensor

    from storydiffusion.attention.consistent_self_attention import AttendedTokens

    drawn: dict[tuple, list[AttendedTokens]] = {}
    attended = []
    for image, view in enumerate(story.views or ()):
        seen_story = (view.images, view.seed, view.references)
        if seen_story not in drawn:
            seen: dict[str, Any] = {
                name: value[list(view.images)] if isinstance(value, Tensor) else value for name, value in inputs.items()
            }
            own = config if view.seed is None else replace(config, seed=view.seed)
            drawn[seen_story] = select_tokens(own, story.see(view), tokens, rate, step, **seen)
        attended += [
            AttendedTokens(image, view.place_rows(each.rows, tokens), each.tile, each.readers)
            for each in drawn[seen_story]
            if each.panel == view.panel
        ]
    return attended


def get_sources(config: "ConsistentSelfAttentionConfig", story: "PanelGroup") -> "Tensor":
    """Return (P, P) booleans, row i true at the other panels that the settings allow panel i to attend to."""
    return story.sources() & _get_reach(config, story)


def _get_reach(config: "ConsistentSelfAttentionConfig", story: "PanelGroup") -> "Tensor":
    """Return (P, P) booleans of the panels in reach: references always, others as window and anchors say."""
    from torch.nn.functional import pad

    from storydiffusion.attention.consistent_self_attention import within_reach

    reach = within_reach(story.panels - story.references, config.neighbor_window, config.anchor_panels)
    return pad(reach, (story.references, 0, story.references, 0), value=True)


def get_same_place(config: "ConsistentSelfAttentionConfig", story: "PanelGroup") -> "Tensor":
    """Return (P, P) booleans, row i true at the other panels whose background panel i may attend to.

    Raises:
        UserError: for regions of places in a story whose places are unknown.
    """
    import torch

    if not config.uses_regions or config.regions == "characters":
        return torch.zeros(story.panels, story.panels, dtype=torch.bool)
    if story.places is None:
        raise UserError(f"regions is {config.regions}, but places are unknown: give PanelGroup(places=…).")
    same = torch.tensor([[one == other != "" for other in story.places] for one in story.places])
    return same & _get_reach(config, story) & ~torch.eye(story.panels, dtype=torch.bool)


def get_read_panels(config: "ConsistentSelfAttentionConfig", stories: "Sequence[PanelGroup]") -> "Tensor":
    """Return (P, P) booleans, row i true at the panels that panel i may read; P panels of all stories together."""
    import torch

    if not config.shares:
        panels = sum(story.panels for story in stories)
        return torch.zeros(panels, panels, dtype=torch.bool)
    return torch.block_diag(*(_get_read_images(config, story) for story in stories)).bool()


def _get_read_images(config: "ConsistentSelfAttentionConfig", story: "PanelGroup") -> "Tensor":
    """Return (P, P) booleans of one story, or of the images that see it."""
    import torch

    if story.views is None:
        sources = get_sources(config, story) | get_same_place(config, story)
        return sources.tril() if get_token_sampler(config.sampler).earlier_only else sources
    read = torch.zeros(story.panels, story.panels, dtype=torch.bool)
    for image, view in enumerate(story.views):
        images = torch.tensor(view.images)
        read[image, images[_get_read_images(config, story.see(view))[view.panel] & (images >= 0)]] = True
    return read


@register_variant("eq2")
class Equation2(Variant):
    """The paper's equation 2: every panel has its own sample of each other panel."""

    takes_regions = True


@register_variant("shared_row")
class SharedRow(Variant):
    """One sample of each panel for all others: one row of the official code's mask, with exact counts."""

    takes_regions = True
    shared_draw = True


@register_variant("algorithm1")
class Algorithm1(Variant):
    """The paper's pseudo-code: windows of `tile_size` panels with stride 1, whose outputs are averaged."""

    uses_sampler = False
    uses_tile_size = True

    def select(self, context: SamplingContext, sampler: TokenSampler) -> "list[AttendedTokens]":
        from storydiffusion.attention.consistent_self_attention import window_tokens

        window = min(context.config.tile_size or context.panels, context.panels)
        return window_tokens(context.sources, context.tokens, context.rate, window, context.generator)


@register_variant("official")
class Official(SharedRow):
    """`shared_row` with the official code's schedule and random bypass of layers."""

    needs_schedule = True

    def bypasses(
        self, config: "ConsistentSelfAttentionConfig", step: int, steps: int | None, story: int, layer: str
    ) -> bool:
        import torch

        from storydiffusion.attention.consistent_self_attention import random_stream

        if steps is None:
            return False
        probability = next(p for begin, p in reversed(OFFICIAL_BYPASS) if step >= round(begin * steps))
        return bool(torch.rand((), generator=random_stream(config.seed, story, step, layer)) < probability)


@register_variant("off")
class Off(Variant):
    """Plain self-attention: the baseline."""

    shares = False
    uses_sampler = False

    def select(self, context: SamplingContext, sampler: TokenSampler) -> "list[AttendedTokens]":
        from storydiffusion.attention.consistent_self_attention import AttendedTokens, own_rows

        return [AttendedTokens(panel, own_rows(panel, context.tokens)) for panel in range(context.panels)]
