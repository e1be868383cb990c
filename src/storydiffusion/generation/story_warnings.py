"""What infer warns of before it generates a story: words, characters and settings that do nothing or do not show."""

import sys

from storydiffusion.config import InferConfig
from storydiffusion.loaders.resolve import ResolvedModel, read_edition
from storydiffusion.output.manifest import VideoRecord
from storydiffusion.story import Story

Settings = dict[str, str | int | float | bool]
"""what the report lists first"""


def warn_of_single_panel(config: InferConfig, story: Story) -> None:
    """Print that a story of one panel has no other panel to attend to."""
    is_saved = any(character.file for character in story.characters)
    if len(story.panels) == 1 and not is_saved and config.frames is None and config.csa.build(config.seed).shares:
        print(
            "warning: the story has one panel, so consistent self-attention shares nothing: add panels, or set csa=off",
            file=sys.stderr,
        )


def warn_of_negative_prompts(config: InferConfig, video: VideoRecord | None, story: Story) -> None:
    """Print where the story's negative prompts do nothing: they replace the unconditional part of guidance."""
    if not any([story.negative, *(panel.negative for panel in story.panels)]):
        return
    scales = {"guidance_scale": config.guidance_scale} if config.frames is None else {}
    if video is not None:
        scales["model.video.guidance_scale"] = video.settings["guidance_scale"]
    for key, scale in scales.items():
        if scale is not None and scale <= 1:
            print(f"warning: {key} is {scale}, without guidance: negative prompts need more than 1", file=sys.stderr)


def warn_of_words(model: ResolvedModel, story: Story) -> Settings:
    """Print what the model cannot read or draw of the prompts; return it for the report."""
    from storydiffusion.loaders.text_to_image import has_clip_tokenizer, load_tokenizer
    from storydiffusion.pipelines.batch import get_prompts
    from storydiffusion.pipelines.story import find_unknown_words

    remarks: Settings = {}
    unknown = []
    if has_clip_tokenizer(model.folder):  # others know every word
        tokenizer = load_tokenizer(model.folder)
        tokenizer.add_tokens(list(model.added.textual_inversion))
        unknown = find_unknown_words(tokenizer, story)
    if unknown:
        hints = ", ".join(suggest_words(word, model) for word in unknown)
        print(f"warning: the model does not know these words of the prompts: {hints}", file=sys.stderr)
        remarks["words unknown to the model"] = hints
    edition = read_edition(model.folder)
    if edition is None:
        return remarks
    from storydiffusion.storyworld.edition import get_edition
    from storydiffusion.storyworld.words import find_limits

    prompts, _ = get_prompts(story)
    limits = [
        f"panel {number} {limit}"
        for number, prompt in enumerate(prompts, start=1)
        for limit in find_limits(prompt, get_edition(edition))
    ]
    for limit in limits:
        print(f"warning: {limit}; `storydiffusion words` lists what it knows", file=sys.stderr)
    if limits:
        remarks["beyond the model"] = "; ".join(limits)
    return remarks


def suggest_words(word: str, model: ResolvedModel) -> str:
    """Return the word, with known words that are spelled like it where the model was trained on StoryWorld."""
    edition = read_edition(model.folder)
    if edition is None:
        return word
    from storydiffusion.storyworld.edition import get_edition
    from storydiffusion.storyworld.words import find_near_words

    near = find_near_words(word, get_edition(edition).vocabulary())
    return f"{word} (near: {', '.join(near)})" if near else word


def find_missing_characters(config: InferConfig, story: Story) -> dict[str, str]:
    """Return the characters of title, captions and balloons that no font can set, place → characters."""
    from storydiffusion.output.lettering import find_missing_by_place

    captions, says = [panel.caption for panel in story.panels], [panel.says for panel in story.panels]
    return find_missing_by_place(story.title, captions, config.font or (), says)


def warn_of_missing_characters(config: InferConfig, story: Story) -> Settings:
    """Print the characters that no font can set; return them for the report."""
    from storydiffusion.output.lettering import describe_missing

    missing = find_missing_characters(config, story)
    if not missing:
        return {}
    places = describe_missing(missing)
    print(
        f"warning: no font has these characters, which become empty boxes: {places}; add a font with font=FILE",
        file=sys.stderr,
    )
    return {"characters without a font": places}
