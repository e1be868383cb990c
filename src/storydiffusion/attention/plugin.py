"""Installs consistent self-attention in a diffusers pipeline, and removes it again.

    with consistent_self_attention(pipe, ConsistentSelfAttentionConfig(rate=0.5)) as story:
        images = pipe(prompts, callback_on_step_end=story.on_step_end).images

Only self-attention layers get another processor; cross-attention, and with it the IP-Adapter, keeps its own. Where
nothing is shared (a rate of 0, a step outside [start, end), a single panel) the original processor runs, so the result
is that of the untouched pipeline bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from storydiffusion.attention.backbones import Backbone, Grid, InputShape, find_denoiser, get_backbone
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import AttentionPlan, PanelGroup, batch_plan
from storydiffusion.attention.variants import get_variant, select_tokens
from storydiffusion.errors import UserError


@contextmanager
def consistent_self_attention(
    pipe: Any, config: ConsistentSelfAttentionConfig | None = None, stories: Sequence[int | PanelGroup] | None = None
) -> Iterator["StoryState"]:
    """Share self-attention among the panels of a story in every call of `pipe` inside the context.

    Args:
        pipe: a diffusers pipeline, or any object with its `.unet`. Where it has `do_classifier_free_guidance` (read at
            each call of the denoiser), guidance doubles the batch, and `do_perturbed_attention_guidance` adds a part;
            these parts never mix. Load adapters that bring their own processors (IP-Adapter) before.
        config: None is the paper's default.
        stories: the stories of the batch in order, each as its number of panels or as a `PanelGroup`; None takes the
            whole batch as one. Several images for a prompt count as panels next to each other.

    Yields:
        The state, whose `on_step_end` is the pipeline's `callback_on_step_end`.

    Raises:
        UserError: for a pipeline without a known denoiser, or one without self-attention in the chosen blocks; and
            from the pipeline's call, see `StoryState`.
    """
    config = config or ConsistentSelfAttentionConfig()
    backbone = get_backbone(find_denoiser(pipe))
    state = StoryState(pipe, backbone, config, stories)
    layers = backbone.self_attention_layers(config.blocks) if config.shares else {}
    originals = {name: layer.get_processor() for name, layer in layers.items()}
    hook = backbone.denoiser.register_forward_pre_hook(state.before_call, with_kwargs=True)
    try:
        for name, layer in layers.items():
            layer.set_processor(backbone.make_processor(state.plan, name, originals[name]))
        yield state
    finally:
        hook.remove()
        for name, layer in layers.items():
            layer.set_processor(originals[name])


class StoryState:
    """The denoising step of a story, the layout of its batch, and the token selection of this step.

    Tokens are drawn once for a step and a grid, for all layers of that grid and all guidance parts; a sampler that
    needs a layer's inputs draws in every layer.

    With `on_step_end` as the pipeline's callback the step is the pipeline's own, however often a step calls the
    denoiser. Without it every call counts as one more step of a schedule of unknown length. A new call of the pipeline
    (the scheduler has new timesteps) starts at step 0 again.

    Raises from the pipeline's call:
        UserError: for a start above 0, an end below 1, or variant `official` without the callback; a batch that
            `stories` does not describe; a grid in `rate` that the denoiser does not have.
    """

    def __init__(
        self,
        pipe: Any,
        backbone: Backbone,
        config: ConsistentSelfAttentionConfig,
        stories: Sequence[int | PanelGroup] | None = None,
    ):
        self.config = config
        self.step = 0
        self._pipe = pipe
        self._backbone = backbone
        self._given = None if stories is None else [s if isinstance(s, PanelGroup) else PanelGroup(s) for s in stories]
        if stories is not None and not stories:
            raise UserError("stories is empty: give the number of panels of each story, or leave it out.")
        self._steps: int | None = None
        self._stories: list[PanelGroup] = []
        self._parts = 1
        self._shape = InputShape(0, 0, 0)
        self._timesteps: Any = None
        self._calls = 0  # of the denoiser since the last callback
        self._called_back = False  # in this run
        self._factors: set[int] = set()
        self._plans: dict[tuple, AttentionPlan | None] = {}

    def on_step_end(self, pipe: Any, step: int, timestep: Any, callback_kwargs: dict) -> dict:
        """Enter the next step; the signature is that of diffusers' `callback_on_step_end`. Tensors stay unchanged."""
        self._called_back, self._calls = True, 0
        self._enter(step + 1)
        return callback_kwargs

    def before_call(self, denoiser: nn.Module, args: tuple, kwargs: dict) -> None:
        """Determine the step and the layout of the batch; a forward pre-hook of the denoiser."""
        scheduler = getattr(self._pipe, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is not self._timesteps:
            self._timesteps, self._calls, self._called_back = timesteps, 0, False
            self._enter(0)
        if self._calls and not self._called_back:
            self._count_call(getattr(scheduler, "order", 1))
        self._calls += 1
        if self.config.needs_schedule and self._steps is None:
            self._steps = self._schedule_length()
        self._shape = self._backbone.input_shape(args, kwargs)
        self._arrange(self._shape.batch)

    def plan(self, layer: str, hidden_states: Tensor, attention_maps: Callable[[], Tensor]) -> AttentionPlan | None:
        """Return the tokens that the panels attend to in a layer; None is plain attention.

        Args:
            layer: the layer's name, which the official bypass draws for.
            hidden_states: (B, N, C) at the layer's input.
            attention_maps: computes the layer's (B, N, N), called where the sampler needs them.
        """
        batch, tokens, _ = hidden_states.shape
        if batch != self._shape.batch:
            raise UserError(f"{layer} attends over a batch of {batch}, not {self._shape.batch}: images only, no video.")
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
            return plan and plan.to(hidden_states.device)
        key = (tokens, bypassed, hidden_states.device)
        if key not in self._plans:
            plan = self._make_plan(tokens, rate, bypassed, self._stories)
            self._plans[key] = plan and plan.to(hidden_states.device)
        return self._plans[key]

    def _make_plan(
        self,
        tokens: int,
        rate: float,
        bypassed: Sequence[bool],
        stories: Sequence[PanelGroup],
        inputs: Sequence[Mapping[str, Any]] | None = None,
    ) -> AttentionPlan | None:
        """Select the tokens of `stories`; with `inputs` these are the stories of all guidance parts, else of one."""
        attended = [
            [] if bypass else select_tokens(self.config, story, tokens, rate, self.step, **own)
            for story, bypass, own in zip(stories, bypassed, inputs or [{}] * len(stories), strict=True)
        ]
        return batch_plan(attended, [story.panels for story in stories], 1 if inputs else self._parts, tokens)

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

    def _enter(self, step: int) -> None:
        if step == 0:
            self._steps = None
        self.step = step
        self._plans.clear()

    def _count_call(self, order: int) -> None:
        """Count a call of the denoiser that no callback separates from the one before."""
        if not self.config.needs_schedule:
            self._enter(self.step + 1)
        elif self._calls >= order:  # one step makes at most `order` calls
            raise UserError(
                "start, end and variant 'official' need the schedule: call the pipeline with "
                "callback_on_step_end=story.on_step_end."
            )

    def _schedule_length(self) -> int:
        length = getattr(self._pipe, "num_timesteps", None)
        if length is None and self._timesteps is not None:
            length = len(self._timesteps)
        if length is None:
            raise UserError(
                f"{type(self._pipe).__name__} has no number of steps: leave start at 0, end at 1 and variant other "
                "than 'official'."
            )
        return length

    def _arrange(self, batch: int) -> None:
        """Divide the batch into guidance parts, and these into stories."""
        parts = self._backbone.guidance_parts(self._pipe)
        stories, panels = self._given, batch // (parts or 1)
        if stories is None:
            stories, parts = [PanelGroup(max(panels, 1))], parts or 1
        else:
            panels = sum(story.panels for story in stories)
            parts = parts or max(batch // panels, 1)
        if parts * panels != batch:
            raise UserError(
                f"the denoiser got a batch of {batch} for {panels} panels and {parts} guidance part(s): give stories "
                "that sum to the number of images."
            )
        if [s.panels for s in stories] != [s.panels for s in self._stories] or parts != self._parts:
            self._stories, self._parts = stories, parts
            self._plans.clear()
        if (
            isinstance(self.config.rate, Mapping)
            and self._factors
            and (unknown := set(self.config.rate) - self._factors)
        ):
            raise UserError(
                f"rate names the grid {min(unknown)}, which the chosen blocks do not have: choose among "
                f"{sorted(self._factors)}."
            )
