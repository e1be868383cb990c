"""conf/infer.yaml: one story, a video of given images, or a benchmark of many stories or clips."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.token_samplers import get_token_sampler
from storydiffusion.config.baseline import IPAdapterConfig, PhotoMakerConfig, load_baseline_config
from storydiffusion.config.loading import (
    LARGEST_SEED,
    check_choice,
    check_range,
    check_sampling,
    load_choice,
    spell_switch,
)
from storydiffusion.config.model import ModelConfig
from storydiffusion.config.value_types import show
from storydiffusion.config.writer import ChatWriterConfig, RulesWriterConfig, check_writing, is_to_write
from storydiffusion.errors import UserError
from storydiffusion.output.page_settings import PageSettings

NOISES = ("own", "shared")
VIDEOS = ("auto", "on", "off")
CUTS = ("characters", "script")
LONGEST_HOLD = 60.0  # seconds
METHODS = ("predictor", "true_tokens", "interpolation", "no_semantic_tokens", "sparse_control", "cross-fade", "truth")
MOST_STORIES, MOST_PANELS = 128, 1000
STORY_SETS = ("varied", "places")
EMOTION_PROMPTS = ("emotion", "neutral")
IMAGE_SOURCES = ("generated", "reconstructed", "rendered")
CHARACTER_METHODS = ("file", "none")
MOST_WRITTEN_PANELS = 16  # of the rules writer
MOST_KEPT_GIB = 1024
MOST_CANDIDATES, MOST_TAKES = 100, 999  # of a panel, at once and in all
EXAMPLE = "package://examples/mia.yaml"
LONGEST_RUN_NAME = 40  # characters


@dataclasses.dataclass
class CSAConfig:
    """conf/csa/*.yaml: the arguments of `ConsistentSelfAttentionConfig`, which checks them."""

    rate: Any  # a number in [0, 1], or one for each grid: {2: 0.5, 4: 0.3}
    variant: str
    sampler: str
    decay: float
    tile_size: int | None
    neighbor_window: int | None
    anchor_panels: int | None
    blocks: str
    positions: str | None
    start: float
    end: float
    regions: str
    isolate_until: float
    panels_at_once: Any  # null, a number, or auto

    def __post_init__(self) -> None:
        if self.rate is None:
            raise UserError("csa.rate=null is not a number: choose one in [0, 1], or csa=off")
        self.regions = spell_switch(self.regions)
        self.build(seed=0)

    def build(self, seed: int) -> ConsistentSelfAttentionConfig:
        """Return the settings of consistent self-attention with the seed of its random draws.

        Raises:
            UserError: for values that are out of range or exclude each other; the message names the key.
        """
        try:
            return ConsistentSelfAttentionConfig(**dataclasses.asdict(self), seed=seed)
        except UserError as error:
            raise UserError(f"csa.{error}") from error


@dataclasses.dataclass
class StoriesBenchmark:
    """conf/benchmark/stories.yaml: frozen stories of StoryWorld, generated and classified."""

    kind: str
    stories: int
    panels: int  # of each; 4: the frozen ones, else others of the same generator
    characters: int  # of each; 2 needs a model of the second edition
    set: str  # varied: every panel in another place; places: two places take turns, second edition
    batch: int  # stories generated at once

    def __post_init__(self) -> None:
        check_range("benchmark.stories", self.stories, 2, MOST_STORIES)
        check_range("benchmark.panels", self.panels, 2, MOST_PANELS)
        check_range("benchmark.characters", self.characters, 1, 2)
        check_choice("benchmark.set", self.set, STORY_SETS)
        check_range("benchmark.batch", self.batch, 1, MOST_STORIES)


@dataclasses.dataclass
class CharactersBenchmark:
    """conf/benchmark/characters.yaml: pairs of StoryWorld stories of the same saved characters."""

    kind: str
    stories: int  # pairs
    panels: int  # of each story
    characters: int  # of each; 2 needs a model of the second edition
    method: str  # of CHARACTER_METHODS
    batch: int  # pairs generated between two records

    def __post_init__(self) -> None:
        check_range("benchmark.stories", self.stories, 2, MOST_STORIES)
        check_range("benchmark.panels", self.panels, 2, MOST_PANELS // 2)
        check_range("benchmark.characters", self.characters, 1, 2)
        check_choice("benchmark.method", self.method, CHARACTER_METHODS)
        check_range("benchmark.batch", self.batch, 1, MOST_STORIES)


@dataclasses.dataclass
class TransitionsBenchmark:
    """conf/benchmark/transitions.yaml: held-out clips, generated between their boundary frames."""

    kind: str
    method: str
    interpolation: str | None  # of that method: a released folder of predictor.layers=0; null: without transformer
    motion: str | None  # of all clips, or scene_change for unrelated boundary frames; null: any
    clips: int
    batch: int  # clips made at once

    def __post_init__(self) -> None:
        check_choice("benchmark.method", self.method, METHODS)
        check_range("benchmark.clips", self.clips, 2, 10**6)
        check_range("benchmark.batch", self.batch, 1, 10**6)


@dataclasses.dataclass
class ImageEncoderBenchmark:
    """conf/benchmark/image_encoder.yaml: held-out images, read from the tokens of model.video.image_encoder."""

    kind: str
    edition: int  # of StoryWorld
    training_images: int  # that the linear probe is fitted on
    retrieval: bool  # also find captions; needs an encoder with a text tower
    blocks: int  # of 64 images
    batch: int  # blocks measured between two records

    def __post_init__(self) -> None:
        check_range("benchmark.training_images", self.training_images, 2, 100_000)
        check_range("benchmark.blocks", self.blocks, 2, 10**4)
        check_range("benchmark.batch", self.batch, 1, 10**4)


@dataclasses.dataclass
class EmotionBenchmark:
    """conf/benchmark/emotion.yaml: written stories of the eight emotions, with and without moods in their prompts."""

    kind: str
    stories: int
    panels: int  # of each
    prompts: str  # of EMOTION_PROMPTS: name the characters' moods, or not
    batch: int  # stories generated at once

    def __post_init__(self) -> None:
        check_range("benchmark.stories", self.stories, 2, MOST_STORIES)
        check_range("benchmark.panels", self.panels, 3, MOST_WRITTEN_PANELS)
        check_choice("benchmark.prompts", self.prompts, EMOTION_PROMPTS)
        check_range("benchmark.batch", self.batch, 1, MOST_STORIES)


@dataclasses.dataclass
class TextToImageBenchmark:
    """conf/benchmark/text2image.yaml: single images of held-out prompts, generated and classified."""

    kind: str
    source: str  # of the images, of IMAGE_SOURCES
    images: int
    batch: int  # images generated at once

    def __post_init__(self) -> None:
        check_choice("benchmark.source", self.source, IMAGE_SOURCES)
        check_range("benchmark.images", self.images, 2, 10**5)
        check_range("benchmark.batch", self.batch, 1, 10**4)


BENCHMARKS: dict[str, type] = {
    "stories": StoriesBenchmark,
    "characters": CharactersBenchmark,
    "transitions": TransitionsBenchmark,
    "image_encoder": ImageEncoderBenchmark,
    "emotion": EmotionBenchmark,
    "text2image": TextToImageBenchmark,
}


GROUPS = ("writer", "baseline", "benchmark")
"""keys of `InferConfig` that one of their keys turns into a dataclass"""


@dataclasses.dataclass
class InferConfig:
    """conf/infer.yaml: a story or a benchmark. Values that are null take the model's defaults (`model.steps`, …)."""

    story: str | None  # null: EXAMPLE
    idea: str | None  # to write a story from, instead of a story file
    text: str | None  # a file of prose to split into panels, in the same way
    emotion: str | None  # that a written story evokes
    panels: int | None  # of a written story; null: the writer's
    language: str | None  # of its captions; null: that of the idea or text
    negative: str | None  # what to avoid in all panels, in place of the story's own `negative`; null: the story's
    frames: list[str] | None  # image files to make a video of, instead of a story
    run_dir: str | None  # null: runs/NAME-OF-THE-STORY-FILE, runs/WORDS-OF-THE-IDEA, or runs/video for given images
    overwrite: bool
    retake: int | None  # a panel of the finished story, from 1
    candidates: int  # takes of it to generate
    take: int | None  # of it to choose; 0: its first image
    keep_features: float  # GiB that the images' features may take in run_dir, for fast retakes; 0: none are kept
    extend: bool  # generate panels at the end of a finished story, which stays as it is
    seed: int
    noise: str
    steps: int | None
    guidance_scale: float | None
    height: int | None
    width: int | None
    video: str  # auto: if the model makes one; on: required; off
    fps: int | None
    hold: float  # seconds that the video shows each panel
    captions: bool  # below the video
    cuts: str  # script: where a panel says so; characters: also between panels that share no character
    font: Any  # null, or a font file, or a list of them: come before the bundled fonts
    page: PageSettings
    exports: list[str]  # of output.exports.EXPORTS
    paper: str | None
    model: ModelConfig
    csa: CSAConfig
    baseline: Annotated[Any, IPAdapterConfig, PhotoMakerConfig]  # null, or one of these by its key `kind`
    benchmark: Annotated[  # the same
        Any,
        StoriesBenchmark,
        CharactersBenchmark,
        TransitionsBenchmark,
        ImageEncoderBenchmark,
        EmotionBenchmark,
        TextToImageBenchmark,
    ]
    writer: Annotated[Any, RulesWriterConfig, ChatWriterConfig]  # the same

    def __post_init__(self) -> None:
        check_choice("noise", self.noise, NOISES)
        check_range("seed", self.seed, 0, LARGEST_SEED)
        check_sampling("", self)
        for name in ("steps", "guidance_scale", "height", "width"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.model, name))
        self.video = spell_switch(self.video)
        check_choice("video", self.video, VIDEOS)
        check_choice("cuts", self.cuts, CUTS)
        self._check_exports()
        self.font = [self.font] if isinstance(self.font, str) else self.font
        if self.font is not None and not (isinstance(self.font, list) and all(isinstance(f, str) for f in self.font)):
            raise UserError(f"font={show(self.font)} is not a file or a list of files: write font=FILE")
        self._check_retake()
        check_range("hold", self.hold, 0, LONGEST_HOLD)
        check_range("keep_features", self.keep_features, 0, MOST_KEPT_GIB)
        if self.fps is None and self.model.video is not None:
            self.fps = self.model.video.fps
        if self.fps is not None:
            check_range("fps", self.fps, 1, 120)
        if self.frames is not None and self.video == "off":
            raise UserError("frames needs a video, but video=off: leave out one of them")
        if self.baseline is not None:
            self.baseline = load_baseline_config(self.baseline)
        if self.baseline is not None and self.csa.regions != "off":
            raise UserError(
                f"csa.regions={self.csa.regions} reads the story's own prompts: leave out csa.regions or baseline"
            )
        if self.baseline is not None and self.model.controlnet is not None:
            raise UserError("a baseline takes no ControlNet: leave out model.controlnet or baseline")
        if self.benchmark is not None:
            self._load_benchmark()
        if "masks" in get_token_sampler(self.csa.sampler).needs and not isinstance(self.benchmark, StoriesBenchmark):
            raise UserError(
                f"csa.sampler={self.csa.sampler} needs masks of characters, which benchmark=stories records: choose "
                "csa.sampler=uniform or progressive, or benchmark=stories"
            )
        self._check_source()
        if self.run_dir is None:
            self.run_dir = str(Path("runs") / self._run_name())

    def _check_exports(self) -> None:
        from storydiffusion.output.exports import check_exports, check_transitions

        check_exports(self.exports, self.paper)
        check_transitions(self.exports, self.video != "off" and self.model.video is not None)
        if self.exports and self.benchmark is not None:
            raise UserError("a benchmark has no pages to export: leave out exports or benchmark")

    def _check_retake(self) -> None:
        check_range("candidates", self.candidates, 1, MOST_CANDIDATES)
        if self.retake is None and self.take is not None:
            raise UserError(f"take={self.take} of which panel? add retake=PANEL")
        if self.retake is not None and self.extend:
            raise UserError("retake and extend are two steps: leave out one of them")
        if self.retake is None and not self.extend:
            return
        what = "extend" if self.extend else "retake"
        if self.retake is not None:
            check_range("retake", self.retake, 1, MOST_PANELS)
        if self.take is not None:
            check_range("take", self.take, 0, MOST_TAKES)
        for name in ("frames", "benchmark", "baseline"):
            if getattr(self, name) is not None:
                raise UserError(f"{what} generates only from a story's prompts: leave out {what} or {name}")
        if self.overwrite:
            raise UserError(f"{what} keeps the existing panels: leave out overwrite")

    def change(self, **values: Any) -> "InferConfig":
        """Return the configuration with other values, checked again. Raises UserError."""
        groups = {name: dataclasses.asdict(group) for name in GROUPS if (group := getattr(self, name))}
        return dataclasses.replace(self, **{**groups, **values})

    @property
    def is_to_write(self) -> bool:
        """Whether the story is to be written, from an idea, a text or an emotion."""
        return is_to_write(self)

    def _check_source(self) -> None:
        """Check that the story comes from one source, and take the example where there is none."""
        check_writing(self)
        others = {"story": self.story, "frames": self.frames, "benchmark": self.benchmark}
        for name, value in others.items():
            if self.is_to_write and value is not None:
                raise UserError(f"idea, text and emotion write a new story: leave out them or {name}")
        if not self.is_to_write:
            for name in ("panels", "language"):
                if getattr(self, name) is not None:
                    raise UserError(f"{name}={getattr(self, name)} is for a story to write: add idea='…' or text=FILE")
            self.story = self.story or EXAMPLE

    def _run_name(self) -> str:
        """Return the name of the run folder: of the story file, from the words of the idea, or what there is."""
        if self.frames is not None:
            return "video"
        if self.idea is not None:
            words = re.findall(r"\w+", self.idea.lower())
            return "-".join(words)[:LONGEST_RUN_NAME].strip("-_") or "story"
        return Path(self.text or self.story or str(self.emotion)).stem

    def _load_benchmark(self) -> None:
        if self.frames is not None:
            raise UserError("a benchmark generates its own images: leave out frames or benchmark")
        if self.negative is not None:
            raise UserError("a benchmark has prompts of its own, none negative: leave out negative or benchmark")
        if self.model.controlnet is not None:
            raise UserError("a benchmark's stories have no poses: leave out model.controlnet or benchmark")
        if self.baseline is not None and self.baseline.portraits is not None:
            raise UserError("a benchmark generates its own portraits: leave out baseline.portraits or benchmark")
        self.benchmark = load_choice(BENCHMARKS, self.benchmark, "benchmark", by="kind")
