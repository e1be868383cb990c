"""Token samplers, by name: the tokens of the other panels that a panel attends to (S_i of equation 2).

A new sampler is one function, registered under the name that `csa.sampler` then accepts:

    @register_token_sampler("largest_norm", needs=["features"])
    def largest_norm(context: SamplingContext) -> Tensor:
        count = round(context.rate * context.tokens)
        top = context.features.norm(dim=-1).topk(count).indices                    # (P, count)
        chosen = torch.zeros(context.panels, context.tokens, dtype=torch.bool).scatter(1, top.cpu(), True)
        return context.sources[..., None] & chosen                                 # (P, P, N)

This module imports torch only when it draws: commands check names before they import anything heavy.
Shape letters: P panels of one story, N tokens of a panel, C channels.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from storydiffusion.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from storydiffusion.attention.config import ConsistentSelfAttentionConfig

Need = Literal["features", "attention_maps", "masks"]
Draw = Callable[["SamplingContext"], "Tensor"]


@dataclass(frozen=True)
class SamplingContext:
    """The arguments of a draw for one story.

    Attributes:
        config: all settings; a sampler reads its own from here, such as `decay`.
        sources: (P, P) booleans, row i true at the other panels that panel i may attend to.
        tokens: N.
        rate: share of a source's tokens to sample.
        step: the denoising step, from 0.
        generator: the only source of randomness, on the CPU, seeded by the seed, the story, the step and N.
        shared: whether all panels get the same tokens of a source (variants `shared_row` and `official`).
        layer: name of the attention layer; None where one draw serves all layers of a grid.
        features: (P, N, C) hidden states at the layer's input; None unless needed; the same below.
        attention_maps: (P, N, N) softmax of the layer's plain self-attention, averaged over heads.
        masks: (P, N) booleans, the story's masks at the layer's grid.
    """

    config: "ConsistentSelfAttentionConfig"
    sources: "Tensor"
    tokens: int
    rate: float
    step: int
    generator: "torch.Generator"
    shared: bool = False
    layer: str | None = None
    features: "Tensor | None" = None
    attention_maps: "Tensor | None" = None
    masks: "Tensor | None" = None

    @property
    def panels(self) -> int:
        """P."""
        return len(self.sources)


@dataclass(frozen=True)
class TokenSampler:
    """A registered sampler.

    Attributes:
        function: context → (P, P, N) booleans, true at [i, j, n] where panel i samples token n of panel j.
        needs: inputs of the layer that the function reads. Without any, one draw serves all layers of a grid and all
            guidance parts; with one, every layer and part draws its own.
        per_panel: whether panels get different tokens of a source by design, which variants that share one draw refuse.
        earlier_only: whether panels sample earlier panels only, so that `panels_at_once` can divide any story.
    """

    name: str
    function: Draw
    needs: frozenset[Need] = frozenset()
    per_panel: bool = False
    earlier_only: bool = False

    def __call__(self, context: SamplingContext) -> "Tensor":
        """Draw, and check the shape and the sources of what was drawn.

        Raises:
            UserError: for a result that no variant could use.
        """
        import torch

        sampled = self.function(context).cpu()
        shape = (context.panels, context.panels, context.tokens)
        if sampled.dtype != torch.bool or sampled.shape != shape:
            raise UserError(
                f"sampler {self.name} returned {tuple(sampled.shape)} of {sampled.dtype}: return booleans {shape}."
            )
        if (sampled & ~context.sources[..., None]).any():
            raise UserError(f"sampler {self.name} chose tokens outside context.sources: mask its result by them.")
        if self.earlier_only and sampled.any(-1).triu().any():
            raise UserError(f"sampler {self.name} chose tokens of later panels: register it without earlier_only.")
        if context.shared and (sampled != sampled.any(0) & context.sources[..., None]).any():
            raise UserError(
                f"sampler {self.name} gave panels different tokens of one source: follow context.shared, or choose a "
                "variant that draws for each panel, such as eq2."
            )
        return sampled


TOKEN_SAMPLERS: dict[str, TokenSampler] = {}


def register_token_sampler(
    name: str, needs: Collection[Need] = (), per_panel: bool = False, earlier_only: bool = False
) -> Callable[[Draw], Draw]:
    """Return a decorator that registers a function as sampler `name`; see `TokenSampler` for the arguments.

    Raises:
        UserError: for a name that is taken or an unknown need.
    """
    if name in TOKEN_SAMPLERS:
        raise UserError(f"sampler {name} is already registered: choose another name.")
    if unknown := set(needs) - set(get_args(Need)):
        raise UserError(f"sampler {name} needs {min(unknown)!r}: choose among {', '.join(get_args(Need))}.")

    def register(function: Draw) -> Draw:
        TOKEN_SAMPLERS[name] = TokenSampler(name, function, frozenset(needs), per_panel, earlier_only)
        return function

    return register


def get_token_sampler(name: str) -> TokenSampler:
    """Return the sampler registered as `name`.

    Raises:
        UserError: for an unknown name; lists the known ones.
    """
    if name not in TOKEN_SAMPLERS:
        raise UserError(f"sampler is {name!r}: choose one of {', '.join(TOKEN_SAMPLERS)}.")
    return TOKEN_SAMPLERS[name]


@register_token_sampler("uniform")
def uniform(context: SamplingContext) -> "Tensor":
    """Sample round(rate · N) random tokens of each source."""
    from storydiffusion.attention.consistent_self_attention import draw_tokens, uniform_counts

    counts = uniform_counts(context.sources, context.tokens, context.rate)
    return draw_tokens(counts, context.tokens, context.shared, context.generator)


@register_token_sampler("progressive", per_panel=True, earlier_only=True)
def progressive(context: SamplingContext) -> "Tensor":
    """Sample earlier panels only, nearer ones more: in proportion to decay^(i − j)."""
    from storydiffusion.attention.consistent_self_attention import draw_tokens, progressive_counts

    counts = progressive_counts(context.sources, context.tokens, context.rate, context.config.decay)
    return draw_tokens(counts, context.tokens, context.shared, context.generator)


@register_token_sampler("subject", needs=["masks"])
def subject(context: SamplingContext) -> "Tensor":
    """Sample tokens inside the masks of the sources, such as those that show a character."""
    assert context.masks is not None
    return _sample_alike(context, context.masks)


@register_token_sampler("background", needs=["masks"])
def background(context: SamplingContext) -> "Tensor":
    """Sample as many tokens as `subject`, outside the masks."""
    assert context.masks is not None
    return _sample_alike(context, ~context.masks)


@register_token_sampler("subject+background", needs=["masks"])
def subject_and_background(context: SamplingContext) -> "Tensor":
    """Sample as many tokens as `subject`, anywhere."""
    assert context.masks is not None
    return _sample_alike(context, context.masks | ~context.masks)


def _sample_alike(context: SamplingContext, allowed: "Tensor") -> "Tensor":
    """Sample tokens that are allowed, (P, N) booleans: round(rate · N) of each source, but no more than its mask has
    on either side. So samplers that differ in what they allow sample equal numbers of the same source.
    """
    import torch

    assert context.masks is not None
    inside = context.masks.sum(1)
    budget = torch.minimum(inside, context.tokens - inside).clamp(max=round(context.rate * context.tokens))
    sampled = torch.zeros(context.panels, context.panels, context.tokens, dtype=torch.bool)
    first = torch.arange(context.tokens) < budget[:, None]
    noise = torch.empty(0)
    for panel in range(context.panels):
        if panel == 0 or not context.shared:
            noise = torch.rand(context.panels, context.tokens, generator=context.generator)
        order = noise.masked_fill(~allowed, torch.inf).argsort(-1)
        sampled[panel] = torch.zeros_like(first).scatter_(-1, order, first)
    return sampled & context.sources[..., None]
