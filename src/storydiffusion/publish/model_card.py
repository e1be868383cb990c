"""The model card of the miniature: README.md in its folder, with sheets of samples; see conf/model_card.yaml."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import ModelConfig
from storydiffusion.errors import UserError, first_line
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import build, read_object
from storydiffusion.loaders.resolve import ResolvedModel, get_video_config, resolve_model
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.loaders.text_to_image import StoryModel, load_story_model
from storydiffusion.loaders.video import load_video_model
from storydiffusion.storyworld.scene import split_label

if TYPE_CHECKING:
    from PIL import Image

    from storydiffusion.storyworld.edition import Edition
    from storydiffusion.storyworld.scene_stories import BenchmarkStory

SAMPLES, SAMPLE_COLUMNS, STORIES, RATE = 64, 8, 12, 0.5
BATCH = 16  # images generated at once
GAP, MIDDLE = 4, 20  # pixels between images, and between the halves of a story's row

FRONT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# The StoryDiffusion miniature

A text-to-image model of {parameters} parameters in diffusers' format, trained from scratch on StoryWorld, a cartoon
world that a program draws. With it, consistent self-attention can be tried, tested and measured on any CPU, against
known ground truth. `diffusers.StableDiffusionPipeline.from_pretrained(FOLDER)` loads it. License: Apache-2.0, like the
code. All training data was drawn and captioned by the program; no other images or texts were used.

Its measurements are in [RESULTS.md](../../../RESULTS.md).

"""

VIDEO = """## Video

`motion_adapter` and `predictor` generate the {frames} frames from one image to another. `python train.py` trained them
with the other parts frozen, on clips that the program draws, through the whole data path: tar shards, decord, batches.
The recipes above list the settings of each training. Frames read the predictor as in the paper: cross-attention is over
concat(T, P_i), the tokens of the text and the predictor's for this frame, in one softmax. Additions to the paper, which
a model of this size needs to keep a character's identity:

- Boundary attention: the spatial self-attention of every frame also reads the tokens of the first and last frame
  (`model.video.boundary_attention`). It adds no weights.
- Clamped boundary frames: the clean latents of both boundary frames replace the noisy ones at every step, in sampling
  (`model.video.boundary_frames=clamped`) and in a share of the training clips (`boundary_frame_prob` in the recipes),
  where the loss is over the frames between. `model.video.boundary_frames=free` samples without them, as the paper does.
  Only the last training covered that, with half of its clips, and the frames resemble the given images only roughly.
- Teacher forcing: predictor and motion modules were trained together on tokens of the true frames (`teacher_forcing`),
  which carry the content of the frames between. Predicted tokens, which the paper trains with, serve sampling only.
- The model is trained to predict v, with Muon; the paper's predicts the noise.
{semantic}
These parts were trained without a GPU: in bfloat16 on a CPU. DeepSpeed and training on several GPUs were not run.

The first held-out clip of each motion, uncurated. In each pair of rows the upper one is the true clip. In the lower one
the first and last frame are given, and the frames between are sampled in {steps} steps at guidance {guidance:g}:
{motions}.

![Clips](clips.png)

"""

SEMANTIC = """- Besides the diffusion loss, the predictor's transformer is trained on the error of its tokens against
  those of the true frames, with weight {weight:g} (`recipe.semantic_weight`).
"""

LIMITS = """## Limits

- It draws only StoryWorld: {kinds}; {actions}; {places}. It knows no other words.
- Each image shows {shown}, {size} × {size} pixels.
- Measurements on it compare methods on this world; they do not predict how full-scale models draw people. Its attribute
  classifier was trained on the same world and does not judge image quality.
- A share of its training batches (`pair_probability` in the recipe) shows one character twice in one image, in two
  activities, like collages on the web. They are meant to teach self-attention that one character wears one attire.
  Their effect was not measured separately. The training did not use consistent self-attention.
- Its image-text encoder was trained on this world only and does not replace CLIP.
- Attire that a prompt leaves open is random; attire that it names is sometimes wrong, see RESULTS.md.
"""


SHOWN = {
    1: "one whole character in the middle",
    2: "an empty place, or one or two whole characters, each in one of nine moods and at one of five sides",
}
"""Edition of StoryWorld → what its images show."""
STORIES_OF = {1: {1: STORIES}, 2: {1: 8, 2: 4}}
"""Edition → number of characters → how many of the first stories are shown, STORIES in all."""


@dataclass
class ModelCardConfig:
    """The settings of the command."""

    model: ModelConfig


