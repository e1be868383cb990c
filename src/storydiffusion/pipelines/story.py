"""Generate a story: prompts → consistent panels, with any pipeline of diffusers that consistent self-attention
supports.

pipe = StoryPipeline.from_pretrained("package://miniature")
output = pipe("story.yaml", seed=1)
output.page.save("page.png")
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.kept_features import FeatureStore
from storydiffusion.config import ModelConfig
from storydiffusion.config.infer import NOISES
from storydiffusion.config.loading import check_choice
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import ResolvedModel, resolve_pretrained
from storydiffusion.loaders.text_to_image import load_story_model
from storydiffusion.models.prompt_encoding import count_windows, unknown_words
from storydiffusion.pipelines.batch import Batch, batch_panels, batch_with_characters, get_prompts
from storydiffusion.pipelines.calls import is_unet
from storydiffusion.pipelines.character_saving import Recipe
from storydiffusion.pipelines.conditioning import Conditions
from storydiffusion.pipelines.panels import StepCallback, generate_panels, panel_seeds
from storydiffusion.pipelines.poses import posed_panels_only
from storydiffusion.story import Story, load_story
from storydiffusion.story.character_file import CharacterFile, SavedImage
from storydiffusion.story.poses import check_poses, has_poses, read_poses
from storydiffusion.story.saved_characters import check_characters, describe_settings, read_characters

OUTPUT_TYPES = ("pil", "np")


@dataclass(frozen=True)
class StoryPipelineOutput:
    """A generated story.

    Attributes:
        images: one for each generated panel: a list of PIL images, or with output_type="np" floats in [0, 1],
            (P, H, W, 3).
        prompts, negative_prompts: what each panel was generated from.
        seeds: of each panel's starting noise.
        story: the script.
        recipe: how the images were generated; None where a character file could not hold it.
    """

    images: Any
    prompts: list[str]
    negative_prompts: list[str]
    seeds: list[int]
    story: Story
    recipe: Recipe | None = None

    @cached_property
    def page(self) -> Image.Image:
        """The story as one comic page, with its captions. Warns of characters that no bundled font has."""
        from storydiffusion.output.lettering import describe_missing, find_missing_by_place
        from storydiffusion.output.page import comic_page

        panels = self.story.panels
        captions, says = [panel.caption for panel in panels], [panel.says for panel in panels]
        if missing := find_missing_by_place(self.story.title, captions, says=says):
            warnings.warn(
                f"no font has these characters, which become empty boxes: {describe_missing(missing)}; add a font with "
                "storydiffusion.output.page.comic_page(images, captions, title, fonts=[FILE])",
                stacklevel=2,
            )
        return comic_page(self._pil_images, captions, self.story.title, says=says)

    @property
    def _pil_images(self) -> Any:
        from diffusers.image_processor import VaeImageProcessor

        is_array = isinstance(self.images, np.ndarray)
        return VaeImageProcessor.numpy_to_pil(self.images) if is_array else self.images

    def save_character(self, name: str, path: str | Path, overwrite: bool = False) -> Path:
        """Save a character for other stories, `characters: {Mia: {file: mia.safetensors}}`; return the file.

        Args:
            path: of the file, with .safetensors or without; card and portrait lie beside it.

        Raises:
            UserError: no such character, a story without a recipe or without sharing, or an existing file.
        """
        if self.recipe is None:
            raise UserError(
                "a character file holds no poses, other saved characters, or given conditions, arguments and start: "
                "generate the whole story without them, with a U-Net of StoryPipeline.from_pretrained"
            )
        return self.recipe.save(name, self._pil_images, Path(path), overwrite)


class StoryPipeline:
    """Generate the panels of a story with consistent self-attention.

    Args:
        pipe: a StableDiffusionPipeline, its XL variant, or another diffusers pipeline that
            `consistent_self_attention` supports. It is used as it is and left unchanged.
        defaults: default arguments of a call (`num_inference_steps`, `guidance_scale`, `height`, `width`); what is
            missing takes the pipeline's own default.
        model: that the pipeline was loaded from, which character files are checked against.
    """

    def __init__(
        self, pipe: Any, defaults: Mapping[str, Any] | None = None, model: ResolvedModel | None = None
    ) -> None:
        self.pipe = pipe
        self.model = model
        side = (pipe.unet.config.sample_size if is_unet(pipe) else pipe.default_sample_size) * pipe.vae_scale_factor
        self.defaults: dict[str, Any] = {"height": side, "width": side, **(defaults or {})}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        offload: str | None = None,
        scheduler: str | None = None,
        config: str | None = None,
        **settings: Any,
    ) -> "StoryPipeline":
        """Load a pipeline; an argument of None takes the default of conf/model.

        Args:
            path: `package://miniature`, a folder in diffusers' format, or a hub id.
            revision: of a hub id.
            device: `auto`, `cpu`, `cuda` or `mps`.
            dtype: `auto` (float16 on CUDA, else float32), `float32`, `float16` or `bfloat16`.
            offload: `none`, `model` or `sequential`; the latter two need CUDA.
            scheduler: `model`, the one in the folder, `ddim`, or another name of `SCHEDULERS`.
            config: a file of conf/model to take defaults from, such as `sdxl`; None chooses it by the model's class.
            settings: further ones of conf/model, such as `single_file`, `vae`, `lora` and `controlnet`.

        Raises:
            UserError: no such model, hub out of reach, unusable weights, or a device that this machine lacks.
        """
        settings |= {"device": device, "dtype": dtype, "offload": offload, "scheduler": scheduler}
        return cls.from_model(resolve_pretrained(path, config, revision, **settings))

    @classmethod
    def from_model(cls, model: ResolvedModel) -> "StoryPipeline":
        """Load the pipeline of a resolved model."""
        return cls(load_story_model(model).pipe, get_sampling_defaults(model.config), model)

    def to(self, *args: Any, **kwargs: Any) -> "StoryPipeline":
        """Move the networks to a device, a dtype, or both, as `DiffusionPipeline.to`."""
        self.pipe.to(*args, **kwargs)
        return self

    def __call__(
        self,
        story: Story | str | Path,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        csa: ConsistentSelfAttentionConfig | None = None,
        noise: str = "own",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        output_type: str = "pil",
        negative_prompt: str | None = None,
        conditions: Conditions | None = None,
        start: tuple[int, Tensor] | None = None,
        panels: Sequence[int] | None = None,
        features: FeatureStore | None = None,
        **arguments: Any,
    ) -> StoryPipelineOutput:
        """Generate one image for each panel.

        Args:
            story: a `Story`, or the file of one (.yaml, or .txt in the official text syntax).
            seed: of the story. The noise of a panel without a seed of its own derives from it and from the panel's
                number, and so do the draws of consistent self-attention: it replaces `csa.seed`.
            generator: draws the seed instead.
            csa: None: the paper's defaults; `ConsistentSelfAttentionConfig(variant="off")` switches sharing off.
            noise: `own`, or `shared` by the panels of one character.
            num_inference_steps, guidance_scale, height, width: None takes the default.
            callback_on_step_end: diffusers' callback(pipe, step, timestep, tensors), where tensors has `latents`.
            output_type: `pil` or `np`.
            negative_prompt: what to avoid in all panels, in place of the story's `negative`; None: the story's.
            conditions: of the panels, such as those of a baseline method; None: the story's prompts.
            start: (steps done, latents) where an interrupted call stopped; see `generate_panels`. Latents of saved
                characters' images come first, also in the callback's tensors.
            panels: numbers from 0 of the panels to generate, with all that they read; they come out as in the whole
                story, up to rounding, which may differ between sizes of a batch. None: all panels.
            features: records those of the panels, for takes that read them (see `generate_takes`).
            arguments: further ones of the pipeline's call, such as `cross_attention_kwargs`.

        Raises:
            UserError: a story that cannot be read, a wrong argument, or too little memory.
        """
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_choice("noise", noise, NOISES)
        story = story if isinstance(story, Story) else load_story(story)
        story = story if negative_prompt is None else replace(story, negative=negative_prompt)
        seed = seed if generator is None else draw_seed(generator)
        csa = replace(csa or ConsistentSelfAttentionConfig(), seed=seed)
        sampling = self._fill_defaults(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, height=height, width=width
        )
        characters = [panel.characters for panel in story.panels]
        seeds = panel_seeds(seed, characters, noise, [panel.seed for panel in story.panels])
        files = read_characters(story)
        if files:
            self._check_characters(files, sampling, csa, conditions)
            batch = batch_with_characters(self.pipe, story, seeds, files, panels)
        else:
            batch = batch_panels(self.pipe, story, seeds, csa, conditions, panels)
        call = {**arguments, "output_type": output_type}
        images = self._generate(batch, sampling, call, csa, start, callback_on_step_end, features)
        output = StoryPipelineOutput(images, *get_prompts(story), seeds, story)
        has_more = files or conditions is not None or panels is not None or start or arguments or has_poses(story)
        return output if has_more else replace(output, recipe=self._describe(output, sampling, csa))

    def _fill_defaults(self, **given: Any) -> dict[str, Any]:
        """Return the arguments of a call: the given ones, and the pipeline's default for each that is None."""
        return self.defaults | {name: value for name, value in given.items() if value is not None}

    def _generate(
        self,
        batch: Batch,
        sampling: Mapping[str, Any],
        arguments: Mapping[str, Any],
        csa: ConsistentSelfAttentionConfig,
        start: tuple[int, Tensor] | None,
        callback: StepCallback | None,
        features: FeatureStore | None,
    ) -> Any:
        """Generate the panels of a batch; `arguments` win over those of its conditions, and these over `sampling`."""
        conditions, in_chunks = batch.conditions, csa.panels_at_once is not None
        with self.posing(batch.story, (sampling["width"], sampling["height"]), in_chunks) as poses:
            images = generate_panels(
                self.pipe,
                {**sampling, **poses, **conditions.arguments, **arguments},
                batch.seeds,
                csa,
                batch.group,
                start,
                callback,
                conditions.at_step_end,
                batch.given_noise,
                features,
            )
        return images[len(batch.seeds) - len(batch.story.panels) :]

    def _check_characters(
        self,
        files: Mapping[str, CharacterFile],
        sampling: Mapping[str, Any],
        csa: ConsistentSelfAttentionConfig,
        conditions: Conditions | None,
    ) -> None:
        """Check that character files fit the model and a call's settings. Raises UserError."""
        if conditions is not None:
            raise UserError("a story with saved characters takes only prompts: leave out conditions or the files")
        if self.model is None:
            raise UserError(
                "this pipeline's weights are unknown, so no character file can be checked against them: load it with "
                "StoryPipeline.from_pretrained"
            )
        settings = describe_settings(_rename(sampling), asdict(self.model.config), asdict(csa))
        check_characters(files, self.model.config.name, self.model.checksums, settings)

    def _describe(
        self, output: StoryPipelineOutput, sampling: Mapping[str, Any], csa: ConsistentSelfAttentionConfig
    ) -> Recipe | None:
        """Return how a whole story was generated by its prompts; None for unknown weights, or without a U-Net."""
        model = self.model
        if model is None or not is_unet(self.pipe):
            return None
        panels = tuple(range(len(output.seeds)))
        rows = zip(output.prompts, output.negative_prompts, output.seeds, output.story.panels, strict=True)
        factor = self.pipe.vae_scale_factor
        return Recipe(
            descriptions={each.name: each.description for each in output.story.characters},
            model=model.config.name,
            weights=lambda: model.checksums,
            settings=describe_settings(_rename(sampling), asdict(model.config), asdict(csa)),
            csa=csa,
            images=tuple(
                SavedImage(number, prompt, negative, seed, panel.characters, panels)
                for number, (prompt, negative, seed, panel) in enumerate(rows)
            ),
            chosen=panels,
            shape=(self.pipe.unet.config.in_channels, sampling["height"] // factor, sampling["width"] // factor),
            windows=count_windows([self.pipe.tokenizer], [*output.prompts, *output.negative_prompts]),
        )

    @contextmanager
    def posing(self, story: Story, size: tuple[int, int], in_chunks: bool) -> Iterator[dict[str, Any]]:
        """Yield the pipeline's argument of the panels' pose maps in `size` (width, height), {} without a ControlNet.

        Raises:
            UserError: poses without a ControlNet.
        """
        controlnet = getattr(self.pipe, "controlnet", None)
        if controlnet is None:
            check_poses(story, has_controlnet=False)
            yield {}
            return
        with posed_panels_only(controlnet, story, in_chunks):
            yield {"image": read_poses(story, size)}


def find_unknown_words(tokenizer: Any, story: Story) -> list[str]:
    """Return the words of the story's prompts that the tokenizer does not know, each once."""
    prompts, _ = get_prompts(story)
    texts = [*prompts, story.negative, *(panel.negative for panel in story.panels)]
    return list(dict.fromkeys(word for text in texts for word in unknown_words(tokenizer, text)))


def get_sampling_defaults(config: ModelConfig) -> dict[str, Any]:
    """Return the default arguments of a pipeline's call from a model's configuration."""
    optional = {"guidance_rescale": config.guidance_rescale, "guidance_start": config.guidance_start}
    extra: dict[str, Any] = {name: value for name, value in optional.items() if value}
    if config.controlnet is not None:
        extra["controlnet_conditioning_scale"] = config.controlnet_scale
    return {
        **extra,
        "num_inference_steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "height": config.height,
        "width": config.width,
    }


def _rename(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call under the names of the configuration."""
    return {"steps": sampling["num_inference_steps"], **sampling}


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed from a generator, which then has moved on by one number."""
    return int(torch.randint(2**32, (), generator=generator, device=generator.device))
