"""Puts consistent self-attention into the U-Net of a diffusers pipeline, and takes it out again.

    with consistent_self_attention(pipe, ConsistentSelfAttentionConfig(rate=0.5)) as story:
        images = pipe(prompts, callback_on_step_end=story.on_step_end).images

Only self-attentions (`attn1` of the transformer blocks) get a processor of ours; cross-attention, and with it the
IP-Adapter, keeps its own. Where nothing is shared (a rate of 0, a step outside [start, end), a single panel) the
processor that was there before does the work, so the result is that of the untouched pipeline bit for bit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from storydiffusion.attention.consistent_self_attention import (
    AttentionPlan,
    ConsistentSelfAttentionConfig,
    PanelGroup,
    attend,
    batch_plan,
    bypasses,
    select_tokens,
)
from storydiffusion.errors import UserError


@contextmanager
def consistent_self_attention(
    pipe: Any, config: ConsistentSelfAttentionConfig | None = None, stories: Sequence[int | PanelGroup] | None = None
) -> Iterator["StoryState"]:
    """Shares self-attention among the panels of a story in every call of `pipe` inside the context.

    Args:
        pipe: anything with a diffusers `.unet`. Where it has `do_classifier_free_guidance` (read at each U-Net call),
            guidance doubles the batch, and `do_perturbed_attention_guidance` adds a part; these parts never mix.
            Adapters that bring processors of their own (IP-Adapter) are to be loaded before.
        config: None is the paper's default.
        stories: the stories that stand side by side in the batch, each as its number of panels or as a `PanelGroup`;
            None takes the whole batch as one. With several images for a prompt, these stand side by side too.

    Yields:
        The state, whose `on_step_end` is the pipeline's `callback_on_step_end`.

    Raises:
        UserError: for a pipe without a U-Net, or one without self-attention in the chosen blocks; and from the
            pipeline's call, see `StoryState`.
    """
    config = config or ConsistentSelfAttentionConfig()
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, nn.Module):
        raise UserError(f"{type(pipe).__name__} has no U-Net: consistent self-attention needs a pipeline with .unet.")
    state = StoryState(pipe, config, stories)
    layers = self_attentions(unet, config.blocks) if config.shares else {}
    originals = {name: layer.get_processor() for name, layer in layers.items()}
    hook = unet.register_forward_pre_hook(state.before_unet, with_kwargs=True)
    try:
        for name, layer in layers.items():
            layer.set_processor(ConsistentAttnProcessor(state, name, originals[name]))
        yield state
    finally:
        hook.remove()
        for name, layer in layers.items():
            layer.set_processor(originals[name])


def self_attentions(unet: nn.Module, blocks: str) -> dict[str, Any]:
    """The spatial self-attention layers of a U-Net by their names; `blocks` is `up` or `all`."""
    found = {
        name: module
        for name, module in unet.named_modules()
        if name.endswith("attn1")
        and (blocks == "all" or name.startswith("up_blocks."))
        and "motion_modules" not in name  # those attend over time
        and not getattr(module, "is_cross_attention", True)  # blocks with only_cross_attention read text in attn1
    }
    if not found:
        raise UserError(f"{type(unet).__name__} has no self-attention for blocks {blocks!r}: choose blocks 'all'.")
    return found


class StoryState:
    """Where a story stands: the denoising step, the batch's layout, and this step's draws.

    A draw is made once for a step and a grid, and serves all layers of that grid and all guidance parts.

    With `on_step_end` as the pipeline's callback the step is the pipeline's own, however often a step calls the U-Net.
    Without it every U-Net call counts as one more step of a schedule of unknown length. A new call of the pipeline
    (the scheduler has new timesteps) starts at step 0 again.

    Raises from the pipeline's call:
        UserError: for a start above 0, an end below 1, or variant `official` without the callback; a batch that
            `stories` does not describe; a grid in `rate` that the U-Net does not have.
    """

    def __init__(
        self, pipe: Any, config: ConsistentSelfAttentionConfig, stories: Sequence[int | PanelGroup] | None = None
    ):
        self.config = config
        self.step = 0
        self._pipe = pipe
        self._given = None if stories is None else [s if isinstance(s, PanelGroup) else PanelGroup(s) for s in stories]
        if stories is not None and not stories:
            raise UserError("stories is empty: give the number of panels of each story, or leave it out.")
        self._steps: int | None = None
        self._stories: list[PanelGroup] = []
        self._parts = 1
        self._batch, self._area = 0, 0  # of the U-Net's input: panels in all parts, height · width
        self._timesteps: Any = None
        self._calls = 0  # U-Net calls since the last callback
        self._told = False  # whether the callback has come in this run
        self._factors: set[int] = set()
        self._plans: dict[tuple, AttentionPlan | None] = {}

    def on_step_end(self, pipe: Any, step: int, timestep: Any, callback_kwargs: dict) -> dict:
        """Is diffusers' `callback_on_step_end`; changes nothing in `callback_kwargs`."""
        self._told, self._calls = True, 0
        self._enter(step + 1)
        return callback_kwargs

    def before_unet(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        """Is the forward pre-hook of the U-Net: settles which step it is and who stands where in the batch."""
        scheduler = getattr(self._pipe, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is not self._timesteps:
            self._timesteps, self._calls, self._told = timesteps, 0, False
            self._enter(0)
        if self._calls and not self._told:
            self._count_call(getattr(scheduler, "order", 1))
        self._calls += 1
        if self.config.needs_schedule and self._steps is None:
            self._steps = self._schedule_length()
        sample = args[0] if args else kwargs["sample"]
        self._arrange(sample.shape[0])
        self._batch, self._area = sample.shape[0], math.prod(sample.shape[-2:])

    def plan(self, layer: str, hidden_states: Tensor) -> AttentionPlan | None:
        """What the panels read in a layer; None is plain attention.

        Args:
            layer: the layer's name, which the official bypass draws for.
            hidden_states: (B, N, C) of the layer, of which only shape and device are looked at.
        """
        batch, tokens, _ = hidden_states.shape
        if batch != self._batch:
            raise UserError(f"{layer} attends over a batch of {batch}, not {self._batch}: images only, no video.")
        factor = 2 ** round(math.log2(self._area / tokens) / 2)
        self._factors.add(factor)
        rate = self.config.rate_of(factor)
        if rate == 0 or not self.config.is_active(self.step, self._steps):
            return None
        bypassed = tuple(bypasses(self.config, self.step, self._steps, s.key, layer) for s in self._stories)
        key = (tokens, bypassed, hidden_states.device)
        if key not in self._plans:
            reads = [
                [] if bypass else select_tokens(self.config, story, tokens, rate, self.step)
                for story, bypass in zip(self._stories, bypassed, strict=True)
            ]
            plan = batch_plan(reads, [story.panels for story in self._stories], self._parts, tokens)
            self._plans[key] = plan.to(hidden_states.device) if plan else None
        return self._plans[key]

    def _enter(self, step: int) -> None:
        if step == 0:
            self._steps = None
        self.step = step
        self._plans.clear()

    def _count_call(self, order: int) -> None:
        """A U-Net call that no callback separates from the one before."""
        if not self.config.needs_schedule:
            self._enter(self.step + 1)
        elif self._calls >= order:  # so many calls can belong to one step
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
                f"{type(self._pipe).__name__} does not tell its number of steps: leave start at 0, end at 1 and "
                "variant other than 'official'."
            )
        return length

    def _arrange(self, batch: int) -> None:
        """Divides the batch into guidance parts, and these into stories."""
        parts = guidance_parts(self._pipe)
        stories, panels = self._given, batch // (parts or 1)
        if stories is None:
            stories, parts = [PanelGroup(max(panels, 1))], parts or 1
        else:
            panels = sum(story.panels for story in stories)
            parts = parts or max(batch // panels, 1)
        if parts * panels != batch:
            raise UserError(
                f"the U-Net got a batch of {batch} for {panels} panels and {parts} guidance part(s): give stories "
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


def guidance_parts(pipe: Any) -> int | None:
    """How many parts guidance makes of a batch, as far as the pipeline knows; else None."""
    try:
        doubled = pipe.do_classifier_free_guidance
    except AttributeError:
        return None
    return 1 + bool(doubled) + bool(getattr(pipe, "do_perturbed_attention_guidance", False))


class ConsistentAttnProcessor:
    """A diffusers attention processor for `attn1` of a transformer block.

    Args:
        state: of the story.
        layer: the layer's name in the U-Net.
        original: the processor it stands in for, called wherever nothing is shared.
    """

    def __init__(self, state: StoryState, layer: str, original: Any):
        self.state = state
        self.layer = layer
        self.original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        plan = self.state.plan(self.layer, hidden_states)
        if plan is None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask)
        if attention_mask is not None:
            raise UserError("consistent self-attention takes no attention_mask: leave it out of the U-Net's call.")
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        output = attend(query, key, value, plan, attn.heads)
        return attn.to_out[1](attn.to_out[0](output))