def create_card(config: ModelCardConfig) -> None:
    """Generate the sheets and write README.md beside them, into the model's folder."""
    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.evaluation.benchmarks.benchmark import find_edition
    from storydiffusion.evaluation.benchmarks.stories import generate_stories
    from storydiffusion.publish.anatomy import read_anatomy, write_anatomy
    from storydiffusion.training.record import RECORD

    place = find_model_folder(config.model.path, config.model.revision, files=(RECORD,))
    record = read_training_record(place / RECORD)
    resolved = resolve_model(config.model)
    folder, edition = resolved.folder, find_edition(resolved.folder)
    anatomy = write_anatomy(read_anatomy(folder, resolved.checksums, SAMPLES), SAMPLES)
    video = None
    if config.model.video is not None and config.model.video.predictor is not None:
        write_atomically(folder / "clips.png", encode_png(draw_clips(resolved, edition)))
        video = write_video_section(config.model, record)
    model = load_story_model(resolved)
    captions, samples = draw_samples(model, config.model, edition)
    stories = choose_stories(edition)
    attentions = [ConsistentSelfAttentionConfig(rate=rate) for rate in (0.0, RATE)]
    halves = [
        [generate_stories(model, config.model, [story], attention, seed=0) for story in stories]
        for attention in attentions
    ]
    story_rows = [without + shared for without, shared in zip(*halves, strict=True)]
    sample_rows = [samples[i : i + SAMPLE_COLUMNS] for i in range(0, len(samples), SAMPLE_COLUMNS)]
    write_atomically(folder / "samples.png", encode_png(sheet(sample_rows)))
    write_atomically(folder / "stories.png", encode_png(sheet(story_rows, halves=True)))
    prompts = [panel.prompt for story in stories for panel in story.panels]
    text = write_card(config.model, edition, count_parameters(folder), record, captions, anatomy, prompts, video)
    write_atomically(folder / "README.md", text.encode())
    print(f"written: {folder / 'README.md'} and its sheets")


def choose_stories(edition: "Edition") -> "list[BenchmarkStory]":
    """Return the frozen stories of the sheet."""
    from storydiffusion.evaluation.benchmarks.story_sets import get_story_set
    from storydiffusion.storyworld.stories import PANELS

    shown = STORIES_OF[edition.number]
    return [
        story
        for characters, count in shown.items()
        for story in get_story_set(edition.number, characters, PANELS).stories[:count]
    ]


def draw_samples(model: StoryModel, config: ModelConfig, edition: "Edition") -> tuple[list[str], list["Image.Image"]]:
    """Return the first prompts of the held-out world, and the images generated from them with seeds 0, 1, …

    They are the samples of `benchmark=text2image` with seed=0.
    """
    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.evaluation.benchmarks.stories import generate_images
    from storydiffusion.evaluation.benchmarks.text_to_image import draw_case

    captions = [draw_case(edition, number).prompt.text for number in range(SAMPLES)]
    off, images = ConsistentSelfAttentionConfig(variant="off"), []
    for first in range(0, SAMPLES, BATCH):
        seeds = list(range(first, min(SAMPLES, first + BATCH)))
        images += generate_images(model, config, [captions[seed] for seed in seeds], seeds, off, None)
    return captions, images


def draw_clips(resolved: ResolvedModel, edition: "Edition") -> "Image.Image":
    """Return the sheet of clips: the first of each motion in the held-out world."""
    import torch
    from PIL import Image
    from tqdm import tqdm

    from storydiffusion.pipelines.transition_sampling import build_sampling, sample_clips
    from storydiffusion.storyworld.images import HELD_OUT_SEED
    from storydiffusion.storyworld.motions import MOTIONS
    from storydiffusion.training.callbacks.sample_grid import build_grid

    video, sampling = resolved.video, build_sampling(resolved.video)
    model = load_video_model(resolved)
    true, sampled = [], []
    for number, motion in enumerate(tqdm(MOTIONS, desc="clips", unit="clip")):
        clip = edition.sample_clip(HELD_OUT_SEED, number, motion)
        rendered = edition.render_clip(clip, video.frames, resolved.config.height)
        frames = torch.from_numpy(rendered).permute(0, 3, 1, 2)[None]
        true.append(frames)
        sampled.append(
            sample_clips(model, frames[:, 0], frames[:, -1], [edition.caption_clip(clip, number)], [number], sampling)
        )
    return Image.fromarray(build_grid(torch.cat(true), torch.cat(sampled)))


def write_video_section(config: ModelConfig, record: Mapping[str, Any]) -> str:
    """Return the card's section on video."""
    from storydiffusion.storyworld.motions import MOTIONS

    video = get_video_config(config)
    weight = record.get("predictor", {}).get("recipe", {}).get("semantic_weight", 0)
    return VIDEO.format(
        frames=video.frames,
        steps=video.steps,
        guidance=video.guidance_scale,
        semantic=SEMANTIC.format(weight=weight) if weight else "",
        motions=", ".join(MOTIONS),
    )


def sheet(rows: Sequence[Sequence["Image.Image"]], halves: bool = False) -> "Image.Image":
    """Arrange images of one size in rows of one length, on white; `halves` widens the gap in the middle of the rows."""
    from PIL import Image

    width, height = rows[0][0].size
    columns = len(rows[0])
    extra = MIDDLE if halves else 0
    size = (GAP + columns * (width + GAP) + extra, GAP + len(rows) * (height + GAP))
    page = Image.new("RGB", size, "white")
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            left = GAP + c * (width + GAP) + (extra if c >= columns / 2 else 0)
            page.paste(image, (left, GAP + r * (height + GAP)))
    return page


