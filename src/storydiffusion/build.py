"""Config → objects: the one place of construction. Heavy libraries are imported inside, once there is work for them."""

import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from storydiffusion.config import ConsistencyConfig, InferConfig, TrainConfig
from storydiffusion.errors import UserError
from storydiffusion.models import StoryModel, load_story_model, model_folder, origin_of, weights_of
from storydiffusion.output.files import sha256_of_file
from storydiffusion.output.manifest import Manifest, PanelRecord, installed_versions
from storydiffusion.story import Story, load_story, panel_prompts
from storydiffusion.storyworld.recipes import AutoencoderRecipe, ClipRecipe, JudgeRecipe

if TYPE_CHECKING:
    from storydiffusion.images import ConsistentSelfAttention
    from storydiffusion.output.run_folder import RunFolder
    from storydiffusion.storyworld.recipe_module import RecipeModule
    from storydiffusion.storyworld.training import Training


def story(config: InferConfig) -> Story:
    return load_story(config.story)


def model(config: InferConfig) -> StoryModel:
    return load_story_model(config.model)


def consistent_attention(config: ConsistencyConfig, seed: int) -> "ConsistentSelfAttention":
    """Raises UserError, with the key's name, for values that are out of range or do not go together."""
    from storydiffusion.images import ConsistentSelfAttention

    try:
        return ConsistentSelfAttention(**asdict(config), seed=seed)  # type: ignore[arg-type]  # it checks its strings
    except UserError as error:
        raise UserError(f"consistency.{error}") from error


def run_folder(config: InferConfig, story: Story) -> "RunFolder":
    """The story's folder, checked against what it may already hold."""
    from storydiffusion.output.run_folder import RunFolder

    folder = model_folder(config.model.path, config.model.revision)
    planned = Manifest(
        title=story.title,
        model=config.model.name,
        origin=origin_of(folder),
        config={**asdict(config), "script": asdict(story)},
        weights={name: sha256_of_file(file) for name, file in weights_of(folder).items()},
    )
    return RunFolder(str(config.run_dir), planned, config.overwrite)


def tell(
    config: InferConfig, story: Story, attention: "ConsistentSelfAttention", model: StoryModel, run: "RunFolder"
) -> None:
    """Tells `story` into `run`, from where an earlier telling stopped."""
    from storydiffusion.images.panels import panel_seeds, tell_panels, who_shares
    from storydiffusion.images.prompt_encoding import encode_prompts

    clock = time.perf_counter()
    prompts, characters = panel_prompts(story), [panel.characters for panel in story.panels]
    seeds = panel_seeds(config.seed, characters, config.noise)
    unknown = _unknown_words(model, [prompt.prompt for prompt in prompts])
    embeddings = encode_prompts(model.pipe, [p.prompt for p in prompts], [p.negative_prompt for p in prompts])
    arguments = {
        **embeddings.as_arguments(),
        "num_inference_steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "height": config.height,
        "width": config.width,
    }
    records = [
        PanelRecord("", prompt.prompt, prompt.negative_prompt, panel.caption, seed, "")
        for prompt, panel, seed in zip(prompts, story.panels, seeds, strict=True)
    ]
    with run.keeping_progress() as keep:
        pictures = tell_panels(model.pipe, arguments, seeds, attention, who_shares(characters), run.progress(), keep)
        run.finish(
            pictures,
            records,
            _settings(config) | ({"words unknown to the model": ", ".join(unknown)} if unknown else {}),
            versions=installed_versions() | {"device": str(model.device), "dtype": str(model.dtype)},
            seconds={"loading": round(model.seconds, 2), "telling": round(time.perf_counter() - clock, 2)},
        )


def _settings(config: InferConfig) -> dict[str, str | int | float | bool]:
    """What a reader of the report looks for first."""
    consistency = config.consistency
    return {
        "model": config.model.name,
        "consistency": consistency.semantics,
        "rate": str(consistency.rate),
        "sampler": consistency.sampler,
        "seed": config.seed,
        "noise": config.noise,
        "steps": config.steps or 0,
        "guidance scale": config.guidance_scale or 0.0,
        "size": f"{config.width} × {config.height}",
    }


def _unknown_words(model: StoryModel, prompts: list[str]) -> list[str]:
    """Names on stderr what the model's tokenizer has no word for."""
    from storydiffusion.images.prompt_encoding import unknown_words

    unknown = list(dict.fromkeys(word for text in prompts for word in unknown_words(model.pipe.tokenizer, text)))
    if unknown:
        print(f"warning: the model does not know these words of the prompts: {', '.join(unknown)}", file=sys.stderr)
    return unknown


def training(config: TrainConfig) -> "Training":
    """The module of `config.recipe` with its trainer, callbacks and logger, ready to fit."""
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar

    from storydiffusion.storyworld.training import Training
    from storydiffusion.training.csv_log import CSVLog
    from storydiffusion.training.stopwatch import Stopwatch
    from storydiffusion.training.weight_averaging import WeightAveraging

    average, stopwatch = WeightAveraging(config.recipe.average_decay), Stopwatch()
    checkpoints = ModelCheckpoint(
        f"{config.run_dir}/checkpoints",
        save_last=True,
        train_time_interval=timedelta(minutes=config.trainer.checkpoint_minutes),
    )
    trainer = L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        precision=config.trainer.precision,  # type: ignore[arg-type]  # one of config.PRECISIONS
        max_steps=config.recipe.steps,
        logger=CSVLog(config.run_dir),
        callbacks=[average, stopwatch, checkpoints, TQDMProgressBar(refresh_rate=config.trainer.log_every)],
        log_every_n_steps=config.trainer.log_every,
        enable_model_summary=False,
    )
    module = _recipe_module(config)
    if config.trainer.compile:
        for network in module.children():
            network.compile(dynamic=False)  # few shapes, each with code of its own
    return Training(module, trainer, average, stopwatch, checkpoints)


def _recipe_module(config: TrainConfig) -> "RecipeModule":
    """The module of each part; those that build on others load them from the miniature folder."""
    from storydiffusion.storyworld.autoencoder import AutoencoderModule
    from storydiffusion.storyworld.clip import ClipModule
    from storydiffusion.storyworld.judge import JudgeModule

    recipe = config.recipe
    if isinstance(recipe, AutoencoderRecipe):
        return AutoencoderModule(recipe)
    if isinstance(recipe, ClipRecipe):
        return ClipModule(recipe)
    if isinstance(recipe, JudgeRecipe):
        return JudgeModule(recipe)
    from storydiffusion.storyworld.text2image import Text2ImageModule

    return Text2ImageModule(recipe, model_folder(config.miniature, None), Path(config.cache))
