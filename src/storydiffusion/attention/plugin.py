"""Installs consistent self-attention in a diffusers pipeline, and removes it again.

    with consistent_self_attention(pipe, ConsistentSelfAttentionConfig(rate=0.5)) as story:
        images = pipe(prompts, callback_on_step_end=story.on_step_end).images

Only self-attention layers get another processor; cross-attention, and with it the IP-Adapter, keeps its own. Where
nothing is shared (a rate of 0, a step outside [start, end), a single panel) the original processor runs, so the result
is that of the untouched pipeline bit for bit.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn

from storydiffusion.attention import flux, flux2, qwen_image, stable_diffusion_3  # noqa: F401  # register backbones
from storydiffusion.attention.backbones import AttentionLayer, Backbone, find_denoiser, get_backbone
from storydiffusion.attention.chunks import Chunk, ChunkedCall
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import AttentionPlan, PanelGroup, batch_plan
from storydiffusion.attention.denoiser_calls import before_calls
from storydiffusion.attention.described_panels import describe_panels
from storydiffusion.attention.grids import Grid, InputShape
from storydiffusion.attention.guidance import ImageCounter, check_parts, count_parts
from storydiffusion.attention.hooks import check_hooks
from storydiffusion.attention.kept_features import FeatureStore
from storydiffusion.attention.memory import CallMemory, choose_chunks, estimate_memory
from storydiffusion.attention.region_recorder import RegionRecorder
from storydiffusion.attention.step_end import NEEDING, StepEnd, check_takes_callback
from storydiffusion.attention.variants import get_read_panels, get_variant, select_tokens
from storydiffusion.errors import UserError


@contextmanager
def consistent_self_attention(
    pipe: Any,
    config: ConsistentSelfAttentionConfig | None = None,
    stories: Sequence[int | PanelGroup] | None = None,
    parts: int | None = None,
    characters: Sequence[str] | None = None,
    features: FeatureStore | None = None,
) -> Iterator["StoryState"]:
    """Share self-attention among the panels of a story in every call of `pipe` inside the context.

    Warns on leaving the context if no call shared anything, unless `config` or `stories` says so.

    Args:
        pipe: a diffusers pipeline, or any object with its `.unet`. Load adapters that bring their own processors
            (IP-Adapter) before, and compile before.
        config: None is the paper's default.
        stories: the stories of the batch in order, each as its number of panels or as a `PanelGroup`; None takes the
            whole batch as one. Several images for a prompt count as panels next to each other.
        parts: how often guidance repeats the images in the denoiser's batch, part by part; these parts never mix. None
            derives it from the number of prompts in the pipeline's call; see `guidance`.
        characters: the words by which the prompts describe each character, such as "a girl with brown hair", for
            `config.regions`; None where the stories know them.
        features: of a U-Net's images that `stories` count and the batch lacks; and where to record others, for one call
            of the pipeline.

    Yields:
        The state, whose `on_step_end` is the pipeline's `callback_on_step_end`.

    Raises:
        UserError: for a pipeline without a known denoiser, or one without self-attention in the chosen blocks; and
            from the pipeline's call, see `StoryState`.
    """
    config = config or ConsistentSelfAttentionConfig()
    denoiser = find_denoiser(pipe)
    backbone = get_backbone(denoiser)
    backbone.prepare(config)
    layers = backbone.self_attention_layers(config.blocks) if config.shares else {}
    state = StoryState(pipe, backbone, config, stories, parts, characters, features)
    with (
        _attention_processors(layers, partial(backbone.make_processor, state.plan), state),
        _recording(state),
        state.images.observe(pipe),
        before_calls(denoiser, state, divides=config.panels_at_once is not None or bool(state.features.given)),
    ):
        yield state
    if config.shares and stories is None and not state.shared:
        warnings.warn(f"consistent self-attention shared nothing: {state.why_nothing_was_shared()}", stacklevel=3)


@contextmanager
def _attention_processors(
    layers: Mapping[str, AttentionLayer], make: Callable[[str, Any], Any], state: "StoryState"
) -> Iterator[None]:
    """Replace the layers' processors inside the context by those that `make` makes of a layer's name and its own."""
    originals = {name: layer.get_processor() for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            processor = make(name, originals[name])
            layer.set_processor(processor)
            state.processors[name] = (layer, processor)
        yield
    finally:
        for name, layer in layers.items():
            layer.set_processor(originals[name])


def _recording(state: "StoryState") -> AbstractContextManager[None]:
    """Record the maps of regions inside the context, where the state needs them."""
    if state.recorder is None:
        return nullcontext()
    return _attention_processors(state.recorder.layers, state.recorder.make_processor, state)


class StoryState:
    """The denoising step of a story, the layout of its batch, and the token selection of this step.

    Tokens are drawn once for a step and a grid, for all layers of that grid and all guidance parts; a sampler that
    needs a layer's inputs draws in every layer.

    With `on_step_end` as the pipeline's callback the step is the pipeline's own, however often a step calls the
    denoiser. Without it every call counts as one more step of a schedule of unknown length. A new call of the pipeline
    (the scheduler has new timesteps) starts at step 0 again.

    Raises from the pipeline's call:
        UserError: for a start above 0, an end below 1, regions, or variant `official` without the callback; a batch
            that prompts, `stories` and `parts` do not explain; characters that prompts do not name; a grid in `rate`
            that the denoiser does not have; attention processors that were replaced inside the context; hooks that
            reuse attention of other steps; latents that are not finite (with the callback).

    Attributes:
        on_step_end: diffusers' `callback_on_step_end`.
        step: the current step.
        shared: whether any layer has shared tokens.
        images: counts the images of the pipeline's calls.
        recorder: of the maps that regions come from; None where panels share as a whole.
        features: that are given or recorded.
        processors: name of a layer → the layer and the processor that shares its tokens.
    """

    def __init__(
        self,
        pipe: Any,
        backbone: Backbone,
        config: ConsistentSelfAttentionConfig,
        stories: Sequence[int | PanelGroup] | None = None,
        parts: int | None = None,
        characters: Sequence[str] | None = None,
        features: FeatureStore | None = None,
    ):
        if parts is not None and (isinstance(parts, bool) or not isinstance(parts, int) or parts < 1):
            raise UserError(f"parts is {parts!r}: choose a whole number of guidance parts, 1 or more.")
        self.config = config
        self.on_step_end = StepEnd(self.end_step)
        self.images = ImageCounter()
        if config.uses_regions:
            check_takes_callback(pipe)
        self.recorder = RegionRecorder(backbone) if config.uses_regions else None
        self.processors: dict[str, tuple[AttentionLayer, Any]] = {}
        self.features = features or FeatureStore()
        self.shared = False
        self.step = 0
        self._pipe = pipe
        self._backbone = backbone
        self._given = None if stories is None else [s if isinstance(s, PanelGroup) else PanelGroup(s) for s in stories]
        if stories is not None and not stories:
            raise UserError("stories is empty: give the number of panels of each story, or leave it out.")
        if characters is not None and config.regions == "off":
            raise UserError("characters are given, but regions is off: choose regions characters, or leave them out.")
        if features is not None and not (config.keeps_features and hasattr(pipe, "unet")):
            raise UserError("features are kept of a U-Net's images, without regions or a sampler that reads layers.")
        self._characters = characters
        self._steps: int | None = None
        self._stories: list[PanelGroup] = []
        self._given_parts = parts
        self._parts = 1
        self._layout_known = False
        self._checked = False  # that the parts of this run repeat the same latents
        self._shape = InputShape(0, 0, 0)
        self._timesteps: Any = None
        self._timestep: float | None = None  # of the latest call, where the backbone names it
        self._calls = 0  # of the denoiser since the last callback
        self._called_back = False  # in this run
        self._factors: set[int] = set()
        self._plans: dict[tuple, AttentionPlan | None] = {}
        self._chunked: ChunkedCall | None = None  # of this run

    def end_step(self, step: int) -> None:
        """Enter the step after `step`."""
        self._called_back, self._calls = True, 0
        self._enter(step + 1)

    def before_call(self, denoiser: nn.Module, args: tuple, kwargs: dict) -> None:
        """Determine the step and the layout of the batch; a forward pre-hook of the denoiser."""
        self._check_processors()
        scheduler = getattr(self._pipe, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is not self._timesteps:
            self._timesteps, self._calls, self._called_back = timesteps, 0, False
            self._enter(0)
        if not self._called_back and self._is_next_step(args, kwargs) and self._calls:
            self._count_call(getattr(scheduler, "order", 1))
        self._calls += 1
        if self.config.needs_schedule and self._steps is None:
            self._steps = self._schedule_length()
        self._backbone.begin_call(args, kwargs)
        if self.step == 0:  # walks all modules, which is too slow for every step
            check_hooks(self._backbone.denoiser)
        self._shape = self._backbone.input_shape(args, kwargs)
        self._arrange(self._shape.batch)
        if self.recorder is not None:
            self.recorder.begin_call(self._shape, self._calls)
        if not self._checked and self._given_parts is None:
            check_parts(self._backbone.latents(args, kwargs), self._parts, self._layout_known)
            self._checked = True
        if self._chunked is None:
            chunks = self._make_chunks(self._backbone.latents(args, kwargs))
            self._chunked = ChunkedCall(chunks, self._parts, self.features)
        self.features.begin_call()

    def run(self, call: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Run a call of the denoiser, in chunks of `config.panels_at_once` panels."""
        assert self._chunked is not None
        return self._chunked.run(call, args, kwargs)

    def _make_chunks(self, latents: Tensor) -> list[Chunk]:
        """Divide the panels of a guidance part as `config.panels_at_once` asks."""
        sources, shape, device = get_read_panels(self.config, self._stories), self._shape, latents.device

        def memory() -> CallMemory:
            size = (shape.height, shape.width, latents.itemsize)
            return estimate_memory(self._backbone, self.config, sources, self._parts, *size, device.type)

        return choose_chunks(self.config, sources, memory, device, self.features.given)

    def plan(self, layer: str, hidden_states: Tensor, attention_maps: Callable[[], Tensor]) -> AttentionPlan | None:
        """Return the tokens that the panels attend to in a layer; None is plain attention.

        Args:
            layer: the layer's name, which the official bypass draws for.
            hidden_states: (B, N, C) at the layer's input.
            attention_maps: computes the layer's (B, N, N), called where the sampler needs them.
        """
        batch, tokens, _ = hidden_states.shape
        assert self._chunked is not None
        if batch != self._chunked.batch:
            expected = self._chunked.batch
            raise UserError(f"{layer} attends over a batch of {batch}, not {expected}: images only, no video.")
        grid = self._backbone.grid(tokens, self._shape)
        self._factors.add(grid.factor)
        rate = self.config.get_rate(grid.factor)
        if rate == 0 or not self.config.is_active(self.step, self._steps):
            return None
        bypasses = get_variant(self.config.variant).bypasses
        bypassed = tuple(bypasses(self.config, self.step, self._steps, s.key, layer) for s in self._stories)
        if self.config.needs:
            inputs = self._layer_inputs(layer, hidden_states, attention_maps, grid)
            plan = self._make_plan(tokens, rate, bypassed * self._parts, self._stories * self._parts, inputs)
            self.shared |= plan is not None
            return plan and plan.to(hidden_states.device)
        key = (tokens, bypassed, hidden_states.device)
        if key not in self._plans:
            plan = self._make_plan(tokens, rate, bypassed, self._stories, regions=self._get_regions(grid))
            self._plans[key] = plan and (plan if self._chunked.divides else plan.to(hidden_states.device))
            self.shared |= plan is not None
        plan = self._plans[key]
        return plan and self._chunked.restrict(plan, key, layer)

    def _make_plan(
        self,
        tokens: int,
        rate: float,
        bypassed: Sequence[bool],
        stories: Sequence[PanelGroup],
        inputs: Sequence[Mapping[str, Any]] | None = None,
        regions: Sequence[Mapping[str, Any]] | None = None,
    ) -> AttentionPlan | None:
        """Select the tokens of `stories`; with `inputs` these are the stories of all guidance parts, else of one."""
        attended = [
            [] if bypass else select_tokens(self.config, story, tokens, rate, self.step, **own)
            for story, bypass, own in zip(stories, bypassed, inputs or regions or [{}] * len(stories), strict=True)
        ]
        return batch_plan(attended, [story.panels for story in stories], 1 if inputs else self._parts, tokens)

    def _get_regions(self, grid: Grid) -> list[dict[str, Any]] | None:
        """Return the regions of each story, with whether its characters are isolated; None while they are unknown."""
        if self.recorder is None or self._steps is None or not self.config.knows_regions(self.step, self._steps):
            return None
        isolated = self.step < round(self.config.isolate_until * self._steps)
        return [{"regions": each, "isolated": isolated} for each in self.recorder.get_regions(grid)]

    def _layer_inputs(
        self, layer: str, hidden_states: Tensor, attention_maps: Callable[[], Tensor], grid: Grid
    ) -> list[dict[str, Any]]:
        """Return what the sampler needs of a layer, for each story of each guidance part."""
        needs = self.config.needs
        maps = attention_maps().detach() if "attention_maps" in needs else None
        inputs, first = [], 0
        for story in self._stories * self._parts:
            panels = slice(first, first + story.panels)
            inputs.append(
                {
                    "layer": layer,
                    "features": hidden_states[panels].detach() if "features" in needs else None,
                    "attention_maps": None if maps is None else maps[panels],
                    "masks": story.resized_masks(grid.height, grid.width) if "masks" in needs else None,
                }
            )
            first += story.panels
        return inputs

    def why_nothing_was_shared(self) -> str:
        """Return the likely cause and what to do."""
        if not self._stories:
            return "its denoiser was not called; call the pipeline inside the context, and replace its parts before."
        if self._stories[0].panels == 1:
            return "each call had one prompt; give the pipeline the prompts of all panels as one list."
        return f"no layer and step have a rate above 0 between start {self.config.start} and end {self.config.end}."

    def _check_processors(self) -> None:
        for name, (layer, processor) in self.processors.items():
            if (other := layer.get_processor()) is not processor:
                raise UserError(
                    f"{type(other).__name__} replaced consistent self-attention in {name}: set attention processors "
                    "(attention slicing, fused projections, adapters) before the context, and apply perturbed-"
                    "attention guidance to other blocks."
                )

    def _enter(self, step: int) -> None:
        if step == 0:
            self._steps, self._checked, self._chunked = None, False, None
            self._stories = self._stories if self.recorder is None else []  # since other prompts have other words
        elif self.recorder is not None:
            self.recorder.end_step()
        self.step = step
        self._plans.clear()

    def _is_next_step(self, args: tuple, kwargs: dict) -> bool:
        """Return whether a call belongs to another step than the one before; guidance may call twice in a step."""
        before, self._timestep = self._timestep, self._backbone.timestep(args, kwargs)
        return self._timestep is None or self._timestep != before

    def _count_call(self, order: int) -> None:
        """Count a call of the denoiser that no callback separates from the one before."""
        if not self.config.needs_schedule:
            self._enter(self.step + 1)
        elif self._calls >= order:  # one step makes at most `order` calls
            check_takes_callback(self._pipe)
            raise UserError(
                f"{NEEDING} need the schedule: call the pipeline with callback_on_step_end=story.on_step_end."
            )

    def _schedule_length(self) -> int:
        length = getattr(self._pipe, "num_timesteps", None)
        if length is None and self._timesteps is not None:
            length = len(self._timesteps)
        if length is None:
            raise UserError(
                f"{type(self._pipe).__name__} has no number of steps: leave start at 0, end at 1, regions off and "
                "variant other than 'official'."
            )
        return length

    def _arrange(self, batch: int) -> None:
        """Divide the batch into guidance parts, and these into stories."""
        stories = self._given
        panels = None if stories is None else sum(story.panels for story in stories) - len(self.features.given)
        stated = self._backbone.guidance_parts(self._pipe)
        self._layout_known = stated is not None or panels is not None
        parts = count_parts(batch, self._given_parts, self.images.images, stated, panels)
        stories = stories or [PanelGroup(max(batch // parts, 1))]
        are_same = [s.panels for s in stories] == [s.panels for s in self._stories]
        if not are_same or parts != self._parts:
            self._parts, self._checked, self._chunked = parts, False, None
            self._plans.clear()
            if not are_same:
                self._stories = stories if self.recorder is None else self._describe(stories, self.recorder)
            if self.recorder is not None:  # whose maps outlive guidance that begins or ends during a run
                self.recorder.check_parts(parts, self._pipe)
        if (
            isinstance(self.config.rate, Mapping)
            and self._factors
            and (unknown := set(self.config.rate) - self._factors)
        ):
            raise UserError(
                f"rate names the grid {min(unknown)}, which the chosen blocks do not have: choose among "
                f"{sorted(self._factors)}."
            )

    def _describe(self, stories: list[PanelGroup], recorder: RegionRecorder) -> list[PanelGroup]:
        """Return the stories with the tokens of their characters, and let them be recorded."""
        if self._characters is not None:
            where = self._backbone.prompt_tokens(self._pipe)
            stories = describe_panels(self._pipe, where, stories, self.images.prompts, self._characters)
        recorder.arrange(stories)
        return stories
