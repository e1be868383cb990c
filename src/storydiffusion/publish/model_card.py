"""Writes the model card of the miniature: README.md in its folder, with contact sheets.

  python -m storydiffusion.card                          the model inside the package
  python -m storydiffusion.card model.path=FOLDER        another one that was trained on StoryWorld
  python -m storydiffusion.card measured=DIR             with the table that `storydiffusion.measure` left in DIR
  python -m storydiffusion.card measured_video=DIR       and that of `storydiffusion.measure_video`
  python -m storydiffusion.card model.video.predictor=null    of a model without video

samples.png holds 64 pictures, none chosen: captions 0…63 of the held-out world, seeds 0…63. stories.png holds the first
12 frozen stories, without consistent self-attention on the left, at rate 0.5 on the right. clips.png holds the first
clip of each motion in the held-out world, the true frames over the sampled ones. Sheets have 256 colours.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import ModelConfig
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import ResolvedModel, get_video_config, resolve_model
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.loaders.text_to_image import StoryModel, load_story_model
from storydiffusion.loaders.video import load_video_model
from storydiffusion.output.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

SAMPLES, SAMPLE_COLUMNS, STORIES, RATE = 64, 8, 12, 0.5
BATCH = 16  # pictures told at once
GAP, MIDDLE = 4, 20  # pixels between pictures, and between the halves of a story's row

FRONT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# The StoryDiffusion miniature

A text-to-image model of {parameters} parameters in diffusers' format, trained from nothing on StoryWorld, a cartoon
world that a program draws. It exists so that consistent self-attention can be tried, tested and measured on any CPU,
against truth that is known. `diffusers.StableDiffusionPipeline.from_pretrained(FOLDER)` loads it; licence: Apache-2.0,
like the code. No picture and no text of anybody's went into it: all training data was drawn and worded by the program.

"""

VIDEO = """## Video

`motion_adapter` and `predictor` draw the {frames} frames from one picture to another. `python train.py` trained them
around the frozen rest, on clips that the program draws, through the whole data path: tar shards, decord, batches. The
recipes above say what was trained with what. How a frame
reads the predictor is the paper's: its cross-attention is over concat(T, P_i), the text's tokens and the predictor's
for this frame, in one softmax. Added to the paper, since a small model does not keep who somebody is without it:

- End-frame attention: every frame's spatial self-attention reads the tokens of the first and the last frame too
  (`model.video.boundary_attention`). It adds no weights.
- Given ends: the clean latents of both end frames stand in the clip at every step, in sampling
  (`model.video.boundary_frames=clamped`) and in a share of the training clips (`boundary_frame_prob` in the recipes),
  where the loss is over the frames between. `model.video.boundary_frames=free` samples as the paper does, without them;
  that was learnt in the last of the trainings alone, from half of its clips, and resembles the pictures only roughly.
- Teacher forcing: predictor and motion modules learnt together from tokens of the true frames (`teacher_forcing`),
  which tell what lies between. Predicted tokens, which the paper trains with, take their place in sampling alone.
- The model predicts v and is trained on it, by Muon; the paper's is trained on the noise.
{semantic}
No GPU was at hand for these parts: bfloat16 was used on a CPU, DeepSpeed and training on several GPUs were not run.

The first held-out clip of each motion, none chosen; of each pair of rows the upper one is true, in the lower one the
first and the last frame are given and those between sampled in {steps} steps at guidance {guidance:g}:
{motions}.

![Clips](clips.png)

{table}
"""

SEMANTIC = """- Beside the diffusion loss, the predictor's transformer learns from the error of its tokens against
  those of the true frames, {weight:g} times (`recipe.semantic_weight`).
"""

LIMITS = """## Limits

- It draws StoryWorld and nothing else: {kinds}; {actions}; {places}. Other words are unknown to it.
- One character a picture, whole and in the middle, {size} × {size} pixels.
- It says nothing of how real models draw people. What is measured on it shows how methods compare on this world; its
  judge was trained on the same world and is no judge of beauty.
- A share of its training batches (`pair_probability` in the recipe) shows one character twice in one picture, in two
  activities, as collages on the web do. They are meant to teach self-attention that one character wears one attire; how
  much they help was not measured apart. Consistent self-attention itself played no part in the training.
- Its image-text encoder has seen this world alone and does not replace CLIP.
- Attire that a prompt leaves open is drawn at random, attire that it names is sometimes drawn wrong: see the figures.
"""


@dataclass
class CardConfig:
    """The command's settings."""

    model: ModelConfig
    measured: str = "runs/measure"  # folder of `storydiffusion.measure`; the card says so where it holds no table
    measured_video: str = "runs/measure_video"  # of `storydiffusion.measure_video`, likewise