def encode_png(image: "Image.Image") -> bytes:
    """Encode as a dithered PNG of 256 colors: a third of the bytes."""
    buffer = BytesIO()
    image.quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def count_parameters(folder: Path) -> dict[str, int]:
    """Return the number of stored values of each part of the model, from the headers of its safetensors files."""
    from safetensors import safe_open

    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118  # not a mapping
        counts[file.parent.name] = counts.get(file.parent.name, 0) + sum(math.prod(shape) for shape in shapes)
    return counts


@dataclass(frozen=True)
class _TrainedPart:
    """An entry of training.json."""

    recipe: dict[str, Any]
    wall_seconds: float
    machine: str
    figures: dict[str, float]
    torch: str = ""
    notes: tuple[str, ...] = ()


def read_training_record(file: Path) -> dict[str, Any]:
    """Return how each part was trained.

    Raises:
        UserError: a file that is missing or damaged, or an entry without what the card needs.
    """
    try:
        record = read_object(file)
        for part, entry in record.items():
            recipe = build(_TrainedPart, entry, part).recipe
            for name in ("steps", "batch_size"):
                if type(recipe.get(name)) is not int:
                    raise ValueError(f"{part}.recipe.{name} is not a whole number")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} is missing or damaged ({first_line(error)}), so the training is unknown. Train the parts and "
            "export them there"
        ) from error
    return record


def write_card(
    config: ModelConfig,
    edition: "Edition",
    parameters: Mapping[str, int],
    record: Mapping[str, Any],
    captions: Sequence[str],
    anatomy: str,
    prompts: Sequence[str],
    video: str | None,
) -> str:
    """Return the card in Markdown.

    Args:
        captions: of the samples.
        anatomy: the section on their visible faults; "" where the samples are not reviewed.
        prompts: of the stories' panels.
        video: the section on video; None for a model without.
    """
    from storydiffusion.evaluation.tables import markdown_table

    drawing = sum(parameters.get(part, 0) for part in ("unet", "text_encoder", "vae"))
    sizes = markdown_table(
        ["part", "parameters and buffers"], [[part, f"{count:,}"] for part, count in parameters.items()]
    )
    settings = f"{config.steps} steps, guidance {config.guidance_scale:g}, {config.width} × {config.height} pixels"
    values = {split_label(label)[0]: each for label, each in edition.labels.items()}
    words = {name + "s": ", ".join(values[name]) for name in ("kind", "action", "place")}
    return (
        FRONT.format(parameters=f"{drawing:,}")
        + f"## Parts\n\n{sizes}\n## Training\n\n{write_training_table(record)}\n"
        + f"<details><summary>Recipes</summary>\n\n```json\n{dump_recipes(record)}\n```\n\n</details>\n\n"
        + f"## Samples\n\n{SAMPLES} uncurated images: the first captions of the held-out world, seeds from 0, "
        + f"{settings}.\n\n![{SAMPLES} samples](samples.png)\n\n{fold('Captions, row by row', captions)}\n"
        + anatomy
        + f"## Stories\n\nThe first {STORIES} frozen stories, one per row: left without consistent self-attention, "
        + f"right at rate {RATE:g}, same seeds.\n\n![{STORIES} stories](stories.png)\n\n"
        + f"{fold('Prompts, four per row', prompts)}\n"
        + (video or "")
        + LIMITS.format(size=config.width, shown=SHOWN[edition.number], **words)
    )


def write_training_table(record: Mapping[str, Any]) -> str:
    """Return one row per trained part: its cost, and the metrics at its end."""
    from storydiffusion.evaluation.tables import escape_markdown, markdown_table

    def row(part: str, entry: Mapping[str, Any]) -> list[str]:
        recipe, minutes = entry["recipe"], f"{entry['wall_seconds'] / 60:.0f} min"
        metrics = ", ".join(f"{name} {format_figure(value)}" for name, value in entry["figures"].items()) or "–"
        machine = escape_markdown(entry["machine"])
        return [part, f"{recipe['steps']:,}", f"{recipe['batch_size']}", minutes, machine, metrics]

    header = ["part", "steps", "batch", "wall time", "machine", "metrics"]
    notes = [f"\n{part}: {note}\n" for part, entry in record.items() for note in entry.get("notes", ())]
    return markdown_table(header, [row(part, entry) for part, entry in record.items()]) + "".join(notes)


def format_figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:,.7g}"


def dump_recipes(record: Mapping[str, Any]) -> str:
    return json.dumps({part: entry["recipe"] for part, entry in record.items()}, indent=1)


def fold(title: str, lines: Sequence[str]) -> str:
    """Return a numbered list, from 0, inside a collapsed block."""
    listed = "\n".join(f"{number}. {line}" for number, line in enumerate(lines))
    return f"<details><summary>{title}</summary>\n\n{listed}\n\n</details>\n"
