"""Pages as PDF: text, lines and balloons stay vectors, images are lossless.

Skia lays text out by HarfBuzz, as Pillow's Raqm does, and writes each glyph's outline with the characters it stands
for, so text can be searched and copied.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.files.atomic import write_atomically
from storydiffusion.output.drawing import Box, Drawing, Inset, Line, Outline
from storydiffusion.output.typefaces import font_bytes

if TYPE_CHECKING:
    import skia

PIXELS_PER_INCH = 150
POINTS_PER_INCH = 72


def write_pdf(path: str | Path, pages: Iterable[Drawing], title: str, page_width: float | None = None) -> None:
    """Write pages to a PDF file, atomically; the same pages give the same bytes.

    Args:
        page_width: in points; None: the page's pixels at 150 per inch.

    Raises:
        UserError: where the file cannot be written.
    """
    from storydiffusion.output.skia_import import skia

    stream, facts = skia.DynamicMemoryWStream(), skia.PDF.Metadata()
    facts.fTitle = title
    facts.fCreator = facts.fProducer = "StoryDiffusion"
    document = skia.PDF.MakeDocument(stream, facts)
    faces: dict[str, Any] = {}
    for page in pages:
        scale = (page_width or page.width * POINTS_PER_INCH / PIXELS_PER_INCH) / page.width
        canvas = document.beginPage(page.width * scale, page.height * scale)
        canvas.scale(scale, scale)
        for element in page.elements:
            _draw(canvas, element, faces)
        document.endPage()
    document.close()
    write_atomically(path, bytes(stream.detachAsData()))


def _draw(canvas: "skia.Canvas", element: Any, faces: dict[str, Any]) -> None:
    from storydiffusion.output.skia_import import skia

    match element:
        case Box(left, top, right, bottom, colour):
            canvas.drawRect(skia.Rect.MakeLTRB(left, top, right, bottom), skia.Paint(Color=_colour(colour)))
        case Inset(image, left, top):
            pixels = skia.Image.frombytes(image.convert("RGBA").tobytes(), image.size, skia.kRGBA_8888_ColorType)
            canvas.drawImage(pixels, left, top)
        case Outline(points, colour, ink, thickness):
            path = skia.Path.Polygon([skia.Point(x, y) for x, y in points], True)
            canvas.drawPath(path, skia.Paint(Color=_colour(colour)))
            edge = skia.Paint(Color=_colour(ink), Style=skia.Paint.kStroke_Style, StrokeWidth=thickness)
            edge.setStrokeJoin(skia.Paint.kRound_Join)
            canvas.drawPath(path, edge)
        case Line():
            _draw_line(canvas, element, faces)


def _draw_line(canvas: "skia.Canvas", line: Line, faces: dict[str, Any]) -> None:
    """Draw each run of one font and direction at its place, shaped."""
    from storydiffusion.output.skia_import import skia

    for name, run, x in line.lettering.place_runs(line.text, line.x):
        if name not in faces:
            faces[name] = _collect_face(name)
        style = skia.textlayout.TextStyle()
        style.setFontFamilies([name])
        style.setFontSize(line.lettering.size)
        style.setColor(_colour(line.colour))
        whole = skia.textlayout.ParagraphStyle()
        whole.setTextStyle(style)
        builder = skia.textlayout.ParagraphBuilder.make(whole, faces[name], skia.Unicodes.ICU.Make())
        builder.pushStyle(style)
        builder.addText(run)
        paragraph = builder.Build()
        paragraph.layout(1e6)
        paragraph.paint(canvas, x, line.baseline - paragraph.AlphabeticBaseline)


def _collect_face(name: str) -> Any:
    """Return a collection of only this font, so that no other font of the machine is taken."""
    from storydiffusion.output.skia_import import skia

    provider = skia.textlayout.TypefaceFontProvider()
    provider.registerTypeface(skia.Typeface.MakeFromData(skia.Data.MakeWithCopy(font_bytes(name))), name)
    collection = skia.textlayout.FontCollection()
    collection.setDefaultFontManager(provider)
    return collection


def _colour(code: str) -> int:
    """Return `#rrggbb` as opaque ARGB."""
    return 0xFF000000 | int(code.removeprefix("#"), 16)
