"""Save a character of a generated story, for other stories: NAME.safetensors, its card NAME.md and a portrait NAME.png.

Shape letters: R images of the story, C latent channels, h × w latents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup, View
from storydiffusion.attention.variants import get_read_panels
from storydiffusion.errors import UserError
from storydiffusion.files.atomic import draft_folder, write_atomically, write_image
from storydiffusion.pipelines.calls import draw_latents
from storydiffusion.pipelines.panel_keys import find_reach
from storydiffusion.pipelines.panels import select_views, shared_characters
from storydiffusion.story.character_file import SUFFIX, CharacterFile, SavedCharacter, SavedImage, SavedStory
from storydiffusion.story.names import normalize_name, suggest_name


@dataclass(frozen=True)
class Recipe:
    """How the images of a story were generated.

    Attributes:
        descriptions: name of a character → its description.
        model: its name.
        weights: returns their checksums, which take time.
        settings: see `describe_settings`.
        images: all images of the story, R.
        chosen: the numbers of those that it shows, panel by panel.
        shape: (C, h, w) of their noise.
        windows: in which their prompts were encoded.
    """

    descriptions: Mapping[str, str]
    model: str
    weights: Callable[[], Mapping[str, str]]
    settings: Mapping[str, Any]
    csa: ConsistentSelfAttentionConfig
    images: tuple[SavedImage, ...]
    chosen: tuple[int, ...]
    shape: tuple[int, int, int]
    windows: int

    def save(self, name: str, images: Sequence[Image.Image], path: Path, overwrite: bool = False) -> Path:
        """Save a character in `path`.safetensors, with its card and portrait; return this file.

        Args:
            images: of the panels.
            path: with the suffix .safetensors or without.

        Raises:
            UserError: no such character, settings without one to save, an existing file, or a disk that fails.
        """
        name, target = find_character(name, self.descriptions), path.with_name(path.name.removesuffix(SUFFIX) + SUFFIX)
        if target.exists() and not overwrite:
            raise UserError(f"{target} already exists: choose another name for it, or pass overwrite=true")
        file = self.collect(name)
        casts = [self.images[number].characters for number in self.chosen]
        portrait = min((n for n, cast in enumerate(casts) if name in cast), key=lambda n: (len(casts[n]), n))
        stem = target.name.removesuffix(SUFFIX)
        with draft_folder(target.parent) as draft:
            write_atomically(draft / target.name, file.to_bytes())
            write_atomically(draft / f"{stem}.md", describe_character(file, stem).encode())
            write_image(draft / f"{stem}.png", images[portrait])
        return target

    def collect(self, name: str) -> CharacterFile:
        """Return a character with the images whose features reach those that show it.

        Raises:
            UserError: settings without a character to save.
        """
        check_savable(self.csa)
        images = self.images
        reads = [number for number in self.chosen if name in images[number].characters]
        views = [View(each.panel, each.images) for each in images]
        group = PanelGroup(len(views), may_share=shared_characters([each.characters for each in images]), views=views)
        reach = find_reach(get_read_panels(self.csa, [group]))[reads].any(0)
        kept = list(range(len(views))) if self.csa.needs else reach.nonzero()[:, 0].tolist()
        kept_images = tuple(
            replace(images[number], images=view.images)
            for number, view in zip(kept, select_views(views, kept), strict=True)
        )
        story = SavedStory(
            self.model, dict(self.weights()), dict(self.settings), self.csa.seed, self.windows, kept_images
        )
        noise = draw_latents([torch.Generator().manual_seed(each.seed) for each in kept_images], self.shape)
        character = SavedCharacter(name, self.descriptions[name], tuple(map(kept.index, reads)), story)
        return CharacterFile(character, tuple(noise.shape), noise.to(torch.float32).numpy().tobytes())


def check_savable(csa: ConsistentSelfAttentionConfig) -> None:
    """Check that consistent self-attention lets panels of another story read a saved character.

    Raises:
        UserError: without sharing, and for draws that a second story would change.
    """
    if not csa.shares:
        raise UserError("the panels share no features (csa=off or rate 0): save characters of a story that shares them")
    if csa.variant == "official":
        raise UserError(
            "csa.variant=official bypasses layers at random for all images alike: save characters from another variant"
        )
    if csa.uses_regions:
        raise UserError(f"csa.regions={csa.regions} depends on all images of a story: save characters with regions=off")
    if csa.tile_size is not None:
        raise UserError(
            f"with csa.tile_size={csa.tile_size} panels read their neighbors only: save characters without tile_size"
        )


def find_character(name: str, descriptions: Mapping[str, str]) -> str:
    """Return the spelling of a name among the characters of a story. Raises UserError, naming the nearest."""
    spelled = normalize_name(name)
    if spelled not in descriptions:
        mend = suggest_name(spelled, descriptions) or f"choose one of {', '.join(descriptions) or 'another story'}"
        raise UserError(f"the story has no character '{name}': {mend}")
    return spelled


def describe_character(file: CharacterFile, stem: str) -> str:
    """Return the card of a character, in Markdown."""
    character, story = file.character, file.story
    settings = "\n".join(f"| {name} | {value} |" for name, value in story.settings.items() if value not in (None, []))
    weights = "\n".join(f"| {name} | `{sha256}` |" for name, sha256 in story.weights.items())
    return f"""# {character.name}

![{character.name}]({stem}.png)

{character.description[:1].upper()}{character.description[1:]}. Use the character in another story:

```yaml
characters:
  {character.name}: {{file: {stem}{SUFFIX}}}
```

| | |
|---|---|
| file | {stem}{SUFFIX}, SHA-256 `{file.sha256}` |
| images | {len(story.images)}, of which {len(character.reads)} show the character |
| model | {story.model} |
| seed | {story.seed}; of the images: {", ".join(str(each.seed) for each in story.images)} |
{settings}
{weights}
"""
