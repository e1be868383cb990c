"""A page as a list of elements, each placed in pixels; drawn here as an image, and in pdf.py with vector text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from PIL import Image, ImageDraw

from storydiffusion.output.lettering import Lettering

SMOOTHING = 4
"""Outlines are drawn at this multiple of the page's size, then scaled down."""


@dataclass(frozen=True)
class Box:
    """A filled rectangle; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int
    colour: str

    def moved(self, x: int, y: int) -> "Box":
        return replace(self, left=self.left + x, top=self.top + y, right=self.right + x, bottom=self.bottom + y)


@dataclass(frozen=True)
class Inset:
    """An RGB image of the size at which it is shown."""

    image: Image.Image
    left: int
    top: int

    def moved(self, x: int, y: int) -> "Inset":
        return replace(self, left=self.left + x, top=self.top + y)


@dataclass(frozen=True)
class Line:
    """A line of text that starts at `x`."""

    text: str
    lettering: Lettering
    x: float
    baseline: float
    colour: str

    def moved(self, x: int, y: int) -> "Line":
        return replace(self, x=self.x + x, baseline=self.baseline + y)


@dataclass(frozen=True)
class Outline:
    """A filled polygon with an inked edge of `thickness` pixels."""

    points: tuple[tuple[float, float], ...]
    colour: str
    ink: str
    thickness: int

    def moved(self, x: int, y: int) -> "Outline":
        return replace(self, points=tuple((px + x, py + y) for px, py in self.points))


Element: TypeAlias = Box | Inset | Line | Outline


@dataclass(frozen=True)
class Drawing:
    """A page of `width` × `height` pixels; later elements cover earlier ones."""

    width: int
    height: int
    elements: tuple[Element, ...]


def rasterize(drawing: Drawing) -> Image.Image:
    """Draw a page as an RGB image."""
    image = Image.new("RGB", (drawing.width, drawing.height))
    canvas = ImageDraw.Draw(image)
    for element in drawing.elements:
        match element:
            case Box(left, top, right, bottom, colour):
                canvas.rectangle((left, top, right - 1, bottom - 1), fill=colour)
            case Inset(inset, left, top):
                image.paste(inset, (left, top))
            case Line(text, lettering, x, baseline, colour):
                lettering.draw(canvas, text, x, baseline, colour)
            case Outline():
                _draw_outline(image, element)
    return image


def _draw_outline(image: Image.Image, outline: Outline) -> None:
    """Draw a polygon with smooth edges."""
    pad = outline.thickness
    xs, ys = zip(*outline.points, strict=True)
    left, top = int(min(xs)) - pad, int(min(ys)) - pad
    width, height = int(max(xs)) + pad + 1 - left, int(max(ys)) + pad + 1 - top
    points = [((x - left) * SMOOTHING, (y - top) * SMOOTHING) for x, y in outline.points]
    for colour, mask in zip((outline.colour, outline.ink), _masks(points, width, height, outline), strict=True):
        image.paste(colour, (left, top), mask)


def _masks(points: Sequence[tuple[float, float]], width: int, height: int, outline: Outline) -> list[Image.Image]:
    """Return the masks of the area and of the edge."""
    masks = [Image.new("L", (width * SMOOTHING, height * SMOOTHING)) for _ in range(2)]
    ImageDraw.Draw(masks[0]).polygon(points, fill=255)
    # two turns, so that the joint at the first point is drawn too
    ImageDraw.Draw(masks[1]).line([*points, *points[:2]], fill=255, width=outline.thickness * SMOOTHING, joint="curve")
    return [mask.resize((width, height), Image.Resampling.BOX) for mask in masks]