def write_card(config: CardConfig) -> None:
    """Draws both sheets and writes README.md beside them, into the model's folder."""
    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.evaluation.benchmarks.stories import tell
    from storydiffusion.storyworld.stories import load_stories
    from storydiffusion.training.record import RECORD

    record = training_record(find_model_folder(config.model.path, config.model.revision) / RECORD)
    resolved = resolve_model(config.model)
    folder = resolved.folder
    measured = measured_table(config.measured, "measure")
    video = None
    if config.model.video is not None and config.model.video.predictor is not None:
        write_atomically(folder / "clips.png", png(draw_clips(resolved)))
        video = video_section(config.model, record, measured_table(config.measured_video, "measure_video"))
    model = load_story_model(resolved)
    captions, samples = draw_samples(model, config.model)
    stories = load_stories()[:STORIES]
    attentions = [ConsistentSelfAttentionConfig(rate=rate) for rate in (0.0, RATE)]
    halves = [[tell(model, config.model, [story], attention, seed=0) for story in stories] for attention in attentions]
    story_rows = [without + shared for without, shared in zip(*halves, strict=True)]
    sample_rows = [samples[i : i + SAMPLE_COLUMNS] for i in range(0, len(samples), SAMPLE_COLUMNS)]
    write_atomically(folder / "samples.png", png(sheet(sample_rows)))
    write_atomically(folder / "stories.png", png(sheet(story_rows, halves=True)))
    prompts = [panel.prompt for story in stories for panel in story.panels]
    text = card(config.model, count_parameters(folder), record, measured, captions, prompts, video)
    write_atomically(folder / "README.md", text.encode())
    print(f"written: {folder / 'README.md'} and its sheets")


def measured_table(folder: str, command: str) -> str:
    from storydiffusion.evaluation.benchmarks.stories import read_text

    file = Path(folder) / "table.md"
    return read_text(file) if file.exists() else f"Not measured yet: `python -m storydiffusion.{command}` does.\n"


def draw_samples(model: StoryModel, config: ModelConfig) -> tuple[list[str], list["Image.Image"]]:
    """The captions of the held-out world, told with seeds 0, 1, …, and their pictures."""
    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.evaluation.benchmarks.stories import paint
    from storydiffusion.storyworld.captions import caption
    from storydiffusion.storyworld.images import HELD_OUT_SEED
    from storydiffusion.storyworld.truth import sample_truth

    captions = [caption(sample_truth(HELD_OUT_SEED, index), index) for index in range(SAMPLES)]
    off, pictures = ConsistentSelfAttentionConfig(variant="off"), []
    for first in range(0, SAMPLES, BATCH):
        seeds = list(range(first, min(SAMPLES, first + BATCH)))
        pictures += paint(model, config, [captions[seed] for seed in seeds], seeds, off, None)
    return captions, pictures


def draw_clips(resolved: ResolvedModel) -> "Image.Image":
    """The sheet of clips: the first of each motion in the held-out world."""
    import torch
    from PIL import Image
    from tqdm import tqdm

    from storydiffusion.pipelines.transition import build_sampling, sample_clips
    from storydiffusion.storyworld.clips import caption_clip, render_clip, sample_clip
    from storydiffusion.storyworld.images import HELD_OUT_SEED
    from storydiffusion.storyworld.motions import MOTIONS
    from storydiffusion.training.callbacks.sample_grid import build_grid

    video, sampling = resolved.video, build_sampling(resolved.video)
    model = load_video_model(resolved)
    true, sampled = [], []
    for number, motion in enumerate(tqdm(MOTIONS, desc="clips", unit="clip")):
        clip = sample_clip(HELD_OUT_SEED, number, motion)
        frames = torch.from_numpy(render_clip(clip, video.frames, resolved.config.height)).permute(0, 3, 1, 2)[None]
        true.append(frames)
        sampled.append(
            sample_clips(model, frames[:, 0], frames[:, -1], [caption_clip(clip, number)], [number], sampling)
        )
    return Image.fromarray(build_grid(torch.cat(true), torch.cat(sampled)))


def video_section(config: ModelConfig, record: Mapping[str, Any], table: str) -> str:
    """What the card says of video."""
    from storydiffusion.storyworld.motions import MOTIONS

    video = get_video_config(config)
    weight = record.get("predictor", {}).get("recipe", {}).get("semantic_weight", 0)
    return VIDEO.format(
        frames=video.frames,
        steps=video.steps,
        guidance=video.guidance_scale,
        semantic=SEMANTIC.format(weight=weight) if weight else "",
        motions=", ".join(MOTIONS),
        table=table,
    )


