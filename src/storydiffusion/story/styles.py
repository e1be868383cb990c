"""The nine prompt styles for full-scale models, named as in the paper's demo; the templates are our own wording."""

from dataclasses import dataclass

from storydiffusion.errors import UserError


@dataclass(frozen=True)
class Style:
    """A style: `template` contains `{prompt}`; `negative_prompt` lists what to avoid."""

    name: str
    template: str
    negative_prompt: str

    def apply(self, prompt: str) -> str:
        return self.template.replace("{prompt}", prompt)


NO_STYLE = Style("(No style)", "{prompt}", "")

STYLES = (
    NO_STYLE,
    Style(
        "Japanese Anime",
        "anime screencap of {prompt}, hand-painted background, clean cel shading, expressive eyes, soft evening light",
        "photograph, 3d render, western cartoon, muddy colours, extra fingers, text, watermark",
    ),
    Style(
        "Digital/Oil Painting",
        "painting of {prompt}, visible brushwork, rich layered pigment, warm and cool contrast, gallery piece",
        "photograph, flat vector art, 3d render, plastic skin, frame, signature, watermark",
    ),
    Style(
        "Pixar/Disney Character",
        "still from a family animation film, {prompt}, rounded appealing shapes, soft global illumination, lively eyes",
        "photograph, line drawing, grim, gritty, flat lighting, uncanny face, watermark",
    ),
    Style(
        "Photographic",
        "photograph of {prompt}, 50 mm lens, natural light, shallow depth of field, true skin texture, fine film grain",
        "drawing, painting, cartoon, 3d render, oversmoothed skin, distorted hands, watermark",
    ),
    Style(
        "Comic book",
        "comic book panel, {prompt}, confident ink outlines, flat colours, halftone shading, dynamic framing",
        "photograph, 3d render, blurry, washed out, speech balloon, lettering, watermark",
    ),
    Style(
        "Line art",
        "line drawing of {prompt}, even black pen strokes on white paper, open shapes, no shading",
        "photograph, colour, grey wash, shading, texture, 3d render, watermark",
    ),
    Style(
        "Black and White Film Noir",
        "black and white film noir still, {prompt}, hard key light, long shadows, venetian blind stripes, smoke, 1940s",
        "colour, pastel, cheerful flat lighting, cartoon, modern clothes, watermark",
    ),
    Style(
        "Isometric Rooms",
        "isometric cutaway room seen from above, {prompt}, miniature diorama, tidy small furniture, soft studio light",
        "perspective vanishing point, close-up, photograph of a person, clutter, cropped, watermark",
    ),
)


def find_style(name: str) -> Style:
    """Return the style of that name (case-insensitive). Raises UserError with the known names."""
    for style in STYLES:
        if style.name.casefold() == name.strip().casefold():
            return style
    names = ", ".join(style.name for style in STYLES)
    raise UserError(f"style '{name}' is unknown: choose one of {names}")
