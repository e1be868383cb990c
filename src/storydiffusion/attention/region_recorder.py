"""Record where each panel's image reads the words of its characters: the maps that regions come from.

A U-Net is read on one grid of its decoder's cross-attention, a diffusion transformer in its joint attention; the
backbone says in which layers. There, queries of the image and keys of text tokens are multiplied once more; the layer's
own processor computes its output as before. Only the guidance part with the prompts is recorded. A step's map is the
mean over layers and heads, and maps of earlier steps count half as much with each step.

What no character takes is the background's: of a U-Net's softmax over the characters' words and the start token, the
start token's share. Text encoders of transformers have no start token in common (T5 has none, templates of chats have
several tokens), so there the softmax is over all text, and the share of all other tokens is the background's. Either
way, a character wins where it gets more than elsewhere, since each map is divided by its mean.

Shape letters: P panels of all stories, N tokens of a panel, T text tokens, K regions of the panel with most characters.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from storydiffusion.attention.backbones import AttentionLayer, Backbone
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.grids import Grid, InputShape
from storydiffusion.attention.regions import find_regions
from storydiffusion.attention.text_maps import choose_tokens, read_maps, share_tokens
from storydiffusion.errors import UserError

START_TOKEN = 0
STEP_WEIGHT = 0.5
"""of a step's map in the running mean"""


class RegionRecorder:
    """Record the attention of a denoiser to text.

    Raises:
        UserError: for a denoiser without layers that show it.

    Attributes:
        layers: those that are recorded, by name.
        grid: that of the maps.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.layers: dict[str, AttentionLayer] = backbone.text_layers()
        self.grid = Grid(1, 0, 0)
        self._backbone = backbone
        self._stories: Sequence[PanelGroup] = ()
        self._characters: list[list[Sequence[int]]] = []  # of each panel, the tokens of each
        self._all_shares: dict[int, Tensor] = {}  # by the length of the text
        self._has_prompts = True
        self.forget()

    def forget(self) -> None:
        """Forget all maps, as a new run begins."""
        self._maps: Tensor | None = None
        self._sum: Tensor | None = None
        self._count = 0

    def check_parts(self, parts: int, pipe: Any) -> None:
        """Check that the guidance part with text is known. Raises UserError."""
        if parts > 2 and not getattr(pipe, "do_perturbed_attention_guidance", False):  # whose last part has text too
            raise UserError(
                f"regions take at most 2 guidance parts, text last, but there are {parts}: leave out regions."
            )

    def arrange(self, stories: Sequence[PanelGroup]) -> None:
        """Take the layout of a guidance part, and forget all maps.

        Raises:
            UserError: for a story whose characters are unknown.
        """
        if any(story.characters is None for story in stories):
            raise UserError(
                "regions need the characters of each panel: give their words as "
                "consistent_self_attention(characters=…), or PanelGroup(characters=…)."
            )
        self.forget()
        self._stories = stories
        self._characters = [list(each.values()) for story in stories for each in story.characters or ()]
        self._all_shares.clear()

    def begin_call(self, shape: InputShape, number: int) -> None:
        """Enter a call of the denoiser, counted from 1 in each step."""
        self.grid = self._backbone.text_grid(shape)
        self._has_prompts = self._backbone.has_prompts(number)

    def end_step(self) -> None:
        """Take what was recorded since the step before into the running mean."""
        if self._sum is None:
            return
        latest = self._sum.cpu() / self._count
        self._maps = latest if self._maps is None else torch.lerp(self._maps, latest, STEP_WEIGHT)
        self._sum, self._count = None, 0

    def get_regions(self, grid: Grid) -> list[Tensor]:
        """Return the region of each token, (P, N) for each story, by the maps of the steps before."""
        assert self._maps is not None, "regions are requested before a step was recorded"
        maps = self._maps.unflatten(-1, (self.grid.height, self.grid.width))
        return list(find_regions(maps, grid.height, grid.width).split([story.panels for story in self._stories]))

    def make_processor(self, layer: str, original: Any) -> Any:
        """Return a processor that lets this recorder see a layer, and `original` attend."""
        return self._backbone.make_recording_processor(self, layer, original)

    def record_chosen_text(self, factor: int, attn: Any, hidden_states: Tensor, text: Tensor) -> None:
        """Add the maps of a cross-attention layer, see `TextRecorder`, if it is on the recorded grid."""
        if factor != self.grid.factor:
            return
        shares = self._share_text(text.shape[1])
        shares[:, 0] = 0
        shares[:, 0, START_TOKEN] = 1
        tokens, chosen = choose_tokens(shares)
        own = text[-len(shares) :].gather(1, tokens.to(text.device)[..., None].expand(-1, -1, text.shape[-1]))
        query, key = attn.to_q(hidden_states[-len(shares) :]), attn.to_k(own)
        query, key = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key))
        self._add(query, key, chosen)

    def record_all_text(self, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        """Add the maps of a joint layer, see `TextRecorder`, in the call that has the prompts."""
        if not self._has_prompts:
            return
        shares = self._share_text(key.shape[1])
        if mask is not None:
            shares = shares * mask[-len(shares) :, None].bool().cpu()
        self._add(query[-len(shares) :], key[-len(shares) :], shares)

    def _share_text(self, length: int) -> Tensor:
        """Return (P, K, length): the tokens of each character, and before them all others. Raises UserError."""
        if length not in self._all_shares:
            shares = share_tokens([[[], *panel] for panel in self._characters], length)
            shares[:, 0] = shares.sum(1) == 0
            self._all_shares[length] = shares
        return self._all_shares[length].clone()

    def _add(self, query: Tensor, key: Tensor, shares: Tensor) -> None:
        maps = read_maps(query, key, shares.to(query.device))
        self._sum = maps if self._sum is None else self._sum + maps
        self._count += 1