def sheet(rows: Sequence[Sequence["Image.Image"]], halves: bool = False) -> "Image.Image":
    """Pictures of one size in rows of one length, on white; `halves` sets a wider gap in the middle of the rows."""
    from PIL import Image

    width, height = rows[0][0].size
    columns = len(rows[0])
    extra = MIDDLE if halves else 0
    size = (GAP + columns * (width + GAP) + extra, GAP + len(rows) * (height + GAP))
    page = Image.new("RGB", size, "white")
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            left = GAP + c * (width + GAP) + (extra if c >= columns / 2 else 0)
            page.paste(picture, (left, GAP + r * (height + GAP)))
    return page


def png(picture: "Image.Image") -> bytes:
    """PNG of 256 colours, dithered: a third of the bytes."""
    buffer = BytesIO()
    picture.quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def count_parameters(folder: Path) -> dict[str, int]:
    """Numbers stored in each part of the model, the judge included, from the headers of its
    safetensors files."""
    from safetensors import safe_open

    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118  # no mapping
        counts[file.parent.name] = counts.get(file.parent.name, 0) + sum(math.prod(shape) for shape in shapes)
    return counts


def training_record(file: Path) -> dict[str, Any]:
    """How each part was trained."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} does not tell how the model was trained: train and export its parts there") from error


def card(
    config: ModelConfig,
    parameters: Mapping[str, int],
    record: Mapping[str, Any],
    measured: str,
    captions: Sequence[str],
    prompts: Sequence[str],
    video: str | None,
) -> str:
    """The card in Markdown; `measured` is the table of consistency, `prompts` are those of the stories' panels, `video`
    is the section of that name.
    """
    from storydiffusion.evaluation.tables import markdown_table
    from storydiffusion.storyworld.truth import ATTRIBUTES

    drawing = sum(parameters.get(part, 0) for part in ("unet", "text_encoder", "vae"))
    sizes = markdown_table(
        ["part", "parameters and buffers"], [[part, f"{count:,}"] for part, count in parameters.items()]
    )
    settings = f"{config.steps} steps, guidance {config.guidance_scale:g}, {config.width} × {config.height} pixels"
    words = {name + "s": ", ".join(ATTRIBUTES[name]) for name in ("kind", "action", "place")}
    return (
        FRONT.format(parameters=f"{drawing:,}")
        + f"## Parts\n\n{sizes}\n## Training\n\n{training_table(record)}\n"
        + f"<details><summary>Recipes</summary>\n\n```json\n{recipes(record)}\n```\n\n</details>\n\n"
        + f"## Samples\n\n{SAMPLES} pictures, none chosen: the first captions of the held-out world, seeds from 0, "
        + f"{settings}.\n\n![{SAMPLES} samples](samples.png)\n\n{folded('Captions, row by row', captions)}\n"
        + f"## Stories\n\nThe first {STORIES} frozen stories, one a row: left without consistent self-attention, right "
        + f"at rate {RATE:g}, same seeds.\n\n![{STORIES} stories](stories.png)\n\n"
        + f"{folded('Prompts, four for each row', prompts)}\n## Consistency and alignment\n\n{measured}\n"
        + (video or "")
        + LIMITS.format(size=config.width, **words)
    )


def training_table(record: Mapping[str, Any]) -> str:
    """One row for each trained part: what it took and what was measured when it was done."""
    from storydiffusion.evaluation.tables import markdown_table

    def row(part: str, entry: Mapping[str, Any]) -> list[str]:
        recipe, minutes = entry["recipe"], f"{entry['wall_seconds'] / 60:.0f} min"
        figures = ", ".join(f"{name} {value:,.7g}" for name, value in entry["figures"].items()) or "–"
        return [part, f"{recipe['steps']:,}", f"{recipe['batch_size']}", minutes, entry["machine"], figures]

    header = ["part", "steps", "batch", "wall time", "machine", "figures"]
    notes = [f"\n{part}: {note}\n" for part, entry in record.items() for note in entry.get("notes", ())]
    return markdown_table(header, [row(part, entry) for part, entry in record.items()]) + "".join(notes)


def recipes(record: Mapping[str, Any]) -> str:
    return json.dumps({part: entry["recipe"] for part, entry in record.items()}, indent=1)


def folded(title: str, lines: Sequence[str]) -> str:
    """A numbered list, from 0, that opens on a click."""
    listed = "\n".join(f"{number}. {line}" for number, line in enumerate(lines))
    return f"<details><summary>{title}</summary>\n\n{listed}\n\n</details>\n"
