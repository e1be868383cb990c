"""Split one call of the denoiser into chunks of panels, with the result of the joint call.

A panel needs the keys and values of the panels that it attends to, its sources, and nothing else of them. "Panel i
reads panel j" is a directed graph. Its strongly connected components, ordered so that sources come first, are packed
into chunks. Keys and values that a later chunk reads are kept until that chunk has run; no tensor outlives the call.
Tokens are drawn for the whole story before, so the result does not depend on the chunks. Panels whose features are
given are read like those of earlier chunks; they are in no chunk, and not in the batch.

Shape letters: P panels of one guidance part, D of them to denoise, parts · D images in the batch of the joint call,
b images of a chunk, N tokens, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from storydiffusion.attention.consistent_self_attention import AttentionPlan, PlanGroup
from storydiffusion.attention.kept_features import FeatureStore
from storydiffusion.errors import UserError


@dataclass(frozen=True)
class RowsOnDemand:
    """An argument of the denoiser that is computed for the images of each chunk, and never for all at once.

    Attributes:
        compute: the images' numbers in the joint batch (b,) → the argument for them. It is called once for each chunk.
    """

    compute: Callable[[Tensor], Any]


@dataclass(frozen=True)
class Chunk:
    """Panels that are denoised together.

    Attributes:
        panels: their numbers in the guidance part.
        kept: earlier or given panels whose keys and values this chunk or a later one reads.
        keeps: the panels of `kept` and `panels` that later chunks read.
    """

    panels: list[int]
    kept: list[int]
    keeps: list[int]


def find_components(sources: Tensor) -> list[list[int]]:
    """Return the strongly connected components of the graph, every component after those that it reads.

    Args:
        sources: (P, P) booleans, row i true at the panels that panel i reads.
    """
    reach = sources | torch.eye(len(sources), dtype=torch.bool)
    while not torch.equal(further := reach.float() @ reach.float() > 0, reach):
        reach = further
    mutual = reach & reach.T
    first = sorted(set(mutual.int().argmax(1).tolist()), key=lambda panel: (int(reach[panel].sum()), panel))
    return [mutual[panel].nonzero()[:, 0].tolist() for panel in first]


def plan_chunks(sources: Tensor, panels_at_once: int | None, given: Sequence[int] = ()) -> list[Chunk]:
    """Return chunks of at most `panels_at_once` panels; every chunk reads itself, earlier ones and given panels.

    Args:
        sources: (P, P) booleans, row i true at the panels that panel i reads.
        panels_at_once: None: all in one chunk.
        given: panels whose features are given, which are in no chunk.

    Raises:
        UserError: for more panels than that which read each other.
    """
    denoised = [panel for panel in range(len(sources)) if panel not in given]
    if panels_at_once is None:
        return [Chunk(denoised, list(given), [])]
    packed: list[list[int]] = []
    for members in find_components(sources[denoised][:, denoised]):
        component = [denoised[member] for member in members]
        if len(component) > panels_at_once:
            raise UserError(
                f"panels_at_once is {panels_at_once}, but {len(component)} panels attend to each other and must be "
                f"denoised together: choose anchor_panels of 1 to {panels_at_once} without neighbor_window, sampler "
                f"progressive, or panels_at_once of {len(component)} or more."
            )
        if packed and len(packed[-1]) + len(component) <= panels_at_once:
            packed[-1] += component
        else:
            packed.append(component)
    chunks: list[Chunk] = []
    for number, panels in enumerate(packed):
        kept = chunks[-1].keeps if chunks else list(given)
        read_later = sources[[panel for later in packed[number + 1 :] for panel in later]].any(0)
        chunks.append(Chunk(panels, kept, [panel for panel in [*kept, *panels] if read_later[panel]]))
    return chunks


class ChunkedCall:
    """Runs the calls of a denoiser in chunks.

    Args:
        chunks: of the D panels.
        parts: guidance parts of the batch, outermost.
        features: those of the given panels, and where to record others.
    """

    def __init__(self, chunks: Sequence[Chunk], parts: int, features: FeatureStore | None = None) -> None:
        self.chunks = chunks
        self._features = features or FeatureStore()
        self._denoised = sorted(panel for chunk in chunks for panel in chunk.panels)
        self._panels = len(self._denoised) + len(self._features.given)
        self._parts = parts
        self._chunk: Chunk | None = None
        self._plans: dict[tuple, AttentionPlan] = {}
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def batch(self) -> int:
        """Number of images b of the current chunk; all in the batch between calls."""
        return self._parts * len(self._denoised if self._chunk is None else self._chunk.panels)

    @property
    def divides(self) -> bool:
        """Whether a chunk reads panels that are not in its batch."""
        return len(self.chunks) > 1 or bool(self._features.given)

    def run(self, call: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """Return `call(*args, **kwargs)`, computed chunk by chunk.

        Raises:
            UserError: for an argument that cannot be divided into panels.
        """
        if not self.divides:
            images = self._rows(self._denoised)
            on_demand = {name: value for name, value in kwargs.items() if isinstance(value, RowsOnDemand)}
            return call(*args, **{**kwargs, **{name: value.compute(images) for name, value in on_demand.items()}})
        outputs = []
        try:
            for chunk in self.chunks:
                self._chunk = chunk
                outputs.append(self._run_chunk(call, self._rows(chunk.panels), args, kwargs))
                self._plans.clear()
        finally:
            self._chunk = None
            self._plans.clear()
            self._kept.clear()
        order = torch.cat([self._rows(chunk.panels) for chunk in self.chunks]).argsort()
        return _join(outputs, order)

    def _run_chunk(self, call: Callable[..., Any], images: Tensor, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        batch = self._parts * len(self._denoised)
        given = {name: select_images(value, images, batch, name) for name, value in kwargs.items()}
        return call(*(select_images(value, images, batch, "input") for value in args), **given)

    def restrict(self, plan: AttentionPlan, key: tuple, layer: str) -> AttentionPlan:
        """Return the plan of the current chunk in a layer: a part of the joint call's plan.

        Args:
            plan: of all parts · P images; on the CPU in chunks.
            key: names the plan within this call, its device last.
            layer: whose keys and values are read and kept.
        """
        if self._chunk is None:
            return replace(plan, extend=partial(self._record, layer)) if self._features.recorded else plan
        if key not in self._plans:
            self._plans[key] = self._restrict(plan, tokens=key[0]).to(key[-1])
        return replace(self._plans[key], extend=partial(self._extend, layer))

    def _restrict(self, plan: AttentionPlan, tokens: int) -> AttentionPlan:
        """Return the rows of the chunk's images, renumbered over the kept images and then the chunk's own."""
        assert self._chunk is not None
        own, kept, place = self._images(self._chunk.panels), self._images(self._chunk.kept), self._place(self._chunk)
        groups = []
        for group in plan.groups:
            of_chunk = place[group.panels] >= len(kept)
            if not of_chunk.any():
                continue
            rows = group.rows[of_chunk]
            images = place[rows // tokens]
            if (images < 0).any():
                raise UserError(
                    "a panel attends to one outside of its sources, which another chunk denoises: draw from "
                    "context.sources only, or leave out panels_at_once."
                )
            groups.append(PlanGroup(place[group.panels[of_chunk]] - len(kept), images * tokens + rows % tokens))
        return AttentionPlan(groups, None if plan.occurrences is None else plan.occurrences[own])

    def _record(self, layer: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Record the keys and values of a layer of the joint call, and return them."""
        self._features.record(layer, self._denoised, key, value)
        return key, value

    def _extend(self, layer: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept keys and values of a layer before the chunk's own (b, N, C), and keep what is read later."""
        assert self._chunk is not None
        self._features.record(layer, self._chunk.panels, key, value)
        if self._chunk.kept:
            kept = self._kept.pop(layer, None)
            kept_key, kept_value = kept if kept is not None else self._features.read(layer, key)
            key, value = torch.cat([kept_key, key]), torch.cat([kept_value, value])
        if self._chunk.keeps:
            keeps = self._place(self._chunk)[self._images(self._chunk.keeps)].to(key.device)
            self._kept[layer] = (key[keeps], value[keeps])
        return key, value

    def _place(self, chunk: Chunk) -> Tensor:
        """Return (parts · P,), each image's place among the kept images and then the chunk's own; -1 for others."""
        images = torch.cat([self._images(chunk.kept), self._images(chunk.panels)])
        return torch.full((self._parts * self._panels,), -1).scatter_(0, images, torch.arange(len(images)))

    def _images(self, panels: Sequence[int]) -> Tensor:
        """Return the numbers of these panels among those of all guidance parts, part by part."""
        return self._number(panels, self._panels)

    def _rows(self, panels: Sequence[int]) -> Tensor:
        """Return the numbers in the joint batch of these panels in all guidance parts, part by part."""
        return self._number([self._denoised.index(panel) for panel in panels], len(self._denoised))

    def _number(self, panels: Sequence[int], of: int) -> Tensor:
        return (torch.arange(self._parts)[:, None] * of + torch.tensor(panels, dtype=torch.long)).flatten()


def select_images(value: Any, images: Tensor, batch: int, name: str) -> Any:
    """Return these images' part of an argument for a batch of images, in nested lists and mappings too.

    Raises:
        UserError: for an argument that cannot be divided into images.
    """
    if isinstance(value, RowsOnDemand):
        return value.compute(images)
    if isinstance(value, Mapping):
        return {key: select_images(each, images, batch, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(select_images(each, images, batch, f"{name}[{n}]") for n, each in enumerate(value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        if value.ndim == 0 or (value.ndim == 1 and len(value) == 1):
            return value
        if len(value) == batch:
            return value[images.to(value.device)]
        found = f"a tensor of {len(value)} rows"
    else:
        found = f"a {type(value).__name__}"
    raise UserError(
        f"the denoiser's argument {name} is {found} for a batch of {batch}, which panels_at_once cannot divide: "
        "give it one row per image, or leave out panels_at_once."
    )


def _join(outputs: Sequence[Any], order: Tensor) -> Any:
    """Concatenate what the chunks returned and put its rows in `order`."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))[order.to(first.device)]
    if isinstance(first, Mapping):  # diffusers' outputs
        return type(first)(**{name: _join([output[name] for output in outputs], order) for name in first})
    return type(first)(_join(each, order) for each in zip(*outputs, strict=True))
